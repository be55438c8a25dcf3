"""A broadcaster in this process over real PostgreSQL, the real evidence code, anvil and three nodes before it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import coincurve
from aiohttp import web
from sqlalchemy import text

from protos.wallet.v1 import broadcaster_pb2 as pb
from protos.wallet.v1 import evidence_pb2
from services.broadcaster.evidence_log import PatientLog
from services.broadcaster.leading import ChainLeader
from services.broadcaster.servicer import BroadcasterServicer, EventBell
from services.broadcaster.settings import BroadcasterSettings
from services.broadcaster.store import Store
from services.core.addresses import Address, address_of_public_key
from services.core.canonical import canonical_json, format_time, to_hex
from services.core.digests import Signature, keccak256
from services.core.errors import Reason, WalletError
from services.core.transactions import Eip1559Transaction, assemble_raw, decode_raw, encode_unsigned, signing_digest
from services.evidence.sequencer import Append
from services.runtime.db import Database
from services.runtime.nodes import Nodes
from services.runtime.telemetry import new_traceparent
from tests.integration.running_evidence import DevCa, RunningLog
from tools.stack import node_proxy

CHAIN_ID = "eip155:31337"
# anvil's first development account, published in its documentation.
DEVELOPMENT_KEY = bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")
NODE_NAMES = ("node-a", "node-b", "node-c")


class LyingNode(node_proxy.Node):
    """Tells what `lie` makes of a call and the chain's own response to it: an object with result or error."""

    lie: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] | None = None

    async def _ask(self, body: bytes, content_type: str) -> tuple[int, bytes, str]:
        status, answer, answered_type = await super()._ask(body, content_type)
        if self.lie is not None:
            request, told = json.loads(body), json.loads(answer)
            if isinstance(request, list):
                calls = {call["id"]: call for call in request}
                told = [self.lie(calls[one["id"]], one) for one in told]
            else:
                told = self.lie(request, told)
            answer = json.dumps(told).encode()
        return status, answer, answered_type


class ProxiedNodes:
    """Three named nodes before one chain, in this process."""

    def __init__(self, nodes: dict[str, LyingNode], urls: dict[str, str]) -> None:
        self.nodes = nodes
        self.urls = urls

    def fault(self, name: str, **fault: Any) -> None:
        self.nodes[name].fault = node_proxy.Fault.from_json(fault)

    def heal(self) -> None:
        for node in self.nodes.values():
            node.fault = None
            node.lie = None

    def write(self, path: Path, names: tuple[str, ...] = NODE_NAMES) -> Path:
        path.write_text(json.dumps([{"name": n, "url": self.urls[n], "chain_id": CHAIN_ID} for n in names]))
        path.chmod(0o600)
        return path


@asynccontextmanager
async def proxied_nodes(upstream: str) -> AsyncIterator[ProxiedNodes]:
    runners = []
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        nodes = {name: LyingNode(name, upstream, session) for name in NODE_NAMES}
        urls = {}
        for name, node in nodes.items():
            application = web.Application(client_max_size=1 << 26)
            application.router.add_post("/", node.handle)
            runner = web.AppRunner(application, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.2).start()
            urls[name] = f"http://127.0.0.1:{runner.addresses[0][1]}"
            runners.append(runner)
        try:
            yield ProxiedNodes(nodes, urls)
        finally:
            for runner in runners:
                await runner.cleanup()


class CutEvidence:
    """The generated stub as the broadcaster holds it; `is_away` makes it unavailable, `cut_after` loses an answer.

    `before` may change what the log is asked.
    """

    def __init__(self, log: RunningLog) -> None:
        self.log = log
        self.is_away = False
        self.cut_after: Callable[[evidence_pb2.AppendEntriesRequest], bool] = lambda request: False
        self.before: Callable[[evidence_pb2.AppendEntriesRequest], None] = lambda request: None

    async def AppendEntries(self, request: evidence_pb2.AppendEntriesRequest, timeout: float) -> Any:
        if self.is_away:
            raise WalletError(Reason.SERVICE_UNAVAILABLE, "away")
        self.before(request)
        reply = await self.log.client.stub.AppendEntries(request, timeout=timeout)
        if self.cut_after(request):
            await asyncio.Event().wait()
        return reply


@dataclass
class Transfer:
    transfer_id: str
    nonce: int
    raw_tx: bytes
    unsigned_tx: bytes
    version: int = 0
    traceparent: str = field(default_factory=new_traceparent)

    @property
    def tx_hash(self) -> bytes:
        return keccak256(self.raw_tx)

    def request(self) -> pb.SubmitTransactionRequest:
        return pb.SubmitTransactionRequest(
            transfer_id=self.transfer_id,
            chain_id=CHAIN_ID,
            from_address=SENDER,
            nonce=self.nonce,
            raw_tx=self.raw_tx,
            traceparent=self.traceparent,
        )


_key = coincurve.PrivateKey(DEVELOPMENT_KEY)
SENDER = address_of_public_key(_key.public_key.format())


def make_transfer(
    transfer_id: str,
    nonce: int,
    value_wei: int = 1,
    data: bytes = b"",
    gas_limit: int = 100_000,
    tip_wei: int = 10**9,
    fee_wei: int = 10**11,
) -> Transfer:
    to = Address(b"\x11" * 20)
    return _signed(transfer_id, Eip1559Transaction(31337, nonce, tip_wei, fee_wei, gas_limit, to, value_wei, data))


def bumped(transfer: Transfer, percent: int) -> Transfer:
    """The same transfer, with fees that are higher by so much: to be signed and submitted after it."""
    tx, _ = decode_raw(transfer.raw_tx)
    assert isinstance(tx, Eip1559Transaction)
    dearer = replace(
        tx,
        max_priority_fee_per_gas_wei=tx.max_priority_fee_per_gas_wei * (100 + percent) // 100,
        max_fee_per_gas_wei=tx.max_fee_per_gas_wei * (100 + percent) // 100,
    )
    made = _signed(transfer.transfer_id, dearer)
    return replace(made, version=transfer.version + 1, traceparent=transfer.traceparent)


def _signed(transfer_id: str, tx: Eip1559Transaction) -> Transfer:
    signed = _key.sign_recoverable(signing_digest(tx), hasher=None)
    signature = Signature(int.from_bytes(signed[:32], "big"), int.from_bytes(signed[32:64], "big"), signed[64])
    return Transfer(transfer_id, tx.nonce, assemble_raw(tx, signature), encode_unsigned(tx))


def signed_entries(transfer: Transfer) -> list[Append]:
    """The intent and the signature that come before a submission."""
    now = format_time(datetime.now(UTC))
    sender = to_hex(SENDER)
    decoded, signature = decode_raw(transfer.raw_tx)
    intent = {
        "account": f"{CHAIN_ID}:{sender}",
        "chain_id": CHAIN_ID,
        "from": sender,
        "to": to_hex(decoded.to) if decoded.to else None,
        "value_wei": str(decoded.value_wei),
        "data": to_hex(decoded.data),
        "unsigned_tx": to_hex(transfer.unsigned_tx),
        "tx_sign_hash": to_hex(sha256(transfer.unsigned_tx).digest()),
        "signing_digest": to_hex(keccak256(transfer.unsigned_tx)),
        "key_id": "k",
        "key_version": 1,
        "policy": {"version": 1, "sha256": "0x" + "00" * 32, "decision": "allow", "rules": []},
        "actor": None,
        "source_ip": None,
        "client_fingerprint": None,
        "requested_at": now,
    }
    signed = {
        "status": "success",
        "algorithm": "ecdsa_secp256k1",
        "r": to_hex(signature.r.to_bytes(32, "big")),
        "s": to_hex(signature.s.to_bytes(32, "big")),
        "y_parity": signature.y_parity,
        "raw_tx": to_hex(transfer.raw_tx),
        "tx_hash": to_hex(transfer.tx_hash),
        "duration_ms": 0.5,
        "token": {"label": "t", "serial": "1", "library": "l"},
        "error": None,
    }
    trace_id, span_id = transfer.traceparent[3:35], transfer.traceparent[36:52]
    return [
        Append(transfer.transfer_id, f"intent:{transfer.version}", "intent", trace_id, span_id, canonical_json(intent)),
        Append(
            transfer.transfer_id,
            f"signature:{transfer.version}",
            "signature",
            trace_id,
            span_id,
            canonical_json(signed),
        ),
    ]


class Rig:
    """One or more broadcasters over the same rows."""

    def __init__(
        self, settings: BroadcasterSettings, evidence: CutEvidence, proxies: ProxiedNodes, chain_url: str
    ) -> None:
        self.settings = settings
        self.evidence = evidence
        self.proxies = proxies
        self.chain_url = chain_url
        self.database = Database(settings)
        self.store = Store(self.database)
        self.servicer: BroadcasterServicer
        self.own_database: Any = None
        self._nodes: Nodes | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        bell = EventBell()
        self._nodes = Nodes.of_settings(self.settings)
        chain = self._nodes.chain(CHAIN_ID)
        log = PatientLog(self.evidence)  # type: ignore[arg-type]
        leader = ChainLeader(self.settings, self.database, self.store, log, chain, bell.ring)
        self.servicer = BroadcasterServicer(self.store, self._nodes, {CHAIN_ID: leader}, bell)
        self._task = asyncio.create_task(leader.run())

    async def kill(self) -> None:
        """As SIGKILL, but that the lease is released, so that no test waits for it to run out."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._nodes is not None:
            await self._nodes.close()

    async def until_watching(self) -> None:
        """Faults that begin now meet a broadcaster at work."""

        async def watching() -> bool:
            return bool(await self.rows("SELECT 1 FROM broadcaster.blocks"))

        await eventually(watching)

    async def until_entered(self, transfer: Transfer, entry_id: str) -> None:
        async def entered() -> bool:
            return entry_id in dict(await self.entries(transfer))

        await eventually(entered)

    async def until_mined(self, transfer: Transfer) -> None:
        """And two blocks more, so that the watch is past it."""

        async def mined() -> bool:
            receipt = await self.rpc("eth_getTransactionReceipt", to_hex(transfer.tx_hash))
            latest = int(await self.rpc("eth_blockNumber"), 16)
            return receipt is not None and latest >= int(receipt["blockNumber"], 16) + 2

        await eventually(mined)

    async def rows(self, sql: str) -> list[Any]:
        async with self.database.statement() as connection:
            return list(await connection.execute(text(sql)))

    async def sign(self, *transfers: Transfer) -> None:
        for outcome in await self.evidence.log.sequencer.append([e for t in transfers for e in signed_entries(t)]):
            assert not isinstance(outcome, Exception), outcome

    async def mine(self, count: int = 1) -> None:
        await self.rpc("anvil_mine", hex(count))

    async def status(self, transfer: Transfer) -> pb.Submission:
        request = pb.GetSubmissionRequest(transfer_id=transfer.transfer_id)
        return await self.servicer.GetSubmission(request, None)  # type: ignore[arg-type]

    async def until_status(
        self, transfer: Transfer, holds: Callable[[pb.Submission], bool], timeout_s: float = 30.0
    ) -> pb.Submission:
        submission = pb.Submission()

        async def shown() -> bool:
            nonlocal submission
            submission = await self.status(transfer)
            return holds(submission)

        await eventually(shown, timeout_s)
        return submission

    async def until_known(self, transfer: Transfer) -> None:
        """The chain's pool, or a block, has it."""

        async def known() -> bool:
            return await self.rpc("eth_getTransactionByHash", to_hex(transfer.tx_hash)) is not None

        await eventually(known)

    async def submit(self, *transfers: Transfer) -> None:
        request = pb.SubmitTransactionsRequest(items=[transfer.request() for transfer in transfers])
        reply = await self.servicer.SubmitTransactions(request, None)  # type: ignore[arg-type]
        assert all(result.WhichOneof("result") == "submission" for result in reply.results), reply

    async def until(self, state: int, *transfers: Transfer, timeout_s: float = 30.0) -> list[pb.SubmissionEvent]:
        """Follow the stream from the beginning until each transfer was seen in `state`; everything seen."""
        open_ids = {transfer.transfer_id for transfer in transfers}
        seen = []
        async with asyncio.timeout(timeout_s):
            stream = self.servicer.WatchSubmissions(pb.WatchSubmissionsRequest(), None)  # type: ignore[arg-type]
            async for message in stream:
                for event in message.events:
                    if not open_ids:
                        break
                    seen.append(event)
                    if event.submission.state == state:
                        open_ids.discard(event.submission.transfer_id)
                if not open_ids:
                    break
        return seen

    async def entries(self, transfer: Transfer) -> list[tuple[str, dict[str, Any]]]:
        """(entry id, body) of the transfer's link, as the log holds it."""
        rows = await self.evidence.log.store.entries_of_links([transfer.transfer_id])
        return [(row.entry_id, json.loads(row.body or b"{}")) for row in rows]

    async def rpc(self, method: str, *params: Any) -> Any:
        """The result; None for an error, too."""
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                self.chain_url, json={"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
            ) as response,
        ):
            return (await response.json()).get("result")


@asynccontextmanager
async def rig(
    service_database: Callable[[str], Any], dev_ca: DevCa, chain_url: str, directory: Path, **settings: Any
) -> AsyncIterator[Rig]:
    log = RunningLog(service_database("evidence").settings, dev_ca, directory)
    own = service_database("broadcaster")
    async with log.running(), proxied_nodes(chain_url) as proxies:
        await log.client.until(lambda status: status.appending)
        made = Rig(
            BroadcasterSettings(
                database_url=own.url,
                database_password_file=own.roles.password_file,
                nodes_file=proxies.write(directory / "nodes.json"),
                node_timeout_s=2.0,
                watch_interval_s=0.1,
                **settings,
            ),
            CutEvidence(log),
            proxies,
            chain_url,
        )
        made.own_database = own
        try:
            yield made
        finally:
            await made.kill()
            await made.database.close()


async def verify(made: Rig, transfer: Transfer, directory: Path) -> None:
    """The transfer's bundle passes the stand-alone verifier."""
    (directory / "trust.json").write_bytes(made.evidence.log.trust)
    (directory / "bundle.json").write_bytes(await made.evidence.log.client.bundle(transfer.transfer_id))
    verifier = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tools.verify", str(directory / "bundle.json"), str(directory / "trust.json")),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await verifier.communicate()
    assert verifier.returncode == 0, output.decode()


async def eventually(holds: Callable[[], Awaitable[bool]], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.05)
