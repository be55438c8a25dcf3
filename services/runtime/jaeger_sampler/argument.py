"""The text of OTEL_TRACES_SAMPLER_ARG.

Source: OpenTelemetry specification, "Environment Variable Specification", `jaeger_remote`.
"""

from __future__ import annotations

import math
from typing import NamedTuple
from urllib.parse import urlsplit

_KEYS = ("endpoint", "pollingIntervalMs", "initialSamplingRate")


class SamplerArgument(NamedTuple):
    # The specification names no defaults. The rate is that of the samplers for Go and Java, the port the collector's.
    endpoint: str = "http://localhost:5779"
    polling_interval_s: float = 10.0
    initial_sampling_rate: float = 0.001

    @classmethod
    def parse(cls, argument: str | None, *, initial_sampling_rate: float | None = None) -> SamplerArgument:
        """Of "endpoint=http://host:port,pollingIntervalMs=10000,initialSamplingRate=0.25"; each part may be left out.

        `initial_sampling_rate` takes the place of our own default.

        Raises:
            ValueError: naming the part that is wrong. A misspelt key is one: it would be a setting that does nothing.
        """
        parsed = cls() if initial_sampling_rate is None else cls(initial_sampling_rate=initial_sampling_rate)
        seen = set()
        for part in filter(None, (part.strip() for part in (argument or "").split(","))):
            key, separator, value = (piece.strip() for piece in part.partition("="))
            if key not in _KEYS or not separator:
                raise ValueError(f"OTEL_TRACES_SAMPLER_ARG: {key!r} is none of {', '.join(_KEYS)}")
            if key in seen:
                raise ValueError(f"OTEL_TRACES_SAMPLER_ARG: {key} is there twice")
            seen.add(key)
            match key:
                case "endpoint":
                    parsed = parsed._replace(endpoint=_endpoint(value))
                case "pollingIntervalMs":
                    parsed = parsed._replace(polling_interval_s=_interval_s(value))
                case _:
                    parsed = parsed._replace(initial_sampling_rate=_rate(value))
        return parsed


def _endpoint(value: str) -> str:
    try:
        url = urlsplit(value)
        is_address = bool(url.hostname) and url.port != 0
    except ValueError:
        is_address = False
    if not is_address or url.scheme not in ("http", "https") or url.username is not None or url.query or url.fragment:
        raise ValueError("OTEL_TRACES_SAMPLER_ARG: endpoint is not http[s]://host:port or http[s]://host:port/path")
    return value


def _interval_s(value: str) -> float:
    if not (value.isascii() and value.isdecimal() and len(value) <= 9 and int(value) > 0):
        raise ValueError("OTEL_TRACES_SAMPLER_ARG: pollingIntervalMs is not a whole number of milliseconds above 0")
    return int(value) / 1_000


def _rate(value: str) -> float:
    try:
        rate = float(value)
    except ValueError:
        rate = math.nan
    if not 0.0 <= rate <= 1.0:
        raise ValueError("OTEL_TRACES_SAMPLER_ARG: initialSamplingRate is not between 0 and 1")
    return rate
