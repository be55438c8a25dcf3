"""What search compares, and the tokens that lead it there."""

from __future__ import annotations

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from protos.wallet.v1.otlp_parts_pb2 import OtlpValue
from services.tracestore.attributes import duration_tokens, value_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (AnyValue(string_value="a b"), "a b"),
        (AnyValue(string_value=""), ""),
        (AnyValue(), ""),
        (AnyValue(bool_value=True), "true"),
        (AnyValue(bool_value=False), "false"),
        (AnyValue(int_value=-200), "-200"),
        (AnyValue(double_value=0.4), "0.4"),
        (AnyValue(double_value=200.0), "200"),
        (AnyValue(double_value=1e-6), "0.000001"),
        # Go's encoding/json: an exponent below 1e-6 and from 1e21, without leading zeros.
        (AnyValue(double_value=2.5e-7), "2.5e-7"),
        (AnyValue(double_value=1e21), "1e+21"),
        (AnyValue(double_value=1e20), "100000000000000000000"),
        (AnyValue(bytes_value=b"\x00\xff"), "AP8="),
        (AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1), AnyValue(string_value="ä")])), '[1,"ä"]'),
        (
            AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="k", value=AnyValue(bool_value=True))])),
            '{"k":true}',
        ),
    ],
)
def test_a_value_has_the_text_that_jaeger_compares(value: AnyValue, text: str) -> None:
    assert value_text(OtlpValue.FromString(value.SerializeToString())) == text.encode()


def test_a_duration_is_found_by_the_tokens_of_every_range_that_holds_it() -> None:
    for duration_ns in (0, 1, 2, 999, 10**9, 2**62, 2**63 - 1):
        (own,) = duration_tokens(duration_ns, duration_ns)
        assert own in duration_tokens(0, duration_ns)
        assert own in duration_tokens(duration_ns, 2**63 - 1)
    for duration_ns in (1_024, 10**9, 10**12):
        (own,) = duration_tokens(duration_ns, duration_ns)
        assert own not in duration_tokens(2 * duration_ns, 2**63 - 1)
        assert own not in duration_tokens(0, duration_ns // 2)
