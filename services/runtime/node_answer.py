"""What a node answers: an HTTP body, a JSON-RPC refusal, a quantity. All of it is a claim."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeGuard

from services.core.errors import Reason, WalletError

_QUANTITY = re.compile(r"0x(0|[1-9a-f][0-9a-f]{0,63})")


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What a node answered by HTTP: the exact body, and the headers that are kept."""

    status: int
    headers: dict[str, str]  # by lower-case name
    body: bytes
    received_at: datetime


class NodeRefusal(WalletError):
    """A node answered with a JSON-RPC error: it works, and says no.

    `rpc_message` is the node's own text: for deciding and for the log, never for a caller or a span.
    """

    def __init__(self, node: str, method: str, rpc_code: int, rpc_message: str, rpc_data: Any) -> None:
        super().__init__(
            Reason.NODE_UNAVAILABLE, "the node refuses the call", node=node, method=method, rpc_code=rpc_code
        )
        self.rpc_code = rpc_code
        self.rpc_message = rpc_message
        self.rpc_data = rpc_data


def is_quantity(value: object) -> TypeGuard[str]:
    """Whether it is a JSON-RPC quantity of at most 256 bits."""
    return isinstance(value, str) and _QUANTITY.fullmatch(value) is not None


def quantity(value: object, field: str) -> int:
    """The integer of a JSON-RPC quantity.

    Raises:
        WalletError: NODE_UNAVAILABLE with `field`.
    """
    if not is_quantity(value):
        raise WalletError(Reason.NODE_UNAVAILABLE, "a node's answer is no hex quantity", field=field)
    return int(value, 16)
