"""Free TCP ports on loopback."""

from __future__ import annotations

import secrets
import socket

# Below the kernel's default range for outgoing connections (32768–60999), so that none of those takes a port between
# our look and the process's bind; restarts keep their port for the same reason.
_LOWEST, _HIGHEST = 20_000, 32_000
_TRIES = 1_000


class Ports:
    """Hands out ports that were free a moment ago, none twice."""

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def free(self) -> int:
        """Raises OSError when no free port is found."""
        for _ in range(_TRIES):
            port = _LOWEST + secrets.randbelow(_HIGHEST - _LOWEST)
            if port in self._taken:
                continue
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            self._taken.add(port)
            return port
        raise OSError("no free port on loopback")
