"""Names of the gateway's spans. The span of a request is named by method and route template."""

from __future__ import annotations

from typing import Final

from opentelemetry import trace

# Root of a batch item's trace, linked to the batch request's.
TRANSFER: Final = "gateway.transfer"
# One run of the saga for one transfer, inside its trace.
SAGA: Final = "gateway.saga"
# One run for a group of one account: a trace of its own, linked to each transfer's.
SAGA_GROUP: Final = "gateway.saga_group"
# The end of a transfer that failed, inside its trace.
FAILURE: Final = "gateway.failure"

POST_TRANSFER: Final = "POST /v1/transfers"
POST_TRANSFER_BATCH: Final = "POST /v1/transfers:batch"

# Spans that start signature operations: sampled whatever the caller's flag says.
SIGNATURE_ROOTS: Final = frozenset({POST_TRANSFER, POST_TRANSFER_BATCH, TRANSFER, SAGA, SAGA_GROUP, FAILURE})

tracer = trace.get_tracer("goldenlink.gateway")
