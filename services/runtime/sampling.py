"""The operator's strategy for what is no signature operation: OTEL_TRACES_SAMPLER, with the names of the SDK.

Which span it is asked about, and which never, is decided by `SignatureFloor`: below another span that one's flag holds.
So a name with `parentbased_` and the one without it are the same here.
"""

from __future__ import annotations

import os
import ssl
from urllib.parse import urlsplit

from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler, TraceIdRatioBased

from services.runtime.jaeger_sampler import JaegerRemoteSampler, SamplerArgument
from services.runtime.jaeger_sampler.sources import Source, grpc_source, http_source
from services.runtime.mtls import channel_credentials
from services.runtime.settings import ServiceSettings

# Until a collector has answered, nothing is left out.
_INITIAL_SAMPLING_RATE = 1.0


def open_strategy(service: str, settings: ServiceSettings) -> Sampler:
    """By OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG; every trace where neither is set.

    Raises:
        ValueError: naming the variable that is wrong.
    """
    name = os.environ.get("OTEL_TRACES_SAMPLER", "").removeprefix("parentbased_")
    argument = os.environ.get("OTEL_TRACES_SAMPLER_ARG", "")
    match name:
        case "" | "traceidratio":
            return _by_ratio(argument)
        case "always_on":
            return ALWAYS_ON
        case "always_off":
            return ALWAYS_OFF
        case "jaeger_remote":
            return _remote(service, argument, settings)
        case _:
            raise ValueError(f"OTEL_TRACES_SAMPLER: {name!r} is no sampler that is known here")


def _by_ratio(argument: str) -> Sampler:
    try:
        ratio = float(argument or "1.0")
        return ALWAYS_ON if ratio == 1.0 else TraceIdRatioBased(ratio)
    except ValueError:
        raise ValueError("OTEL_TRACES_SAMPLER_ARG: not a number between 0 and 1") from None


def _remote(service: str, argument: str, settings: ServiceSettings) -> Sampler:
    parsed = SamplerArgument.parse(argument, initial_sampling_rate=_INITIAL_SAMPLING_RATE)
    sampler = JaegerRemoteSampler(
        service,
        _source(parsed.endpoint, service, settings),
        polling_interval_s=parsed.polling_interval_s,
        initial_sampling_rate=parsed.initial_sampling_rate,
    )
    sampler.start()
    return sampler


def _source(endpoint: str, service: str, settings: ServiceSettings) -> Source:
    """https is mTLS, with this service's own certificate and a collector that is named as those which take spans."""
    url, name, tls_dir = urlsplit(endpoint), settings.collector_name, settings.tls_dir
    is_https = url.scheme == "https"
    if url.path in ("", "/"):
        return grpc_source(endpoint, service, *((channel_credentials(tls_dir), name) if is_https else ()))
    if not is_https:
        return http_source(endpoint, service)
    context = ssl.create_default_context(cafile=tls_dir / "ca.pem")
    context.load_cert_chain(tls_dir / "cert.pem", tls_dir / "key.pem")
    return http_source(endpoint, service, context, name)
