"""A chain of geth's own: one block a second, and a miner that leaves what tips too little in the pool."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import aiohttp

from tests.integration.broadcaster_rig import SENDER
from tools.geth import geth
from tools.stack.processes import ProcessSpec

MINED_FROM_TIP_WEI = 5 * 10**9
_GENESIS = {
    "config": {
        "chainId": 31337,
        **dict.fromkeys(
            (
                *("homesteadBlock", "eip150Block", "eip155Block", "eip158Block", "byzantiumBlock"),
                *("constantinopleBlock", "petersburgBlock", "istanbulBlock", "berlinBlock", "londonBlock"),
                *("terminalTotalDifficulty", "shanghaiTime", "cancunTime"),
            ),
            0,
        ),
        # EIP-4844
        "blobSchedule": {"cancun": {"target": 3, "max": 6, "baseFeeUpdateFraction": 3338477}},
    },
    "difficulty": "0x0",
    "gasLimit": hex(30_000_000),
    "baseFeePerGas": hex(10**9),
    "alloc": {SENDER.hex(): {"balance": hex(10**21)}},
}


class GethChain:
    def __init__(self, directory: Path, log: Path, port: int) -> None:
        """Raises tools.geth.GethMissing."""
        binary = str(geth())
        directory.mkdir(parents=True)
        (directory / "genesis.json").write_text(json.dumps(_GENESIS))
        data = ("--datadir", str(directory / "data"))
        environment = {"PATH": os.defpath, "HOME": str(directory)}
        subprocess.run(
            [binary, "init", *data, str(directory / "genesis.json")], env=environment, check=True, capture_output=True
        )
        self.url = f"http://127.0.0.1:{port}"
        self.spec = ProcessSpec(
            name=f"geth-{port}",
            command=(
                *(binary, "--dev", "--dev.period", "1", *data, "--miner.gasprice", str(MINED_FROM_TIP_WEI)),
                *("--http", "--http.addr", "127.0.0.1", "--http.port", str(port), "--http.api", "eth,web3,miner"),
                *("--ipcdisable", "--nodiscover", "--maxpeers", "0", "--port", "0", "--verbosity", "2"),
            ),
            environment=environment,
            log=log,
            ready=self._ready,
            ports={"json_rpc": port},
        )

    async def _ready(self) -> bool:
        call = {"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber", "params": []}
        try:
            async with aiohttp.ClientSession() as session, session.post(self.url, json=call) as response:
                return bool(int((await response.json())["result"], 16) > 0)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError):
            return False
