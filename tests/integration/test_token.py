"""The PKCS#11 session against a real SoftHSM token."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_public_key,
)
from pkcs11 import Attribute, exceptions

from services.core.digests import Digest
from services.core.errors import Reason, WalletError
from services.runtime.settings import TokenSettings
from services.runtime.token import TokenSession
from tests.integration.dependencies import ServiceDatabase
from tools.stack.tokens import Token

DIGEST = Digest(bytes(range(32)))


@pytest.fixture
def settings(softhsm_token: Callable[[str], Token]) -> TokenSettings:
    token = softhsm_token("keys")
    return TokenSettings(token_label="keys", token_pin_file=token.pin_file, pkcs11_library=token.library)


@pytest.fixture
def session(settings: TokenSettings) -> Iterator[TokenSession]:
    session = TokenSession(settings)
    yield session
    session.close()


def _wrap(private_key: ec.EllipticCurvePrivateKey, transport_key_der: bytes) -> tuple[bytes, bytes]:
    transport_key = load_der_public_key(transport_key_der)
    assert isinstance(transport_key, rsa.RSAPublicKey)
    aes_key = os.urandom(32)
    pkcs8 = private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
    return transport_key.encrypt(aes_key, oaep), aes_key_wrap_with_padding(aes_key, pkcs8)


def test_the_session_names_its_token(session: TokenSession) -> None:
    identity = session.open()
    assert identity.label == "keys"
    assert len(identity.serial) == 16
    assert identity.library.startswith("Implementation of PKCS11") or "SoftHSM" in identity.library


def test_random_has_the_size_asked_for_and_never_repeats(session: TokenSession) -> None:
    assert {len(session.random(size)) for size in (1, 16, 32)} == {1, 16, 32}
    assert session.random(32) != session.random(32)


def test_sealed_text_opens_after_a_restart_only_under_its_associated_data(settings: TokenSettings) -> None:
    first = TokenSession(settings)
    key_id = first.sealing_key("seeds").key_id
    sealed = first.encrypt("seeds", key_id, b"a secret", b"wallet-1")
    first.close()
    second = TokenSession(settings)
    try:
        assert b"a secret" not in sealed
        assert second.decrypt("seeds", sealed, b"wallet-1") == b"a secret"
        with pytest.raises(WalletError, match="does not authenticate"):
            second.decrypt("seeds", sealed, b"wallet-2")
        with pytest.raises(WalletError, match="does not authenticate"):
            second.decrypt("seeds", sealed[:-1] + bytes([sealed[-1] ^ 1]), b"wallet-1")
        assert second.decrypt("seeds", sealed, b"wallet-1") == b"a secret"
    finally:
        second.close()


def test_text_of_another_token_is_key_not_found(session: TokenSession) -> None:
    with pytest.raises(WalletError) as caught:
        session.decrypt("seeds", bytes(16 + 12 + 24), b"")
    assert caught.value.reason is Reason.KEY_NOT_FOUND
    with pytest.raises(WalletError) as caught:
        session.encrypt("seeds", bytes(16), b"x", b"")
    assert caught.value.reason is Reason.KEY_NOT_FOUND


@pytest.mark.parametrize(("service", "act"), [("keys", "sealing_key"), ("evidence", "note_key")])
def test_two_processes_that_need_the_first_key_at_once_use_the_same_one(
    settings: TokenSettings, service_database: Callable[[str], ServiceDatabase], service: str, act: str
) -> None:
    code = (
        "import asyncio, sys\n"
        "from services.runtime.db import Database\n"
        "from services.runtime.settings import DatabaseSettings, TokenSettings\n"
        "from services.runtime.token import TokenSession\n"
        "from services.runtime.token_keys import settled_key\n"
        "token = TokenSession(TokenSettings())\n"
        "token.open()\n"
        "async def main():\n"
        "    database = Database(DatabaseSettings())\n"
        "    async with database.begin():\n"
        "        print(flush=True)\n"
        "        sys.stdin.readline()\n"
        f"    key = await settled_key(database, 'label', lambda: asyncio.to_thread(token.{act}, 'label'))\n"
        "    print(key.key_id.hex(), key.public_key.hex())\n"
        "    await database.close()\n"
        "asyncio.run(main())\n"
    )
    environment = os.environ | service_database(service).environment
    environment |= {"WALLET_TOKEN_LABEL": "keys", "WALLET_TOKEN_PIN_FILE": str(settings.token_pin_file)}

    def opened() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code]
        user = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert user.stdout
        user.stdout.readline()
        return user

    # One after the other: who looks while another logs in to a SoftHSM directory finds no token.
    users = [opened() for _ in range(2)]
    for user in users:
        assert user.stdin
        user.stdin.write("\n")
        user.stdin.flush()
    first, second = (user.communicate(timeout=30)[0] for user in users)
    assert first == second != ""
    session = TokenSession(settings)
    try:
        # Neither made another one and left it lying.
        assert getattr(session, act)("label").key_id.hex() == first.split()[0]
        objects = session._call(lambda opened: list(opened.get_objects({Attribute.LABEL: "label"})))
        assert {bytes(key[Attribute.ID]).hex() for key in objects} == {first.split()[0]}
    finally:
        session.close()


def test_an_unwrapped_leaf_signs_and_cannot_be_read(session: TokenSession) -> None:
    private_key = ec.generate_private_key(ec.SECP256K1())
    handle = session.unwrap_leaf("transport", *_wrap(private_key, session.transport_public_key("transport")))
    signature = session.sign_digest(handle, DIGEST)
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    private_key.public_key().verify(
        utils.encode_dss_signature(r, s), DIGEST, ec.ECDSA(utils.Prehashed(hashes.SHA256()))
    )
    with pytest.raises(exceptions.AttributeSensitive):
        handle.key[Attribute.VALUE]
    assert handle.key[Attribute.SENSITIVE]
    assert not handle.key[Attribute.EXTRACTABLE]
    assert not handle.key[Attribute.TOKEN]
    session.destroy(handle)
    with pytest.raises(WalletError):
        session.sign_digest(handle, DIGEST)


def test_a_leaf_for_another_pair_is_refused_and_the_session_goes_on(session: TokenSession) -> None:
    private_key = ec.generate_private_key(ec.SECP256K1())
    wrapped = _wrap(private_key, session.transport_public_key("another"))
    with pytest.raises(WalletError) as caught:
        session.unwrap_leaf("transport", *wrapped)
    assert caught.value.reason is Reason.KEY_NOT_FOUND
    assert session.holds(session.unwrap_leaf("another", *wrapped))


def test_the_transport_pair_outlives_the_process(settings: TokenSettings) -> None:
    first = TokenSession(settings)
    public_key = first.transport_public_key("transport")
    first.close()
    second = TokenSession(settings)
    try:
        assert second.transport_public_key("transport") == public_key
    finally:
        second.close()


def test_ed25519_signatures_verify_under_the_public_key(session: TokenSession) -> None:
    key = session.note_key("checkpoints")
    signature = session.sign_ed25519("checkpoints", key.key_id, b"note")
    Ed25519PublicKey.from_public_bytes(key.public_key).verify(signature, b"note")
    assert session.note_key("checkpoints") == key
    assert session.holds_pair("checkpoints", key.key_id)
    another = bytes(16)
    assert not session.holds_pair("checkpoints", another)
    with pytest.raises(WalletError) as caught:
        session.sign_ed25519("checkpoints", another, b"note")
    assert caught.value.reason is Reason.KEY_NOT_FOUND


def test_a_lost_session_comes_back_and_its_handles_do_not(session: TokenSession) -> None:
    private_key = ec.generate_private_key(ec.SECP256K1())
    wrapped = _wrap(private_key, session.transport_public_key("transport"))
    sealed = session.encrypt("seeds", session.sealing_key("seeds").key_id, b"x", b"")
    handle = session.unwrap_leaf("transport", *wrapped)
    # What an operator's reset of the token does to us.
    session._session.close()
    with pytest.raises(WalletError) as caught:
        session.sign_digest(handle, DIGEST)
    assert caught.value.reason is Reason.TOKEN_UNAVAILABLE
    assert caught.value.details["origin"] == "session"
    assert not session.holds(handle)
    assert len(session.sign_digest(session.unwrap_leaf("transport", *wrapped), DIGEST)) == 64

    session._session.close()
    assert session.decrypt("seeds", sealed, b"") == b"x"


def test_a_wrong_pin_is_named_and_not_offered_twice(settings: TokenSettings, session: TokenSession) -> None:
    pin = settings.token_pin_file.read_text()
    settings.token_pin_file.write_text("000000\n")
    for _ in range(2):
        with pytest.raises(WalletError) as caught:
            session.random(1)
        assert caught.value.reason is Reason.TOKEN_PIN_INCORRECT
        assert caught.value.details["origin"] == "token"
        assert "000000" not in str(caught.value)
    assert "cause" not in caught.value.details  # the second refusal is ours: the token was not asked
    settings.token_pin_file.write_text(pin)
    assert session.random(1)


def test_a_missing_token_is_unavailable_until_it_appears(settings: TokenSettings, session: TokenSession) -> None:
    tokens = settings.token_pin_file.parent / "tokens"
    away = tokens.rename(tokens.with_name("away"))
    tokens.mkdir()
    with pytest.raises(WalletError) as caught:
        session.open()
    assert caught.value.reason is Reason.TOKEN_UNAVAILABLE
    assert caught.value.details["origin"] == "token"
    tokens.rmdir()
    away.rename(tokens)
    assert session.open().label == "keys"


def test_a_missing_library_is_a_driver_error_that_tells_no_path(settings: TokenSettings, tmp_path: Path) -> None:
    absent = settings.model_copy(update={"pkcs11_library": tmp_path / "absent.so"})
    with pytest.raises(WalletError) as caught:
        TokenSession(absent).open()
    assert caught.value.reason is Reason.TOKEN_UNAVAILABLE
    assert caught.value.details["origin"] == "driver"
    assert "absent" not in str(caught.value)
