"""Names of the gateway's spans. The span of a request is named by method and route template."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan

from services.runtime.telemetry import parse_traceparent

# Root of a batch item's trace, linked to the batch request's.
TRANSFER: Final = "gateway.transfer"
# One run of the saga for one transfer, inside its trace.
SAGA: Final = "gateway.saga"
# One run for a group of one account: a trace of its own, linked to each transfer's.
SAGA_GROUP: Final = "gateway.saga_group"
# The end of a transfer that failed, inside its trace.
FAILURE: Final = "gateway.failure"

# An approval or rejection, inside the trace of what it is about, linked to the request's.
APPROVAL: Final = "gateway.approval"

POST_TRANSFER: Final = "POST /v1/transfers"
POST_TRANSFER_BATCH: Final = "POST /v1/transfers:batch"

POST_CANCEL: Final = "POST /v1/transfers/{id}:cancel"
POST_APPROVE: Final = "POST /v1/transfers/{id}:approve"
POST_REJECT: Final = "POST /v1/transfers/{id}:reject"
POST_POLICY: Final = "POST /v1/policies"
POST_POLICY_APPROVE: Final = "POST /v1/policies/{sha256}:approve"
POST_POLICY_REJECT: Final = "POST /v1/policies/{sha256}:reject"

# Spans that start signature operations: sampled whatever the caller's flag says.
SIGNATURE_ROOTS: Final = frozenset(
    {
        *(POST_TRANSFER, POST_TRANSFER_BATCH, POST_CANCEL, POST_APPROVE, POST_REJECT),
        *(POST_POLICY, POST_POLICY_APPROVE, POST_POLICY_REJECT),
        *(TRANSFER, SAGA, SAGA_GROUP, FAILURE, APPROVAL),
    }
)

tracer = trace.get_tracer("goldenlink.gateway")

_UNSAMPLED: Final = "00-00000000000000000000000000000001-0000000000000001-00"


@contextmanager
def unsampled() -> Iterator[None]:
    """What is asked in the block leaves no spans, here or there: questions that are asked every second."""
    context = parse_traceparent(_UNSAMPLED)
    assert context is not None
    with trace.use_span(NonRecordingSpan(context)):
        yield
