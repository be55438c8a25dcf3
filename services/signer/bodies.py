"""The evidence bodies that signer writes: intent and signature. Source: BUNDLE, "Bodies"."""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256
from typing import NamedTuple

from services.core.addresses import Address
from services.core.amounts import format_account, format_chain_id
from services.core.canonical import canonical_json, format_time, to_hex
from services.core.digests import Digest, Signature
from services.core.errors import Reason, WalletError
from services.core.transactions import UnsignedTransaction
from services.runtime.token import TokenIdentity
from services.signer.policy import Decision, Policy

ALGORITHM = "ecdsa_secp256k1"


class Requester(NamedTuple):
    """Who asked. Personal data: it goes into evidence bodies and nowhere else."""

    actor: str | None
    source_ip: str | None
    client_fingerprint: str | None
    requested_at: datetime


class Intended(NamedTuple):
    """What an intent is about."""

    tx: UnsignedTransaction
    unsigned_tx: bytes
    digest: Digest
    sender: Address
    key_id: str
    key_version: int
    requester: Requester


def intent_body(intended: Intended, policy: Policy, decision: Decision) -> bytes:
    """Canonical JSON."""
    tx, requester = intended.tx, intended.requester
    return canonical_json(
        {
            "account": format_account(tx.chain_id, intended.sender),
            "chain_id": format_chain_id(tx.chain_id),
            "from": to_hex(intended.sender),
            "to": to_hex(tx.to) if tx.to is not None else None,
            "value_wei": str(tx.value_wei),
            "data": to_hex(tx.data),
            "unsigned_tx": to_hex(intended.unsigned_tx),
            "tx_sign_hash": to_hex(sha256(intended.unsigned_tx).digest()),
            "signing_digest": to_hex(intended.digest),
            "key_id": intended.key_id,
            "key_version": intended.key_version,
            "policy": {
                "version": policy.version,
                "sha256": to_hex(policy.sha256),
                "decision": decision.word,
                "rules": decision.rules,
            },
            "actor": requester.actor,
            "source_ip": requester.source_ip,
            "client_fingerprint": requester.client_fingerprint,
            "requested_at": format_time(requester.requested_at),
        }
    )


def signature_body(
    signature: Signature, raw_tx: bytes, tx_hash: bytes, duration_ms: float, token: TokenIdentity
) -> bytes:
    """Canonical JSON of a success."""
    return canonical_json(
        {
            "status": "success",
            "algorithm": ALGORITHM,
            "r": f"0x{signature.r:064x}",
            "s": f"0x{signature.s:064x}",
            "y_parity": signature.y_parity,
            "raw_tx": to_hex(raw_tx),
            "tx_hash": to_hex(tx_hash),
            "duration_ms": _one_decimal(duration_ms),
            "token": _token(token),
            "error": None,
        }
    )


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


def _token(token: TokenIdentity) -> dict[str, str]:
    return {"label": token.label, "serial": token.serial, "library": token.library}


def _one_decimal(duration_ms: float) -> int | float:
    rounded = round(duration_ms, 1)
    # RFC 8785 writes 12.0 as 12; an integer takes the encoder's short way.
    return int(rounded) if rounded.is_integer() else rounded
