"""Jaeger remote sampling for OpenTelemetry's SDK: a collector says, while the process runs, which traces to keep.

    OTEL_TRACES_SAMPLER=parentbased_jaeger_remote
    OTEL_TRACES_SAMPLER_ARG=endpoint=http://collector:5779,pollingIntervalMs=10000,initialSamplingRate=0.25

An endpoint without a path is asked by gRPC, as OpenTelemetry's specification has it; one with a path, like
http://collector:5778/sampling, by HTTP. The package stands alone: it needs OpenTelemetry's API and SDK, and for gRPC
grpcio, protobuf and the stubs of `jaeger.api_v2.SamplingManager`.
"""

from __future__ import annotations

from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler

from .argument import SamplerArgument
from .remote_sampler import JaegerRemoteSampler
from .sources import open_source

__all__ = ["JaegerRemoteSampler", "SamplerArgument", "jaeger_remote", "open_source", "parentbased_jaeger_remote"]


def jaeger_remote(argument: str | None) -> Sampler:
    """The sampler of the entry point `jaeger_remote`: it decides about every span.

    Raises:
        ValueError: the argument is malformed; the SDK then logs the text and falls back to its default sampler.
    """
    parsed = SamplerArgument.parse(argument)
    service_name = str(Resource.create().attributes[SERVICE_NAME])
    sampler = JaegerRemoteSampler(
        service_name,
        open_source(parsed.endpoint, service_name),
        polling_interval_s=parsed.polling_interval_s,
        initial_sampling_rate=parsed.initial_sampling_rate,
    )
    sampler.start()
    return sampler


def parentbased_jaeger_remote(argument: str | None) -> Sampler:
    """The sampler of the entry point `parentbased_jaeger_remote`: it decides about new traces. Raises ValueError."""
    return ParentBased(jaeger_remote(argument))
