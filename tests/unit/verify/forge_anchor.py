"""Anchors made by hand: a block of a ledger whose validators' keys are ours. Hashes and sign-bytes are the verifier's
own (the `anchored` vector checks those against a real chain); what is made here is what they are made of."""

import base64
from dataclasses import dataclass, field
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.unit.verify.forge import Tree
from tools.verify import cometbft
from tools.verify.cometbft import BlockId, Header, Timestamp

CHAIN_ID = "ledger-test"
ABSENT, FOR_BLOCK, FOR_NIL = 1, 2, 3
ABSENT_VOTE = {
    "block_id_flag": ABSENT,
    "validator_address": "",
    "timestamp": "0001-01-01T00:00:00Z",
    "signature": None,
}
TIME = Timestamp(1_767_323_045, 120_000_000)
TIME_TEXT = "2026-01-02T03:04:05.12Z"


@dataclass
class Validator:
    seed: int
    power: int = 1

    @property
    def key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(bytes([self.seed]) * 32)

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    @property
    def address(self) -> bytes:
        return sha256(self.public).digest()[:20]


@dataclass
class Ledger:
    """Validators in CometBFT's order: power falling, address rising. `flags` are their votes in that order."""

    powers: tuple[int, ...] = (1, 1, 1, 1)
    flags: tuple[int, ...] = (FOR_BLOCK, FOR_BLOCK, FOR_BLOCK, ABSENT)
    other_transactions: tuple[bytes, ...] = (b"other", b"another")
    commit_round: int = 0
    app_hash: bytes = b"\x05" * 8
    version_app: int = 1
    parts_total: int = 1
    evidence_hash: bytes = b"\x08" * 32
    old: str = "old 0\n"
    validators: list[Validator] = field(init=False)

    def __post_init__(self) -> None:
        unsorted = [Validator(seed + 1, power) for seed, power in enumerate(self.powers)]
        self.validators = sorted(unsorted, key=lambda v: (-v.power, v.address))

    def trust(self) -> dict:
        members = [{"public_key": base64.b64encode(v.public).decode(), "power": v.power} for v in self.validators]
        return {"chain_id": CHAIN_ID, "validators": members[::-1]}

    def anchor(self, note: str) -> dict:
        transactions = [*self.other_transactions, f"{self.old}\n{note}".encode()]
        index = len(transactions) - 1
        tree = Tree.over([sha256(b"\0" + sha256(tx).digest()).digest() for tx in transactions])
        header = Header(
            version_block=11,
            version_app=self.version_app,
            chain_id=CHAIN_ID,
            height=9,
            time=TIME,
            last_block_id=BlockId(b"\x01" * 32, 1, b"\x02" * 32),
            last_commit_hash=b"\x03" * 32,
            data_hash=tree.levels[-1][0],
            validators_hash=cometbft.validators_hash([(v.public, v.power) for v in self.validators]),
            next_validators_hash=b"\x04" * 32,
            consensus_hash=b"\x06" * 32,
            app_hash=self.app_hash,
            last_results_hash=b"\x07" * 32,
            evidence_hash=self.evidence_hash,
            proposer_address=b"\x09" * 20,
        )
        block_id = BlockId(cometbft.header_hash(header), self.parts_total, b"\x0a" * 32)
        return {
            "header": _header_json(header),
            "commit": {
                "height": "9",
                "round": self.commit_round,
                "block_id": _block_id_json(block_id),
                "signatures": [
                    self._vote(v, flag, block_id) for v, flag in zip(self.validators, self.flags, strict=True)
                ],
            },
            "tx_proof": {
                "root_hash": _upper(header.data_hash),
                "data": base64.b64encode(transactions[index]).decode(),
                "proof": {
                    "total": str(len(transactions)),
                    "index": str(index),
                    "leaf_hash": base64.b64encode(tree.levels[0][index]).decode(),
                    "aunts": [base64.b64encode(h).decode() for h in tree.proof(index)],
                },
            },
        }

    def _vote(self, validator: Validator, flag: int, block_id: BlockId) -> dict:
        if flag == ABSENT:
            return dict(ABSENT_VOTE)
        voted = block_id if flag == FOR_BLOCK else None
        message = cometbft.precommit_sign_bytes(CHAIN_ID, 9, self.commit_round, voted, TIME)
        return {
            "block_id_flag": flag,
            "validator_address": _upper(validator.address),
            "timestamp": TIME_TEXT,
            "signature": base64.b64encode(validator.key.sign(message)).decode(),
        }


def _upper(data: bytes) -> str:
    return data.hex().upper()


def _block_id_json(block_id: BlockId) -> dict:
    parts = {"total": block_id.parts_total, "hash": _upper(block_id.parts_hash)}
    return {"hash": _upper(block_id.block_hash), "parts": parts}


def _header_json(header: Header) -> dict:
    hashes = {
        name: _upper(getattr(header, name))
        for name in Header.__dataclass_fields__
        if name.endswith("_hash") or name == "proposer_address"
    }
    version = {"block": str(header.version_block)}
    if header.version_app:
        version["app"] = str(header.version_app)
    return hashes | {
        "version": version,
        "chain_id": header.chain_id,
        "height": str(header.height),
        "time": TIME_TEXT,
        "last_block_id": _block_id_json(header.last_block_id),
    }
