"""The development chain: anvil, from its npm package."""

from __future__ import annotations

import os
from pathlib import Path

import aiohttp

from tools.stack.processes import ProcessSpec, StackError

CHAIN_ID = "eip155:31337"
_BINARY = Path(__file__).resolve().parents[2] / "node_modules" / "@foundry-rs" / "anvil-linux-amd64" / "bin" / "anvil"


class EmbeddedChain:
    """anvil with chain id 31337: `safe` is one block behind, `finalized` two, with one slot an epoch."""

    def __init__(self, log: Path, port: int, block_time_s: float | None = 1.0, slots_in_an_epoch: int = 1) -> None:
        """`block_time_s` None mines a block for each transaction at once.

        Raises:
            StackError: anvil is not installed.
        """
        if not _BINARY.exists():
            raise StackError("anvil is not installed in node_modules: run 'make setup'")
        self.url = f"http://127.0.0.1:{port}"
        interval = () if block_time_s is None else ("--block-time", f"{block_time_s:g}")
        self.spec = ProcessSpec(
            name="anvil",
            command=(
                *(str(_BINARY), "--host", "127.0.0.1", "--port", str(port), "--chain-id", "31337"),
                *("--slots-in-an-epoch", str(slots_in_an_epoch), "--no-request-size-limit", "--quiet", *interval),
            ),
            environment={"PATH": os.defpath, "HOME": str(log.parent), "RUST_LOG": "off"},
            log=log,
            ready=self._ready,
            ports={"json_rpc": port},
        )

    async def _ready(self) -> bool:
        call = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session,
                session.post(self.url, json=call) as response,
            ):
                return bool((await response.json()).get("result") == hex(31337))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return False
