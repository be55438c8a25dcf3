"""What a collector may answer, in each of its JSON forms, and what OTEL_TRACES_SAMPLER_ARG may say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.jaeger_sampler import SamplerArgument
from services.runtime.jaeger_sampler.strategy import (
    MalformedStrategy,
    PerOperation,
    Probabilistic,
    RateLimiting,
    Strategy,
    parse_strategy,
    version_of,
)

PER_OPERATION = {
    "defaultSamplingProbability": 0.25,
    "defaultLowerBoundTracesPerSecond": 2,
    "perOperationStrategies": [
        {"operation": "b", "probabilisticSampling": {"samplingRate": 1}},
        {"operation": "a", "probabilisticSampling": {}},
    ],
}


def parse(answer: Any) -> Strategy:
    return parse_strategy(json.dumps(answer).encode())


@pytest.mark.parametrize(
    ("answer", "strategy"),
    [
        # Collectors up to 2.15: numbers for enums, null for what is absent.
        (
            {
                "strategyType": 0,
                "probabilisticSampling": {"samplingRate": 0.5},
                "rateLimitingSampling": None,
                "operationSampling": None,
            },
            Probabilistic(0.5),
        ),
        ({"strategyType": 1, "rateLimitingSampling": {"maxTracesPerSecond": 7}}, RateLimiting(7)),
        # From 2.16 on: names for enums, zeros left out.
        ({"strategyType": "PROBABILISTIC", "probabilisticSampling": {"samplingRate": 1}}, Probabilistic(1.0)),
        ({"probabilisticSampling": {}}, Probabilistic(0.0)),
        ({"strategyType": "RATE_LIMITING", "rateLimitingSampling": {}}, RateLimiting(0)),
        # Per-operation strategies go first, whatever the type says.
        (
            {"strategyType": 0, "probabilisticSampling": {"samplingRate": 1}, "operationSampling": PER_OPERATION},
            PerOperation(0.25, 2, (("a", 0.0), ("b", 1.0))),
        ),
        ({"operationSampling": {"perOperationStrategies": None}}, PerOperation(0, 0, ())),
        # A union with two members: the type decides.
        (
            {
                "strategyType": "RATE_LIMITING",
                "probabilisticSampling": {"samplingRate": 1},
                "rateLimitingSampling": {"maxTracesPerSecond": 1},
            },
            RateLimiting(1),
        ),
        (
            {"probabilisticSampling": {"samplingRate": 1}, "rateLimitingSampling": {"maxTracesPerSecond": 1}},
            Probabilistic(1),
        ),
    ],
)
def test_each_strategy_is_read_from_both_json_forms(answer: Any, strategy: Strategy) -> None:
    assert parse(answer) == strategy


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<html>",
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        b"[]",
        b"{}",
        b'{"strategyType":1}',
        b'{"strategyType":0,"probabilisticSampling":null}',
        b'{"probabilisticSampling":{"samplingRate":1.01}}',
        b'{"probabilisticSampling":{"samplingRate":-0.1}}',
        b'{"probabilisticSampling":{"samplingRate":NaN}}',
        b'{"probabilisticSampling":{"samplingRate":true}}',
        b'{"probabilisticSampling":{"samplingRate":"1"}}',
        b'{"probabilisticSampling":{"samplingRate":null}}',
        b'{"rateLimitingSampling":{"maxTracesPerSecond":-1}}',
        b'{"rateLimitingSampling":{"maxTracesPerSecond":Infinity}}',
        b'{"rateLimitingSampling":{"maxTracesPerSecond":' + b"9" * 4_000 + b"}}",
        b'{"operationSampling":[]}',
        b'{"operationSampling":{"perOperationStrategies":{}}}',
        b'{"operationSampling":{"perOperationStrategies":[1]}}',
        b'{"operationSampling":{"perOperationStrategies":[{"operation":1,"probabilisticSampling":{}}]}}',
        b'{"operationSampling":{"perOperationStrategies":[{"operation":"a"}]}}',
        b'{"operationSampling":{"defaultLowerBoundTracesPerSecond":-1}}',
    ],
)
def test_what_is_no_strategy_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedStrategy):
        parse_strategy(text)


_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("strategyType", "probabilisticSampling", "rateLimitingSampling", "operationSampling"),
                    *("samplingRate", "maxTracesPerSecond", "perOperationStrategies", "operation"),
                    *("defaultSamplingProbability", "defaultLowerBoundTracesPerSecond"),
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(_json)
def test_any_json_is_a_strategy_or_malformed(answer: Any) -> None:
    try:
        strategy = parse(answer)
    except MalformedStrategy:
        return
    assert 0 < version_of(strategy) < 2**48


def test_the_version_is_the_strategys_and_not_of_how_it_was_written() -> None:
    listed = PER_OPERATION["perOperationStrategies"]
    assert isinstance(listed, list)
    turned = {**PER_OPERATION, "perOperationStrategies": list(reversed(listed))}
    version = version_of(parse({"operationSampling": PER_OPERATION}))
    assert version == version_of(parse({"operationSampling": turned}))
    assert version != version_of(parse({"operationSampling": {**PER_OPERATION, "defaultSamplingProbability": 0.26}}))


@pytest.mark.parametrize(
    ("text", "argument"),
    [
        (None, ("http://localhost:5779", 10.0, 0.001)),
        ("", ("http://localhost:5779", 10.0, 0.001)),
        # The specification's own example.
        (
            "endpoint=http://localhost:14250,pollingIntervalMs=5000,initialSamplingRate=0.25",
            ("http://localhost:14250", 5.0, 0.25),
        ),
        (
            " initialSamplingRate = 1 , endpoint=https://[::1]:5778/sampling,",
            ("https://[::1]:5778/sampling", 10.0, 1.0),
        ),
        ("endpoint=http://collector", ("http://collector", 10.0, 0.001)),
    ],
)
def test_the_argument_is_read(text: str | None, argument: tuple[str, float, float]) -> None:
    assert SamplerArgument.parse(text) == argument


def test_an_owner_of_the_sampler_may_have_another_initial_rate() -> None:
    assert SamplerArgument.parse("", initial_sampling_rate=1.0).initial_sampling_rate == 1.0
    assert SamplerArgument.parse("initialSamplingRate=0.5", initial_sampling_rate=1.0).initial_sampling_rate == 0.5


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("poolingIntervalMs=5000", "poolingIntervalMs"),
        ("0.25", "0.25"),
        ("endpoint=a:1,endpoint=b:1", "endpoint"),
        ("endpoint=localhost:14250", "endpoint"),
        ("endpoint=http://", "endpoint"),
        ("endpoint=ftp://a:1", "endpoint"),
        ("endpoint=http://a:99999", "endpoint"),
        ("endpoint=http://a:0", "endpoint"),
        ("endpoint=http://user:secret@a:1", "endpoint"),
        ("endpoint=http://[::1", "endpoint"),
        ("endpoint=http://a:1/sampling?service=b", "endpoint"),
        ("pollingIntervalMs=0", "pollingIntervalMs"),
        ("pollingIntervalMs=-1", "pollingIntervalMs"),
        ("pollingIntervalMs=1.5", "pollingIntervalMs"),
        ("pollingIntervalMs=1e3", "pollingIntervalMs"),
        ("pollingIntervalMs=9999999999", "pollingIntervalMs"),
        ("initialSamplingRate=1.1", "initialSamplingRate"),
        ("initialSamplingRate=nan", "initialSamplingRate"),
        ("initialSamplingRate=half", "initialSamplingRate"),
        ("initialSamplingRate", "initialSamplingRate"),
    ],
)
def test_a_wrong_argument_is_named_and_its_secrets_are_not(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named) as refused:
        SamplerArgument.parse(text)
    assert "secret" not in str(refused.value)
