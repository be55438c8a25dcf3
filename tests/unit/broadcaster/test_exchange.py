"""Bodies of requests and responses, as the log's grammar wants them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest

from services.broadcaster.exchange import HttpRequest, http_request, no_response, node_responses, request_bodies
from services.broadcaster.refusals import Meaning
from services.core.canonical import from_hex, to_hex
from services.core.digests import keccak256
from services.core.entries import Kind, check_body
from services.runtime.node_answer import HttpAnswer

NOW = datetime(2026, 11, 1, tzinfo=UTC)
RAW = [b"\x02one", b"\x02two"]
HASHES = [keccak256(raw_tx) for raw_tx in RAW]


def answer(body: bytes, status: int = 200) -> HttpAnswer:
    return HttpAnswer(status, {"x-node-id": "a"}, body, NOW + timedelta(seconds=1))


def responses(request: HttpRequest, given: HttpAnswer) -> list[Any]:
    count = len(request.ids)
    made = node_responses(request, "node-a", "v/1", [3] * count, HASHES[:count], given)
    for response in made:
        check_body(Kind.RESPONSE, json.loads(response.body))
    return made


def test_a_lone_request_is_no_batch() -> None:
    request = http_request([7], RAW[:1])
    (body,) = request_bodies(request, "node-a", [3], NOW)
    document = json.loads(body)
    check_body(Kind.REQUEST, document)
    assert document["batch"] is None
    assert from_hex(document["body"]) == request.body


def test_a_batch_names_the_whole_and_each_place() -> None:
    request = http_request([7, 8], RAW)
    bodies = [json.loads(body) for body in request_bodies(request, "node-a", [1, 4], NOW)]
    assert [body["batch"] for body in bodies] == [
        {"sha256": to_hex(sha256(request.body).digest()), "index": index, "size": 2} for index in (0, 1)
    ]
    assert json.loads(request.body) == [json.loads(from_hex(body["body"])) for body in bodies]
    assert [body["attempt"] for body in bodies] == [1, 4]


def test_each_element_of_a_batch_is_cut_out_exactly() -> None:
    request = http_request([7, 8], RAW)
    first = f'{{"jsonrpc": "2.0", "id": 7, "result": "{to_hex(HASHES[0])}"}}'.encode()
    second = b'{"jsonrpc":"2.0","id":8,"error":{"code":-32000,"message":"nonce too low"}}'
    accepted, refused = responses(request, answer(b"[" + second + b", " + first + b"]"))
    assert from_hex(json.loads(accepted.body)["body"]) == first
    assert json.loads(accepted.body)["tx_hash"] == to_hex(HASHES[0])
    assert (accepted.is_settled, accepted.meaning) == (True, Meaning.ACCEPTED)
    assert from_hex(json.loads(refused.body)["body"]) == second
    assert json.loads(refused.body)["tx_hash"] is None
    assert (refused.is_answered, refused.is_settled, refused.meaning) == (True, True, Meaning.NONCE_SPENT)


@pytest.mark.parametrize("body", [b"<html>", b'[{"jsonrpc":"2.0","id":9,"result":"0x"}]', b'{"id":null}'])
def test_a_missing_element_is_as_no_http_answer(body: bytes) -> None:
    for response in responses(http_request([7, 8], RAW), answer(body)):
        document = json.loads(response.body)
        assert (document["http_status"], document["body"], document["headers"]) == (None, "0x", {})
        assert not response.is_answered


def test_a_lone_answer_is_kept_whatever_it_is() -> None:
    (response,) = responses(http_request([7], RAW[:1]), answer(b"busy", 503))
    document = json.loads(response.body)
    assert (document["http_status"], from_hex(document["body"])) == (503, b"busy")
    assert (response.is_answered, response.meaning) == (True, Meaning.UNKNOWN)


def test_another_hash_is_no_acceptance() -> None:
    body = f'{{"jsonrpc":"2.0","id":7,"result":"{to_hex(HASHES[1])}"}}'.encode()
    (response,) = responses(http_request([7], RAW[:1]), answer(body))
    assert json.loads(response.body)["tx_hash"] is None
    assert response.meaning is Meaning.UNKNOWN


def test_an_answer_too_large_for_the_log_is_none() -> None:
    (response,) = responses(http_request([7], RAW[:1]), answer(b"x" * 300_000))
    assert json.loads(response.body)["http_status"] is None


def test_no_answer_has_the_form_that_the_log_wants() -> None:
    check_body(Kind.RESPONSE, json.loads(no_response("node-a", 1, NOW).body))
