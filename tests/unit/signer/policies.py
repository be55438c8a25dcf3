"""A policy document that says everything, and what tests take from it."""

from __future__ import annotations

from datetime import UTC, datetime

from services.core.abi import encode_call
from services.core.addresses import Address
from services.signer.policy import Policy
from services.signer.policy_document import parse_policy

TREASURY = Address(b"\xdd" * 20)
CLERK = Address(b"\x55" * 20)
FRIEND = Address(b"\x11" * 20)
ENEMY = Address(b"\x33" * 20)
COIN_CHAIN = 1
TOKEN = Address(b"\xaa" * 20)
OTHER_TOKEN = Address(b"\xbb" * 20)
NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)  # a Tuesday
NIGHT = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)

DOCUMENT = f"""
version: 7
name: everything
rules:
  chains: {{allow: ["eip155:1", "eip155:10"]}}
  destinations: {{allow: any, deny: ["0x{ENEMY.hex()}"]}}
  limits: {{per_transfer_wei: "100", fee_wei: "1000"}}
  selectors: {{allow: any, deny: ["setApprovalForAll(address,bool)"]}}
  contract_creation: deny
  assets:
    eip155:1/native:
      per_transfer: "50"
      velocity:
        - {{window_s: 3600, limit: "80"}}
        - {{window_s: 86400, limit: "200"}}
    eip155:1/erc20:0x{TOKEN.hex()}:
      per_transfer: "1000"
      velocity: [{{window_s: 3600, limit: "1500"}}]
      approvals: {{above: "500", count: 2, valid_s: 3600, approvers: [ann, bob, cid]}}
accounts:
  eip155:1:0x{TREASURY.hex()}:
    destinations: {{allow: ["0x{FRIEND.hex()}", "0x{TOKEN.hex()}"]}}
    hours:
      - {{days: [mon, tue, wed, thu, fri], from: "08:00", to: "18:00"}}
    assets:
      native:
        per_transfer: "5000"
        approvals: {{above: "1000", count: 1, valid_s: 60}}
"""


def policy(*changes: tuple[str, str]) -> Policy:
    text = DOCUMENT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parse_policy(text.encode())


def call(signature: str, *arguments: object) -> bytes:
    return encode_call(signature, [f"0x{one.hex()}" if isinstance(one, bytes) else one for one in arguments])


def transfer(amount: int, to: Address = FRIEND) -> bytes:
    return call("transfer(address,uint256)", to, amount)
