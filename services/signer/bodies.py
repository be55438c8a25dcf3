"""The evidence bodies that signer writes: intent and signature. Source: BUNDLE, "Bodies".

The two that every signature has are written as text, a fifth of the work of a general encoder: their members stand here
in canonical order, and what is not hex or a number goes through the encoder, once for as long as it repeats.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

from services.core.addresses import Address
from services.core.amounts import format_chain_id
from services.core.canonical import canonical_json, format_time, to_hex
from services.core.digests import Digest, Signature
from services.core.errors import Reason, WalletError
from services.core.transactions import UnsignedTransaction
from services.runtime.token import TokenIdentity
from services.signer.policy import Decision, Policy

ALGORITHM = "ecdsa_secp256k1"


class ClientSignature(NamedTuple):
    """The client's own signature of its request (RFC 9421), as gateway verified it."""

    algorithm: str
    content_sha256: bytes
    key_fingerprint: str
    public_key: bytes
    signature: bytes
    signature_base: bytes


class Requester(NamedTuple):
    """Who asked. Personal data: it goes into evidence bodies and nowhere else."""

    actor: str | None
    source_ip: str | None
    client_fingerprint: str | None
    requested_at: datetime
    client_signature: ClientSignature | None = None


class Intended(NamedTuple):
    """What an intent is about."""

    tx: UnsignedTransaction
    unsigned_tx: bytes
    digest: Digest
    sender: Address
    key_id: str
    key_version: int
    requester: Requester
    supersedes: str | None = None  # of a superseding link: whose nonce it spends, empty where nobody's


def intent_body(intended: Intended, policy: Policy, decision: Decision, approvals: tuple[bytes, ...] = ()) -> bytes:
    """Canonical JSON. `approvals` are the leaf hashes of those that counted."""
    tx, requester = intended.tx, intended.requester
    chain_id, sender = format_chain_id(tx.chain_id), intended.sender.hex()
    receiver = f'"0x{tx.to.hex()}"' if tx.to is not None else "null"
    supersedes = "" if intended.supersedes is None else f'"supersedes":{_text(intended.supersedes or None)},'
    return (
        f'{{"account":"{chain_id}:0x{sender}","actor":{_text(requester.actor)},"chain_id":"{chain_id}",'
        f'"client_fingerprint":{_text(requester.client_fingerprint)},{_signed(requester.client_signature)}"data":"0x{tx.data.hex()}","from":"0x{sender}",'
        f'"key_id":{_text(intended.key_id)},"key_version":{intended.key_version},'
        f'"policy":{_policy(policy.version, policy.sha256, decision, approvals)},'
        f'"requested_at":"{format_time(requester.requested_at)}","signing_digest":"0x{intended.digest.hex()}",'
        f'"source_ip":{_text(requester.source_ip)},{supersedes}"to":{receiver},'
        f'"tx_sign_hash":"0x{sha256(intended.unsigned_tx).hexdigest()}",'
        f'"unsigned_tx":"0x{intended.unsigned_tx.hex()}","value_wei":"{tx.value_wei}"}}'
    ).encode()


def signature_body(
    signature: Signature, raw_tx: bytes, tx_hash: bytes, duration_ms: float, token: TokenIdentity
) -> bytes:
    """Canonical JSON of a success."""
    return (
        f'{{"algorithm":"{ALGORITHM}","duration_ms":{_one_decimal(duration_ms)},"error":null,'
        f'"r":"0x{signature.r:064x}","raw_tx":"0x{raw_tx.hex()}","s":"0x{signature.s:064x}","status":"success",'
        f'"token":{_token_text(token)},"tx_hash":"0x{tx_hash.hex()}","y_parity":{signature.y_parity}}}'
    ).encode()


def failed_signature_body(error: WalletError, duration_ms: float, token: TokenIdentity) -> bytes:
    """Canonical JSON of a failure; `timeout` where the token did not answer in time."""
    return canonical_json(
        {
            "status": failure_status(error),
            "algorithm": ALGORITHM,
            "r": None,
            "s": None,
            "y_parity": None,
            "raw_tx": None,
            "tx_hash": None,
            "duration_ms": _one_decimal(duration_ms),
            "token": _token(token),
            "error": f"{error.reason.name}: {error.message}",
        }
    )


def failure_status(error: WalletError) -> str:
    return "timeout" if error.reason is Reason.TOKEN_TIMEOUT else "failed"


def _signed(signature: ClientSignature | None) -> str:
    """The member `client_signature`, or nothing."""
    if signature is None:
        return ""
    return (
        f'"client_signature":{{"algorithm":{_text(signature.algorithm)},'
        f'"content_sha256":"0x{signature.content_sha256.hex()}","key_fingerprint":{_text(signature.key_fingerprint)},'
        f'"public_key":"0x{signature.public_key.hex()}","signature":"0x{signature.signature.hex()}",'
        f'"signature_base":"0x{signature.signature_base.hex()}"}},'
    )


def _token(token: TokenIdentity) -> dict[str, str]:
    return {"label": token.label, "serial": token.serial, "library": token.library}


def _one_decimal(duration_ms: float) -> int | float:
    rounded = round(duration_ms, 1)
    # RFC 8785 writes 12.0 as 12.
    return int(rounded) if rounded.is_integer() else rounded


@lru_cache(maxsize=1_024)
def _text(value: str | None) -> str:
    return _json(value)


@lru_cache(maxsize=1_024)
def _policy(version: int, document_sha256: bytes, decision: Decision, approvals: tuple[bytes, ...]) -> str:
    members: dict[str, Any] = {
        "version": version,
        "sha256": to_hex(document_sha256),
        "decision": decision.word,
        "rules": decision.rules,
    }
    if approvals:
        members["approvals"] = [to_hex(one) for one in approvals]
    return _json(members)


@lru_cache(maxsize=16)
def _token_text(token: TokenIdentity) -> str:
    return _json(_token(token))


def _json(value: Any) -> str:
    return canonical_json(value).decode()
