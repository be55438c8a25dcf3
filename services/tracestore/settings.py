"""Settings of tracestore."""

from pydantic import Field

from services.runtime.settings import DatabaseSettings, ServiceSettings


class TraceStoreSettings(ServiceSettings, DatabaseSettings):
    """Above either limit Export answers UNAVAILABLE, and exporters try again. Log records have the same limits."""

    max_queued_spans: int = Field(default=65_536, ge=1)
    max_queued_bytes: int = Field(default=128 * 1024 * 1024, ge=1)
