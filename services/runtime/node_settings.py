"""The nodes file: which chain nodes there are, and how many of them must agree."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CHAIN_ID = re.compile(r"eip155:[1-9][0-9]{0,17}")


class NodeSettings(BaseSettings):
    """Which nodes there are. The file is a secret: its URLs may hold keys."""

    model_config = SettingsConfigDict(env_prefix="WALLET_", frozen=True, extra="ignore")

    # JSON: [{"name": "node-a", "url": "https://…", "chain_id": "eip155:1"}, …].
    nodes_file: Path
    # Nodes that must agree: the k of trust.json.
    nodes_required: int = Field(default=2, ge=1)
    node_timeout_s: float = Field(default=5.0, gt=0)


@dataclass(frozen=True, slots=True, repr=False)
class NodeAddress:
    """One configured node. No repr: the URL may hold a key."""

    name: str
    url: str
    chain_id: str  # CAIP-2


def read_nodes(path: Path) -> list[NodeAddress]:
    """The nodes file.

    Raises:
        ValueError: naming the place and the rule, and no URL.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"the nodes file cannot be read: {type(error).__name__}") from None
    if not isinstance(document, list) or not document:
        raise ValueError("the nodes file is a non-empty list")
    addresses = []
    for place, entry in enumerate(document):
        if not isinstance(entry, dict) or entry.keys() != {"name", "url", "chain_id"}:
            raise ValueError(f"nodes[{place}] has exactly name, url and chain_id")
        if not isinstance(entry["name"], str) or not _NAME.fullmatch(entry["name"]):
            raise ValueError(f"nodes[{place}].name is 1 to 64 characters of A-Z a-z 0-9 . _ -")
        if not isinstance(entry["chain_id"], str) or not _CHAIN_ID.fullmatch(entry["chain_id"]):
            raise ValueError(f"nodes[{place}].chain_id is eip155:N")
        if not isinstance(entry["url"], str) or not entry["url"].startswith(("http://", "https://")):
            raise ValueError(f"nodes[{place}].url begins with http:// or https://")
        addresses.append(NodeAddress(entry["name"], entry["url"], entry["chain_id"]))
    if len({address.name for address in addresses}) != len(addresses):
        raise ValueError("the nodes file names a node twice")
    return addresses
