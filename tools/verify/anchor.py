"""The anchor: the checkpoint as a transaction in a block that more than two thirds of the trusted validators signed."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tools.verify import cometbft, ed25519, fields, merkle
from tools.verify.checkpoint import Checkpoint
from tools.verify.cometbft import BlockId, Header, Timestamp
from tools.verify.refusal import Refused, quoted

_LEDGER = frozenset({"chain_id", "validators"})
_VALIDATOR = frozenset({"public_key", "power"})
_ANCHOR = frozenset({"header", "commit", "tx_proof"})
_HASHES = (
    *("last_commit_hash", "data_hash", "validators_hash", "next_validators_hash"),
    *("consensus_hash", "app_hash", "last_results_hash", "evidence_hash"),
)
_HEADER = frozenset({"version", "chain_id", "height", "time", "last_block_id", "proposer_address", *_HASHES})
_COMMIT = frozenset({"height", "round", "block_id", "signatures"})
_VOTE = frozenset({"block_id_flag", "validator_address", "timestamp", "signature"})
_TX_PROOF = frozenset({"root_hash", "data", "proof"})
_PROOF = frozenset({"total", "index", "leaf_hash", "aunts"})
_ABSENT, _FOR_BLOCK, _FOR_NIL = 1, 2, 3
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,19}")
_TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{0,8}[1-9]))?Z")
_ZERO_TIME = "0001-01-01T00:00:00Z"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OLD_SIZE = re.compile(r"old (0|[1-9][0-9]{0,18})")
_MAX_CONSISTENCY_PROOF = 63  # C2SP tlog-witness


@dataclass(frozen=True, slots=True)
class Validator:
    address: bytes
    public_key_bytes: bytes
    public_key: Ed25519PublicKey
    power: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """The trusted consortium; `validators` in the order of CometBFT's validator set."""

    chain_id: str
    validators: tuple[Validator, ...]
    validators_hash: bytes


def parse_ledger(value: object) -> Ledger:
    """`trust.ledger`. CometBFT's order: power falling, then address rising."""
    ledger = fields.exactly(value, _LEDGER, "trust.ledger")
    chain_id = fields.text(ledger["chain_id"], "trust.ledger.chain_id")
    if not chain_id or not chain_id.isprintable():
        raise Refused("trust.ledger.chain_id is not a name")
    validators = []
    for i, member in enumerate(fields.array(ledger["validators"], "trust.ledger.validators")):
        what = f"trust.ledger.validators[{i}]"
        validator = fields.exactly(member, _VALIDATOR, what)
        key = fields.base64(validator["public_key"], f"{what}.public_key", 32)
        power = fields.integer(validator["power"], f"{what}.power")
        if power < 1:
            raise Refused(f"{what}.power is 0")
        validators.append(Validator(sha256(key).digest()[:20], key, ed25519.load_public_key(key, what), power))
    if not validators or len({v.address for v in validators}) != len(validators):
        raise Refused("trust.ledger.validators is empty or repeats a key")
    validators.sort(key=lambda v: (-v.power, v.address))
    return Ledger(
        chain_id,
        tuple(validators),
        cometbft.validators_hash([(v.public_key_bytes, v.power) for v in validators]),
    )


def check_anchor(value: object, checkpoint: Checkpoint, ledger: Ledger) -> int:
    """The height of the block that anchors `checkpoint`."""
    anchor = fields.exactly(value, _ANCHOR, "anchor")
    header = _parse_header(anchor["header"])
    if header.chain_id != ledger.chain_id:
        raise Refused(f"anchor.header.chain_id is {quoted(header.chain_id)}, not the trusted ledger's")
    if header.validators_hash != ledger.validators_hash:
        raise Refused("anchor.header.validators_hash is not the hash of the trusted validators")
    _check_commit(anchor["commit"], header, ledger)
    _check_transaction(anchor["tx_proof"], header, checkpoint)
    return header.height


def _parse_header(value: object) -> Header:
    header = fields.exactly(value, _HEADER, "anchor.header")
    version = fields.at_least(header["version"], frozenset({"block"}), "anchor.header.version")
    # CometBFT leaves `app` out where it is zero.
    fields.exactly(version, frozenset({"block", "app"} & version.keys()), "anchor.header.version")
    version_app = _decimal(version["app"], "anchor.header.version.app") if "app" in version else 0
    if "app" in version and version_app == 0:
        raise Refused("anchor.header.version.app is written although zero")
    hashes = {name: _hash(header[name], f"anchor.header.{name}") for name in _HASHES if name != "app_hash"}
    return Header(
        version_block=_decimal(version["block"], "anchor.header.version.block"),
        version_app=version_app,
        chain_id=fields.text(header["chain_id"], "anchor.header.chain_id"),
        height=_decimal(header["height"], "anchor.header.height", bits=63),
        time=_time(header["time"], "anchor.header.time"),
        last_block_id=_block_id(header["last_block_id"], "anchor.header.last_block_id"),
        app_hash=_upper_hex(header["app_hash"], "anchor.header.app_hash"),  # of any length: the application's own
        proposer_address=_upper_hex(header["proposer_address"], "anchor.header.proposer_address", 20),
        **hashes,
    )


def _check_commit(value: object, header: Header, ledger: Ledger) -> None:
    commit = fields.exactly(value, _COMMIT, "anchor.commit")
    if _decimal(commit["height"], "anchor.commit.height", bits=63) != header.height:
        raise Refused("anchor.commit.height is not the header's")
    commit_round = fields.integer(commit["round"], "anchor.commit.round")
    if commit_round >= 2**31:
        raise Refused("anchor.commit.round is not an int32")
    block_id = _block_id(commit["block_id"], "anchor.commit.block_id")
    if block_id.block_hash != cometbft.header_hash(header):
        raise Refused("anchor.commit.block_id.hash is not the header's hash")
    votes = fields.array(commit["signatures"], "anchor.commit.signatures")
    if len(votes) != len(ledger.validators):
        raise Refused(f"anchor.commit has {len(votes)} signatures for {len(ledger.validators)} validators")
    power_for_block = 0
    for i, (member, validator) in enumerate(zip(votes, ledger.validators, strict=True)):
        what = f"anchor.commit.signatures[{i}]"
        vote = fields.exactly(member, _VOTE, what)
        flag = fields.integer(vote["block_id_flag"], f"{what}.block_id_flag")
        if flag == _ABSENT:
            if (vote["validator_address"], vote["timestamp"], vote["signature"]) != ("", _ZERO_TIME, None):
                raise Refused(f"{what} is absent and yet says something")
            continue
        if flag not in (_FOR_BLOCK, _FOR_NIL):
            raise Refused(f"{what}.block_id_flag is {flag}")
        if _upper_hex(vote["validator_address"], f"{what}.validator_address", 20) != validator.address:
            raise Refused(f"{what}.validator_address is not the trusted validator's")
        message = cometbft.precommit_sign_bytes(
            header.chain_id,
            header.height,
            commit_round,
            block_id if flag == _FOR_BLOCK else None,
            _time(vote["timestamp"], f"{what}.timestamp"),
        )
        if not ed25519.is_valid(validator.public_key, fields.base64(vote["signature"], f"{what}.signature"), message):
            raise Refused(f"{what} is not a valid signature of this vote")
        if flag == _FOR_BLOCK:
            power_for_block += validator.power
    total = sum(v.power for v in ledger.validators)
    if power_for_block * 3 <= total * 2:
        raise Refused(f"power {power_for_block} of {total} signed the block, not more than two thirds")


def _check_transaction(value: object, header: Header, checkpoint: Checkpoint) -> None:
    tx_proof = fields.exactly(value, _TX_PROOF, "anchor.tx_proof")
    if _hash(tx_proof["root_hash"], "anchor.tx_proof.root_hash") != header.data_hash:
        raise Refused("anchor.tx_proof.root_hash is not the header's data_hash")
    transaction = fields.base64(tx_proof["data"], "anchor.tx_proof.data")
    proof = fields.exactly(tx_proof["proof"], _PROOF, "anchor.tx_proof.proof")
    # CometBFT: the leaves of the block's tree are the SHA-256 of its transactions.
    leaf = merkle.leaf_hash(sha256(transaction).digest())
    if fields.base64(proof["leaf_hash"], "anchor.tx_proof.proof.leaf_hash", 32) != leaf:
        raise Refused("anchor.tx_proof.proof.leaf_hash is not the transaction's")
    root = merkle.root_by_proof(
        leaf,
        _decimal(proof["index"], "anchor.tx_proof.proof.index", bits=63),
        _decimal(proof["total"], "anchor.tx_proof.proof.total", bits=63),
        [
            fields.base64(aunt, "anchor.tx_proof.proof.aunts", 32)
            for aunt in fields.array(proof["aunts"], "anchor.tx_proof.proof.aunts")
        ],
        "anchor.tx_proof",
    )
    if root != header.data_hash:
        raise Refused("anchor.tx_proof does not lead to the header's data_hash")
    _check_add_checkpoint(transaction, checkpoint)


def _check_add_checkpoint(transaction: bytes, checkpoint: Checkpoint) -> None:
    """A C2SP tlog-witness add-checkpoint body: "old N", consistency proof lines, a blank line, the note."""
    head, separator, note = transaction.partition(b"\n\n")
    if not separator or note != checkpoint.note.encode():
        raise Refused("the anchored transaction does not carry this checkpoint")
    old, *proof = head.decode(errors="replace").split("\n")
    match = _OLD_SIZE.fullmatch(old)
    if match is None:
        raise Refused("the anchored transaction does not begin with its old size")
    for line in proof:
        fields.base64(line, "the anchored consistency proof", 32)
    old_size = int(match[1])
    if old_size > checkpoint.tree_size or len(proof) > _MAX_CONSISTENCY_PROOF:
        raise Refused("the anchored transaction does not extend a smaller tree")
    if proof and old_size in (0, checkpoint.tree_size):
        raise Refused("the anchored transaction proves what needs no proof")


def _block_id(value: object, what: str) -> BlockId:
    block_id = fields.exactly(value, frozenset({"hash", "parts"}), what)
    parts = fields.exactly(block_id["parts"], frozenset({"total", "hash"}), f"{what}.parts")
    total = fields.integer(parts["total"], f"{what}.parts.total")
    if total >= 2**32:
        raise Refused(f"{what}.parts.total is not a uint32")
    return BlockId(_hash(block_id["hash"], f"{what}.hash"), total, _hash(parts["hash"], f"{what}.parts.hash"))


def _decimal(value: object, what: str, bits: int = 64) -> int:
    """CometBFT writes 64-bit integers as decimal strings."""
    if type(value) is not str or not _DECIMAL.fullmatch(value) or (number := int(value)) >= 2**bits:
        raise Refused(f"{what} is {quoted(value)}, not a decimal string of {bits} bits")
    return number


def _upper_hex(value: object, what: str, size: int | None = None) -> bytes:
    octets = fields.octets("0x" + text.lower(), what) if (text := fields.text(value, what)).isascii() else None
    if octets is None or octets.hex().upper() != text or (size is not None and len(octets) != size):
        raise Refused(f"{what} is {quoted(value)}, not upper-case hex{'' if size is None else f' of {size} bytes'}")
    return octets


def _hash(value: object, what: str) -> bytes:
    """32 bytes, or empty where CometBFT has none (the first block's predecessor)."""
    octets = _upper_hex(value, what)
    if len(octets) not in (0, 32):
        raise Refused(f"{what} has {len(octets)} bytes, not 32")
    return octets


def _time(value: object, what: str) -> Timestamp:
    """RFC 3339 with up to nine digits and no trailing zeros, as Go writes it."""
    match = _TIME.fullmatch(value) if type(value) is str else None
    if match is not None:
        try:
            second = datetime.fromisoformat(match[1] + "+00:00")
        except ValueError:
            pass
        else:
            since = second - _EPOCH
            return Timestamp(since.days * 86_400 + since.seconds, int((match[2] or "").ljust(9, "0")))
    raise Refused(f"{what} is {quoted(value)}, not a time")
