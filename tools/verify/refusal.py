"""The one exception of the verifier."""


class Refused(Exception):
    """Why something is not accepted, in words for the reader of a report."""


def quoted(value: object) -> str:
    """`value` as printable ASCII of bounded length: a report must not carry a stranger's terminal codes."""
    shown = ascii(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return shown if len(shown) <= 80 else shown[:77] + "..."
