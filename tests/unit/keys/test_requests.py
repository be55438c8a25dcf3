"""What keys refuses before it touches anything."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from services.core.entries import check_link_id
from services.core.errors import Reason, WalletError
from services.core.paths import AccountPath, Algorithm
from services.keys.accounts import AccountPlace
from services.keys.journal import account_link, transport_link, wallet_link
from services.keys.leaves import Approval, check_transport_key
from services.keys.wallets import NewWallet

SPKI = PublicFormat.SubjectPublicKeyInfo
PATH = AccountPath(Algorithm.ECDSA_SECP256K1, 0, 0, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("wallet_id", ""),
        ("wallet_id", "a" * 65),
        ("wallet_id", "a b"),
        ("name", "n" * 129),
        ("name", "a\0b"),
        ("strength_bits", 129),
        ("recovery_recipient", b"short"),
    ],
)
def test_a_wallet_with_a_bad_field(field: str, value: object) -> None:
    wanted = {"wallet_id": "w", "name": "", "strength_bits": 0, "recovery_recipient": b""} | {field: value}
    with pytest.raises(WalletError) as caught:
        NewWallet(**wanted)  # type: ignore[arg-type]
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert caught.value.details["field"] == field


@pytest.mark.parametrize("chain_id", ["", "eip155:0", "eip155:01", "bip122:1", "1"])
def test_an_account_on_no_chain(chain_id: str) -> None:
    with pytest.raises(WalletError) as caught:
        AccountPlace("w", chain_id, PATH)
    assert caught.value.details["field"] == "chain_id"


def test_an_ed25519_account_names_no_chain() -> None:
    path = AccountPath(Algorithm.ED25519, 0, 0, 0)
    assert AccountPlace("w", "", path).account_id
    with pytest.raises(WalletError):
        AccountPlace("w", "eip155:1", path)


def test_a_key_is_the_same_on_every_chain_and_an_account_is_not() -> None:
    one, two = AccountPlace("w", "eip155:1", PATH), AccountPlace("w", "eip155:2", PATH)
    assert one.key_id == two.key_id
    assert one.account_id != two.account_id
    assert AccountPlace("x", "eip155:1", PATH).key_id != one.key_id


def test_links_of_the_longest_names_are_links() -> None:
    for link_id in (
        wallet_link("w" * 64),
        account_link(AccountPlace("w" * 64, "eip155:1", PATH).account_id),
        transport_link(hashlib.sha256(b"").digest()),
    ):
        check_link_id(link_id)


def test_transport_keys_are_rsa_of_enough_bits_in_their_one_encoding() -> None:
    good = rsa.generate_private_key(65537, 2048).public_key()
    check_transport_key(good.public_bytes(Encoding.DER, SPKI))
    weak = rsa.generate_private_key(65537, 1024).public_key().public_bytes(Encoding.DER, SPKI)
    curve = ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(Encoding.DER, SPKI)
    pkcs1 = good.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    for bad in (weak, curve, pkcs1, b"", good.public_bytes(Encoding.DER, SPKI) + b"\0"):
        with pytest.raises(WalletError) as caught:
            check_transport_key(bad)
        assert caught.value.details["field"] == "public_key_der"


def test_production_serves_listed_transport_keys_only(tmp_path: Path) -> None:
    listed, other = hashlib.sha256(b"1").digest(), hashlib.sha256(b"2").digest()
    file = tmp_path / "approved"
    approval = Approval(required=True, file=file)
    assert not approval.covers(listed)
    file.write_text(f"# signers\n{listed.hex()}  # pod 1\n\n")
    assert approval.covers(listed)
    assert not approval.covers(other)
    assert not Approval(required=True, file=None).covers(listed)
    assert Approval(required=False, file=None).covers(other)
    file.write_text("not hex\n")
    with pytest.raises(WalletError) as caught:
        approval.covers(listed)
    assert caught.value.details["line"] == 1
