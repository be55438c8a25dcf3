"""What a transfer does, in one hash: approvals are bound to it, so that an altered transfer has none."""

from __future__ import annotations

from hashlib import sha256

from services.core.addresses import Address
from services.core.amounts import format_chain_id
from services.core.canonical import canonical_json, to_hex


def terms_sha256(chain_id: int, sender: Address, to: Address | None, value_wei: int, data: bytes) -> bytes:
    """SHA-256 of the canonical JSON {chain_id, data, from, to, value_wei}, written as in an intent's body.

    `to` None creates a contract. Nonce and fees are no terms: who approves does not decide about them.
    """
    return sha256(
        canonical_json(
            {
                "chain_id": format_chain_id(chain_id),
                "from": to_hex(sender),
                "to": None if to is None else to_hex(to),
                "value_wei": str(value_wei),
                "data": to_hex(data),
            }
        )
    ).digest()
