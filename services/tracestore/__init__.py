"""Spans: OTLP in, acknowledged after the commit; a trace by its id out.

Callers: every service (OTLP `TraceService/Export`), gateway (`GetTrace`). It must never lose an acknowledged span, and
never trace the export call itself, which would feed on itself. Its own `GetTrace` spans are exported to itself.
"""
