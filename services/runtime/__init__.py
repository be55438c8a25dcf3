"""Process plumbing that every service shares: servers, channels, errors on the wire, telemetry, settings, databases.

It knows nothing of wallets. It may import `services.core`; services import it, never the other way round.
"""
