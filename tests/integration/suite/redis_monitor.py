"""Everything that Redis is told, as its MONITOR command shows it."""

from __future__ import annotations

import socket
import threading
from types import TracebackType

from sqlalchemy import make_url


class RedisMonitor:
    """`with RedisMonitor(url) as monitor:`; `monitor.seen` afterwards."""

    def __init__(self, url: str) -> None:
        self._address = make_url(url)
        self._bytes = bytearray()
        self._reader = threading.Thread(target=self._read)

    @property
    def seen(self) -> bytes:
        return bytes(self._bytes)

    def __enter__(self) -> RedisMonitor:
        assert self._address.host is not None
        assert self._address.port is not None
        self._socket = socket.create_connection((self._address.host, self._address.port))
        self._socket.sendall(f"AUTH {self._address.password}\r\nMONITOR\r\n".encode())
        # Two replies, so that nothing from here on is missed.
        begun = b""
        while begun.count(b"\r\n") < 2:
            begun += self._socket.recv(1)
        assert begun == b"+OK\r\n+OK\r\n", begun
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(10.0)
        self._socket.close()

    def _read(self) -> None:
        while part := self._socket.recv(65_536):
            self._bytes += part
