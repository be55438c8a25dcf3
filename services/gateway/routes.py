"""The HTTP API: requests to domain calls, results to JSON. No rule of the domain lives here."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from protos.wallet.v1 import evidence_pb2, keys_pb2, signer_pb2, tracestore_pb2
from services.core.errors import Reason, WalletError
from services.gateway.acceptance import Submitter
from services.gateway.access import Operator, Reader, Staff, client_of, idempotency_key
from services.gateway.credentials import Credential
from services.gateway.events import event_stream, parse_last_event_id
from services.gateway.otlp import trace_document
from services.gateway.problems import TRACEPARENT_KEY
from services.gateway.requests import AccountRequest, TransferBatchRequest, TransferRequest, WalletRequest
from services.gateway.routing import ResourceId, StrictRoute, gateway_of, json_response
from services.gateway.status import suite_status
from services.gateway.transfer import State, Transfer
from services.gateway.views import (
    AccountView,
    LinkView,
    PolicyView,
    StatusView,
    TransferListView,
    TransferView,
    WalletView,
    account_view,
    link_view,
    policy_view,
    wallet_view,
)

_BUNDLE_WAIT_MS = 5_000
# The wait and the work.
_BUNDLE_TIMEOUT_S = 10.0

KeyHeader = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="1 to 255 visible ASCII characters; one key, one body, one result."),
]

router = APIRouter(route_class=StrictRoute)


def _submitter(request: Request, credential: Credential, key: str | None) -> Submitter:
    return Submitter(
        credential=credential,
        client=client_of(request, credential),
        idempotency_key=idempotency_key(key),
        traceparent=request.scope[TRACEPARENT_KEY],
    )


async def _stored(request: Request, transfer_id: str) -> Transfer:
    transfer = await gateway_of(request).store.transfer(transfer_id)
    if transfer is None:
        raise WalletError(Reason.NOT_FOUND, "no such transfer", field="id", rule="names a transfer")
    return transfer


@router.post("/v1/wallets", status_code=201, response_model=WalletView, tags=["wallets"])
async def create_wallet(request: Request, body: WalletRequest, credential: Operator) -> Response:
    """Make a seed in `keys`. The mnemonic leaves it only encrypted to `recovery_recipient`."""
    gateway = gateway_of(request)
    message = keys_pb2.CreateWalletRequest(
        wallet_id=body.id or gateway.identifiers.next("w"),
        name=body.name,
        strength_bits=body.strength_bits,
        recovery_recipient=bytes.fromhex(body.recovery_recipient[2:]) if body.recovery_recipient else b"",
    )
    view = wallet_view(await gateway.peers.keys.CreateWallet(message))
    return json_response(view, 201, {"Location": f"/v1/wallets/{view.id}"})


@router.get("/v1/wallets/{id}", response_model=WalletView, tags=["wallets"])
async def read_wallet(request: Request, id: ResourceId, credential: Staff) -> Response:
    message = keys_pb2.GetWalletRequest(wallet_id=id)
    return json_response(wallet_view(await gateway_of(request).peers.keys.GetWallet(message)))


@router.post("/v1/wallets/{id}/accounts", status_code=201, response_model=AccountView, tags=["wallets"])
async def create_account(request: Request, id: ResourceId, body: AccountRequest, credential: Operator) -> Response:
    """Derive an account; the same path gives the same account again."""
    algorithms = {"ecdsa_secp256k1": keys_pb2.ALGORITHM_ECDSA_SECP256K1, "ed25519": keys_pb2.ALGORITHM_ED25519}
    message = keys_pb2.CreateAccountRequest(
        wallet_id=id,
        chain_id=body.chain_id or "",
        algorithm=algorithms[body.algorithm],
        account=body.account,
        change=body.change,
        index=body.index,
    )
    view = account_view(await gateway_of(request).peers.keys.CreateAccount(message))
    return json_response(view, 201, {"Location": f"/v1/accounts/{view.id}"})


@router.get("/v1/accounts/{id}", response_model=AccountView, tags=["wallets"])
async def read_account(request: Request, id: ResourceId, credential: Staff) -> Response:
    message = keys_pb2.GetAccountRequest(account_id=id)
    return json_response(account_view(await gateway_of(request).peers.keys.GetAccount(message)))


@router.post("/v1/transfers", status_code=202, response_model=TransferView, tags=["transfers"])
async def create_transfer(
    request: Request, body: TransferRequest, credential: Operator, key: KeyHeader = None
) -> Response:
    """Accept one transfer, in the caller's trace. It is stored when this answers."""
    submitter = _submitter(request, credential, key)
    (transfer,) = await gateway_of(request).acceptance.accept([body], submitter, batch=False)
    # A repeated request is answered with the trace of the transfer that it made.
    trace = {"traceparent": transfer.traceparent, "X-Trace-ID": transfer.trace_id}
    return json_response(
        gateway_of(request).view(transfer), 202, {"Location": f"/v1/transfers/{transfer.transfer_id}", **trace}
    )


@router.post("/v1/transfers:batch", status_code=202, response_model=TransferListView, tags=["transfers"])
async def create_transfers(
    request: Request, body: TransferBatchRequest, credential: Operator, key: KeyHeader = None
) -> Response:
    """Accept up to 1,000 transfers or none; each has a trace of its own, linked to this request's."""
    submitter = _submitter(request, credential, key)
    transfers = await gateway_of(request).acceptance.accept(body.transfers, submitter, batch=True)
    return json_response(
        TransferListView(transfers=[gateway_of(request).view(transfer) for transfer in transfers]), 202
    )


@router.get("/v1/transfers", response_model=TransferListView, tags=["transfers"])
async def list_transfers(
    request: Request,
    credential: Reader,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[
        str | None, Query(pattern=r"^[A-Za-z0-9._:-]{1,64}$", description="`next` of the page before.")
    ] = None,
    state: State | None = None,
    account_id: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9._:-]{1,64}$")] = None,
) -> Response:
    """Newest first."""
    found = await gateway_of(request).store.page(limit, cursor, state, account_id)
    next_cursor = found[-1].transfer_id if len(found) == limit else None
    return json_response(
        TransferListView(transfers=[gateway_of(request).view(transfer) for transfer in found], next=next_cursor)
    )


@router.get("/v1/transfers/{id}", response_model=TransferView, tags=["transfers"])
async def read_transfer(request: Request, id: ResourceId, credential: Reader) -> Response:
    return json_response(gateway_of(request).view(await _stored(request, id)))


@router.get(
    "/v1/transfers/{id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
    tags=["transfers"],
)
async def follow_transfer(
    request: Request,
    id: ResourceId,
    credential: Reader,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> Response:
    """Server-sent events, one a change of state, until FINALIZED or FAILED; resumable by Last-Event-ID."""
    after = parse_last_event_id(last_event_id)
    transfer = await _stored(request, id)
    gateway = gateway_of(request)
    stream = event_stream(gateway.store, gateway.changes, transfer.transfer_id, after)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@router.get("/v1/links/{id}", response_model=LinkView, tags=["evidence"])
async def read_link(request: Request, id: ResourceId, credential: Reader) -> Response:
    """All entries of a golden link."""
    message = evidence_pb2.GetLinkRequest(link_id=id)
    return json_response(link_view(await gateway_of(request).peers.evidence.GetLink(message)))


@router.get(
    "/v1/links/{id}/bundle",
    response_class=JSONResponse,
    responses={
        200: {"description": "goldenlink.bundle.v1", "content": {"application/json": {"schema": {"type": "object"}}}}
    },
    tags=["evidence"],
)
async def read_bundle(request: Request, id: ResourceId, credential: Reader) -> Response:
    """The proof, byte for byte as `evidence` wrote it. Waits up to 5 s for a checkpoint that covers the link."""
    message = evidence_pb2.GetBundleRequest(link_id=id, wait_ms=_BUNDLE_WAIT_MS)
    bundle = await gateway_of(request).peers.evidence.GetBundle(message, timeout=_BUNDLE_TIMEOUT_S)
    return Response(bundle.document, media_type="application/json")


@router.get(
    "/v1/traces/{trace_id}",
    response_class=JSONResponse,
    responses={
        200: {"description": "OTLP/JSON TracesData", "content": {"application/json": {"schema": {"type": "object"}}}}
    },
    tags=["evidence"],
)
async def read_trace(
    request: Request, trace_id: Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")], credential: Reader
) -> Response:
    """Every stored span of a trace."""
    message = tracestore_pb2.GetTraceRequest(trace_id=trace_id)
    stored = await gateway_of(request).peers.tracestore.GetTrace(message)
    if not stored.resource_spans:
        raise WalletError(Reason.NOT_FOUND, "no such trace", field="trace_id", rule="names a stored trace")
    return JSONResponse(trace_document(stored.resource_spans))


@router.get("/v1/policy", response_model=PolicyView, tags=["suite"])
async def read_policy(request: Request, credential: Reader) -> Response:
    """The policy in force."""
    return json_response(policy_view(await gateway_of(request).peers.signer.GetPolicy(signer_pb2.GetPolicyRequest())))


@router.get("/v1/status", response_model=StatusView, tags=["suite"])
async def read_status(request: Request, credential: Reader) -> Response:
    """Could a signature be made now, and if not, what is missing?"""
    return json_response(await suite_status(gateway_of(request).peers))


@router.get("/healthz", tags=["suite"])
async def healthz() -> Response:
    """This process runs."""
    return JSONResponse({"status": "alive"})


@router.get("/readyz", tags=["suite"])
async def readyz(request: Request) -> Response:
    """This process can serve: its database answers and its saga runs. Peers are not asked."""
    gateway = gateway_of(request)
    await gateway.store.check()
    if not gateway.dispatcher.beating:
        raise WalletError(Reason.SERVICE_UNAVAILABLE, "the saga does not run")
    return JSONResponse({"status": "ready"})
