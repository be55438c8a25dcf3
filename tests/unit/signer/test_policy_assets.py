"""Assets, accounts, hours and approvals of a policy: what counts as how much, and whose rule it is."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.core.addresses import Address
from services.core.errors import Reason, WalletError
from services.signer.contradictions import check_contradictions
from services.signer.policy import Decision, Policy, Terms
from services.signer.policy_document import parse_policy
from services.signer.rules import Asset, Window, names_of
from services.signer.token_calls import read_token_call
from tests.unit.signer.policies import (
    CLERK,
    DOCUMENT,
    ENEMY,
    FRIEND,
    NIGHT,
    NOON,
    OTHER_TOKEN,
    TOKEN,
    TREASURY,
    call,
    policy,
    transfer,
)

POLICY = policy()
APPROVERS = f"rules.assets.eip155:1/erc20:0x{TOKEN.hex()}.approvals.approvers"
KEY = "sha256:" + "5f" * 32
KEYED_BOB = f"{{name: bob, key: {KEY}}}"
TOKEN_PATH = f"assets.eip155:1/erc20:0x{TOKEN.hex()}"
OWN_PATH = f"accounts.eip155:1:0x{TREASURY.hex()}"


def decide(terms: Terms, sender: Address = CLERK, of: Policy = POLICY, fee_wei: int | None = None) -> Decision:
    return of.decide(terms, sender, (NOON,), fee_wei)


def token(data: bytes, value_wei: int = 0) -> Terms:
    return Terms(1, TOKEN, value_wei, data)


# What a call counts as


@pytest.mark.parametrize(
    "data",
    [
        transfer(600),
        call("transferFrom(address,address,uint256)", CLERK, FRIEND, 600),
        call("approve(address,uint256)", FRIEND, 600),
        call("increaseAllowance(address,uint256)", FRIEND, 600),
        call("increaseApproval(address,uint256)", FRIEND, 600),
    ],
)
def test_a_token_call_counts_as_the_amount_that_it_moves(data: bytes) -> None:
    decision = decide(token(data))
    assert decision.allowed
    assert decision.counted is not None
    assert (decision.counted.asset, decision.counted.amount) == (Asset(1, TOKEN), 600)
    assert decision.counted.windows == (Window(3600, 1500),)
    assert decision.approval is not None
    assert (decision.approval.needed, decision.approval.names) == (2, ("ann", "bob", "cid"))
    assert f"{TOKEN_PATH}.approvals: 2 above 500" in decision.rules
    assert f"{TOKEN_PATH}.velocity: at most 1500 in 3600 s" in decision.rules
    too_much = decide(token(data[:-32] + (1001).to_bytes(32, "big")))
    assert too_much.rules == (f"{TOKEN_PATH}.per_transfer: 1001 is above 1000",)
    unlimited = decide(token(data[:-32] + b"\xff" * 32))
    assert not unlimited.allowed


def test_the_coin_counts_as_its_value_whatever_is_called() -> None:
    for data in (b"", bytes.fromhex("deadbeef")):
        decision = decide(Terms(1, FRIEND, 50, data))
        assert decision.counted is not None
        assert (decision.counted.asset, decision.counted.amount) == (Asset(1, None), 50)
        assert not decide(Terms(1, FRIEND, 51, data)).allowed


def test_nothing_moved_is_nothing_counted() -> None:
    for terms in (Terms(1, FRIEND, 0, b""), token(transfer(0))):
        assert decide(terms).allowed
        assert decide(terms).counted is decide(terms).approval is None


@given(
    st.sampled_from(["transfer(address,uint256)", "approve(address,uint256)", "increaseAllowance(address,uint256)"]),
    st.integers(0, 2**256 - 1),
    st.binary(max_size=40),
    st.binary(min_size=12, max_size=12),
    st.integers(1, 67),
)
def test_no_encoding_hides_an_amount(signature: str, amount: int, tail: bytes, padding: bytes, cut: int) -> None:
    """What a contract could read as a larger amount than the policy does is refused."""
    good = call(signature, FRIEND, amount)
    for data in (good, good + tail, good[:4] + padding + good[16:], good[:cut]):
        read = read_token_call(data)
        decision = decide(token(data))
        if data == good:
            assert read is not None
            assert read.amount == amount
            assert decision.allowed == (amount <= 1000)
        else:
            assert not decision.allowed
            assert read is None or read.amount is None


@given(st.binary(min_size=1, max_size=140))
def test_a_token_with_a_rule_is_called_only_with_what_can_be_counted(data: bytes) -> None:
    decision = decide(token(data))
    read = read_token_call(data)
    assert decision.allowed == (read is not None and read.amount is not None and read.amount <= 1000)


def test_what_cannot_be_counted_has_to_be_listed() -> None:
    burn = call("burn(uint256)", 10**6)
    assert decide(token(burn)).rules == (
        f"{TOKEN_PATH}: 0x{burn[:4].hex()} moves who knows how much: it has to be listed",
    )
    listing = policy(("selectors: {allow: any", 'selectors: {allow: ["burn(uint256)"]'))
    assert decide(token(burn), of=listing).allowed
    # A contract without a rule may be called as the lists say.
    assert decide(Terms(1, FRIEND, 0, burn)).allowed


def test_a_token_that_is_not_listed_does_not_move() -> None:
    for data in (transfer(1), call("approve(address,uint256)", FRIEND, 1)):
        decision = decide(Terms(1, OTHER_TOKEN, 0, data))
        assert decision.rules == (f"assets: eip155:1/erc20:0x{OTHER_TOKEN.hex()} is not listed",)


def test_a_call_that_moves_a_token_carries_no_value() -> None:
    assert decide(token(transfer(1), value_wei=1)).rules == (
        f"{TOKEN_PATH}: a call that moves the token carries no value",
    )


@pytest.mark.parametrize(
    "data",
    [
        transfer(1, ENEMY),
        call("approve(address,uint256)", ENEMY, 1),
        call("increaseAllowance(address,uint256)", ENEMY, 1),
        call("transferFrom(address,address,uint256)", CLERK, ENEMY, 1),
        # With dirt before the address and bytes behind.
        transfer(1, ENEMY)[:4] + b"\x01" + transfer(1, ENEMY)[5:] + b"tail",
    ],
)
def test_a_denied_address_gets_no_tokens(data: bytes) -> None:
    assert decide(token(data)).rules == (f"destinations.deny: 0x{ENEMY.hex()}",)


# Whose rule it is


def test_an_account_has_its_own_limit_destinations_and_approvals() -> None:
    decision = decide(Terms(1, FRIEND, 2000, b""), TREASURY)
    assert decision.allowed
    assert decision.counted is None
    assert decision.approval is not None
    assert (decision.approval.needed, decision.approval.valid_s, decision.approval.approvers) == (1, 60, ())
    assert decision.rules == (
        "chains.allow: eip155:1",
        f"{OWN_PATH}.hours: open",
        f"{OWN_PATH}.assets.native.per_transfer: at most 5000",
        f"{OWN_PATH}.destinations.allow: 0x{FRIEND.hex()}",
        f"{OWN_PATH}.assets.native.approvals: 1 above 1000",
    )
    stranger = Address(b"\x99" * 20)
    assert decide(Terms(1, stranger, 1, b""), TREASURY).rules == (
        f"{OWN_PATH}.destinations.allow: 0x{stranger.hex()} is not listed",
    )
    # Elsewhere, and for another, the general rules.
    assert decide(Terms(10, stranger, 100, b""), TREASURY).allowed
    assert decide(Terms(1, stranger, 50, b"")).allowed
    # A token that the account does not mention is under the general rule.
    assert decide(token(transfer(1001)), TREASURY).rules == (f"{TOKEN_PATH}.per_transfer: 1001 is above 1000",)


def test_an_account_does_not_lift_a_general_denial() -> None:
    lifted = policy((f'allow: ["0x{FRIEND.hex()}"', f'allow: ["0x{ENEMY.hex()}"'))
    assert decide(Terms(1, ENEMY, 1, b""), TREASURY, lifted).rules == (f"destinations.deny: 0x{ENEMY.hex()}",)


def test_hours_have_to_be_open_by_every_clock() -> None:
    terms = Terms(1, FRIEND, 1, b"")
    assert POLICY.decide(terms, TREASURY, (NOON, NOON)).allowed
    for clocks in ((NIGHT,), (NOON, NIGHT), (NIGHT, NOON)):
        assert POLICY.decide(terms, TREASURY, clocks).rules == (f"{OWN_PATH}.hours: Tuesday 03:00 UTC is outside",)
    assert POLICY.decide(terms, CLERK, (NIGHT,)).allowed
    weekend = NOON.replace(day=28)
    assert not POLICY.decide(terms, TREASURY, (weekend,)).allowed
    assert POLICY.decide(terms, TREASURY, (NOON.replace(hour=8),)).allowed
    assert not POLICY.decide(terms, TREASURY, (NOON.replace(hour=18),)).allowed


def test_the_fee_has_a_cap_once_it_is_known() -> None:
    terms = Terms(1, FRIEND, 1, b"")
    assert decide(terms, fee_wei=1000).allowed
    assert decide(terms, fee_wei=1001).rules == ("limits.fee_wei: 1001 is above 1000",)
    assert decide(terms).allowed


# What is no policy


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("window_s: 86400", "window_s: 0"), "rules.assets.eip155:1/native.velocity[1].window_s"),
        (('limit: "200"', "limit: 1.5"), "rules.assets.eip155:1/native.velocity[1].limit"),
        (('{window_s: 3600, limit: "80"}', '{limit: "80"}'), "rules.assets.eip155:1/native.velocity[0].window_s"),
        (('per_transfer: "50"', 'per_transfr: "50"'), "rules.assets.eip155:1/native.per_transfr"),
        (('per_transfer: "50"\n', "\n"), "rules.assets.eip155:1/native.per_transfer"),
        (("eip155:1/native", "eip155:1/ether"), "rules.assets.eip155:1/ether"),
        (("eip155:1/native", "native"), "rules.assets.native"),
        (("count: 2", "count: 4"), f"rules.assets.eip155:1/erc20:0x{TOKEN.hex()}.approvals.approvers"),
        (("count: 2", "count: 0"), f"rules.assets.eip155:1/erc20:0x{TOKEN.hex()}.approvals.count"),
        (("[ann, bob, cid]", "[ann, ann]"), f"rules.assets.eip155:1/erc20:0x{TOKEN.hex()}.approvals.approvers"),
        (("[ann, bob, cid]", f"[ann, {{name: ann, key: {KEY}}}]"), APPROVERS),
        (("[ann, bob, cid]", "[ann, {name: bob}]"), f"{APPROVERS}[1].key"),
        (("[ann, bob, cid]", f"[ann, {{key: {KEY}}}]"), f"{APPROVERS}[1].name"),
        (("[ann, bob, cid]", f"[ann, {{name: bob, key: {KEY[:-1]}}}]"), f"{APPROVERS}[1].key"),
        (("[ann, bob, cid]", f"[ann, {{name: bob, key: {KEY}, role: x}}]"), f"{APPROVERS}[1].role"),
        (("name: everything", "name: everything\nchanges: {approvers: [ann]}"), "changes.approvers"),
        (("name: everything", "name: everything\nchanges: {count: 1}"), "changes.count"),
        (("[ann, bob, cid]", "[]"), f"rules.assets.eip155:1/erc20:0x{TOKEN.hex()}.approvals.approvers"),
        (('from: "08:00"', 'from: "19:00"'), f"{OWN_PATH}.hours[0].to"),
        (('from: "08:00"', 'from: "8:00"'), f"{OWN_PATH}.hours[0].from"),
        (("[mon, tue,", "[mon, tuesday,"), f"{OWN_PATH}.hours[0].days[1]"),
        (("eip155:1:0x", "eip155:1:0y"), f"accounts.eip155:1:0y{TREASURY.hex()}"),
        (("      native:", "      eip155:1/native:"), f"{OWN_PATH}.assets.eip155:1/native"),
        (("    hours:", "    hour:"), f"{OWN_PATH}.hour"),
    ],
)
def test_a_malformed_document_is_refused_with_the_path(change: tuple[str, str], field: str) -> None:
    with pytest.raises(WalletError) as refusal:
        policy(change)
    assert refusal.value.reason is Reason.INVALID_REQUEST
    assert refusal.value.details["field"] == field


def test_one_account_or_asset_is_named_once_however_it_is_written() -> None:
    for old, path in (
        (f"  eip155:1:0x{TREASURY.hex()}:\n", f"accounts.eip155:1:0x{TREASURY.hex().upper()}"),
        (f"    eip155:1/erc20:0x{TOKEN.hex()}:\n", f"rules.assets.eip155:1/erc20:0x{TOKEN.hex().upper()}"),
    ):
        start = DOCUMENT.index(old)
        indent = old[: len(old) - len(old.lstrip())]
        name = path.removeprefix("accounts.").removeprefix("rules.assets.")
        section = "{per_transfer: 1}" if "erc20" in name else "{}"
        twice = DOCUMENT[:start] + f"{indent}{name}: {section}\n" + DOCUMENT[start:]
        with pytest.raises(WalletError) as refusal:
            parse_policy(twice.encode())
        assert str(refusal.value.details["field"]).lower() == path.lower()
        assert "once" in str(refusal.value.details["rule"])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (
            (f'allow: ["0x{FRIEND.hex()}"', f'allow: ["0x{ENEMY.hex()}"'),
            f"{OWN_PATH}.destinations.allow",
        ),
        (("selectors: {allow: any", 'selectors: {allow: ["0xa22cb465"]'), "rules.selectors.allow"),
        (("destinations: {allow: any", f'destinations: {{allow: ["0x{ENEMY.hex()}"]'), "rules.destinations.allow"),
        (("fee_wei:", 'per_chain_wei: {"eip155:5": "1"}, fee_wei:'), "rules.limits.per_chain_wei.eip155:5"),
        (("fee_wei:", 'per_chain_wei: {"eip155:1": "1"}, fee_wei:'), "rules.limits.per_chain_wei.eip155:1"),
        (('"eip155:1", "eip155:10"', '"eip155:10"'), "rules.assets.eip155:1/native"),
        (('per_transfer: "50"', 'per_transfer: "81"'), "rules.assets.eip155:1/native.velocity"),
        (('limit: "200"', 'limit: "79"'), "rules.assets.eip155:1/native.velocity"),
        (("window_s: 86400", "window_s: 3600"), "rules.assets.eip155:1/native.velocity"),
        (('above: "500"', 'above: "1000"'), f"rules.assets.eip155:1/erc20:0x{TOKEN.hex()}.approvals.above"),
        (("[ann, bob, cid]", f"[ann, {KEYED_BOB}, {{name: cid, key: {KEY}}}]"), APPROVERS),
        (('deny: ["0x33', f'deny: ["0x{TOKEN.hex()}", "0x33'), f"rules.assets.eip155:1/erc20:0x{TOKEN.hex()}"),
    ],
)
def test_a_document_that_contradicts_itself_is_named_by_path(change: tuple[str, str], field: str) -> None:
    check_contradictions(POLICY)
    with pytest.raises(WalletError) as refusal:
        check_contradictions(policy(change))
    assert refusal.value.reason is Reason.INVALID_REQUEST
    assert refusal.value.details["field"] == field


def test_a_name_has_one_key_wherever_the_document_says_it() -> None:
    keyed = ("[ann, bob, cid]", f"[ann, {KEYED_BOB}, cid]")
    read = policy(keyed)
    check_contradictions(read)
    assert read.approver_keys == {"bob": KEY}
    changes = "name: everything\nchanges: {approvers: [ann, %s]}"
    plain = policy(keyed, ("name: everything", changes % "bob"))
    check_contradictions(plain)
    assert (names_of(plain.change_approvers), plain.approver_keys) == (("ann", "bob"), {"bob": KEY})
    for other in (f"{{name: bob, key: {KEY[:-1]}0}}", f"{{name: cid, key: {KEY}}}"):
        with pytest.raises(WalletError) as refusal:
            check_contradictions(policy(keyed, ("name: everything", changes % other)))
        assert refusal.value.reason is Reason.INVALID_REQUEST


def test_a_policy_names_its_accounts() -> None:
    assert POLICY.account_names() == [f"eip155:1:0x{TREASURY.hex()}"]
    assert POLICY.reads_clock
    assert not parse_policy(b"{version: 1, name: none, rules: {}}").reads_clock


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("native"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=8)
            | st.sampled_from(
                ["native", "per_transfer", "velocity", "approvals", "hours", "assets", "from", "to", "days"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(_json, st.sampled_from(["assets", "hours", "accounts"]))
def test_any_section_is_understood_or_refused_by_name(section: Any, name: str) -> None:
    document: dict[str, Any] = {"version": 1, "name": "any", "rules": {}}
    (document if name == "accounts" else document["rules"])[name] = section
    read = _policy_or_refusal(yaml.safe_dump(document).encode())
    if isinstance(read, Policy):
        assert not read.decide(Terms(1, FRIEND, 0, b""), TREASURY, (NOON,)).allowed
    else:
        assert read.reason is Reason.INVALID_REQUEST
        assert read.details["field"]


def _policy_or_refusal(document: bytes) -> Policy | WalletError:
    try:
        return parse_policy(document)
    except WalletError as error:
        return error
