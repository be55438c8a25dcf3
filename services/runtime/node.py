"""One chain node: JSON-RPC over kept-alive HTTP.

A node is known by its name. Its URL may hold a key and never reaches an error, a log line or a span; so aiohttp's own
errors, which quote the URL, are replaced at once by their class name. A node's answer is a claim: what does not have
the form of an answer is NODE_UNAVAILABLE, naming node and field.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.core.errors import DetailValue, Reason, WalletError
from services.runtime import attributes, fault_points
from services.runtime.json_rpc import Answer, Call, NotJsonRpc, answers_by_id, encode_batch, encode_call
from services.runtime.node_answer import HttpAnswer, NodeRefusal, is_quantity
from services.runtime.node_settings import NodeAddress

MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024
# What identifies the node and its answer; others, such as cookies, are not kept.
KEPT_HEADERS: Final = ("x-node-id", "content-type", "date", "server", "x-request-id")
_MAX_HEADER_TEXT = 256
_MAX_VERSION_TEXT = 256
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0

_tracer = trace.get_tracer("goldenlink.nodes")


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
            if not is_quantity(chain):
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
