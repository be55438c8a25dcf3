"""Every configured chain node, by chain, over one HTTP session."""

from __future__ import annotations

from collections.abc import Sequence

import aiohttp

from services.core.errors import Reason, WalletError
from services.runtime.chain_nodes import ChainNodes
from services.runtime.node import Node
from services.runtime.node_settings import NodeAddress, NodeSettings, read_nodes


class Nodes:
    """Every configured node, by chain. Make it inside a running event loop; `close` it after the last call."""

    def __init__(
        self, addresses: Sequence[NodeAddress], required: int, timeout_s: float = 5.0, *, traced: bool = False
    ) -> None:
        """`traced`: a client span per call, where calls belong to a request and are few."""
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=16, keepalive_timeout=60.0),
            # Exact bytes: no content encoding.
            headers={"content-type": "application/json", "accept-encoding": "identity", "user-agent": "goldenlink"},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        self.required = required
        self._chains: dict[str, ChainNodes] = {}
        for chain_id in dict.fromkeys(address.chain_id for address in addresses):
            nodes = [Node(each, self._session, traced=traced) for each in addresses if each.chain_id == chain_id]
            if len(nodes) < required:
                raise ValueError(f"{chain_id} has fewer nodes than must agree ({required})")
            self._chains[chain_id] = ChainNodes(chain_id, nodes, required)

    @classmethod
    def of_settings(cls, settings: NodeSettings, *, traced: bool = False) -> Nodes:
        return cls(read_nodes(settings.nodes_file), settings.nodes_required, settings.node_timeout_s, traced=traced)

    async def close(self) -> None:
        await self._session.close()

    @property
    def chains(self) -> tuple[ChainNodes, ...]:
        return tuple(self._chains.values())

    def chain(self, chain_id: str) -> ChainNodes:
        """Raises WalletError UNKNOWN_CHAIN."""
        if chain_id not in self._chains:
            raise WalletError(Reason.UNKNOWN_CHAIN, Reason.UNKNOWN_CHAIN.meaning, field="chain_id")
        return self._chains[chain_id]
