"""The keys service as its callers see it: a real process, PostgreSQL and SoftHSM; the log is a fake."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key
from pkcs11 import Attribute, exceptions

from protos.wallet.v1 import common_pb2, evidence_pb2, evidence_pb2_grpc, keys_pb2, keys_pb2_grpc
from services.core.addresses import address_of_public_key
from services.core.canonical import to_hex
from services.core.derivation import Mnemonic, derive, seed_of_mnemonic
from services.core.digests import Digest
from services.core.errors import Reason, WalletError
from services.core.paths import AccountPath, Algorithm
from services.core.recovery import decrypt_recovery
from services.keys.journal import account_link, transport_link, wallet_link
from services.runtime.channel import PeerChannel, as_channel
from services.runtime.evidence_log import APPENDING
from services.runtime.mtls import channel_credentials
from services.runtime.server import GrpcServer
from services.runtime.settings import ServiceSettings, TokenSettings
from services.runtime.token import TokenSession
from tests.fakes.evidence import FakeEvidence
from tools.stack.tokens import Token

ROOT = Path(__file__).resolve().parents[2]
CHAIN = "eip155:31337"
OWNER = X25519PrivateKey.generate()


@dataclass
class Keys:
    """A running keys service and what surrounds it."""

    environment: dict[str, str]
    log: Path
    token: Token
    database: Any
    evidence: FakeEvidence
    tls_dir: Callable[[str], Path]
    process: subprocess.Popen[bytes] | None = None
    channels: list[PeerChannel] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.environment["WALLET_LISTEN"]

    async def start(self, **environment: str) -> None:
        self.process = self._launch(self.environment | environment)
        credentials = channel_credentials(self.tls_dir("gateway"))
        options = (("grpc.ssl_target_name_override", "keys"), ("grpc.max_reconnect_backoff_ms", 100))
        async with grpc.aio.secure_channel(self.address, credentials, options=options) as channel:
            await asyncio.wait_for(channel.channel_ready(), 20)

    def _launch(self, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "services.keys"]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)

    def stub(self, caller: str) -> keys_pb2_grpc.KeysAsyncStub:
        settings = ServiceSettings(tls_dir=self.tls_dir(caller), peers={"keys": self.address})
        self.channels.append(PeerChannel("keys", settings))
        return keys_pb2_grpc.KeysStub(as_channel(self.channels[-1]))

    async def create_wallet(self, wallet_id: str = "treasury", **fields: Any) -> keys_pb2.Wallet:
        request = keys_pb2.CreateWalletRequest(wallet_id=wallet_id, **fields)
        return await self.stub("gateway").CreateWallet(request, timeout=20)

    async def create_account(self, **fields: Any) -> keys_pb2.Account:
        request = keys_pb2.CreateAccountRequest(**({"wallet_id": "treasury", "chain_id": CHAIN} | fields))
        return await self.stub("gateway").CreateAccount(request, timeout=20)

    async def register(self, public_key_der: bytes, **fields: str) -> keys_pb2.RegisterTransportKeyResponse:
        names = {"token_label": "signer", "token_serial": "0123456789abcdef"} | fields
        request = keys_pb2.RegisterTransportKeyRequest(public_key_der=public_key_der, **names)
        return await self.stub("signer").RegisterTransportKey(request)

    async def wrap(
        self, key: common_pb2.KeyVersion, fingerprint: bytes, caller: str = "signer"
    ) -> keys_pb2.WrappedLeaf:
        request = keys_pb2.WrapLeafRequest(key=key, transport_fingerprint=fingerprint)
        return await self.stub(caller).WrapLeaf(request, timeout=20)

    def pending(self) -> int:
        return int(self.database.server.execute("SELECT count(*) FROM keys.key_entries WHERE appended_at IS NULL"))

    def everything_stored(self) -> str:
        tables = self.database.server.execute(
            "SELECT string_agg(tablename, ' ') FROM pg_tables WHERE schemaname = 'keys'"
        )
        return "\n".join(
            self.database.server.execute(f"SELECT coalesce(string_agg(t::text, ' '), '') FROM keys.{table} t")
            for table in tables.split()
        )


@pytest.fixture
def token(softhsm_token: Callable[[str], Token]) -> Token:
    return softhsm_token("keys")


@pytest.fixture
async def keys(
    token: Token,
    service_database: Callable[[str], Any],
    dev_ca: Callable[[str], Path],
    dependencies: Any,
    tmp_path: Path,
) -> AsyncIterator[Keys]:
    """Not started yet."""
    evidence = FakeEvidence()
    server = GrpcServer(
        "evidence",
        ServiceSettings(listen="127.0.0.1:0", tls_dir=dev_ca("evidence")),
        [evidence_pb2.DESCRIPTOR.services_by_name["Evidence"].full_name],
    )
    evidence_pb2_grpc.add_EvidenceServicer_to_server(evidence, server.grpc)
    server.report(APPENDING, serving=True)
    database = service_database("keys")
    environment = {
        "PATH": os.defpath,
        "WALLET_LISTEN": f"127.0.0.1:{dependencies.ports.free()}",
        "WALLET_TLS_DIR": str(dev_ca("keys")),
        "WALLET_PEERS": json.dumps({"evidence": f"127.0.0.1:{server.port}"}),
        **database.environment,
        **token.environment(),
    }
    suite = Keys(environment, tmp_path / "keys.log", token, database, evidence, dev_ca)
    async with server:
        yield suite
        for channel in suite.channels:
            await channel.close()
        if suite.process is not None and suite.process.poll() is None:
            suite.end(signal.SIGKILL)


@pytest.fixture
def signer_token(keys: Keys, softhsm_token: Callable[[str], Token]) -> Iterator[TokenSession]:
    """A signer's token, in this process; keys' own is in another directory and another process."""
    token = softhsm_token("signer")
    session = TokenSession(TokenSettings(token_label="signer", token_pin_file=token.pin_file))
    yield session
    session.close()


def _refusal(reason: Reason) -> Any:
    return pytest.raises(WalletError, match=reason.name)


async def test_the_owner_alone_can_recover_a_wallet(keys: Keys) -> None:
    await keys.start()
    recipient = OWNER.public_key().public_bytes_raw()
    wallet = await keys.create_wallet(name="Treasury", strength_bits=128, recovery_recipient=recipient)
    account = await keys.create_account(index=3)

    mnemonic = decrypt_recovery(wallet.encrypted_recovery, "treasury", OWNER.private_bytes_raw())
    assert len(mnemonic.split()) == 12
    seed = seed_of_mnemonic(Mnemonic(mnemonic))
    path = AccountPath(Algorithm.ECDSA_SECP256K1, 0, 0, 3)
    leaf = derive(seed, path.algorithm, path.indices())
    assert account.address == address_of_public_key(leaf.public_key)
    assert account.public_key == leaf.public_key
    assert account.derivation_path == "m/44'/60'/0'/0/3"

    # Nothing of it is anywhere else.
    assert keys.end() == 0
    bodies = b"".join(entry.request.body for entry in keys.evidence.entries).decode()
    seen = keys.everything_stored() + keys.log.read_text() + bodies
    words = mnemonic.split()
    assert account.public_key.hex() in seen
    for secret in (seed.hex(), leaf.private_key.hex(), leaf.chain_code.hex(), " ".join(words[:3]), words[0] + words[1]):
        assert secret not in seen
    assert keys.token.pin_file.read_text().strip() not in seen


async def test_a_wallet_id_means_one_wallet_for_ever(keys: Keys) -> None:
    await keys.start()
    first, *others = await asyncio.gather(*(keys.create_wallet(name="Treasury") for _ in range(5)))
    assert all(other == first for other in others)
    assert first.encrypted_recovery == b""
    for changed in ({"name": "Other"}, {"name": "Treasury", "strength_bits": 128}):
        with _refusal(Reason.ALREADY_EXISTS):
            await keys.create_wallet(**changed)
    (entry,) = keys.evidence.link(wallet_link("treasury"))
    assert entry.body == {
        "event": "wallet_created",
        "wallet_id": "treasury",
        "strength_bits": 256,
        "recovery_recipient_sha256": None,
    }
    with _refusal(Reason.NOT_FOUND):
        await keys.stub("gateway").GetWallet(keys_pb2.GetWalletRequest(wallet_id="nobody"))


async def test_an_account_is_found_by_id_and_by_address_on_each_chain(keys: Keys) -> None:
    await keys.start()
    await keys.create_wallet()
    account = await keys.create_account()
    assert await keys.create_account() == account
    elsewhere = await keys.create_account(chain_id="eip155:1")
    assert (elsewhere.address, elsewhere.key) == (account.address, account.key)
    stub = keys.stub("gateway")
    for request in (
        keys_pb2.GetAccountRequest(account_id=account.account_id),
        keys_pb2.GetAccountRequest(address=keys_pb2.AccountAddress(chain_id=CHAIN, address=account.address)),
    ):
        assert await stub.GetAccount(request) == account
    (entry,) = keys.evidence.link(account_link(account.account_id))
    assert entry.body["address"] == to_hex(account.address)
    assert entry.body["key_id"] == account.key.key_id
    with _refusal(Reason.NOT_FOUND):
        await keys.create_account(wallet_id="nobody")
    with _refusal(Reason.NOT_FOUND):
        await stub.GetAccount(keys_pb2.GetAccountRequest(account_id="nobody"))
    await keys.create_account(algorithm=keys_pb2.ALGORITHM_ED25519, chain_id="")
    for nothing in (keys_pb2.GetAccountRequest(), keys_pb2.GetAccountRequest(address=keys_pb2.AccountAddress())):
        with _refusal(Reason.INVALID_REQUEST):
            await stub.GetAccount(nothing)


async def test_a_wrapped_leaf_signs_in_the_signers_token_and_is_seen_nowhere(
    keys: Keys, signer_token: TokenSession
) -> None:
    await keys.start()
    await keys.create_wallet()
    account = await keys.create_account()
    registered = await keys.register(signer_token.transport_public_key("transport"))
    assert registered.approved
    (entry,) = keys.evidence.link(transport_link(registered.fingerprint))
    assert entry.body["fingerprint"] == to_hex(registered.fingerprint)

    leaf = await keys.wrap(account.key, registered.fingerprint)
    assert await keys.wrap(account.key, registered.fingerprint) == leaf
    handle = signer_token.unwrap_leaf("transport", leaf.wrapped_aes_key, leaf.wrapped_private_key)
    digest = Digest(os.urandom(32))
    signature = signer_token.sign_digest(handle, digest)
    public_key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), account.public_key)
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    public_key.verify(utils.encode_dss_signature(r, s), digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    with pytest.raises(exceptions.AttributeSensitive):
        handle.key[Attribute.VALUE]


async def test_an_ed25519_leaf_is_the_accounts_key(keys: Keys) -> None:
    await keys.start()
    await keys.create_wallet()
    account = await keys.create_account(algorithm=keys_pb2.ALGORITHM_ED25519, chain_id="")
    assert account.derivation_path == "m/44'/501'/0'/0'/0'"
    transport = rsa.generate_private_key(65537, 2048)
    registered = await keys.register(_spki(transport))
    leaf = await keys.wrap(account.key, registered.fingerprint)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
    aes_key = transport.decrypt(leaf.wrapped_aes_key, oaep)
    private_key = load_der_private_key(aes_key_unwrap_with_padding(aes_key, leaf.wrapped_private_key), None)
    assert isinstance(private_key, Ed25519PrivateKey)
    assert private_key.public_key().public_bytes_raw() == account.public_key == leaf.public_key


async def test_leaves_go_to_registered_signers_only(keys: Keys) -> None:
    await keys.start()
    await keys.create_wallet()
    account = await keys.create_account()
    with _refusal(Reason.NOT_FOUND):
        await keys.wrap(account.key, bytes(32))
    public_key_der = _spki(rsa.generate_private_key(65537, 2048))
    registered = await keys.register(public_key_der)
    assert await keys.register(public_key_der) == registered
    with _refusal(Reason.ALREADY_EXISTS):
        await keys.register(public_key_der, token_serial="another")
    for key in (
        common_pb2.KeyVersion(key_id=account.key.key_id, version=2),
        common_pb2.KeyVersion(key_id="key-none", version=1),
    ):
        with _refusal(Reason.KEY_NOT_FOUND):
            await keys.wrap(key, registered.fingerprint)
    with _refusal(Reason.CALLER_NOT_ALLOWED):
        await keys.wrap(account.key, registered.fingerprint, caller="gateway")
    with _refusal(Reason.CALLER_NOT_ALLOWED):
        await keys.stub("txbuilder").GetWallet(keys_pb2.GetWalletRequest(wallet_id="treasury"))


async def test_production_waits_for_an_operator(keys: Keys, tmp_path: Path) -> None:
    approved = tmp_path / "approved"
    await keys.start(WALLET_ENV="production", WALLET_APPROVED_TRANSPORT_KEYS_FILE=str(approved))
    await keys.create_wallet()
    account = await keys.create_account()
    public_key_der = _spki(rsa.generate_private_key(65537, 2048))
    registered = await keys.register(public_key_der)
    assert not registered.approved
    with _refusal(Reason.TRANSPORT_KEY_NOT_APPROVED):
        await keys.wrap(account.key, registered.fingerprint)
    approved.write_text(f"{registered.fingerprint.hex()}  # by hand\n")
    assert (await keys.register(public_key_der)).approved
    assert (await keys.wrap(account.key, registered.fingerprint)).wrapped_private_key


async def test_without_the_log_nothing_goes_on_and_nothing_is_lost(keys: Keys) -> None:
    await keys.start()
    keys.evidence.available = False
    with _refusal(Reason.EVIDENCE_UNAVAILABLE):
        await keys.create_wallet(name="Treasury")
    with _refusal(Reason.EVIDENCE_UNAVAILABLE):
        await keys.create_account()
    assert keys.evidence.entries == []
    keys.evidence.available = True
    wallet = await keys.create_wallet(name="Treasury")
    assert await keys.create_wallet(name="Treasury") == wallet
    assert len(keys.evidence.link(wallet_link("treasury"))) == 1
    assert (await keys.create_account()).address


async def test_after_a_crash_the_stored_entry_is_appended_again_unchanged(keys: Keys) -> None:
    await keys.start()
    keys.evidence.available = False
    with _refusal(Reason.EVIDENCE_UNAVAILABLE):
        await keys.create_wallet("lost-before")
    keys.evidence.available = True
    keys.evidence.replies_left = 0
    with _refusal(Reason.EVIDENCE_UNAVAILABLE):
        await keys.create_wallet("lost-after")
    (stored,) = keys.evidence.link(wallet_link("lost-after"))
    assert keys.end(signal.SIGKILL) == -signal.SIGKILL

    keys.evidence.replies_left = None
    appends = keys.evidence.appends
    await keys.start()
    async with asyncio.timeout(20):
        async with keys.evidence.appended:
            await keys.evidence.appended.wait_for(lambda: keys.evidence.appends == appends + 2)
    assert keys.evidence.link(wallet_link("lost-after")) == [stored]
    assert len(keys.evidence.link(wallet_link("lost-before"))) == 1
    for _ in range(200):
        if not keys.pending():
            break
        await asyncio.sleep(0.05)
    assert keys.pending() == 0


async def test_a_wrong_pin_is_named_and_mended_without_a_restart(keys: Keys) -> None:
    right = keys.token.pin_file.read_text()
    keys.token.pin_file.write_text("000000\n")
    await keys.start()
    for _ in range(2):
        with _refusal(Reason.TOKEN_PIN_INCORRECT):
            await keys.create_wallet()
    assert "no seed can be sealed" in keys.log.read_text()
    status = await keys.stub("gateway").GetKeysStatus(keys_pb2.GetKeysStatusRequest(), timeout=20)
    assert not status.token_ready
    assert "PIN" in status.missing[0]
    keys.token.pin_file.write_text(right)
    assert (await keys.create_wallet()).wallet_id == "treasury"


async def test_a_missing_token_is_unavailable(keys: Keys) -> None:
    await keys.start(WALLET_TOKEN_LABEL="absent")
    with _refusal(Reason.TOKEN_UNAVAILABLE):
        await keys.create_wallet()
    assert keys.evidence.entries == []


async def test_the_database_role_may_not_rewrite_a_wallet(keys: Keys) -> None:
    grants = keys.database.server.execute(
        "SELECT string_agg(DISTINCT privilege_type, ' ') FROM information_schema.table_privileges"
        " WHERE grantee = 'keys' AND table_schema = 'keys'"
    )
    assert set(grants.split()) == {"SELECT", "INSERT"}


def _spki(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
