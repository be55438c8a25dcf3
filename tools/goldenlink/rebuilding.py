"""`goldenlink trace rebuild`: the essential spans of a link as OTLP/JSON, from its entries and nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.core.entries import Leaf
from services.core.errors import WalletError
from services.tracestore.rebuilding import AttributeValue, EnteredStep, EssentialSpan, essential_spans
from tools.goldenlink.exits import Exit, Failure

_SCOPE = "goldenlink.rebuilt"
_INTERNAL, _ERROR = 1, 2  # OTLP: SPAN_KIND_INTERNAL, STATUS_CODE_ERROR


def steps_of_link(link: dict[str, Any]) -> list[EnteredStep]:
    """The entries of gateway's `/v1/links/{id}`."""
    return [
        EnteredStep(entry["index"], Leaf.decode(base64.b64decode(entry["leaf"])), entry["body"])
        for entry in link["entries"]
    ]


def steps_of_bundle(path: Path) -> list[EnteredStep]:
    """The entries of a bundle, which is read and not verified.

    Raises:
        Failure: the file cannot be read, or is no bundle.
    """
    try:
        document = json.loads(path.read_bytes())
        return [
            EnteredStep(
                entry["index"],
                Leaf.decode(base64.b64decode(entry["leaf"])),
                json.loads(base64.b64decode(entry["body"])) if entry["body"] else None,
            )
            for entry in document["entries"]
        ]
    except OSError as error:
        raise Failure(Exit.USAGE, f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, WalletError):
        raise Failure(Exit.USAGE, f"{path}: not a bundle; 'goldenlink verify' tells what is wrong with it") from None


def rebuilt_document(steps: Sequence[EnteredStep]) -> dict[str, Any]:
    """TracesData. Source: OTLP specification, "JSON Protobuf Encoding": 64-bit integers are text, ids hex."""
    by_service: dict[str, list[EssentialSpan]] = {}
    for span in essential_spans(steps):
        by_service.setdefault(span.service, []).append(span)
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": [_attribute("service.name", service)]},
                "scopeSpans": [{"scope": {"name": _SCOPE}, "spans": [_span(span) for span in spans]}],
            }
            for service, spans in by_service.items()
        ]
    }


def _span(span: EssentialSpan) -> dict[str, Any]:
    document: dict[str, Any] = {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "name": span.name,
        "kind": _INTERNAL,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": [_attribute(key, value) for key, value in span.attributes.items()],
    }
    if span.error is not None:
        document["status"] = {"code": _ERROR, **({"message": span.error} if span.error else {})}
        if span.error:
            document["attributes"].append(_attribute("error.type", span.error))
    return document


def _attribute(key: str, value: AttributeValue) -> dict[str, Any]:
    match value:
        case bool():
            return {"key": key, "value": {"boolValue": value}}
        case int():
            return {"key": key, "value": {"intValue": str(value)}}
        case float():
            return {"key": key, "value": {"doubleValue": value}}
        case _:
            return {"key": key, "value": {"stringValue": value}}
