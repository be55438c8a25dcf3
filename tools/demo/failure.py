"""The demo's own error."""

from __future__ import annotations


class DemoFailed(Exception):
    """The suite did not do what the demo shows."""
