"""CometBFT's hashes and sign-bytes, written by hand. Source: CometBFT v0.38 spec, core/data_structures and encoding.

Protobuf here is its canonical form: fields in order, zero values left out, embedded non-nullable messages kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tools.verify import merkle

_PRECOMMIT = 2


@dataclass(frozen=True, slots=True)
class Timestamp:
    """Seconds since 1970 (negative before) and nanoseconds."""

    seconds: int
    nanos: int


@dataclass(frozen=True, slots=True)
class BlockId:
    block_hash: bytes
    parts_total: int
    parts_hash: bytes


@dataclass(frozen=True, slots=True)
class Header:
    version_block: int
    version_app: int
    chain_id: str
    height: int
    time: Timestamp
    last_block_id: BlockId
    last_commit_hash: bytes
    data_hash: bytes
    validators_hash: bytes
    next_validators_hash: bytes
    consensus_hash: bytes
    app_hash: bytes
    last_results_hash: bytes
    evidence_hash: bytes
    proposer_address: bytes


def header_hash(header: Header) -> bytes:
    """Merkle root of the header's fourteen encoded fields."""
    return merkle.root_of(
        [
            _integer(1, header.version_block) + _integer(2, header.version_app),
            _octets(1, header.chain_id.encode()),
            _integer(1, header.height),
            _timestamp(header.time),
            _block_id(header.last_block_id),
            _octets(1, header.last_commit_hash),
            _octets(1, header.data_hash),
            _octets(1, header.validators_hash),
            _octets(1, header.next_validators_hash),
            _octets(1, header.consensus_hash),
            _octets(1, header.app_hash),
            _octets(1, header.last_results_hash),
            _octets(1, header.evidence_hash),
            _octets(1, header.proposer_address),
        ]
    )


def validators_hash(validators: Sequence[tuple[bytes, int]]) -> bytes:
    """Hash of (Ed25519 public key, power) pairs in the validator set's order."""
    return merkle.root_of([_embedded(1, _octets(1, key)) + _integer(2, power) for key, power in validators])


def precommit_sign_bytes(
    chain_id: str, height: int, commit_round: int, block_id: BlockId | None, time: Timestamp
) -> bytes:
    """What a validator signs when it precommits `block_id` (None: nil)."""
    vote = (
        _integer(1, _PRECOMMIT)
        + _fixed64(2, height)
        + _fixed64(3, commit_round)
        + (b"" if block_id is None else _embedded(4, _block_id(block_id)))
        + _embedded(5, _timestamp(time))
        + _octets(6, chain_id.encode())
    )
    return _varint(len(vote)) + vote


def _block_id(block_id: BlockId) -> bytes:
    parts = _integer(1, block_id.parts_total) + _octets(2, block_id.parts_hash)
    return _octets(1, block_id.block_hash) + _embedded(2, parts)


def _timestamp(time: Timestamp) -> bytes:
    return _integer(1, time.seconds) + _integer(2, time.nanos)


def _varint(number: int) -> bytes:
    number &= 2**64 - 1  # a negative int64 is written as its two's complement
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _integer(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number) if number else b""


def _fixed64(field: int, number: int) -> bytes:
    return _varint(field << 3 | 1) + number.to_bytes(8, "little") if number else b""


def _octets(field: int, value: bytes) -> bytes:
    return _embedded(field, value) if value else b""


def _embedded(field: int, message: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(message)) + message
