"""The three named nodes of the embedded chain, and the nodes file that services read."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from services.core.errors import WalletError
from services.runtime.node_settings import read_nodes
from services.runtime.nodes import Nodes
from tools.stack.files import new_password, write_json
from tools.stack.ports import Ports
from tools.stack.processes import ProcessSpec, StackError

NODE_NAMES = ("node-a", "node-b", "node-c")
_NODE_TIMEOUT_S = 10.0
SOURCE_TREE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class NodeAddress:
    """One line of the nodes file. The URL may hold a key."""

    name: str
    url: str = field(repr=False)
    chain_id: str


class EmbeddedNodes:
    """One process that answers as three nodes, with a control endpoint for faults."""

    def __init__(self, directory: Path, log: Path, upstream: str, chain_id: str, ports: Ports) -> None:
        numbers = {name: ports.free() for name in NODE_NAMES}
        control_port = ports.free()
        configuration = write_json(
            directory / "proxies.json", {"upstream": upstream, "control_port": control_port, "ports": numbers}
        )
        self.control_url = f"http://127.0.0.1:{control_port}"
        # The URL holds a key, as a real node's does: it must stay out of logs, spans and errors here too.
        self.addresses = [
            NodeAddress(name, f"http://127.0.0.1:{port}/?key={new_password()}", chain_id)
            for name, port in numbers.items()
        ]
        self.spec = ProcessSpec(
            name="nodes",
            command=(sys.executable, "-m", "tools.stack.node_proxy", str(configuration)),
            environment={"PATH": os.defpath},
            log=log,
            ready=self._ready,
            ports={**numbers, "control": control_port},
            working_directory=SOURCE_TREE,
        )

    async def _ready(self) -> bool:
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session,
                # The last one to listen.
                session.get(self.addresses[-1].url) as response,
            ):
                return response.status == 405
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False


def write_nodes_file(path: Path, addresses: list[NodeAddress]) -> Path:
    return write_json(path, [{"name": a.name, "url": a.url, "chain_id": a.chain_id} for a in addresses])


async def check_nodes(nodes_file: Path) -> None:
    """Raises StackError when a node of the file does not serve its chain; nodes are named, and no URL is quoted."""
    try:
        addresses = read_nodes(nodes_file)
    except ValueError as error:
        raise StackError(f"WALLET_NODES: {error}") from None
    nodes = Nodes(addresses, 1, _NODE_TIMEOUT_S)
    try:
        for chain in nodes.chains:
            for node in chain.nodes:
                await node.greet()
    except WalletError as error:
        cause = error.details.get("cause") or error.details.get("http_status")
        raise StackError(
            f"WALLET_NODES: {error.details['node']}: {error.message}{f' ({cause})' if cause else ''}"
        ) from None
    finally:
        await nodes.close()
