"""Stored spans as OTLP/JSON. Source: OTLP specification, "JSON Protobuf Encoding": ids in hex, enums as numbers."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from functools import cache
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

_IDS = ("traceId", "spanId", "parentSpanId")


def trace_document(resource_spans: Iterable[bytes]) -> dict[str, Any]:
    """`TracesData`, from serialised ResourceSpans messages."""
    documents = []
    for message in resource_spans:
        document = MessageToDict(_read(message), use_integers_for_enums=True)
        for scope in document.get("scopeSpans", []):
            for span in scope.get("spans", []):
                for holder in (span, *span.get("links", [])):
                    for name in _IDS:
                        if name in holder:
                            holder[name] = base64.b64decode(holder[name]).hex()
        documents.append(document)
    return {"resourceSpans": documents}


def _read(message: bytes) -> ResourceSpans:
    """What is no UTF-8 in its texts is shown as U+FFFD: the store keeps what came."""
    try:
        return ResourceSpans.FromString(message)
    except DecodeError:
        read = ResourceSpans()
        _copy(_with_texts_as_bytes().FromString(message), read)
        return read


@cache
def _with_texts_as_bytes() -> type[Message]:
    """ResourceSpans as protobuf would have it if its strings were bytes: on the wire the two are one."""
    pool = DescriptorPool()
    for module in (common_pb2, resource_pb2, trace_pb2):
        file = FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        waiting = list(file.message_type)
        while waiting:
            message = waiting.pop()
            waiting += message.nested_type
            for field in message.field:
                if field.type == FieldDescriptorProto.TYPE_STRING:
                    field.type = FieldDescriptorProto.TYPE_BYTES
        pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(ResourceSpans.DESCRIPTOR.full_name))


def _copy(source: Message, target: Message) -> None:
    for field, value in source.ListFields():
        wanted = target.DESCRIPTOR.fields_by_number[field.number]
        into = getattr(target, wanted.name)
        if wanted.type == FieldDescriptor.TYPE_MESSAGE:
            if wanted.is_repeated:
                for one in value:
                    _copy(one, into.add())
            else:
                into.SetInParent()
                _copy(value, into)
        elif wanted.is_repeated:
            into.extend(value)
        else:
            is_text = wanted.type == FieldDescriptor.TYPE_STRING
            setattr(target, wanted.name, value.decode("utf-8", "replace") if is_text else value)
