"""Transfers as clients write them: what is refused, and by which field and rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.core.addresses import Address
from services.core.errors import Reason, WalletError
from services.txbuilder.fees import Fees
from services.txbuilder.transfers import (
    Draft,
    Options,
    Terms,
    check_chain,
    check_options,
    resolve_call,
    resolve_data,
    resolve_erc20,
)

TOKEN = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
RECEIVER = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"


def test_a_token_transfer_by_name_calls_the_token() -> None:
    token, data = resolve_erc20(RECEIVER, TOKEN, "1000")
    assert token.hex() == TOKEN[2:].lower()
    # ERC-20: selector of transfer(address,uint256), then two words.
    assert data.hex() == "a9059cbb" + RECEIVER[2:].lower().rjust(64, "0") + f"{1000:064x}"


def test_a_call_by_signature_is_the_same_call() -> None:
    assert (
        resolve_call("transfer(address,uint256)", f'["{RECEIVER}", "1000"]')
        == resolve_erc20(RECEIVER, TOKEN, "1000")[1]
    )


@pytest.mark.parametrize(
    ("attempt", "reason", "field"),
    [
        (lambda: resolve_erc20("", TOKEN, "1"), Reason.INVALID_REQUEST, "to"),
        (lambda: resolve_erc20(RECEIVER, TOKEN.replace("F", "f"), "1"), Reason.INVALID_ADDRESS, "erc20.token"),
        (lambda: resolve_erc20(RECEIVER, TOKEN, "1.5"), Reason.INVALID_AMOUNT, "erc20.amount"),
        (lambda: resolve_erc20(RECEIVER, TOKEN, "-1"), Reason.INVALID_AMOUNT, "erc20.amount"),
        (lambda: resolve_erc20(RECEIVER, TOKEN, ""), Reason.INVALID_AMOUNT, "erc20.amount"),
        (lambda: resolve_data("0xabc"), Reason.INVALID_CALLDATA, "data"),
        (lambda: resolve_data("0x" + "00" * (128 * 1024 + 1)), Reason.INVALID_CALLDATA, "data"),
        (lambda: resolve_call("transfer(address,uint256)", "{}"), Reason.INVALID_CALLDATA, "call.arguments"),
        (lambda: resolve_call("transfer(address)", "[1, 2]"), Reason.INVALID_CALLDATA, "call.arguments"),
        (lambda: resolve_call("transfer (address)", "[1]"), Reason.INVALID_CALLDATA, "call.signature"),
        (lambda: check_chain("eip155:5", frozenset({"eip155:1"})), Reason.UNKNOWN_CHAIN, "chain_id"),
        (lambda: check_chain("solana:1", frozenset({"eip155:1"})), Reason.INVALID_REQUEST, "chain_id"),
        (lambda: check_options(Options(2, Fees(gas_price_wei=1))), Reason.INVALID_REQUEST, "gas_price_wei"),
        (
            lambda: check_options(Options(0, Fees(max_fee_per_gas_wei=1))),
            Reason.INVALID_REQUEST,
            "max_fee_per_gas_wei",
        ),
        (
            lambda: check_options(Options(2, Fees(max_fee_per_gas_wei=1, max_priority_fee_per_gas_wei=2))),
            Reason.INVALID_REQUEST,
            "max_priority_fee_per_gas_wei",
        ),
    ],
)
def test_what_is_refused_names_field_and_rule(attempt: Callable[[], object], reason: Reason, field: str) -> None:
    with pytest.raises(WalletError) as refused:
        attempt()
    assert refused.value.reason is reason
    assert refused.value.details["field"] == field
    assert refused.value.details["rule"]


@pytest.mark.parametrize("arguments", ['["0x00"]', '["0x00", "1", "2"]', '["nobody", "1"]', f'["{RECEIVER}", "x"]'])
def test_arguments_that_do_not_match_their_abi_are_refused(arguments: str) -> None:
    with pytest.raises(WalletError) as refused:
        resolve_call("transfer(address,uint256)", arguments)
    assert refused.value.reason is Reason.INVALID_CALLDATA
    assert refused.value.details["rule"]


def test_other_terms_or_options_are_another_request() -> None:
    terms = Terms(1, Address(b"\x01" * 20), Address(b"\x02" * 20), 5, b"")
    draft = Draft("t", terms, Options(2, Fees()))
    others = [
        Draft("t", Terms(1, terms.sender, None, 5, b""), draft.options),
        Draft("t", Terms(1, terms.sender, terms.to, 6, b""), draft.options),
        Draft("t", Terms(1, terms.sender, terms.to, 5, b"\x00"), draft.options),
        Draft("t", terms, Options(0, Fees())),
        Draft("t", terms, Options(2, Fees(gas_limit=21_000))),
    ]
    assert len({one.sha256 for one in [draft, *others]}) == len(others) + 1
    assert Draft("t", terms, Options(2, Fees())).sha256 == draft.sha256
