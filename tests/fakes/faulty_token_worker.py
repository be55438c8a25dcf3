"""A signing child whose token misbehaves as the files in $FAULTS_DIR say.

`asked`: written here, a line per digest that the token was asked to sign. `hang`, `die`: a line per digest whose call
never returns, or kills the child; `…-once`: the first time only.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from services.core.digests import Digest
from services.runtime.token import TokenIdentity
from services.signer import token_worker
from services.signer.backend import SealedLeaf, SigningBackend
from services.signer.settings import WorkerSettings

_make_backend = token_worker.make_backend


class FaultyBackend:
    def __init__(self, inner: SigningBackend, directory: Path) -> None:
        self._inner = inner
        self._directory = directory

    def open(self) -> TokenIdentity:
        return self._inner.open()

    def transport_public_key(self) -> bytes:
        return self._inner.transport_public_key()

    def close(self) -> None:
        self._inner.close()

    def sign(self, leaf: SealedLeaf, digest: Digest) -> bytes:
        asked = self._lines("asked")
        with (self._directory / "asked").open("a") as file:
            file.write(digest.hex() + "\n")
        for fault in ("hang", "die"):
            listed = digest.hex() in self._lines(fault)
            if listed or (digest.hex() in self._lines(f"{fault}-once") and digest.hex() not in asked):
                if fault == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()
        return self._inner.sign(leaf, digest)

    def _lines(self, name: str) -> list[str]:
        path = self._directory / name
        return path.read_text().split() if path.exists() else []


def _make_faulty(settings: WorkerSettings) -> SigningBackend:
    return FaultyBackend(_make_backend(settings), Path(os.environ["FAULTS_DIR"]))


if __name__ == "__main__":
    token_worker.make_backend = _make_faulty
    token_worker.main()
