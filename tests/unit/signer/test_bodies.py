"""Bodies that are written as text are the canonical JSON of their members."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.core.addresses import Address
from services.core.canonical import canonical_json, format_time, to_hex
from services.core.digests import CURVE_ORDER, Signature, keccak256
from services.core.transactions import Eip1559Transaction, encode_unsigned, signing_digest
from services.runtime.settings import SERVICES_DIR
from services.runtime.token import TokenIdentity
from services.signer.bodies import ClientSignature, Intended, Requester, intent_body, signature_body
from services.signer.policy import Decision
from services.signer.policy_document import parse_policy

_POLICY = parse_policy(Path(SERVICES_DIR / "signer" / "default_policy.yaml").read_bytes())
_texts = st.none() | st.text(max_size=40)
_addresses = st.binary(min_size=20, max_size=20).map(Address)
_transactions = st.builds(
    Eip1559Transaction,
    st.integers(1, 2**63 - 38),
    st.integers(0, 2**63 - 1),
    st.just(1),
    st.integers(1, 2**64),
    st.integers(0, 2**64 - 1),
    st.none() | _addresses,
    st.integers(0, 2**256 - 1),
    st.binary(max_size=80),
)
_times = st.datetimes(datetime(1970, 1, 2), datetime(9999, 1, 1)).map(lambda at: at.replace(tzinfo=UTC))
_client_signatures = st.builds(
    ClientSignature,
    st.text(max_size=20),
    st.binary(min_size=32, max_size=32),
    st.text(max_size=80),
    st.binary(max_size=100),
    st.binary(min_size=64, max_size=64),
    st.binary(max_size=200),
)
_requesters = st.builds(Requester, _texts, _texts, _texts, _times, st.none() | _client_signatures)
_decisions = st.builds(Decision, st.booleans(), st.lists(st.text(max_size=30), max_size=3).map(tuple))


@given(_transactions, _addresses, st.text(max_size=30), st.integers(1, 2**32 - 1), _requesters, _decisions)
def test_an_intent(
    tx: Eip1559Transaction, sender: Address, key_id: str, key_version: int, requester: Requester, decision: Decision
) -> None:
    unsigned_tx = encode_unsigned(tx)
    intended = Intended(tx, unsigned_tx, signing_digest(unsigned_tx), sender, key_id, key_version, requester)
    members: dict[str, Any] = {
        "account": f"eip155:{tx.chain_id}:{to_hex(sender)}",
        "chain_id": f"eip155:{tx.chain_id}",
        "from": to_hex(sender),
        "to": None if tx.to is None else to_hex(tx.to),
        "value_wei": str(tx.value_wei),
        "data": to_hex(tx.data),
        "unsigned_tx": to_hex(unsigned_tx),
        "tx_sign_hash": to_hex(sha256(unsigned_tx).digest()),
        "signing_digest": to_hex(keccak256(unsigned_tx)),
        "key_id": key_id,
        "key_version": key_version,
        "policy": {
            "version": _POLICY.version,
            "sha256": to_hex(_POLICY.sha256),
            "decision": "allow" if decision.allowed else "deny",
            "rules": list(decision.rules),
        },
        "actor": requester.actor,
        "source_ip": requester.source_ip,
        "client_fingerprint": requester.client_fingerprint,
        "requested_at": format_time(requester.requested_at),
    }
    if (signed := requester.client_signature) is not None:
        members["client_signature"] = {
            name: value if isinstance(value, str) else to_hex(value) for name, value in signed._asdict().items()
        }
    assert intent_body(intended, _POLICY, decision) == canonical_json(members)


@given(
    st.builds(Signature, st.integers(1, CURVE_ORDER - 1), st.integers(1, CURVE_ORDER // 2), st.integers(0, 1)),
    st.binary(max_size=80),
    st.floats(0, 1e9) | st.sampled_from([0.0, 0.04, 0.05, 3.0, 2999.96]),
    st.builds(TokenIdentity, st.text(max_size=20), st.text(max_size=20), st.text(max_size=20)),
)
def test_a_signature(signature: Signature, raw_tx: bytes, duration_ms: float, token: TokenIdentity) -> None:
    members: dict[str, Any] = {
        "status": "success",
        "algorithm": "ecdsa_secp256k1",
        "r": f"0x{signature.r:064x}",
        "s": f"0x{signature.s:064x}",
        "y_parity": signature.y_parity,
        "raw_tx": to_hex(raw_tx),
        "tx_hash": to_hex(keccak256(raw_tx)),
        "duration_ms": round(duration_ms, 1),
        "token": {"label": token.label, "serial": token.serial, "library": token.library},
        "error": None,
    }
    assert signature_body(signature, raw_tx, keccak256(raw_tx), duration_ms, token) == canonical_json(members)
