"""From the signed bytes to the nodes' answers: raw_tx ↔ request body ↔ response tx_hash."""

from dataclasses import dataclass

from tools.verify import fields
from tools.verify.body import Request, Response
from tools.verify.entry import Entry
from tools.verify.refusal import Refused, quoted
from tools.verify.signing import SignedTx
from tools.verify.strict_json import parse_json

_CALL = frozenset({"jsonrpc", "id", "method", "params"})


@dataclass(slots=True)
class Submission:
    """One request and, where `response_position` is set, its response (`http_status` None: no HTTP answer)."""

    position: int
    request: Request
    call_id: int | str
    signed: SignedTx
    response_position: int | None = None
    response: Response | None = None


def check_submissions(entries: list[Entry], signed: list[SignedTx]) -> list[Submission]:
    """Every request sends a transaction signed before it; every response answers one request before it."""
    submissions: dict[tuple[str, int], Submission] = {}
    # Two signatures may yield the same bytes; the first is the one that a request had to wait for.
    signed_by_parameter = {"0x" + s.raw_tx.hex(): s for s in reversed(signed)}
    for position, entry in enumerate(entries):
        body = entry.body
        if isinstance(body, Request):
            what = f"request at step {position}: "
            if (body.node, body.attempt) in submissions:
                raise Refused(
                    what + f"attempt {body.attempt} at node {quoted(body.node)} is not the first of that name"
                )
            call_id, parameter = _call(body.body, what)
            transaction = signed_by_parameter.get(parameter)
            if transaction is None or transaction.position > position:
                raise Refused(what + "its body sends no raw_tx signed before it")
            submissions[body.node, body.attempt] = Submission(position, body, call_id, transaction)
        elif isinstance(body, Response):
            what = f"response at step {position}: "
            submission = submissions.get((body.node, body.attempt))
            if submission is None:
                raise Refused(what + f"no request is attempt {body.attempt} at node {quoted(body.node)}")
            if submission.response is not None:
                raise Refused(what + "its request already has a response")
            _check_answer(body, submission, what)
            submission.response_position, submission.response = position, body
    return list(submissions.values())


def _call(body: bytes, what: str) -> tuple[int | str, str]:
    """(id, parameter) of the eth_sendRawTransaction call."""
    call = fields.exactly(parse_json(body, what + "body"), _CALL, what + "body")
    if call["jsonrpc"] != "2.0" or call["method"] != "eth_sendRawTransaction":
        raise Refused(what + "body is not a JSON-RPC 2.0 eth_sendRawTransaction")
    call_id = call["id"]
    if type(call_id) is not int and type(call_id) is not str:
        raise Refused(what + f"its id is {quoted(call_id)}")
    parameters = fields.array(call["params"], what + "params")
    if len(parameters) != 1:
        raise Refused(what + f"it has {len(parameters)} parameters")
    return call_id, fields.text(parameters[0], what + "its parameter")


def _check_answer(response: Response, submission: Submission, what: str) -> None:
    """tx_hash states the node's result, and null states that it gave none we could believe."""
    result = _result(response, submission.call_id) if response.http_status == 200 else None
    if response.tx_hash is not None and response.tx_hash != submission.signed.tx_hash:
        raise Refused(what + "tx_hash is not the signature's")
    if response.tx_hash is not None and result != response.tx_hash:
        raise Refused(what + "tx_hash is not the result in its body")
    if response.tx_hash is None and result == submission.signed.tx_hash:
        raise Refused(what + "tx_hash is null although its body holds the result")


def _result(response: Response, call_id: int | str) -> bytes | None:
    """The hash that the node answered; None for an error, for nonsense and for an answer to another id."""
    try:
        answer = fields.at_least(parse_json(response.body, "body"), frozenset({"jsonrpc", "id", "result"}), "body")
        result = fields.octets(answer["result"], "result", 32)
    except Refused:
        return None
    is_ours = type(answer["id"]) is type(call_id) and answer["id"] == call_id
    return result if is_ours and answer["jsonrpc"] == "2.0" and answer.get("error") is None else None
