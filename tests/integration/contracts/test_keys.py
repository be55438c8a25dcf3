"""What gateway and signer rest on in `keys`."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

from protos.wallet.v1 import common_pb2
from protos.wallet.v1 import keys_pb2 as pb
from services.core.addresses import address_of_public_key
from services.core.digests import keccak256
from tests.integration.contracts.peers import CHAIN_ID, Account, Peers, refusal, unique


def wallet_request(wallet_id: str, name: str = "one") -> pb.CreateWalletRequest:
    return pb.CreateWalletRequest(wallet_id=wallet_id, name=name)


def account_request(wallet_id: str, index: int = 0, chain_id: str = CHAIN_ID) -> pb.CreateAccountRequest:
    return pb.CreateAccountRequest(wallet_id=wallet_id, chain_id=chain_id, index=index)


async def test_the_token_is_ready(peers: Peers) -> None:
    status = await peers.keys.GetKeysStatus(pb.GetKeysStatusRequest())
    assert (status.token_ready, list(status.missing)) == (True, [])


async def test_a_wallet_is_made_once(peers: Peers) -> None:
    wallet_id = unique("w")
    made = await peers.keys.CreateWallet(wallet_request(wallet_id))
    assert (made.wallet_id, made.name, made.encrypted_recovery) == (wallet_id, "one", b"")
    assert await peers.keys.CreateWallet(wallet_request(wallet_id)) == made
    # 256 bits is what an unnamed strength means.
    same = pb.CreateWalletRequest(wallet_id=wallet_id, name="one", strength_bits=256)
    assert await peers.keys.CreateWallet(same) == made
    assert await peers.keys.GetWallet(pb.GetWalletRequest(wallet_id=wallet_id)) == made


async def test_a_wallet_id_is_not_given_twice(peers: Peers) -> None:
    wallet_id = unique("w")
    await peers.keys.CreateWallet(wallet_request(wallet_id))
    for other in (
        wallet_request(wallet_id, "two"),
        pb.CreateWalletRequest(wallet_id=wallet_id, name="one", strength_bits=128),
        pb.CreateWalletRequest(wallet_id=wallet_id, name="one", recovery_recipient=b"\x09" + bytes(31)),
    ):
        assert await refusal(peers.keys.CreateWallet(other)) == ("ALREADY_EXISTS", "wallet_id")


async def test_a_recovery_text_is_there_for_its_recipient_alone(peers: Peers) -> None:
    recipient = b"\x09" + bytes(31)
    request = pb.CreateWalletRequest(wallet_id=unique("w"), recovery_recipient=recipient)
    made = await peers.keys.CreateWallet(request)
    assert made.encrypted_recovery
    assert await peers.keys.CreateWallet(request) == made


async def test_bad_fields_are_named(peers: Peers) -> None:
    wallet_id = unique("w")
    await peers.keys.CreateWallet(wallet_request(wallet_id))
    keys = peers.keys
    bad = {
        "wallet_id": keys.CreateWallet(wallet_request("a b")),
        "name": keys.CreateWallet(wallet_request(unique("w"), "x" * 129)),
        "strength_bits": keys.CreateWallet(pb.CreateWalletRequest(wallet_id=unique("w"), strength_bits=129)),
        "recovery_recipient": keys.CreateWallet(
            pb.CreateWalletRequest(wallet_id=unique("w"), recovery_recipient=bytes(31))
        ),
        "chain_id": keys.CreateAccount(account_request(wallet_id, chain_id="eip155:0")),
        "index": keys.CreateAccount(account_request(wallet_id, 2**31)),
        "by": keys.GetAccount(pb.GetAccountRequest()),
    }
    for field, call in bad.items():
        assert await refusal(call) == ("INVALID_REQUEST", field)


async def test_an_account_is_the_same_at_each_call_and_its_key_on_each_chain(peers: Peers) -> None:
    account = await peers.account()
    assert account.derivation_path == "m/44'/60'/0'/0/0"
    assert account.algorithm == pb.ALGORITHM_ECDSA_SECP256K1
    assert address_of_public_key(account.public_key) == account.address
    assert (bool(account.key.key_id), account.key.version) == (True, 1)
    assert await peers.keys.CreateAccount(account_request(account.wallet_id)) == account
    elsewhere = await peers.keys.CreateAccount(account_request(account.wallet_id, chain_id="eip155:1"))
    assert (elsewhere.address, elsewhere.key) == (account.address, account.key)
    assert elsewhere.account_id != account.account_id
    next_one = await peers.keys.CreateAccount(account_request(account.wallet_id, 1))
    assert next_one.address != account.address
    for found in (account, elsewhere, next_one):
        by_address = pb.AccountAddress(chain_id=found.chain_id, address=found.address)
        assert await peers.keys.GetAccount(pb.GetAccountRequest(account_id=found.account_id)) == found
        assert await peers.keys.GetAccount(pb.GetAccountRequest(address=by_address)) == found


async def test_what_is_unknown_is_not_found(peers: Peers) -> None:
    unknown = unique("w")
    keys = peers.keys
    assert await refusal(keys.GetWallet(pb.GetWalletRequest(wallet_id=unknown))) == ("NOT_FOUND", "wallet_id")
    assert await refusal(keys.CreateAccount(account_request(unknown))) == ("NOT_FOUND", "wallet_id")
    assert await refusal(keys.GetAccount(pb.GetAccountRequest(account_id=unknown))) == ("NOT_FOUND", "account_id")
    account = await peers.account()
    stranger = pb.AccountAddress(chain_id="eip155:5", address=account.address)
    assert await refusal(keys.GetAccount(pb.GetAccountRequest(address=stranger))) == ("NOT_FOUND", "address")


async def register(peers: Peers, key: rsa.RSAPrivateKey, label: str = "contract") -> pb.RegisterTransportKeyResponse:
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    request = pb.RegisterTransportKeyRequest(public_key_der=der, token_label=label, token_serial="1")
    registered: pb.RegisterTransportKeyResponse = await peers.leaves.RegisterTransportKey(request)
    assert registered.fingerprint == hashlib.sha256(der).digest()
    return registered


async def test_a_leaf_is_wrapped_for_a_registered_key_alone(peers: Peers) -> None:
    account = await peers.account()
    transport_key = rsa.generate_private_key(65537, 2048)
    registered = await register(peers, transport_key)
    assert registered.approved
    assert await register(peers, transport_key) == registered
    assert await refusal(register(peers, transport_key, "another")) == ("ALREADY_EXISTS", "public_key_der")
    wrapped = await peers.leaves.WrapLeaf(
        pb.WrapLeafRequest(key=account.key, transport_fingerprint=registered.fingerprint)
    )
    assert (wrapped.key, wrapped.algorithm, wrapped.public_key, wrapped.address) == (
        *(account.key, account.algorithm, account.public_key, account.address),
    )
    assert (wrapped.wallet_id, wrapped.derivation_path) == (account.wallet_id, account.derivation_path)
    oaep = padding.OAEP(padding.MGF1(SHA1()), SHA1(), None)
    pkcs8 = aes_key_unwrap_with_padding(
        transport_key.decrypt(wrapped.wrapped_aes_key, oaep), wrapped.wrapped_private_key
    )
    opened = load_der_private_key(pkcs8, None).public_key()
    assert opened.public_bytes(Encoding.X962, PublicFormat.CompressedPoint) == account.public_key
    # The same bytes again.
    assert wrapped == await peers.leaves.WrapLeaf(
        pb.WrapLeafRequest(key=account.key, transport_fingerprint=registered.fingerprint)
    )


async def test_leaves_of_unknown_keys_are_refused(peers: Peers) -> None:
    account = await peers.account()
    registered = await register(peers, rsa.generate_private_key(65537, 2048))

    async def ask(key: common_pb2.KeyVersion, fingerprint: bytes) -> tuple[str, str]:
        return await refusal(peers.leaves.WrapLeaf(pb.WrapLeafRequest(key=key, transport_fingerprint=fingerprint)))

    unregistered = bytes(keccak256(b"none"))
    assert await ask(account.key, unregistered) == ("NOT_FOUND", "transport_fingerprint")
    later = common_pb2.KeyVersion(key_id=account.key.key_id, version=2)
    assert await ask(later, registered.fingerprint) == ("KEY_NOT_FOUND", "key")
    other = common_pb2.KeyVersion(key_id=unique("key"), version=1)
    assert await ask(other, registered.fingerprint) == ("KEY_NOT_FOUND", "key")
    no_key = pb.RegisterTransportKeyRequest(public_key_der=b"no key")
    assert await refusal(peers.leaves.RegisterTransportKey(no_key)) == ("INVALID_REQUEST", "public_key_der")


async def test_the_gateway_comes_near_no_leaf(peers: Peers) -> None:
    account: Account = await peers.account()
    for call in (
        peers.keys.WrapLeaf(pb.WrapLeafRequest(key=account.key, transport_fingerprint=bytes(32))),
        peers.keys.RegisterTransportKey(pb.RegisterTransportKeyRequest()),
    ):
        assert (await refusal(call))[0] == "CALLER_NOT_ALLOWED"
