"""The JSON-RPC client over real HTTP: what nodes do wrong has a name, and no URL in it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from services.core.errors import Reason, WalletError
from services.runtime import node as node_module
from services.runtime.chain_nodes import ChainNodes
from services.runtime.json_rpc import Call
from services.runtime.node_answer import NodeRefusal, quantity
from services.runtime.node_settings import NodeAddress
from services.runtime.nodes import Nodes

CHAIN = "eip155:31337"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Start = Callable[..., Awaitable[ChainNodes]]


def answering(results: dict[str, Any], delay_s: float = 0.0) -> Handler:
    """A node that knows these results; a result that is an exception becomes a JSON-RPC error."""
    known = {"eth_chainId": "0x7a69", "web3_clientVersion": "test/1"} | results

    def answer(call: dict[str, Any]) -> dict[str, Any]:
        result = known[call["method"]]
        if isinstance(result, Exception):
            return {"jsonrpc": "2.0", "id": call["id"], "error": {"code": 3, "message": str(result)}}
        return {"jsonrpc": "2.0", "id": call["id"], "result": result}

    async def handle(request: web.Request) -> web.StreamResponse:
        calls = json.loads(await request.read())
        if isinstance(calls, dict) or calls[0]["method"] != "eth_chainId":
            await asyncio.sleep(delay_s)
        # A batch may be answered in any order.
        return web.json_response(
            [answer(call) for call in reversed(calls)] if isinstance(calls, list) else answer(calls)
        )

    return handle


def raw(body: bytes, status: int = 200) -> Handler:
    """A node that greets well and then answers these bytes."""
    greets = answering({})

    async def handle(request: web.Request) -> web.StreamResponse:
        if b"eth_chainId" in await request.read():
            return await greets(request)
        return web.Response(body=body, status=status)

    return handle


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    closers: list[Callable[[], Awaitable[None]]] = []

    async def make(*handlers: Handler, required: int = 1, timeout_s: float = 1.0) -> ChainNodes:
        addresses = []
        for number, handler in enumerate(handlers):
            application = web.Application()
            application.router.add_post("/secret-key", handler)
            runner = web.AppRunner(application, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.1).start()
            closers.append(runner.cleanup)
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/secret-key"
            addresses.append(NodeAddress(f"node-{number}", url, CHAIN))
        nodes = Nodes(addresses, required, timeout_s)
        closers.insert(0, nodes.close)
        return nodes.chain(CHAIN)

    yield make
    for close in closers:
        await close()


async def test_a_batch_is_answered_in_the_order_of_its_calls(start: Start) -> None:
    chain = await start(answering({"eth_blockNumber": "0x10", "eth_gasPrice": "0x1", "eth_call": ValueError("no")}))
    number, refused, price = await chain.call_many([Call("eth_blockNumber"), Call("eth_call"), Call("eth_gasPrice")])
    assert (quantity(number, "n"), price) == (16, "0x1")
    assert isinstance(refused, NodeRefusal)
    assert (refused.rpc_code, refused.rpc_message) == (3, "no")
    assert chain.nodes[0].client_version == "test/1"


@pytest.mark.parametrize(
    ("handler", "field"),
    [
        (raw(b"<html>"), "body"),
        (raw(b'"text"'), "body"),
        (raw(b"\xff"), "body"),
        (raw(b'{"jsonrpc":"2.0","id":999,"result":"0x1"}'), "id"),
        (raw(b'{"jsonrpc":"2.0","id":"3","result":"0x1"}'), "id"),
        (raw(b'{"jsonrpc":"2.0","id":3}'), "result"),
        (raw(b'{"id":3,"result":"0x1"}'), "result"),
        (raw(b'{"jsonrpc":"2.0","id":3,"error":"no"}'), "error"),
        (raw(b"busy", status=503), "http_status"),
        (answering({"eth_chainId": "0x1"}), "chain_id"),
        (answering({"eth_chainId": 31337}), "chain_id"),
    ],
)
async def test_nonsense_is_refused_by_node_and_field(
    start: Start, handler: Handler, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    chain = await start(handler)
    with pytest.raises(WalletError) as refused:
        await chain.call("eth_blockNumber")
    assert refused.value.reason is Reason.NODE_UNAVAILABLE
    assert (refused.value.details["node"], refused.value.details["field"]) == ("node-0", field)
    assert "secret-key" not in str(refused.value) + caplog.text


async def test_an_answer_without_end_is_bounded(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "MAX_ANSWER_BYTES", 1_000)
    chain = await start(raw(b"0" * 2_000))
    with pytest.raises(WalletError, match="no HTTP answer"):
        await chain.call("eth_blockNumber")


async def test_a_slow_node_is_given_up_and_the_next_one_asked(start: Start) -> None:
    chain = await start(
        answering({"eth_blockNumber": "0x1"}, 5.0), answering({"eth_blockNumber": "0x2"}), timeout_s=0.3
    )
    assert await chain.call("eth_blockNumber") == "0x2"
    assert chain.nodes[0].is_resting
    assert [node.name for node in chain.preferred()] == ["node-1", "node-0"]


async def test_k_equal_answers_agree_without_waiting_for_the_slow(start: Start) -> None:
    slow, right, lie = ({"eth_gasPrice": value} for value in ("0x1", "0x1", "0x2"))
    chain = await start(answering(slow, 5.0), answering(right), answering(lie), answering(right), timeout_s=9.0)
    async with asyncio.timeout(2.0):
        agreement = await chain.agree("eth_gasPrice", k=2)
    assert agreement.value == "0x1"
    assert set(agreement.nodes) == {"node-1", "node-3"}


async def test_too_few_equal_answers_are_a_disagreement(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    chain = await start(answering({"eth_gasPrice": "0x1"}), answering({"eth_gasPrice": "0x2"}))
    with pytest.raises(WalletError) as refused:
        await chain.agree("eth_gasPrice", k=2)
    assert refused.value.reason is Reason.NODES_DISAGREE
    (record,) = [record for record in caplog.records if record.message == "nodes disagree"]
    assert sorted(vars(record)["nodes"]) == [["node-0"], ["node-1"]]


async def test_too_few_answers_are_no_disagreement(start: Start) -> None:
    chain = await start(answering({"eth_gasPrice": "0x1"}), raw(b"", status=502))
    with pytest.raises(WalletError) as refused:
        await chain.agree("eth_gasPrice", k=2)
    assert refused.value.reason is Reason.NODE_UNAVAILABLE
    assert refused.value.details["nodes"] == "node-1"


async def test_an_answer_of_the_wrong_form_does_not_count(start: Start) -> None:
    chain = await start(answering({"eth_gasPrice": []}), answering({"eth_gasPrice": "0x2"}))
    agreement = await chain.agree("eth_gasPrice", k=1, normalise=lambda result: quantity(result, "gas_price"))
    assert agreement.value == 2


async def test_nodes_that_refuse_alike_agree_to_refuse(start: Start) -> None:
    reverted = answering({"eth_estimateGas": ValueError("execution reverted")})
    chain = await start(reverted, reverted)
    with pytest.raises(NodeRefusal):
        await chain.agree("eth_estimateGas", k=2)


async def test_a_node_that_comes_back_is_greeted_again(start: Start) -> None:
    versions = iter(["test/1", "test/2"])
    is_down = False

    async def handle(request: web.Request) -> web.StreamResponse:
        if is_down:
            return web.Response(status=500)
        body = await request.read()
        known = {"web3_clientVersion": next(versions)} if b"eth_chainId" in body else {}
        return await answering(known | {"eth_gasPrice": "0x1"})(request)

    chain = await start(handle)
    await chain.call("eth_gasPrice")
    is_down = True
    with pytest.raises(WalletError):
        await chain.call("eth_gasPrice")
    is_down = False
    await chain.call("eth_gasPrice")
    assert chain.nodes[0].client_version == "test/2"
