"""One contract, two backends: a PKCS#11 token (SoftHSM) and software keys."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import coincurve
import pkcs11
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import ValidationError

from services.core.digests import Digest, recover, split_signature
from services.core.errors import Reason, WalletError
from services.runtime.settings import SERVICES_DIR, TokenSettings
from services.signer.backend import SealedLeaf, SigningBackend
from services.signer.frames import DigestToSign, TokenSignature
from services.signer.pkcs11_backend import Pkcs11Backend
from services.signer.settings import PoolSettings, SignerSettings, WorkerSettings
from services.signer.software_backend import SoftwareBackend
from services.signer.token_worker import make_backend
from services.signer.workers import TokenFailure, TokenPool
from tests.fakes.keys import wrap_leaf
from tools.stack.tokens import Token

DIGEST = Digest(bytes(range(32)))


@pytest.fixture
def transport_key_file(tmp_path: Path) -> Path:
    path = tmp_path / "transport.pem"
    key = rsa.generate_private_key(65537, 2048)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


@pytest.fixture
def token(softhsm_token: Callable[[str], Token]) -> TokenSettings:
    made = softhsm_token("signer")
    return TokenSettings(token_label="signer", token_pin_file=made.pin_file)


@pytest.fixture(params=["pkcs11", "software"])
def make(request: pytest.FixtureRequest) -> Callable[[int], SigningBackend]:
    def make(cached_leaves: int) -> SigningBackend:
        if request.param == "pkcs11":
            return Pkcs11Backend(request.getfixturevalue("token"), cached_leaves)
        return SoftwareBackend(request.getfixturevalue("transport_key_file"), cached_leaves, "development")

    return make


def _leaf(backend: SigningBackend, key_ref: str) -> tuple[SealedLeaf, bytes]:
    private_key = coincurve.PrivateKey()
    sealed = SealedLeaf(key_ref, *wrap_leaf(private_key, backend.transport_public_key()))
    return sealed, private_key.public_key.format()


def _check(raw_signature: bytes, public_key: bytes) -> None:
    recover(DIGEST, *split_signature(raw_signature), public_key)


def test_a_leaf_signs_and_its_public_key_verifies(make: Callable[[int], SigningBackend]) -> None:
    backend = make(4)
    identity = backend.open()
    assert identity.label
    assert identity.serial
    assert identity.library
    leaf, public_key = _leaf(backend, "k:1")
    for _ in range(20):
        _check(backend.sign(leaf, DIGEST), public_key)
    backend.close()


def test_more_leaves_than_the_cache_holds(make: Callable[[int], SigningBackend]) -> None:
    backend = make(2)
    backend.open()
    leaves = [_leaf(backend, f"k:{number}") for number in range(5)]
    for leaf, public_key in leaves * 2:
        _check(backend.sign(leaf, DIGEST), public_key)
    backend.close()


def test_a_leaf_for_another_token_or_a_damaged_one_is_key_not_found(make: Callable[[int], SigningBackend]) -> None:
    backend = make(4)
    backend.open()
    leaf, public_key = _leaf(backend, "k:1")
    other = rsa.generate_private_key(65537, 2048).public_key()
    other_der = other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    foreign = SealedLeaf("k:2", *wrap_leaf(coincurve.PrivateKey(), other_der))
    damaged = SealedLeaf("k:3", leaf.wrapped_aes_key, leaf.wrapped_private_key[:-1] + b"\x00")
    for bad in (foreign, damaged):
        with pytest.raises(WalletError) as refusal:
            backend.sign(bad, DIGEST)
        assert refusal.value.reason is Reason.KEY_NOT_FOUND
    _check(backend.sign(leaf, DIGEST), public_key)
    backend.close()


def test_the_transport_pair_is_the_same_after_a_restart(make: Callable[[int], SigningBackend]) -> None:
    backend = make(4)
    backend.open()
    first = backend.transport_public_key()
    leaf, public_key = _leaf(backend, "k:1")
    backend.close()
    again = make(4)
    again.open()
    assert again.transport_public_key() == first
    _check(again.sign(leaf, DIGEST), public_key)
    again.close()


def test_a_lost_session_recovers(token: TokenSettings) -> None:
    backend = Pkcs11Backend(token, 4)
    backend.open()
    leaf, public_key = _leaf(backend, "k:1")
    backend.sign(leaf, DIGEST)
    # Everything that C_Finalize ends: sessions, logins, session objects.
    pkcs11.lib(str(token.pkcs11_library)).finalize()
    _check(backend.sign(leaf, DIGEST), public_key)
    backend.close()


def test_software_keys_do_not_start_in_production(transport_key_file: Path, tmp_path: Path) -> None:
    settings = WorkerSettings(
        env="production",
        signer_backend="software",
        software_transport_key_file=transport_key_file,
        token_label="signer",
        token_pin_file=tmp_path / "pin",
    )
    with pytest.raises(WalletError) as refusal:
        make_backend(settings)
    assert refusal.value.details["field"] == "WALLET_SIGNER_BACKEND"
    with pytest.raises(ValidationError, match="does not start where WALLET_ENV=production"):
        SignerSettings(
            **settings.model_dump(), database_url="postgresql+asyncpg:///", telemetry_hmac_key_file=tmp_path / "key"
        )


# The children, over a real token


def _name_token(monkeypatch: pytest.MonkeyPatch, settings: TokenSettings) -> None:
    monkeypatch.setenv("WALLET_TOKEN_LABEL", settings.token_label)
    monkeypatch.setenv("WALLET_TOKEN_PIN_FILE", str(settings.token_pin_file))


async def test_children_sign_through_the_token_and_share_its_transport_pair(
    token: TokenSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _name_token(monkeypatch, token)
    pool = TokenPool(PoolSettings(signer_workers=2))
    await pool.start()
    try:
        private_key = coincurve.PrivateKey()
        leaf = SealedLeaf("k:1", *wrap_leaf(private_key, await pool.transport_key()))
        for _ in range(3):
            for outcome in await pool.sign([DigestToSign(leaf, DIGEST)] * 60):
                assert isinstance(outcome, TokenSignature)
                _check(outcome.raw_signature, private_key.public_key.format())
        assert pool.identity.label == "signer"
    finally:
        await pool.stop()


async def test_a_wrong_pin_is_offered_once_and_said_so(
    token: TokenSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "wrong-pin"
    wrong.write_text("000000\n")
    _name_token(monkeypatch, TokenSettings(token_label="signer", token_pin_file=wrong))
    pool = TokenPool(PoolSettings())
    await pool.start()
    try:
        assert not pool.ready
        (outcome,) = await pool.sign([DigestToSign(SealedLeaf("k:1", b"", b""), DIGEST)])
        assert isinstance(outcome, TokenFailure)
        assert (outcome.error.reason, outcome.asked) == (Reason.TOKEN_PIN_INCORRECT, False)
    finally:
        await pool.stop()


async def test_a_missing_token_is_unavailable_until_it_is_there(
    token: TokenSettings, softhsm_token: Callable[[str], Token], monkeypatch: pytest.MonkeyPatch
) -> None:
    _name_token(monkeypatch, TokenSettings(token_label="late", token_pin_file=token.token_pin_file))
    pool = TokenPool(PoolSettings())
    await pool.start()
    try:
        assert not pool.ready
        assert pool.refusal.reason is Reason.TOKEN_UNAVAILABLE
        late = softhsm_token("late")
        monkeypatch.setenv("WALLET_TOKEN_PIN_FILE", str(late.pin_file))
        assert await pool.transport_key()
        assert pool.ready
    finally:
        await pool.stop()


def test_a_child_knows_no_grpc() -> None:
    code = "import sys, services.signer.token_worker; sys.exit(bool({'grpc', 'sqlalchemy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=SERVICES_DIR.parent, env=dict(os.environ), check=False)
    assert done.returncode == 0
