"""Stored spans as OTLP/JSON. Source: OTLP specification, "JSON Protobuf Encoding": ids in hex, enums as numbers."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

_IDS = ("traceId", "spanId", "parentSpanId")


def trace_document(resource_spans: Iterable[bytes]) -> dict[str, Any]:
    """`TracesData`, from serialised ResourceSpans messages."""
    documents = []
    for message in resource_spans:
        document = MessageToDict(ResourceSpans.FromString(message), use_integers_for_enums=True)
        for scope in document.get("scopeSpans", []):
            for span in scope.get("spans", []):
                for holder in (span, *span.get("links", [])):
                    for name in _IDS:
                        if name in holder:
                            holder[name] = base64.b64decode(holder[name]).hex()
        documents.append(document)
    return {"resourceSpans": documents}
