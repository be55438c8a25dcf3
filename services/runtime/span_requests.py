"""Spans as requests that a collector takes: of bounded size, and in halves where one of them is refused. Pure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from opentelemetry.sdk.trace import ReadableSpan

from protos.wallet.v1.otlp_parts_pb2 import OtlpExport, OtlpResource, OtlpScope
from services.runtime import span_counts
from services.runtime.span_encoding import encode_spans
from services.runtime.span_frames import MAX_PAYLOAD_BYTES

_log = logging.getLogger(__name__)


def halve(request: bytes) -> list[bytes]:
    """The same spans, byte for byte, in two requests; none when there is one span or less."""
    spans = [
        (resource, scope, span)
        for resource in map(OtlpResource.FromString, OtlpExport.FromString(request).resources)
        for scope in map(OtlpScope.FromString, resource.scopes)
        for span in scope.records
    ]
    if len(spans) < 2:
        return []
    middle = len(spans) // 2
    return [_request_of(spans[:middle]), _request_of(spans[middle:])]


def _request_of(spans: Sequence[tuple[OtlpResource, OtlpScope, bytes]]) -> bytes:
    resources = []
    for resource, scope, span in spans:
        alone = OtlpScope(scope=scope.scope, records=[span], schema_url=scope.schema_url)
        resources.append(
            OtlpResource(
                resource=resource.resource, scopes=[alone.SerializeToString()], schema_url=resource.schema_url
            ).SerializeToString()
        )
    return OtlpExport(resources=resources).SerializeToString()


def requests_of(spans: Sequence[ReadableSpan], drop: Callable[[str], None]) -> Iterator[tuple[bytes, int]]:
    """Requests of at most 1 MiB. Of what does not encode, or is larger alone, `drop` is told the cause."""
    try:
        payload = encode_spans(spans)
        cause = "" if len(payload) <= MAX_PAYLOAD_BYTES else span_counts.TOO_LARGE
    except Exception as error:
        # An attribute whose type or text is none of OTLP's: its neighbours are not to suffer for it.
        payload, cause = b"", span_counts.NOT_ENCODABLE
        if len(spans) == 1:
            _log.error("a span cannot be encoded", extra={"span": spans[0].name, "cause": type(error).__name__})
    if not cause:
        yield payload, len(spans)
    elif len(spans) == 1:
        drop(cause)
    else:
        middle = len(spans) // 2
        yield from requests_of(spans[:middle], drop)
        yield from requests_of(spans[middle:], drop)
