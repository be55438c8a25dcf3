"""Which spans are recorded: signature operations always, what belongs to a trace as its caller's flag says."""

from __future__ import annotations

from opentelemetry.sdk.trace.sampling import Decision, Sampler
from opentelemetry.trace import SpanContext, SpanKind


class SignatureFloor:
    """Signature operations are always sampled: whatever the caller's flag or the operator's strategy says.

    `signature_roots` are the names of the spans that start one; their children inherit flag 01 from them. Below any
    other span its flag decides. The strategy is asked about traces that begin here, and nothing else.
    """

    def __init__(self, strategy: Sampler, signature_roots: frozenset[str]) -> None:
        self._strategy = strategy
        self._signature_roots = signature_roots

    def is_signature(self, name: str) -> bool:
        """Whether a span of this name starts a signature operation."""
        return name in self._signature_roots

    def samples(self, parent: SpanContext | None, trace_id: int, name: str, kind: SpanKind) -> bool:
        if name in self._signature_roots:
            return True
        if parent is not None:
            return parent.trace_flags.sampled
        return self._strategy.should_sample(None, trace_id, name, kind).decision is Decision.RECORD_AND_SAMPLE
