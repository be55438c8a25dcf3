"""The policy document and its decisions."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.core.addresses import Address
from services.core.errors import Reason, WalletError
from services.signer.policy import Policy, Terms
from services.signer.policy_document import parse_policy

DEFAULT_POLICY = Path(__file__).parents[3] / "services" / "signer" / "default_policy.yaml"
SENDER = Address(b"\x44" * 20)
FRIEND = Address(b"\x11" * 20)
STRANGER = Address(b"\x22" * 20)
ENEMY = Address(b"\x33" * 20)
TRANSFER = bytes.fromhex("a9059cbb")

DOCUMENT = """
version: 3
name: treasury
rules:
  chains: {allow: ["eip155:1", "eip155:10"]}
  destinations:
    allow: [0x1111111111111111111111111111111111111111]
    deny: [0x3333333333333333333333333333333333333333]
  limits: {per_transfer_wei: 100, per_chain_wei: {"eip155:10": "5"}}
  selectors: {allow: ["transfer(address,uint256)"], deny: ["0x095ea7b3"]}
  contract_creation: deny
"""


def _policy(text: str = DOCUMENT) -> Policy:
    return parse_policy(text.encode())


def _call(receiver: Address, selector: bytes = TRANSFER) -> bytes:
    return selector + bytes(12) + receiver + bytes(32)


@pytest.mark.parametrize(
    ("terms", "rule"),
    [
        (Terms(2, FRIEND, 1, b""), "chains.allow: eip155:2 is not listed"),
        (Terms(1, FRIEND, 101, b""), "limits.per_transfer_wei: 101 is above 100"),
        (Terms(10, FRIEND, 6, b""), "limits.per_chain_wei.eip155:10: 6 is above 5"),
        (Terms(1, STRANGER, 1, b""), "destinations.allow: 0x" + "22" * 20 + " is not listed"),
        (Terms(1, ENEMY, 1, b""), "destinations.deny: 0x" + "33" * 20),
        (Terms(1, None, 0, b"\x60"), "contract_creation: deny"),
        (Terms(1, FRIEND, 0, _call(STRANGER, bytes.fromhex("095ea7b3"))), "selectors.deny: 0x095ea7b3"),
        (Terms(1, FRIEND, 0, bytes.fromhex("deadbeef")), "selectors.allow: 0xdeadbeef is not listed"),
        (Terms(1, FRIEND, 0, b"\xa9\x05"), "selectors.allow: 0xa905 is not listed"),
        # Tokens for a denied address are denied as ether is.
        (Terms(1, FRIEND, 0, _call(ENEMY)), "destinations.deny: 0x" + "33" * 20),
    ],
)
def test_what_is_denied_and_by_which_rule(terms: Terms, rule: str) -> None:
    decision = _policy().decide(terms, SENDER, ())
    assert not decision.allowed
    assert decision.word == "deny"
    assert decision.rules == (rule,)


def test_what_is_allowed_names_every_rule_that_allowed_it() -> None:
    decision = _policy().decide(Terms(1, FRIEND, 100, _call(STRANGER)), SENDER, ())
    assert decision.allowed
    assert decision.word == "allow"
    assert decision.rules == (
        "chains.allow: eip155:1",
        "limits.per_transfer_wei: at most 100",
        "destinations.allow: 0x" + "11" * 20,
        "selectors.allow: 0xa9059cbb",
    )
    assert _policy().decide(Terms(10, FRIEND, 5, b""), SENDER, ()).allowed


def test_an_empty_policy_allows_nothing() -> None:
    policy = _policy("{version: 1, name: nothing, rules: {}}")
    for terms in (Terms(1, FRIEND, 0, b""), Terms(1, None, 0, b"\x60")):
        assert not policy.decide(terms, SENDER, ()).allowed


def test_the_document_is_named_by_its_bytes() -> None:
    policy = _policy()
    assert (policy.version, policy.name) == (3, "treasury")
    assert policy.sha256 == sha256(DOCUMENT.encode()).digest()
    assert policy.sha256 != _policy(DOCUMENT + "#").sha256


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("version: 3", "version: 0"), "policy.version"),
        (("version: 3", "version: 3.5"), "policy.version"),
        (("version: 3", "version: [3]"), "policy.version"),
        (("version: 3\n", ""), "policy.version"),
        (("name: treasury", "nmae: treasury"), "policy.nmae"),
        (("contract_creation: deny", "contract_creation: no"), "rules.contract_creation"),
        (("contract_creation: deny", "velocity: 5"), "rules.velocity"),
        (("per_transfer_wei: 100", "per_transfer_wei: -1"), "rules.limits.per_transfer_wei"),
        (("per_transfer_wei: 100", "per_transfer_wei: 1.5"), "rules.limits.per_transfer_wei"),
        (("per_transfer_wei: 100", "per_day_wei: 100"), "rules.limits.per_day_wei"),
        (('eip155:10": "5"', 'eip155:10": five'), "rules.limits.per_chain_wei.eip155:10"),
        (('"eip155:1"', "mainnet"), "rules.chains.allow[0]"),
        (("[0x1111111111111111111111111111111111111111]", "[0x11]"), "rules.destinations.allow[0]"),
        (("[0x1111111111111111111111111111111111111111]", "everyone"), "rules.destinations.allow"),
        (("0x095ea7b3", "0x095ea7"), "rules.selectors.deny[0]"),
        (("transfer(address,uint256)", "transfer (address)"), "rules.selectors.allow[0]"),
        (("name: treasury", "name: treasury\nname: mine"), "name"),
        (("name: treasury", "name: &a treasury\nrules: *a"), "policy"),
        (("name: treasury", "name: [treasury"), "policy"),
    ],
)
def test_a_malformed_document_is_refused_with_the_path(change: tuple[str, str], field: str) -> None:
    assert change[0] in DOCUMENT
    with pytest.raises(WalletError) as refusal:
        _policy(DOCUMENT.replace(*change))
    assert refusal.value.reason is Reason.INVALID_REQUEST
    assert refusal.value.details["field"] == field


def test_a_mixed_case_address_must_carry_its_checksum() -> None:
    with pytest.raises(WalletError) as refusal:
        _policy(DOCUMENT.replace("0x3333333333333333333333333333333333333333", "0x" + "aB" * 20))
    assert refusal.value.details["rule"] == "EIP-55"


def test_the_default_policy() -> None:
    policy = parse_policy(DEFAULT_POLICY.read_bytes())
    ether = 10**18
    assert policy.decide(Terms(31337, STRANGER, 1000 * ether, b""), SENDER, ()).allowed
    assert policy.decide(Terms(31337, STRANGER, 0, _call(FRIEND)), SENDER, ()).allowed
    assert policy.decide(Terms(31337, None, 0, b"\x60\x80"), SENDER, ()).allowed
    assert not policy.decide(Terms(31337, STRANGER, 1000 * ether + 1, b""), SENDER, ()).allowed
    assert not policy.decide(Terms(1, STRANGER, 1, b""), SENDER, ()).allowed
    assert not policy.decide(Terms(31337, Address(bytes(20)), 1, b""), SENDER, ()).allowed
    assert not policy.decide(Terms(31337, STRANGER, 0, _call(Address(bytes(20)))), SENDER, ()).allowed
    assert not policy.decide(Terms(31337, STRANGER, 0, bytes.fromhex("a22cb465")), SENDER, ()).allowed


_addresses = st.binary(min_size=20, max_size=20).map(Address)
_words = st.text(st.characters(codec="utf-8"), max_size=12)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=3),
    max_leaves=12,
)


def _policy_or_refusal(document: bytes) -> Policy | WalletError:
    try:
        return parse_policy(document)
    except WalletError as error:
        return error


@given(st.binary(max_size=200))
def test_any_bytes_are_a_policy_or_refused_by_name(document: bytes) -> None:
    read = _policy_or_refusal(document)
    assert isinstance(read, Policy) or (read.reason is Reason.INVALID_REQUEST and read.details["field"])


@given(_json, st.sampled_from(["chains", "destinations", "limits", "selectors", "contract_creation", "other"]))
def test_any_rule_is_understood_or_refused_by_name(rule: Any, name: str) -> None:
    read = _policy_or_refusal(yaml.safe_dump({"version": 1, "name": "any", "rules": {name: rule}}).encode())
    if isinstance(read, Policy):
        # Whatever one rule says, alone it allows nothing.
        assert not read.decide(Terms(1, FRIEND, 0, b""), SENDER, ()).allowed
    else:
        assert read.reason is Reason.INVALID_REQUEST
        assert read.details["field"]


@given(
    allowed=st.sets(_addresses, max_size=4),
    denied=st.sets(_addresses, max_size=4),
    limit_wei=st.integers(0, 2**256 - 1),
    value_wei=st.integers(0, 2**256 - 1),
    data=st.data(),
)
def test_allowed_means_listed_not_denied_and_within_the_limit(
    allowed: set[Address], denied: set[Address], limit_wei: int, value_wei: int, data: st.DataObject
) -> None:
    to = data.draw(st.sampled_from(sorted(allowed | denied)) | _addresses if allowed | denied else _addresses)
    document = yaml.safe_dump(
        {
            "version": 1,
            "name": "lists",
            "rules": {
                "chains": {"allow": ["eip155:1"]},
                "destinations": {
                    "allow": [f"0x{one.hex()}" for one in sorted(allowed)],
                    "deny": [f"0x{one.hex()}" for one in sorted(denied)],
                },
                "limits": {"per_transfer_wei": str(limit_wei)},
            },
        }
    )
    decision = _policy(document).decide(Terms(1, to, value_wei, b""), SENDER, ())
    assert decision.allowed == (to in allowed and to not in denied and value_wei <= limit_wei)
