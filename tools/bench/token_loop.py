"""A child that does nothing but C_Sign: what signer's children could do if nobody had to be told.

    python -m tools.bench.token_loop, in the environment of a signer's child

One JSON object a line. It says {"fingerprint"} of the token's transport pair, is told a leaf {"wrapped_aes_key",
"wrapped_private_key"} in hex, and then answers each {"signatures": n} with the seconds that each of n took.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from hashlib import sha256
from time import perf_counter

from pkcs11 import Mechanism

from services.runtime.settings import TokenSettings
from services.runtime.token import TokenSession
from services.signer.backend import TRANSPORT_LABEL

_PR_SET_PDEATHSIG = 1  # prctl(2)


def _say(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


def main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    session = TokenSession(TokenSettings())
    _say({"fingerprint": sha256(session.transport_public_key(TRANSPORT_LABEL)).hexdigest()})
    leaf = json.loads(sys.stdin.readline())
    handle = session.unwrap_leaf(
        TRANSPORT_LABEL, bytes.fromhex(leaf["wrapped_aes_key"]), bytes.fromhex(leaf["wrapped_private_key"])
    )
    key = handle.key
    for line in sys.stdin:
        digests = [sha256(number.to_bytes(8, "big")).digest() for number in range(json.loads(line)["signatures"])]
        ends = []
        started = perf_counter()
        for digest in digests:
            key.sign(digest, mechanism=Mechanism.ECDSA)
            ends.append(perf_counter())
        _say({"durations_s": [end - start for start, end in zip([started, *ends], ends, strict=False)]})
    session.close()


if __name__ == "__main__":
    main()
