"""Spans and log records: OTLP in, acknowledged after the commit; traces out, by id and by search.

Callers: every service (OTLP), gateway (`wallet.v1.TraceStore`), Jaeger's collectors (OTLP) and query processes
(`jaeger.storage.v2`). It must never lose an acknowledged span, never change a byte of one, and never trace the export
call itself, which would feed on itself. Its own `GetTrace` spans are exported to itself.
"""
