"""The hash that approvals are bound to."""

from __future__ import annotations

from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from services.core.addresses import Address
from services.core.terms import terms_sha256

_addresses = st.binary(min_size=20, max_size=20).map(Address)
_terms = st.tuples(
    st.integers(1, 2**63 - 38),
    _addresses,
    st.none() | _addresses,
    st.integers(0, 2**256 - 1),
    st.binary(max_size=8),
)


def test_it_is_that_of_the_canonical_json() -> None:
    sender, to = Address(b"\x11" * 20), Address(b"\x22" * 20)
    text = f'{{"chain_id":"eip155:1","data":"0xa9059cbb","from":"0x{"11" * 20}","to":"0x{"22" * 20}","value_wei":"5"}}'
    assert terms_sha256(1, sender, to, 5, bytes.fromhex("a9059cbb")) == sha256(text.encode()).digest()
    created = text.replace(f'"0x{"22" * 20}"', "null")
    assert terms_sha256(1, sender, None, 5, bytes.fromhex("a9059cbb")) == sha256(created.encode()).digest()


@given(_terms, _terms)
def test_other_terms_have_another_hash(
    one: tuple[int, Address, Address | None, int, bytes], other: tuple[int, Address, Address | None, int, bytes]
) -> None:
    assert (terms_sha256(*one) == terms_sha256(*other)) == (one == other)
