"""The configured chain nodes: JSON-RPC over kept-alive HTTP, and agreement among k of them.

A node is known by its name. Its URL may hold a key and never reaches an error, a log line or a span; so aiohttp's own
errors, which quote the URL, are replaced at once by their class name. A node's answer is a claim: what does not have
the form of an answer is NODE_UNAVAILABLE, naming node and field.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import aiohttp
from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.core.errors import DetailValue, Reason, WalletError
from services.runtime import attributes, fault_points
from services.runtime.json_rpc import Answer, Call, NotJsonRpc, answers_by_id, encode_batch, encode_call

MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024
# What identifies the node and its answer; others, such as cookies, are not kept.
KEPT_HEADERS: Final = ("x-node-id", "content-type", "date", "server", "x-request-id")
_MAX_HEADER_TEXT = 256
_MAX_VERSION_TEXT = 256
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
_GRACE_S = 0.25  # for the other nodes, once k have answered

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CHAIN_ID = re.compile(r"eip155:[1-9][0-9]{0,17}")
_QUANTITY = re.compile(r"0x(0|[1-9a-f][0-9a-f]{0,63})")

_log = logging.getLogger(__name__)
_tracer = trace.get_tracer("goldenlink.nodes")
_disagreements = metrics.get_meter("goldenlink.nodes").create_counter(
    "wallet.nodes.disagreements", unit="{call}", description="Calls in which two nodes gave different answers."
)

T = TypeVar("T")


class NodeSettings(BaseSettings):
    """Which nodes there are. The file is a secret: its URLs may hold keys."""

    model_config = SettingsConfigDict(env_prefix="WALLET_", frozen=True, extra="ignore")

    # JSON: [{"name": "node-a", "url": "https://…", "chain_id": "eip155:1"}, …].
    nodes_file: Path
    # Nodes that must agree: the k of trust.json.
    nodes_required: int = Field(default=2, ge=1)
    node_timeout_s: float = Field(default=5.0, gt=0)


@dataclass(frozen=True, slots=True, repr=False)
class NodeAddress:
    """One configured node. No repr: the URL may hold a key."""

    name: str
    url: str
    chain_id: str  # CAIP-2


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What a node answered by HTTP: the exact body, and the headers that are kept."""

    status: int
    headers: dict[str, str]  # by lower-case name
    body: bytes
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Agreement(Generic[T]):
    """An answer and the names of the nodes that gave it."""

    value: T
    nodes: tuple[str, ...]


class NodeRefusal(WalletError):
    """A node answered with a JSON-RPC error: it works, and says no.

    `rpc_message` is the node's own text: for deciding and for the log, never for a caller or a span.
    """

    def __init__(self, node: str, method: str, rpc_code: int, rpc_message: str, rpc_data: Any) -> None:
        super().__init__(
            Reason.NODE_UNAVAILABLE, "the node refuses the call", node=node, method=method, rpc_code=rpc_code
        )
        self.rpc_code = rpc_code
        self.rpc_message = rpc_message
        self.rpc_data = rpc_data


class Node:
    """One node. `post` moves bytes; `call` and `call_many` understand them."""

    def __init__(self, address: NodeAddress, session: aiohttp.ClientSession, *, traced: bool) -> None:
        self.name = address.name
        self.chain_id = address.chain_id
        self._url = address.url
        self._session = session
        self._traced = traced
        self._next_id = 0
        self._greeting = asyncio.Lock()
        self._is_known = False
        self._failures = 0
        self._resting_until = 0.0
        # web3_clientVersion as last heard; None before, and where the node does not say.
        self.client_version: str | None = None

    @property
    def is_resting(self) -> bool:
        """It failed lately: others are to be asked first, for a while that grows with each failure."""
        return time.monotonic() < self._resting_until

    def take_ids(self, count: int) -> range:
        """`count` request ids that this process has not used with this node."""
        first = self._next_id + 1
        self._next_id += count
        return range(first, first + count)

    async def greet(self) -> None:
        """Ask, once per connection to a living node, for its chain and version.

        Raises:
            WalletError: NODE_UNAVAILABLE; field `chain_id` when it serves another chain.
        """
        if self._is_known:
            return
        async with self._greeting:
            if self._is_known:
                return
            chain, version = await self._exchange([Call("eth_chainId"), Call("web3_clientVersion")])
            if isinstance(chain, WalletError):
                raise chain
            if not isinstance(chain, str) or not _QUANTITY.fullmatch(chain):
                raise self._failed("an answer is no hex quantity", field="chain_id")
            if f"eip155:{int(chain, 16)}" != self.chain_id:
                raise self._failed("the node serves another chain", field="chain_id")
            self.client_version = version[:_MAX_VERSION_TEXT] if isinstance(version, str) else None
            self._is_known = True

    async def post(self, body: bytes) -> HttpAnswer:
        """Send exactly `body`; any HTTP status is an answer.

        Raises:
            WalletError: NODE_UNAVAILABLE when there was no complete HTTP answer: the outcome is unknown.
        """
        fault_points.before("node request")
        try:
            async with self._session.post(self._url, data=body, allow_redirects=False) as response:
                content = await self._bounded(response)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise self._failed("the node gives no HTTP answer", cause=type(error).__name__) from None
        fault_points.after("node request")
        headers = {name: response.headers[name][:_MAX_HEADER_TEXT] for name in KEPT_HEADERS if name in response.headers}
        return HttpAnswer(response.status, headers, content, datetime.now(UTC))

    async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
        """The result of one call.

        Raises:
            WalletError: NODE_UNAVAILABLE; as NodeRefusal when the node answered with an error.
        """
        (result,) = await self.call_many([Call(method, params)])
        if isinstance(result, WalletError):
            raise result
        return result

    async def call_many(self, calls: Sequence[Call]) -> list[Any]:
        """The results of one JSON-RPC batch in the order of `calls`; a refused call's place holds its NodeRefusal.

        Raises:
            WalletError: NODE_UNAVAILABLE when the batch as a whole has no usable answer.
        """
        await self.greet()
        with self._span(calls):
            return await self._exchange(calls)

    async def _exchange(self, calls: Sequence[Call]) -> list[Any]:
        ids = self.take_ids(len(calls))
        elements = [encode_call(request_id, call) for request_id, call in zip(ids, calls, strict=True)]
        answer = await self.post(elements[0] if len(elements) == 1 else encode_batch(elements))
        if answer.status != 200:
            raise self._failed("the node answers with an HTTP error", field="http_status", http_status=answer.status)
        try:
            answers = answers_by_id(answer.body)
        except NotJsonRpc as error:
            raise self._failed(str(error), field="body") from None
        results = []
        for request_id, call in zip(ids, calls, strict=True):
            if request_id not in answers:
                raise self._failed("a call has no answer with its id", field="id", method=call.method)
            results.append(self._result(answers[request_id], call.method))
        self._failures, self._resting_until = 0, 0.0
        return results

    def _result(self, answer: Answer, method: str) -> Any:
        members = answer.members
        error = members.get("error")
        if members.get("jsonrpc") != "2.0" or ("result" in members) is (error is not None):
            raise self._failed("an answer has not the form of JSON-RPC 2.0", field="result", method=method)
        if error is None:
            return members["result"]
        if not isinstance(error, dict) or type(error.get("code")) is not int:
            raise self._failed("an error has not the form of JSON-RPC 2.0", field="error", method=method)
        return NodeRefusal(self.name, method, error["code"], str(error.get("message", ""))[:1024], error.get("data"))

    async def _bounded(self, response: aiohttp.ClientResponse) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in response.content.iter_any():
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                raise ValueError("larger than any answer")
            parts.append(part)
        return b"".join(parts)

    def _failed(self, message: str, **details: DetailValue) -> WalletError:
        """The error of this node, which now rests."""
        self._is_known = False
        pause_s = min(_FIRST_PAUSE_S * 2 ** min(self._failures, 8), _LONGEST_PAUSE_S)
        self._failures += 1
        self._resting_until = time.monotonic() + pause_s
        return self.nonsense(message, **details)

    def nonsense(self, message: str, **details: DetailValue) -> WalletError:
        """The error of an answer of this node that a caller cannot use."""
        return WalletError(Reason.NODE_UNAVAILABLE, message, **{"node": self.name, **details})

    @contextmanager
    def _span(self, calls: Sequence[Call]) -> Iterator[None]:
        if not self._traced:
            yield
            return
        method = calls[0].method if len(calls) == 1 else "batch"
        with _tracer.start_as_current_span(
            f"node.{method}",
            kind=SpanKind.CLIENT,
            attributes={
                attributes.RPC_SYSTEM: "jsonrpc",
                attributes.RPC_METHOD: method,
                attributes.WALLET_NODE_NAME: self.name,
                attributes.WALLET_BATCH_SIZE: len(calls),
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except WalletError as error:
                span.set_attribute(attributes.ERROR_TYPE, error.reason.name)
                span.set_status(Status(StatusCode.ERROR, error.reason.name))
                raise


class ChainNodes:
    """The nodes of one chain."""

    def __init__(self, chain_id: str, nodes: Sequence[Node], required: int) -> None:
        self.chain_id = chain_id
        self.nodes = tuple(nodes)
        self.required = required

    def preferred(self) -> list[Node]:
        """In the configured order, those that failed lately last."""
        return sorted(self.nodes, key=lambda node: node.is_resting)

    def named(self, name: str) -> Node | None:
        return next((node for node in self.nodes if node.name == name), None)

    async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
        """The result of the first node that answers. One node's word: use `agree` for what must be true.

        Raises:
            WalletError: NODE_UNAVAILABLE of the last node asked; a NodeRefusal at once.
        """
        (result,) = await self.call_many([Call(method, params)])
        if isinstance(result, WalletError):
            raise result
        return result

    async def call_many(self, calls: Sequence[Call]) -> list[Any]:
        """One batch to the first node that answers; see `Node.call_many`."""
        failure = WalletError(Reason.NODE_UNAVAILABLE, "no node is configured", chain_id=self.chain_id)
        for node in self.preferred():
            try:
                return await node.call_many(calls)
            except WalletError as error:
                failure = error
        raise failure

    async def ask_all(self, ask: Callable[[Node], Coroutine[Any, Any, T]]) -> list[tuple[Node, T | WalletError]]:
        """Put a question to every node at once; what each said, in the configured order.

        Once k nodes have answered usably the others have `_GRACE_S` more, and are left out then: one slow node of
        three delays nothing.
        """
        answers: dict[str, T | WalletError] = {}
        usable = 0
        tasks = {asyncio.ensure_future(ask(node)): node for node in self.nodes}
        try:
            while tasks:
                timeout_s = _GRACE_S if usable >= self.required else None
                done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                for task in done:
                    node = tasks.pop(task)
                    try:
                        answers[node.name] = task.result()
                        usable += 1
                    except WalletError as error:
                        answers[node.name] = error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [(node, answers[node.name]) for node in self.nodes if node.name in answers]

    async def agree(
        self,
        method: str,
        params: Sequence[Any] = (),
        k: int | None = None,
        normalise: Callable[[Any], T] = lambda result: result,
    ) -> Agreement[T]:
        """Ask all nodes at once; the answer that k of them (default `required`) give, as soon as k gave it.

        `normalise` keeps what is to be equal, and raises WalletError or ValueError where the form is wrong.

        Raises:
            WalletError: NODES_DISAGREE when two answers differ and none has k nodes; NODE_UNAVAILABLE when fewer than
                k answered; a NodeRefusal when k nodes refuse with the same code.
        """
        return await self.agree_by(lambda node: node.call(method, params), k, normalise, method)

    async def agree_by(
        self,
        ask: Callable[[Node], Coroutine[Any, Any, Any]],
        k: int | None,
        normalise: Callable[[Any], T],
        what: str,
    ) -> Agreement[T]:
        """`agree` over any question: `ask` puts it to one node; `what` names it in errors and logs."""
        needed = self.required if k is None else k
        votes: list[tuple[T, list[str]]] = []
        refusals: dict[int, list[NodeRefusal]] = {}
        silent: list[str] = []
        tasks = {asyncio.ensure_future(ask(node)): node for node in self.nodes}
        try:
            while tasks:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    self._count(task, tasks.pop(task), normalise, votes, refusals, silent)
                for value, names in votes:
                    if len(names) >= needed:
                        self._note_votes(votes, what)
                        return Agreement(value, tuple(names))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for same in refusals.values():
            if len(same) >= needed:
                raise same[0]
        self._note_votes(votes, what)
        answered = sum(len(names) for _, names in votes)
        if len(votes) > 1 or refusals:
            raise WalletError(
                Reason.NODES_DISAGREE,
                Reason.NODES_DISAGREE.meaning,
                chain_id=self.chain_id,
                method=what,
                required=needed,
            )
        raise WalletError(
            Reason.NODE_UNAVAILABLE,
            Reason.NODE_UNAVAILABLE.meaning,
            chain_id=self.chain_id,
            method=what,
            required=needed,
            answered=answered,
            nodes=" ".join(sorted(silent)),
        )

    def _count(
        self,
        task: asyncio.Future[Any],
        node: Node,
        normalise: Callable[[Any], T],
        votes: list[tuple[T, list[str]]],
        refusals: dict[int, list[NodeRefusal]],
        silent: list[str],
    ) -> None:
        try:
            value = normalise(task.result())
        except NodeRefusal as refusal:
            refusals.setdefault(refusal.rpc_code, []).append(refusal)
            return
        except (WalletError, ValueError, TypeError, KeyError) as error:
            silent.append(node.name)
            _log.warning("a node gives no usable answer", extra={"node": node.name, "cause": _cause(error)})
            return
        for known, names in votes:
            if known == value:
                names.append(node.name)
                return
        votes.append((value, [node.name]))

    def _note_votes(self, votes: list[tuple[T, list[str]]], what: str) -> None:
        if len(votes) > 1:
            self.note_disagreement(what, [names for _, names in votes])

    def note_disagreement(self, what: str, groups: Sequence[Sequence[str]]) -> None:
        """Count and log that nodes answered `what` differently; `groups` are the names that answered alike."""
        _disagreements.add(1, {attributes.WALLET_CHAIN_ID: self.chain_id, attributes.RPC_METHOD: what})
        _log.warning(
            "nodes disagree",
            extra={"chain_id": self.chain_id, "method": what, "nodes": [sorted(names) for names in groups]},
        )


class Nodes:
    """Every configured node, by chain. Make it inside a running event loop; `close` it after the last call."""

    def __init__(
        self, addresses: Sequence[NodeAddress], required: int, timeout_s: float = 5.0, *, traced: bool = False
    ) -> None:
        """`traced`: a client span per call, where calls belong to a request and are few."""
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=16, keepalive_timeout=60.0),
            # Exact bytes: no content encoding.
            headers={"content-type": "application/json", "accept-encoding": "identity", "user-agent": "goldenlink"},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        self.required = required
        self._chains: dict[str, ChainNodes] = {}
        for chain_id in dict.fromkeys(address.chain_id for address in addresses):
            nodes = [Node(each, self._session, traced=traced) for each in addresses if each.chain_id == chain_id]
            if len(nodes) < required:
                raise ValueError(f"{chain_id} has fewer nodes than must agree ({required})")
            self._chains[chain_id] = ChainNodes(chain_id, nodes, required)

    @classmethod
    def of_settings(cls, settings: NodeSettings, *, traced: bool = False) -> Nodes:
        return cls(read_nodes(settings.nodes_file), settings.nodes_required, settings.node_timeout_s, traced=traced)

    async def close(self) -> None:
        await self._session.close()

    @property
    def chains(self) -> tuple[ChainNodes, ...]:
        return tuple(self._chains.values())

    def chain(self, chain_id: str) -> ChainNodes:
        """Raises WalletError UNKNOWN_CHAIN."""
        if chain_id not in self._chains:
            raise WalletError(Reason.UNKNOWN_CHAIN, Reason.UNKNOWN_CHAIN.meaning, field="chain_id")
        return self._chains[chain_id]


def read_nodes(path: Path) -> list[NodeAddress]:
    """The nodes file.

    Raises:
        ValueError: naming the place and the rule, and no URL.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"the nodes file cannot be read: {type(error).__name__}") from None
    if not isinstance(document, list) or not document:
        raise ValueError("the nodes file is a non-empty list")
    addresses = []
    for place, entry in enumerate(document):
        if not isinstance(entry, dict) or entry.keys() != {"name", "url", "chain_id"}:
            raise ValueError(f"nodes[{place}] has exactly name, url and chain_id")
        if not isinstance(entry["name"], str) or not _NAME.fullmatch(entry["name"]):
            raise ValueError(f"nodes[{place}].name is 1 to 64 characters of A-Z a-z 0-9 . _ -")
        if not isinstance(entry["chain_id"], str) or not _CHAIN_ID.fullmatch(entry["chain_id"]):
            raise ValueError(f"nodes[{place}].chain_id is eip155:N")
        if not isinstance(entry["url"], str) or not entry["url"].startswith(("http://", "https://")):
            raise ValueError(f"nodes[{place}].url begins with http:// or https://")
        addresses.append(NodeAddress(entry["name"], entry["url"], entry["chain_id"]))
    if len({address.name for address in addresses}) != len(addresses):
        raise ValueError("the nodes file names a node twice")
    return addresses


def quantity(value: object, field: str) -> int:
    """The integer of a JSON-RPC quantity.

    Raises:
        WalletError: NODE_UNAVAILABLE with `field`.
    """
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value):
        raise WalletError(Reason.NODE_UNAVAILABLE, "a node's answer is no hex quantity", field=field)
    return int(value, 16)


def _cause(error: Exception) -> str:
    # A WalletError of this module quotes no URL; the text of anything else stays out.
    return str(error) if isinstance(error, WalletError) else type(error).__name__
