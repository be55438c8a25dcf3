"""A child of signer: `python -m services.signer.token_worker` with the signer's socket as standard input.

It speaks PKCS#11 and nothing else. It ends when the signer does, and when its token is gone: a new child starts clean.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
from time import perf_counter
from typing import BinaryIO, cast

from services.core.errors import Reason, WalletError
from services.signer.backend import SigningBackend
from services.signer.frames import (
    DigestToSign,
    TokenSignature,
    decode_request,
    encode_greeting,
    encode_results,
    failure,
    frame,
    receive_frame,
)
from services.signer.pkcs11_backend import Pkcs11Backend
from services.signer.settings import WorkerSettings
from services.signer.software_backend import SoftwareBackend

_PR_SET_PDEATHSIG = 1  # prctl(2)
# Most requests come whole by one read.
_BUFFER_BYTES = 64 << 10


def make_backend(settings: WorkerSettings) -> SigningBackend:
    if settings.signer_backend == "software":
        return SoftwareBackend(settings.software_transport_key_file, settings.signer_cached_leaves, settings.env)
    return Pkcs11Backend(settings, settings.signer_cached_leaves)


def serve(connection: socket.socket, backend: SigningBackend) -> None:
    """Greet, then answer requests in their order until the signer or the token is gone."""
    try:
        token = backend.open()
        transport_key = backend.transport_public_key()
    except WalletError as error:
        _greet(connection, {"refused": failure(error)})
        return
    identity = {"label": token.label, "serial": token.serial, "library": token.library}
    _greet(connection, {"token": identity, "transport_key": transport_key.hex()})
    token_gone = False
    with cast(BinaryIO, connection.makefile("rb", _BUFFER_BYTES)) as stream:
        while not token_gone:
            try:
                digests, chunk = decode_request(receive_frame(stream))
            except (EOFError, OSError):
                break
            token_gone = _answer(connection, backend, digests, chunk)
    backend.close()


def _greet(connection: socket.socket, greeting: dict[str, object]) -> None:
    connection.sendall(frame(encode_greeting(greeting)))


def _answer(connection: socket.socket, backend: SigningBackend, digests: list[DigestToSign], chunk: int) -> bool:
    """Sign what is asked; True when the last answer was that the token is gone."""
    gone = False
    for first in range(0, len(digests), chunk):
        results: list[TokenSignature | WalletError] = []
        for leaf, digest in digests[first : first + chunk]:
            started = perf_counter()
            try:
                signature = backend.sign(leaf, digest)
                results.append(TokenSignature(signature, (perf_counter() - started) * 1000))
                gone = False
            except WalletError as error:
                results.append(error)
                gone = error.reason is Reason.TOKEN_UNAVAILABLE
        connection.sendall(frame(encode_results(results)))
    return gone


def main() -> None:
    # Neither a hung token call nor a crash may leave a child behind, or its memory in a file.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The terminal's Ctrl-C reaches the whole group; the signer decides when its children end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=os.dup(0))
    try:
        backend = make_backend(WorkerSettings())
    except WalletError as error:
        _greet(connection, {"refused": failure(error)})
        return
    serve(connection, backend)


if __name__ == "__main__":
    main()
