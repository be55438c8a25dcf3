"""The token alone: the floor under every signature."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from protos.wallet.v1 import keys_pb2
from tools.bench.suite import Account, BenchFailed, Suite
from tools.stack.nodes import SOURCE_TREE

# A line holds a number for every signature of a run.
_LINE_BYTES = 16 << 20
_ANSWER_TIMEOUT_S = 120.0


class BareToken:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def sign(self, signatures: int) -> list[float]:
        """Seconds that each C_Sign took, in one loop of the child."""
        answer = await self.ask({"signatures": signatures})
        return [float(duration) for duration in answer["durations_s"]]

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self.tell(message)
        return await self.hear()

    def tell(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), _ANSWER_TIMEOUT_S)
        if not line:
            raise BenchFailed("the token loop ended early")
        message: dict[str, Any] = json.loads(line)
        return message


@asynccontextmanager
async def bare_token(suite: Suite, account: Account) -> AsyncIterator[BareToken]:
    """A child like signer's own, on signer's token, with the account's leaf unwrapped in it."""
    file = Path(suite.stack.record["services"]["signer"]["environment_file"])
    environment = json.loads(await asyncio.to_thread(file.read_text, encoding="utf-8"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tools.bench.token_loop"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.defpath, **environment},
        cwd=SOURCE_TREE,
        limit=_LINE_BYTES,
    )
    try:
        token = BareToken(process)
        fingerprint = bytes.fromhex((await token.hear())["fingerprint"])
        leaf = await suite.keys_for_signers.WrapLeaf(
            keys_pb2.WrapLeafRequest(key=account.key, transport_fingerprint=fingerprint)
        )
        token.tell(
            {
                "wrapped_aes_key": leaf.wrapped_aes_key.hex(),
                "wrapped_private_key": leaf.wrapped_private_key.hex(),
            }
        )
        yield token
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
