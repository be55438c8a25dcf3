"""Answers are cut from the body exactly, and nothing else is taken for one."""

from __future__ import annotations

import pytest

from services.runtime.json_rpc import Call, NotJsonRpc, answers_by_id, encode_batch, encode_call, read_answers


def test_a_request_is_compact_json_in_a_fixed_order() -> None:
    call = encode_call(7, Call("eth_sendRawTransaction", ["0x00"]))
    assert call == b'{"jsonrpc":"2.0","id":7,"method":"eth_sendRawTransaction","params":["0x00"]}'
    assert encode_batch([call, call]) == b"[" + call + b"," + call + b"]"


def test_elements_keep_their_bytes() -> None:
    first, second = '{ "id" : 2,\t"result":"é" }'.encode(), b'{"id":1,"result":1.50}'
    answers = answers_by_id(b" [ " + first + b" ,\n" + second + b"] \n")
    assert answers[2].exact == first
    assert answers[1].exact == second


def test_an_id_that_is_there_twice_or_is_no_number_answers_nothing() -> None:
    assert answers_by_id(b'[{"id":1},{"id":1},{"id":"2"},{"id":true},{"id":3}]').keys() == {3}


def test_an_empty_batch_has_no_answers() -> None:
    assert read_answers(b" [ ] ") == []


@pytest.mark.parametrize(
    "body",
    [b"", b"[", b"[{}", b"[{},]", b"[{} {}]", b"[1]", b"null", b"{}{}", b"[{}]x", b"\xff", b"{" * 100, b"[" * 5_000],
)
def test_anything_else_is_not_json_rpc(body: bytes) -> None:
    with pytest.raises(NotJsonRpc):
        read_answers(body)
