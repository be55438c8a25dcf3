"""What goes wrong, and how: each fault is a coroutine that breaks something and, where it must, mends it again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import redis.asyncio

from tools.chaos.keeper import Keeper
from tools.stack.processes import StackError
from tools.stack.services import service_of
from tools.stack.stack import Stack

# A point that nothing reaches in this time is given up.
_ARMED_S = 12.0
_SHORTEST_GAP_S, _LONGEST_GAP_S = 0.6, 2.4
# finalized = latest - 2 × slots: a reorg stays above it.
SLOTS_IN_AN_EPOCH = 4
DEEPEST_REORG = 2 * SLOTS_IN_AN_EPOCH - 2
BLOCK_TIME_S = 1
_WHOLE_WITHIN_S = 60.0
# Fault → weight, and what tools/stack/node_proxy.py does then.
_NODE_FAULTS: dict[str, tuple[int, dict[str, Any]]] = {
    "a node drops requests": (2, {"drop": "request"}),
    "a node drops responses": (2, {"drop": "response"}),
    "a node is slow": (2, {"delay_s": 3.0}),
    "a node passes requests on twice": (2, {"duplicate": True}),
    "a node talks nonsense": (1, {"body": "<html>"}),
    "a node lies about the nonce": (1, {"results": {"eth_getTransactionCount": "0x7fff"}}),
    "a node lies about balances": (1, {"results": {"eth_getBalance": "0x0"}}),
    "a node lies about receipts": (1, {"results": {"eth_getBlockReceipts": []}}),
    "a node lies about finality": (1, {"hasty": True}),
}


@dataclass(frozen=True, slots=True)
class Injected:
    """One fault that happened. `target` is a service, or what it hit."""

    name: str
    target: str
    at: float  # Unix, seconds
    until: float


class Faults:
    """Injects faults one after another, several at a time, until told to stop; then everything is whole again."""

    def __init__(self, stack: Stack, directory: Path, services: Sequence[str], seed: int) -> None:
        """`directory` is the services' WALLET_FAULT_DIR; `services` are the processes' names."""
        self._stack = stack
        self._directory = directory
        self._services = tuple(services)
        self._redis_url = Path(stack.record["redis_url_file"]).read_text(encoding="utf-8").strip()
        self._rng = random.Random(f"faults {seed}")  # noqa: S311 - to be repeated, not to be secret
        self._armed_before: Counter[str] = Counter()
        self._armed: dict[str, str] = {}  # service → the point that one of its processes is to die at
        self._busy: set[str] = set()
        self.injected: list[Injected] = []
        self.points_hit: Counter[str] = Counter()
        self.points_missed: Counter[str] = Counter()
        self.keeper = Keeper(stack, self._services, seed, self._died)
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10.0))
        self._kinds: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "kill at a fault point": (14, self._fault_point),
            "kill at a random instant": (5, self._kill),
            "pause past its lease": (3, self._pause),
            "kill PostgreSQL": (1, self._kill_postgres),
            "kill Redis": (1, self._kill_redis),
            "flush Redis": (1, self._flush_redis),
            **{name: (weight, self._node(name, fault)) for name, (weight, fault) in _NODE_FAULTS.items()},
            "no node answers": (1, self._all_nodes_silent),
            "reorg": (2, self._reorg),
            "block production stops": (1, self._no_blocks),
            "base fee jumps": (1, self._base_fee),
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set and everything that was broken is mended."""
        names, weights = list(self._kinds), [weight for weight, _ in self._kinds.values()]
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(self.keeper.run())
            running: set[asyncio.Task[None]] = set()
            while not stop.is_set():
                name = self._rng.choices(names, weights=weights)[0]
                # The sequence is the seed's; what is still going on is not begun twice.
                if name not in self._busy:
                    task = tasks.create_task(self._inject(name))
                    running.add(task)
                    task.add_done_callback(running.discard)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._rng.uniform(_SHORTEST_GAP_S, _LONGEST_GAP_S)):
                        await stop.wait()
            await asyncio.gather(*running)
            async with asyncio.timeout(_WHOLE_WITHIN_S):
                await self.keeper.whole()
            keeping.cancel()

    async def close(self) -> None:
        await self._http.close()

    async def _inject(self, name: str) -> None:
        self._busy.add(name)
        try:
            await self._kinds[name][1]()
        finally:
            self._busy.discard(name)

    def _note(self, name: str, target: str, at: float) -> None:
        self.injected.append(Injected(name, target, at, time.time()))

    def _died(self, name: str, at: float) -> None:
        """The keeper found a process dead: by a point, if its service's file is gone."""
        service = service_of(name) or name
        armed = self._armed.pop(service, None)
        if armed is not None and not self._armed_file(service).exists():
            self.points_hit[f"{service}: {armed}"] += 1
            self._note("kill at a fault point", service, at)
        elif armed is not None:
            self._armed[service] = armed

    # Processes

    async def _fault_point(self) -> None:
        seen = {
            f"{path.stem}: {line}": (path.stem, line)
            for path in sorted(self._directory.glob("*.seen"))
            for line in path.read_text(encoding="utf-8").splitlines()
            if path.stem not in self._armed
        }
        if not seen:
            return
        fewest = min(self._armed_before[key] for key in seen)
        key = self._rng.choice(sorted(key for key in seen if self._armed_before[key] == fewest))
        service, name = seen[key]
        self._armed_before[key] += 1
        self._armed[service] = name
        file = self._armed_file(service)
        waiting = file.with_suffix(".new")
        waiting.write_text(name, encoding="utf-8")
        waiting.rename(file)
        # Others may be armed meanwhile; whoever dies of it is noticed by the keeper.
        self._busy.discard("kill at a fault point")
        await asyncio.sleep(_ARMED_S)
        if self._armed.get(service) == name and file.exists():
            with suppress(FileNotFoundError):
                file.unlink()
                del self._armed[service]
                self.points_missed[key] += 1

    def _armed_file(self, service: str) -> Path:
        return self._directory / f"{service}.armed"

    async def _kill(self) -> None:
        name, at = self._rng.choice(self._services), time.time()
        with suppress(StackError, ProcessLookupError):
            os.kill(self._stack.pid(name), signal.SIGKILL)
            self._note("kill at a random instant", service_of(name) or name, at)

    async def _pause(self) -> None:
        name, at = self._rng.choice(self._services), time.time()
        seconds = self._rng.uniform(3.0, 9.0)
        with suppress(StackError, ProcessLookupError):
            pid = self._stack.pid(name)
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(seconds)
            os.kill(pid, signal.SIGCONT)
            self._note("pause past its lease", service_of(name) or name, at)

    async def _kill_postgres(self) -> None:
        await self._restart("kill PostgreSQL", "postgres", signal.SIGQUIT)

    async def _kill_redis(self) -> None:
        await self._restart("kill Redis", "redis", signal.SIGKILL)

    async def _restart(self, fault: str, name: str, number: signal.Signals) -> None:
        at, away_s = time.time(), self._rng.uniform(0.5, 4.0)
        await self._stack.kill(name, number)
        await asyncio.sleep(away_s)
        await self._stack.launch(name)
        self._note(fault, name, at)

    async def _flush_redis(self) -> None:
        client, at = redis.asyncio.Redis.from_url(self._redis_url, socket_timeout=2.0), time.time()
        with suppress(redis.RedisError, OSError):
            await client.flushall()
            self._note("flush Redis", "redis", at)
        await client.aclose()

    # Nodes

    def _node(self, name: str, fault: dict[str, Any]) -> Callable[[], Awaitable[None]]:
        async def inject() -> None:
            await self._faulty_node(name, fault)

        return inject

    async def _faulty_node(self, name: str, fault: dict[str, Any]) -> None:
        """One node at a time: k of n is about the others."""
        if "node" in self._busy:
            return
        self._busy.add("node")
        node, at = self._rng.choice(sorted(self._stack.record["node_urls"])), time.time()
        seconds = self._rng.uniform(2.0, 6.0)
        try:
            await self._set_fault(node, fault)
            await asyncio.sleep(seconds)
            self._note(name, node, at)
        finally:
            await self._set_fault(node, None)
            self._busy.discard("node")

    async def _all_nodes_silent(self) -> None:
        if "node" in self._busy:
            return
        self._busy.add("node")
        at, nodes = time.time(), sorted(self._stack.record["node_urls"])
        try:
            for node in nodes:
                await self._set_fault(node, {"drop": "request"})
            await asyncio.sleep(self._rng.uniform(1.0, 4.0))
            self._note("no node answers", "nodes", at)
        finally:
            for node in nodes:
                await self._set_fault(node, None)
            self._busy.discard("node")

    async def _set_fault(self, node: str, fault: dict[str, Any] | None) -> None:
        url = f"{self._stack.record['node_control_url']}/nodes/{node}/fault"
        async with self._http.request("DELETE" if fault is None else "PUT", url, json=fault) as reply:
            if reply.status != 200:
                raise StackError(f"the node proxy refuses a fault: {await reply.text()}")

    # The chain

    async def _reorg(self) -> None:
        at, depth = time.time(), self._rng.randint(1, DEEPEST_REORG)
        if "blocks" in self._busy or int(await self._chain("eth_blockNumber"), 16) <= DEEPEST_REORG:
            return
        await self._chain("anvil_reorg", depth, [])
        await self._set_clock()
        self._note("reorg", f"depth {depth}", at)

    async def _no_blocks(self) -> None:
        at = time.time()
        self._busy.add("blocks")
        try:
            await self._chain("evm_setIntervalMining", 0)
            await asyncio.sleep(self._rng.uniform(4.0, 10.0))
            self._note("block production stops", "chain", at)
        finally:
            await self._set_clock()
            await self._chain("evm_setIntervalMining", BLOCK_TIME_S)
            self._busy.discard("blocks")

    async def _set_clock(self) -> None:
        """Let blocks be as old as they say: anvil's clock falls behind by a second for each block that a reorg drops.

        A block that says it is older than its transaction's intent is rightly taken for no inclusion.
        """
        await self._chain("evm_setTime", int(time.time()))

    async def _base_fee(self) -> None:
        """So high that what is on its way cannot be mined until it is replaced, or the fee has come down again."""
        at, latest = time.time(), await self._chain("eth_getBlockByNumber", "latest", False)
        raised = max(int(latest["baseFeePerGas"], 16), 10**9) * self._rng.randint(3, 8)
        await self._chain("anvil_setNextBlockBaseFeePerGas", hex(raised))
        self._note("base fee jumps", f"to {raised // 10**9} gwei", at)

    async def _chain(self, method: str, *parameters: Any) -> Any:
        call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(parameters)}
        async with self._http.post(self._stack.record["chain_url"], json=call) as reply:
            answer = await reply.json()
        if "error" in answer:
            raise StackError(f"{method}: {answer['error']['message']}")
        return answer["result"]
