"""One request to a node and its response as bodies of the log. Pure; source: BUNDLE, "Bodies"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from services.broadcaster.refusals import SETTLED, Meaning, refusal
from services.core.canonical import canonical_json, format_time, to_hex
from services.core.grammar import accepts
from services.runtime.json_rpc import Call, NotJsonRpc, answers_by_id, encode_batch, encode_call
from services.runtime.node_answer import HttpAnswer

# Twice that in hex, and the rest of the body, stay below 1 MiB. No answer to eth_sendRawTransaction is near it.
MAX_ANSWER_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """The exact HTTP body for one node, and its elements in the order of the transactions."""

    body: bytes
    ids: tuple[int, ...]
    elements: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class NodeResponse:
    """One transaction's part of a node's answer."""

    body: bytes  # canonical, for the log
    is_answered: bool  # there was an HTTP answer
    meaning: Meaning = Meaning.UNKNOWN

    @property
    def is_settled(self) -> bool:
        """Another node need not be asked."""
        return self.meaning in SETTLED


def http_request(ids: Sequence[int], raw_txs: Sequence[bytes]) -> HttpRequest:
    """eth_sendRawTransaction for each; a lone one is no batch."""
    elements = tuple(
        encode_call(request_id, Call("eth_sendRawTransaction", [to_hex(raw_tx)]))
        for request_id, raw_tx in zip(ids, raw_txs, strict=True)
    )
    return HttpRequest(elements[0] if len(elements) == 1 else encode_batch(elements), tuple(ids), elements)


def request_bodies(request: HttpRequest, node: str, attempts: Sequence[int], sent_at: datetime) -> list[bytes]:
    """The canonical request bodies, one an element."""
    size = len(request.elements)
    digest = to_hex(sha256(request.body).digest()) if size > 1 else ""
    return [
        canonical_json(
            {
                "node": node,
                "body": to_hex(element),
                "batch": {"sha256": digest, "index": index, "size": size} if size > 1 else None,
                "sent_at": format_time(sent_at),
                "attempt": attempt,
            }
        )
        for index, (element, attempt) in enumerate(zip(request.elements, attempts, strict=True))
    ]


def node_responses(
    request: HttpRequest,
    node: str,
    client_version: str | None,
    attempts: Sequence[int],
    tx_hashes: Sequence[bytes],
    answer: HttpAnswer,
) -> list[NodeResponse]:
    """Each transaction's response; in a batch, one that has no element of its own is as no HTTP answer."""
    parts = _parts(request, answer)
    responses = []
    for request_id, attempt, tx_hash in zip(request.ids, attempts, tx_hashes, strict=True):
        part = parts.get(request_id)
        if part is None or len(part) > MAX_ANSWER_BYTES or not 100 <= answer.status <= 599:
            responses.append(no_response(node, attempt, answer.received_at))
            continue
        is_accepted = answer.status == 200 and accepts(part, request_id, to_hex(tx_hash))
        body = canonical_json(
            {
                "node": node,
                "attempt": attempt,
                "client_version": client_version,
                "http_status": answer.status,
                "headers": answer.headers,
                "body": to_hex(part),
                "tx_hash": to_hex(tx_hash) if is_accepted else None,
                "received_at": format_time(answer.received_at),
            }
        )
        responses.append(NodeResponse(body, True, _meaning(part, is_accepted, answer.status)))
    return responses


def no_response(node: str, attempt: int, received_at: datetime) -> NodeResponse:
    """The response where no HTTP answer is known: whether the node has the transaction is not either."""
    body = canonical_json(
        {
            "node": node,
            "attempt": attempt,
            "client_version": None,
            "http_status": None,
            "headers": {},
            "body": "0x",
            "tx_hash": None,
            "received_at": format_time(received_at),
        }
    )
    return NodeResponse(body, is_answered=False)


def _meaning(part: bytes, is_accepted: bool, status: int) -> Meaning:
    if is_accepted:
        return Meaning.ACCEPTED
    return refusal(part) if status == 200 else Meaning.UNKNOWN


def _parts(request: HttpRequest, answer: HttpAnswer) -> dict[int, bytes]:
    """The exact bytes that answer each id: the whole body for a lone request."""
    if len(request.ids) == 1:
        return {request.ids[0]: answer.body}
    try:
        return {request_id: part.exact for request_id, part in answers_by_id(answer.body).items()}
    except NotJsonRpc:
        return {}
