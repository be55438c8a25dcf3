"""What the servicer puts on the span of a call."""

from __future__ import annotations

from typing import Any, cast

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from protos.wallet.v1 import evidence_pb2 as pb
from services.core.errors import Reason, WalletError
from services.evidence.links import Appended
from services.evidence.placement import Append
from services.evidence.servicer import EvidenceServicer
from tests.unit.verify.forge import START


class OneEntryLog:
    async def append(self, appends: list[Append]) -> list[Appended]:
        return [Appended(7, 0, bytes(32), START, already_stored=False) for _ in appends]


class OneCaller:
    def __init__(self, service: str) -> None:
        self._service = service

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_subject_alternative_name": [self._service.encode()]}


@pytest.mark.parametrize(
    ("caller", "kind"),
    [
        ("gateway", "intent"),
        ("signer", "inclusion"),
        ("broadcaster", "signature"),
        ("keys", "policy"),
        ("signer", "key"),
    ],
)
async def test_no_service_enters_what_is_another_ones(caller: str, kind: str) -> None:
    servicer = EvidenceServicer(cast(Any, OneEntryLog()), cast(Any, None), cast(Any, None), cast(Any, None))
    request = pb.AppendEntryRequest(link_id="a", entry_id="k:1", kind=kind, body=b"{}")
    context = cast(Any, OneCaller(caller))
    for call in (
        servicer.AppendEntry(request, context),
        servicer.AppendEntries(pb.AppendEntriesRequest(entries=[request]), context),
    ):
        with pytest.raises(WalletError) as refused:
            await call
        assert refused.value.reason is Reason.CALLER_NOT_ALLOWED
        assert refused.value.details["kind"] == kind


async def test_a_single_append_names_its_index_and_kind_on_the_span_and_nothing_else() -> None:
    context = cast(Any, OneCaller("keys"))
    servicer = EvidenceServicer(cast(Any, OneEntryLog()), cast(Any, None), cast(Any, None), cast(Any, None))
    request = pb.AppendEntryRequest(link_id="a", entry_id="k:1", kind="key", body=b'{"actor":"alice"}')
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("single") as single:
        reply = await servicer.AppendEntry(request, context)
    with tracer.start_as_current_span("batch") as batch:
        await servicer.AppendEntries(pb.AppendEntriesRequest(entries=[request] * 3), context)
    assert reply.index == 7
    assert dict(cast(ReadableSpan, single).attributes or {}) == {
        "wallet.evidence.index": 7,
        "wallet.evidence.kind": "key",
    }
    assert not cast(ReadableSpan, batch).attributes
