"""The only program that ever holds a seed or a leaf key: `python -m services.keys.ceremony`.

`keys` starts it once. It loads its libraries, holds no secret, and forks for each order (one line of JSON on standard
input): the child opens the token, does this one thing, writes one line, and is gone. So what Python has copied and
cannot zero lives for milliseconds, in a process that dumps no core and that no debugger of the same user can attach to.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_public_key

from services.core.derivation import ExtendedKey, Seed, derive, mnemonic_of_entropy, seed_of_mnemonic
from services.core.errors import Reason, WalletError
from services.core.paths import AccountPath, Algorithm
from services.core.recovery import encrypt_recovery
from services.keys.settings import SEALING_KEY_LABEL
from services.runtime.settings import TokenSettings
from services.runtime.token import TokenSession

_PR_SET_PDEATHSIG = 1  # prctl(2)
_PR_SET_DUMPABLE = 4

Order = dict[str, Any]
Answer = dict[str, str]


def sealing_key(token: TokenSession, order: Order) -> Answer:
    """The id of the key that seals seeds, made if the token has none."""
    return {"key_id": token.sealing_key(SEALING_KEY_LABEL).key_id.hex()}


def check(token: TokenSession, order: Order) -> Answer:
    """Can the token be opened, and does it seal under that key?"""
    identity = token.open()
    token.encrypt(SEALING_KEY_LABEL, bytes.fromhex(order["sealing_key"]), b"", b"")
    return {"label": identity.label, "serial": identity.serial, "library": identity.library}


def create_wallet(token: TokenSession, order: Order) -> Answer:
    """A new seed, sealed; the mnemonic leaves only encrypted to its owner, or not at all."""
    mnemonic = mnemonic_of_entropy(token.random(order["strength_bits"] // 8))
    wallet_id, recipient = order["wallet_id"], bytes.fromhex(order["recovery_recipient"])
    recovery = encrypt_recovery(mnemonic, wallet_id, recipient) if recipient else b""
    key_id = bytes.fromhex(order["sealing_key"])
    sealed = token.encrypt(SEALING_KEY_LABEL, key_id, seed_of_mnemonic(mnemonic), wallet_id.encode())
    return {"encrypted_seed": sealed.hex(), "encrypted_recovery": recovery.hex()}


def derive_account(token: TokenSession, order: Order) -> Answer:
    """The public key of an account."""
    return {"public_key": _leaf(token, order).public_key.hex()}


def wrap_leaf(token: TokenSession, order: Order) -> Answer:
    """The leaf as PKCS#8 under a fresh AES-256 key (RFC 5649), that key by RSA-OAEP to the signer's transport key."""
    transport_key = load_der_public_key(bytes.fromhex(order["transport_key_der"]))
    assert isinstance(transport_key, rsa.RSAPublicKey)
    leaf = _leaf(token, order)
    aes_key = token.random(32)
    # SHA-1 is the only hash that every token offers for OAEP, which does not rest on collision resistance.
    oaep = padding.OAEP(padding.MGF1(SHA1()), SHA1(), None)  # noqa: S303
    return {
        "wrapped_aes_key": transport_key.encrypt(aes_key, oaep).hex(),
        "wrapped_private_key": aes_key_wrap_with_padding(aes_key, _pkcs8(leaf, Algorithm(order["algorithm"]))).hex(),
    }


def _leaf(token: TokenSession, order: Order) -> ExtendedKey:
    seed = Seed(token.decrypt(SEALING_KEY_LABEL, bytes.fromhex(order["encrypted_seed"]), order["wallet_id"].encode()))
    path = AccountPath(Algorithm(order["algorithm"]), order["account"], order["change"], order["index"])
    return derive(seed, path.algorithm, path.indices())


def _pkcs8(leaf: ExtendedKey, algorithm: Algorithm) -> bytes:
    key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey
    if algorithm is Algorithm.ED25519:
        key = Ed25519PrivateKey.from_private_bytes(leaf.private_key)
    else:
        key = ec.derive_private_key(int.from_bytes(leaf.private_key, "big"), ec.SECP256K1())
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


_ORDERS = {act.__name__: act for act in (sealing_key, check, create_wallet, derive_account, wrap_leaf)}


def _perform(settings: TokenSettings, order: Order) -> dict[str, Any]:
    token = TokenSession(settings)
    try:
        return {"answer": _ORDERS[order["order"]](token, order)}
    except WalletError as error:
        return {"error": {"reason": error.reason.name, "message": error.message, "details": error.details}}
    except Exception as error:
        # Its text may quote a secret: the class is all that leaves.
        return _unexpected(type(error).__name__)
    finally:
        token.close()


def _unexpected(cause: str) -> dict[str, Any]:
    return {"error": {"reason": Reason.INTERNAL.name, "message": Reason.INTERNAL.meaning, "details": {"cause": cause}}}


def _write(number: int, result: dict[str, Any]) -> None:
    # Below PIPE_BUF (4,096 bytes), so one write is one line or nothing.
    os.write(sys.stdout.fileno(), json.dumps({"number": number, **result}).encode() + b"\n")


def _harden() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    # The first is the fork's own (prctl(2): cleared in a child), so that a hung order dies with the process above it.
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) or libc.prctl(_PR_SET_DUMPABLE, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    _harden()
    first = sys.stdin.buffer.readline()
    if not first:
        return
    settings = TokenSettings(**json.loads(first))
    for line in iter(sys.stdin.buffer.readline, b""):
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _harden()
            _write(order["number"], _perform(settings, order))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            _write(order["number"], _unexpected("ceremony ended early"))


if __name__ == "__main__":
    main()
