"""The asking side of the ceremony: it sends orders to that process and sees sealed text and public keys only."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode

from services.core.errors import Reason, WalletError
from services.core.paths import AccountPath
from services.keys.settings import KeysSettings
from services.runtime import attributes
from services.runtime.settings import SERVICES_DIR
from services.runtime.token import ErrorOrigin, TokenKey

_tracer = trace.get_tracer("goldenlink.keys")


@dataclass(frozen=True)
class SealedSeed:
    """A wallet's seed as it rests: AES-256-GCM under a key of the token, bound to the wallet's id."""

    wallet_id: str
    encrypted_seed: bytes


@dataclass(frozen=True)
class NewSeed:
    encrypted_seed: bytes
    encrypted_recovery: bytes  # empty without a recipient


@dataclass(frozen=True)
class WrappedKey:
    """A leaf key for one transport key; see `ceremony.wrap_leaf`."""

    wrapped_aes_key: bytes
    wrapped_private_key: bytes


class Ceremonies:
    """One order at a time, some 30 ms each. The process starts with the first order and again after it was killed.

    Every method may raise WalletError: TOKEN_UNAVAILABLE, TOKEN_PIN_INCORRECT; TOKEN_TIMEOUT after
    `ceremony_timeout_s`, whose outcome nobody has seen.
    """

    def __init__(self, settings: KeysSettings) -> None:
        self._settings = settings
        self._lock = asyncio.Lock()
        self._process: Process | None = None
        self._orders = 0
        self._refused_pin: tuple[int, int] | None = None

    async def sealing_key(self) -> TokenKey:
        """The key that seals seeds, made if the token has none."""
        answer = await self._perform({"order": "sealing_key"})
        return TokenKey(bytes.fromhex(answer["key_id"]), b"")

    async def check(self, sealing_key: bytes) -> None:
        """Open the token once. Raises KEY_NOT_FOUND if it does not hold the key of this id."""
        await self._perform({"order": "check", "sealing_key": sealing_key.hex()})

    async def create_wallet(
        self, wallet_id: str, strength_bits: int, recovery_recipient: bytes, sealing_key: bytes
    ) -> NewSeed:
        answer = await self._perform(
            {
                "order": "create_wallet",
                "wallet_id": wallet_id,
                "strength_bits": strength_bits,
                "recovery_recipient": recovery_recipient.hex(),
                "sealing_key": sealing_key.hex(),
            }
        )
        return NewSeed(bytes.fromhex(answer["encrypted_seed"]), bytes.fromhex(answer["encrypted_recovery"]))

    async def derive_account(self, seed: SealedSeed, path: AccountPath) -> bytes:
        """The account's public key: 33 bytes SEC1 compressed, or 32 bytes Ed25519."""
        answer = await self._perform({"order": "derive_account", **_place(seed, path)})
        return bytes.fromhex(answer["public_key"])

    async def wrap_leaf(self, seed: SealedSeed, path: AccountPath, transport_key_der: bytes) -> WrappedKey:
        answer = await self._perform(
            {"order": "wrap_leaf", "transport_key_der": transport_key_der.hex(), **_place(seed, path)}
        )
        return WrappedKey(bytes.fromhex(answer["wrapped_aes_key"]), bytes.fromhex(answer["wrapped_private_key"]))

    async def close(self) -> None:
        async with self._lock:
            await self._end()

    async def _perform(self, order: dict[str, Any]) -> dict[str, str]:
        with (
            _tracer.start_as_current_span(
                f"keys.{order['order']}", record_exception=False, set_status_on_exception=False
            ) as span,
            _recorded(span),
        ):
            async with self._lock:
                self._check_pin_changed()
                self._orders += 1
                try:
                    async with asyncio.timeout(self._settings.ceremony_timeout_s):
                        reply = await self._exchange({"number": self._orders, **order})
                except TimeoutError:
                    await self._end()
                    raise WalletError(
                        Reason.TOKEN_TIMEOUT, Reason.TOKEN_TIMEOUT.meaning, origin=ErrorOrigin.TOKEN
                    ) from None
                except (OSError, ValueError) as error:
                    await self._end()
                    raise WalletError(
                        Reason.TOKEN_UNAVAILABLE, "the ceremony's process ended", origin=ErrorOrigin.SERVICE
                    ) from error
            if "answer" in reply:
                return dict(reply["answer"])
            raise self._refusal(reply["error"])

    async def _exchange(self, order: dict[str, Any]) -> dict[str, Any]:
        if self._process is None or self._process.returncode is not None:
            self._process = await self._start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        await self._process.stdin.drain()
        while True:
            line = await self._process.stdout.readline()
            if not line:
                raise OSError("end of file")
            reply: dict[str, Any] = json.loads(line)
            # An answer with another number belongs to a caller that gave up.
            if reply["number"] == order["number"]:
                return reply

    async def _start(self) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.keys.ceremony",
            stdin=PIPE,
            stdout=PIPE,
            cwd=SERVICES_DIR.parent,
            # Its own group, so that a hung order dies with it.
            start_new_session=True,
        )
        assert process.stdin is not None
        token = {
            "pkcs11_library": str(self._settings.pkcs11_library),
            "token_label": self._settings.token_label,
            "token_pin_file": str(self._settings.token_pin_file),
        }
        process.stdin.write(json.dumps(token).encode() + b"\n")
        return process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        await process.wait()

    def _check_pin_changed(self) -> None:
        """Tokens lock after a few wrong PINs, and each order logs in anew: a refused one is not offered again."""
        if self._refused_pin is not None and self._refused_pin == self._pin_version():
            raise WalletError(Reason.TOKEN_PIN_INCORRECT, Reason.TOKEN_PIN_INCORRECT.meaning, origin=ErrorOrigin.TOKEN)

    def _pin_version(self) -> tuple[int, int] | None:
        try:
            status = self._settings.token_pin_file.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def _refusal(self, error: dict[str, Any]) -> WalletError:
        refusal = WalletError(Reason[error["reason"]], error["message"], **error["details"])
        if refusal.reason is Reason.TOKEN_PIN_INCORRECT:
            self._refused_pin = self._pin_version()
        return refusal


def _place(seed: SealedSeed, path: AccountPath) -> dict[str, Any]:
    return {
        "wallet_id": seed.wallet_id,
        "encrypted_seed": seed.encrypted_seed.hex(),
        "algorithm": path.algorithm.value,
        "account": path.account,
        "change": path.change,
        "index": path.index,
    }


@contextmanager
def _recorded(span: Span) -> Iterator[None]:
    try:
        yield
    except WalletError as error:
        span.set_attribute(attributes.ERROR_TYPE, error.reason.name)
        if "origin" in error.details:
            span.set_attribute(attributes.WALLET_ERROR_ORIGIN, str(error.details["origin"]))
        span.set_status(Status(StatusCode.ERROR, error.reason.name))
        raise
