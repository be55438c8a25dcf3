"""Our encoding of spans is the SDK's, byte for byte once it is parsed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as encode_by_sdk
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from services.runtime.span_encoding import encode_spans

_RESOURCES = [Resource({"service.name": "signer", "n": 1}, "https://schema"), Resource({})]
_SCOPES = [InstrumentationScope("rpc", "1", "https://scope", {"a": True}), InstrumentationScope("signer"), None]
_values = st.one_of(
    st.text(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.lists(st.text(max_size=3), max_size=3).map(tuple),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    st.sampled_from([0, 0.0, False, 1, 1.0, True]),
    st.binary(max_size=3),
    st.dictionaries(st.text(max_size=3), st.none() | st.integers(0, 9), max_size=2),
)
_attributes = st.dictionaries(st.text(max_size=4), _values, max_size=5)
_contexts = st.builds(
    SpanContext,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.booleans(),
    st.just(TraceFlags(1)),
    st.sampled_from([TraceState(), TraceState([("a", "1"), ("b", "2")])]),
)
_links = st.builds(Link, _contexts, _attributes)
_spans = st.builds(
    ReadableSpan,
    name=st.text(max_size=300),
    context=_contexts,
    parent=st.none() | _contexts,
    resource=st.sampled_from(_RESOURCES),
    attributes=_attributes,
    events=st.lists(st.builds(Event, st.text(), _attributes, st.integers(0, 2**63)), max_size=2),
    links=st.lists(_links, max_size=3),
    kind=st.sampled_from(SpanKind),
    status=st.just(Status()) | st.builds(Status, st.just(StatusCode.ERROR), st.text()),
    start_time=st.integers(0, 2**63),
    end_time=st.integers(0, 2**63),
    instrumentation_scope=st.sampled_from(_SCOPES),
)


@given(st.lists(_spans, max_size=5))
def test_what_is_exported_is_what_the_sdk_exports(spans: list[ReadableSpan]) -> None:
    assert ExportTraceServiceRequest.FromString(encode_spans(spans)) == encode_by_sdk(spans)
