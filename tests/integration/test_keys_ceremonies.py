"""The ceremony's process: what it lets out, and what happens when it is killed, hangs, or its caller gives up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from services.core.errors import Reason, WalletError
from services.core.paths import AccountPath, Algorithm
from services.keys.ceremonies import Ceremonies, SealedSeed
from services.keys.settings import KeysSettings
from tools.stack.tokens import Token

ROOT = Path(__file__).resolve().parents[2]
PATH = AccountPath(Algorithm.ECDSA_SECP256K1, 0, 0, 0)


@pytest.fixture
async def ceremonies(softhsm_token: Callable[[str], Token]) -> AsyncIterator[Ceremonies]:
    token = softhsm_token("keys")
    settings = KeysSettings(
        token_label="keys",
        token_pin_file=token.pin_file,
        pkcs11_library=token.library,
        database_url="postgresql+asyncpg://unused",
        ceremony_timeout_s=30,
    )
    ceremonies = Ceremonies(settings)
    yield ceremonies
    await ceremonies.close()


@pytest.fixture
async def sealing_key(ceremonies: Ceremonies) -> bytes:
    return (await ceremonies.sealing_key()).key_id


def _pid(ceremonies: Ceremonies) -> int:
    assert ceremonies._process is not None
    return ceremonies._process.pid


def _core_limits(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in lines if line.startswith("Max core file size")).split()[4:6]


async def test_a_seed_opens_under_its_own_wallet_only(ceremonies: Ceremonies, sealing_key: bytes) -> None:
    sealed = (await ceremonies.create_wallet("one", 256, b"", sealing_key)).encrypted_seed
    public_key = await ceremonies.derive_account(SealedSeed("one", sealed), PATH)
    assert await ceremonies.derive_account(SealedSeed("one", sealed), PATH) == public_key
    with pytest.raises(WalletError, match="does not authenticate"):
        await ceremonies.derive_account(SealedSeed("two", sealed), PATH)


async def test_a_killed_process_is_started_again_and_never_dumps_core(
    ceremonies: Ceremonies, sealing_key: bytes
) -> None:
    await ceremonies.check(sealing_key)
    first = _pid(ceremonies)
    assert _core_limits(first) == ["0", "0"]
    os.kill(first, signal.SIGKILL)
    try:
        await ceremonies.check(sealing_key)
    except WalletError as error:
        # The order that meets the end may be refused; it can be repeated.
        if error.reason is not Reason.TOKEN_UNAVAILABLE:
            raise
    await ceremonies.check(sealing_key)
    assert _pid(ceremonies) != first


async def test_a_hanging_process_is_killed_and_named(ceremonies: Ceremonies, sealing_key: bytes) -> None:
    await ceremonies.check(sealing_key)
    hanging, patient = _pid(ceremonies), ceremonies._settings
    os.kill(hanging, signal.SIGSTOP)
    ceremonies._settings = patient.model_copy(update={"ceremony_timeout_s": 0.3})
    with pytest.raises(WalletError) as caught:
        await ceremonies.check(sealing_key)
    assert caught.value.reason is Reason.TOKEN_TIMEOUT
    with pytest.raises(ProcessLookupError):
        os.kill(hanging, 0)
    ceremonies._settings = patient
    await ceremonies.check(sealing_key)


async def test_a_caller_that_gives_up_leaves_its_answer_to_nobody(ceremonies: Ceremonies, sealing_key: bytes) -> None:
    await ceremonies.check(sealing_key)
    os.kill(_pid(ceremonies), signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        # The order is sent and unanswered.
        await asyncio.wait_for(ceremonies.create_wallet("one", 128, b"", sealing_key), 0.3)
    os.kill(_pid(ceremonies), signal.SIGCONT)
    sealed = (await ceremonies.create_wallet("two", 128, b"", sealing_key)).encrypted_seed
    assert len(await ceremonies.derive_account(SealedSeed("two", sealed), PATH)) == 33


async def test_no_seed_is_sealed_under_a_key_that_the_token_lacks(ceremonies: Ceremonies, sealing_key: bytes) -> None:
    another = bytes(len(sealing_key))
    for act in (ceremonies.check(another), ceremonies.create_wallet("one", 128, b"", another)):
        with pytest.raises(WalletError) as caught:
            await act
        assert caught.value.reason is Reason.KEY_NOT_FOUND


def test_an_unexpected_error_leaves_by_its_class_only(tmp_path: Path) -> None:
    settings = {"token_label": "absent", "token_pin_file": str(tmp_path / "pin")}
    order = {"number": 7, "order": "canary"}  # the KeyError quotes it
    done = subprocess.run(
        [sys.executable, "-m", "services.keys.ceremony"],
        input=f"{json.dumps(settings)}\n{json.dumps(order)}\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=True,
    )
    reply = json.loads(done.stdout)
    assert reply["number"] == 7
    assert reply["error"]["details"] == {"cause": "KeyError"}
    assert "canary" not in done.stdout + done.stderr
