"""What a collector answers, checked: one of Jaeger's three strategies.

Both JSON forms are read, that of the older collectors (enums as numbers, absent parts as null) and protobuf's own
(enums as names, zeros left out); a protobuf answer is read by way of its JSON form. Source of fields and precedence:
jaeger.api_v2, sampling.proto.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

# Of a limit in traces a second: the field is an int32.
_MOST_PER_SECOND = 2**31 - 1
_RATE_LIMITING = (1, "RATE_LIMITING")


class MalformedStrategy(ValueError):
    """The answer is no strategy; the text names the field."""


@dataclass(frozen=True)
class Probabilistic:
    sampling_rate: float


@dataclass(frozen=True)
class RateLimiting:
    max_traces_per_second: float


@dataclass(frozen=True)
class PerOperation:
    default_sampling_rate: float
    # Of each operation, listed or not; 0 for none.
    lower_bound_traces_per_second: float
    # (operation, sampling rate), in the order of names: a list in another order is the same strategy.
    operations: tuple[tuple[str, float], ...]


Strategy = Probabilistic | RateLimiting | PerOperation


def parse_strategy(text: bytes) -> Strategy:
    """Of an HTTP answer.

    Raises:
        MalformedStrategy.
    """
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        raise MalformedStrategy("the answer is not JSON") from None
    return read_strategy(answer)


def read_strategy(answer: object) -> Strategy:
    """Of the answer's JSON form.

    Raises:
        MalformedStrategy.
    """
    fields = _object(answer, "answer")
    per_operation, probabilistic, rate_limiting = (
        fields.get(name) for name in ("operationSampling", "probabilisticSampling", "rateLimitingSampling")
    )
    if per_operation is not None:
        return _per_operation(_object(per_operation, "operationSampling"))
    # The type decides only where both are there, which a correct collector never sends.
    if rate_limiting is not None and (probabilistic is None or fields.get("strategyType") in _RATE_LIMITING):
        limits = _object(rate_limiting, "rateLimitingSampling")
        return RateLimiting(_number(limits, "maxTracesPerSecond", _MOST_PER_SECOND))
    return Probabilistic(_sampling_rate(probabilistic, "probabilisticSampling"))


def version_of(strategy: Strategy) -> int:
    """48 bits that are the same in every process that follows the same strategy."""
    return int.from_bytes(hashlib.sha256(repr(strategy).encode("utf-8", "surrogatepass")).digest()[:6], "big")


def _per_operation(fields: Mapping[str, object]) -> PerOperation:
    listed = fields.get("perOperationStrategies")
    if listed is None:
        listed = []
    if not isinstance(listed, list):
        raise MalformedStrategy("perOperationStrategies is not a list")
    operations: dict[str, float] = {}
    for item in listed:
        entry = _object(item, "perOperationStrategies")
        # Protobuf's JSON leaves an empty name out.
        operation = entry.get("operation", "")
        if not isinstance(operation, str):
            raise MalformedStrategy("operation is not a text")
        operations[operation] = _sampling_rate(entry.get("probabilisticSampling"), "perOperationStrategies")
    return PerOperation(
        default_sampling_rate=_number(fields, "defaultSamplingProbability", 1.0),
        lower_bound_traces_per_second=_number(fields, "defaultLowerBoundTracesPerSecond", _MOST_PER_SECOND),
        operations=tuple(sorted(operations.items())),
    )


def _sampling_rate(probabilistic: object, field: str) -> float:
    return _number(_object(probabilistic, field), "samplingRate", 1.0)


def _object(value: object, field: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise MalformedStrategy(f"{field} is not an object")
    return value


def _number(fields: Mapping[str, object], field: str, most: float) -> float:
    # Protobuf's JSON leaves zeros out.
    value = fields.get(field, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise MalformedStrategy(f"{field} is not a number between 0 and {most:g}")
    return float(value)
