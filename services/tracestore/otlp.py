"""OTLP taken apart and put together again without a change to any span or log record. Pure: no I/O.

A *head* is a serialised ResourceSpans (or ResourceLogs: the two differ in names only) with one scope and no record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from google.protobuf.message import DecodeError

from protos.wallet.v1.otlp_parts_pb2 import (
    OtlpExport,
    OtlpResource,
    OtlpResourceAttributes,
    OtlpScope,
    OtlpScopeAttributes,
)
from services.core.errors import refuse
from services.tracestore.attributes import attribute_pairs

# gRPC clients take messages up to 4 MiB unless told otherwise, Jaeger's among them: what they could not read is not
# taken. The rest is for the lengths and tags around a record.
MAX_READABLE_BYTES = 4 * 1024 * 1024
MAX_RECORD_BYTES = MAX_READABLE_BYTES - 1024
TOO_LARGE = f"size: the rule is that, with its resource and scope, it is at most {MAX_RECORD_BYTES} bytes"
# The columns of texts hold this much of them: an index takes no more than 2,700 bytes.
MAX_TEXT = 255


class Head(NamedTuple):
    sha256: bytes
    content: bytes
    service: str


class Rejected(Exception):
    """One record breaks a rule, which is the text; the others of its request are stored."""


def split_export(request: bytes, message: str) -> Iterator[tuple[Head, list[bytes]]]:
    """Each scope's head and records of an Export request, which is a `message`.

    Raises:
        WalletError: INVALID_REQUEST; nothing of the request was stored, if all of it is taken before anything is.
    """
    try:
        for resource_bytes in OtlpExport.FromString(request).resources:
            resource = OtlpResource.FromString(resource_bytes)
            scopes = list(resource.scopes)
            service = _service_name(resource)
            for scope_bytes in scopes:
                scope = OtlpScope.FromString(scope_bytes)
                records = list(scope.records)
                OtlpScopeAttributes.FromString(b"".join(scope.scope))
                del scope.records[:]
                resource.scopes[:] = [scope.SerializeToString()]
                content = resource.SerializeToString()
                yield Head(hashlib.sha256(content).digest(), content, service), records
    except DecodeError:
        refuse("request", f"is an OTLP {message}")


def join_records(head: bytes, records: Iterable[bytes]) -> bytes:
    """The ResourceSpans or ResourceLogs of this head with these records, each as it came."""
    resource = OtlpResource.FromString(head)
    scope = OtlpScope.FromString(resource.scopes[0])
    scope.records.extend(records)
    resource.scopes[0] = scope.SerializeToString()
    return resource.SerializeToString()


def join_resources(resources: Iterable[bytes]) -> bytes:
    """A serialised TracesData."""
    return OtlpExport(resources=resources).SerializeToString()


def head_attributes(head: bytes) -> frozenset[tuple[bytes, bytes]]:
    """Key and text of every attribute of the resource and of the scope."""
    resource = OtlpResource.FromString(head)
    scope = OtlpScope.FromString(resource.scopes[0])
    return frozenset(
        attribute_pairs(OtlpResourceAttributes.FromString(b"".join(resource.resource)).attributes)
        + attribute_pairs(OtlpScopeAttributes.FromString(b"".join(scope.scope)).attributes)
    )


def column_text(text: bytes) -> str:
    """What a column holds of a text. PostgreSQL's holds no NUL and nothing but UTF-8; the record's bytes keep both."""
    return text.decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")[:MAX_TEXT]


def _service_name(resource: OtlpResource) -> str:
    for attribute in OtlpResourceAttributes.FromString(b"".join(resource.resource)).attributes:
        if attribute.key == b"service.name":
            return column_text(attribute.value.string_value)
    return ""
