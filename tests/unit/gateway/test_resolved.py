"""A builder that resolves something else is noticed before the transfer is accepted."""

from __future__ import annotations

from typing import Any

import pytest

from protos.wallet.v1 import common_pb2, keys_pb2
from services.core.addresses import parse_address
from services.core.errors import Reason, WalletError
from services.gateway.requests import TransferRequest
from services.gateway.resolved import check_resolved
from services.txbuilder.transfers import resolve_call, resolve_erc20

TO = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
TOKEN = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
ACCOUNT = keys_pb2.Account(account_id="a", chain_id="eip155:31337", address=b"\x11" * 20)
ARGUMENTS: list[Any] = [TO, "7"]


def terms(to: bytes, value_wei: str, data: bytes) -> common_pb2.Terms:
    return common_pb2.Terms(
        chain_id="eip155:31337", from_address=b"\x11" * 20, to_address=to, value_wei=value_wei, data=data
    )


CASES = {
    "plain": ({"to": TO, "value_wei": "5"}, terms(parse_address(TO, "to"), "5", b"")),
    "data": ({"to": TO, "data": "0xABcd"}, terms(parse_address(TO, "to"), "0", b"\xab\xcd")),
    "creation": ({"data": "0x60"}, terms(b"", "0", b"\x60")),
    "call": (
        {"to": TOKEN, "call": {"signature": "approve(address,uint256)", "arguments": ARGUMENTS}},
        terms(parse_address(TOKEN, "to"), "0", resolve_call("approve(address,uint256)", f'["{TO}", "7"]')),
    ),
    "erc20": (
        {"to": TO, "erc20": {"token": TOKEN, "amount": "7"}},
        terms(parse_address(TOKEN, "to"), "0", resolve_erc20(TO, TOKEN, "7")[1]),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_was_asked_for_passes_and_any_other_field_is_named(case: str) -> None:
    body, resolved = CASES[case]
    request = TransferRequest.model_validate({"account_id": "a", **body})
    check_resolved(request, ACCOUNT, resolved)
    changes: dict[str, tuple[str, Any]] = {
        "chain_id": ("chain_id", "eip155:1"),
        "from": ("from_address", b"\x12" * 20),
        "to": ("to_address", b"\x13" * 20),
        "value_wei": ("value_wei", "6"),
        "data": ("data", resolved.data + b"\x00"),
    }
    for field, (name, value) in changes.items():
        other = common_pb2.Terms()
        other.CopyFrom(resolved)
        setattr(other, name, value)
        with pytest.raises(WalletError) as refused:
            check_resolved(request, ACCOUNT, other)
        assert refused.value.reason is Reason.TERMS_MISMATCH
        assert refused.value.details["field"] == field
