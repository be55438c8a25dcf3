"""From the intent's words to the signature's bytes: unsigned_tx ↔ fields ↔ hashes ↔ signature ↔ sender ↔ raw_tx."""

from dataclasses import dataclass
from hashlib import sha256

from sha3 import keccak_256

from tools.verify.body import FailedSignature, Intent, Signature
from tools.verify.client_signature import check_client_signature
from tools.verify.entry import Entry, of_kind
from tools.verify.refusal import Refused, quoted
from tools.verify.transaction import UnsignedTx, assemble_raw_tx, decode_unsigned_tx, recover_sender


@dataclass(frozen=True, slots=True)
class CheckedIntent:
    position: int
    at_us: int
    body: Intent
    transaction: UnsignedTx


@dataclass(frozen=True, slots=True)
class SignedTx:
    position: int
    at_us: int
    intent: CheckedIntent
    raw_tx: bytes
    tx_hash: bytes


def check_intents(entries: list[Entry], chain_ids: frozenset[str]) -> list[CheckedIntent]:
    """Every intent says what its unsigned transaction does, on a trusted chain, and all say the same."""
    intents = []
    for position, entry, intent in of_kind(entries, Intent):
        transaction = decode_unsigned_tx(intent.unsigned_tx)
        what = f"intent at step {position}: "
        if sha256(intent.unsigned_tx).digest() != intent.tx_sign_hash:
            raise Refused(what + "tx_sign_hash is not SHA-256(unsigned_tx)")
        if keccak_256(intent.unsigned_tx).digest() != intent.signing_digest:
            raise Refused(what + "signing_digest is not keccak-256(unsigned_tx)")
        if intent.chain_id not in chain_ids:
            raise Refused(what + f"chain_id {quoted(intent.chain_id)} is not trusted")
        if intent.account != f"{intent.chain_id}:0x{intent.sender.hex()}":
            raise Refused(what + "account is not chain_id and from")
        if intent.client_signature is not None:
            try:
                check_client_signature(intent.client_signature, intent.client_fingerprint)
            except Refused as refused:
                raise Refused(what + str(refused)) from None
        said = (intent.chain_number, intent.to, intent.value_wei, intent.data)
        done = (transaction.chain_number, transaction.to, transaction.value_wei, transaction.data)
        for name, ours, theirs in zip(("chain_id", "to", "value_wei", "data"), said, done, strict=True):
            if ours != theirs:
                raise Refused(what + f"{name} is not what unsigned_tx says")
        intents.append(CheckedIntent(position, entry.at_us, intent, transaction))
    if len({(i.body.chain_id, i.body.sender, *_purpose(i.transaction)) for i in intents}) > 1:
        raise Refused("the intents differ in chain_id, from, to, value_wei, data or nonce")
    return intents


def _purpose(transaction: UnsignedTx) -> tuple[bytes | None, int, bytes, int]:
    return transaction.to, transaction.value_wei, transaction.data, transaction.nonce


def check_signatures(entries: list[Entry], intents: list[CheckedIntent]) -> list[SignedTx]:
    """Every success is the sender's signature of the latest intent before it, one per intent."""
    signed: list[SignedTx] = []
    intent_at = {intent.position: intent for intent in intents}
    intent: CheckedIntent | None = None
    for position, entry in enumerate(entries):
        intent = intent_at.get(position, intent)
        signature = entry.body
        if not isinstance(signature, Signature | FailedSignature):
            continue
        what = f"signature at step {position}: "
        if intent is None:
            raise Refused(what + "no intent precedes it")
        if isinstance(signature, FailedSignature):
            continue
        if signed and signed[-1].intent is intent:
            raise Refused(what + "its intent already has a successful one")
        sender = recover_sender(intent.body.signing_digest, signature.y_parity, signature.r, signature.s)
        if sender != intent.body.sender:
            raise Refused(what + f"it is by 0x{sender.hex()}, not by the intent's from")
        if assemble_raw_tx(intent.transaction, signature.y_parity, signature.r, signature.s) != signature.raw_tx:
            raise Refused(what + "raw_tx is not unsigned_tx with this signature")
        if keccak_256(signature.raw_tx).digest() != signature.tx_hash:
            raise Refused(what + "tx_hash is not keccak-256(raw_tx)")
        signed.append(SignedTx(position, entry.at_us, intent, signature.raw_tx, signature.tx_hash))
    return signed
