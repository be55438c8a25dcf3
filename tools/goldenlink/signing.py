"""Requests signed by the client's own key (RFC 9421, RFC 9530), where GOLDENLINK_SIGNING_KEY_FILE names one."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import time
from collections.abc import Generator
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from tools.goldenlink.exits import Exit, Failure

KEY_FILE_VARIABLE = "GOLDENLINK_SIGNING_KEY_FILE"


class RequestSigner(httpx.Auth):
    """Signs whatever changes something: method, target, body and Idempotency-Key."""

    requires_request_body = True

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        public_key = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.fingerprint = "sha256:" + hashlib.sha256(public_key).hexdigest()

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if request.method != "GET":
            self._sign(request)
        yield request

    def _sign(self, request: httpx.Request) -> None:
        digest = f"sha-256=:{_base64(hashlib.sha256(request.content).digest())}:"
        path, _, query = request.url.raw_path.decode("ascii").partition("?")
        components = {
            "@method": request.method,
            "@authority": request.headers["host"],
            "@path": path,
            "@query": f"?{query}",
            "content-digest": digest,
        }
        if "idempotency-key" in request.headers:
            components["idempotency-key"] = request.headers["idempotency-key"]
        covered = " ".join(f'"{name}"' for name in components)
        parameters = (
            f"({covered});created={int(time.time())}"
            f';keyid="{self.fingerprint}";nonce="{secrets.token_urlsafe(12)}";tag="goldenlink"'
        )
        # RFC 9421 §2.5: a line a component, then what is covered itself.
        lines = [f'"{name}": {value}' for name, value in components.items()]
        base = "\n".join([*lines, f'"@signature-params": {parameters}'])
        request.headers["Content-Digest"] = digest
        request.headers["Signature-Input"] = f"sig={parameters}"
        request.headers["Signature"] = f"sig=:{_base64(self._key.sign(base.encode('ascii')))}:"


def configured_signer() -> RequestSigner | None:
    """The signer of the environment's key file (Ed25519, PEM), or None.

    Raises:
        Failure: the file cannot be read, or holds no such key.
    """
    name = os.environ.get(KEY_FILE_VARIABLE)
    if not name:
        return None
    try:
        key = load_pem_private_key(Path(name).read_bytes(), password=None)
    except OSError as error:
        raise Failure(Exit.USAGE, f"{KEY_FILE_VARIABLE}: {error.strerror}") from None
    except (ValueError, TypeError):
        raise Failure(Exit.USAGE, f"{KEY_FILE_VARIABLE}: it is no private key in PEM without a password") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise Failure(Exit.USAGE, f"{KEY_FILE_VARIABLE}: the key is not Ed25519")
    return RequestSigner(key)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
