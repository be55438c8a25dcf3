"""Could a signature be made now, and if not, what is missing: every peer is asked at once, with a short deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from protos.wallet.v1 import broadcaster_pb2, evidence_pb2, keys_pb2, signer_pb2, txbuilder_pb2
from services.core.errors import WalletError
from services.gateway.peers import Peers
from services.gateway.views import ServiceStatusView, StatusView

_TIMEOUT_S = 2.0


async def suite_status(peers: Peers) -> StatusView:
    keys, signer, evidence, txbuilder, broadcaster = await asyncio.gather(
        _asked("keys", _keys(peers)),
        _asked("signer", _signer(peers)),
        _asked("evidence", _evidence(peers)),
        _asked("txbuilder", _txbuilder(peers)),
        _asked("broadcaster", _broadcaster(peers)),
    )
    services = {
        "keys": keys,
        "signer": signer,
        "evidence": evidence,
        "txbuilder": txbuilder,
        "broadcaster": broadcaster,
    }
    # A signature needs these four (keys for a leaf that the signer does not hold); without broadcaster it waits.
    needed = (keys, signer, evidence, txbuilder)
    missing = list(dict.fromkeys(sentence for service in services.values() for sentence in service.missing))
    # On a broken chain nothing is signed.
    broken = bool(broadcaster.details.get("broken_chains"))
    can_sign = not broken and not any(service.missing for service in needed)
    return StatusView(can_sign=can_sign, missing=missing, services=services)


async def _asked(name: str, question: Awaitable[ServiceStatusView]) -> ServiceStatusView:
    try:
        return await question
    except WalletError as error:
        return ServiceStatusView(answering=False, missing=[f"{name} does not answer ({error.reason.name})."])


async def _keys(peers: Peers) -> ServiceStatusView:
    reply = await peers.keys.GetKeysStatus(keys_pb2.GetKeysStatusRequest(), timeout=_TIMEOUT_S)
    return ServiceStatusView(answering=True, missing=list(reply.missing), details={"token_ready": reply.token_ready})


async def _signer(peers: Peers) -> ServiceStatusView:
    reply = await peers.signer.GetSignerStatus(signer_pb2.GetSignerStatusRequest(), timeout=_TIMEOUT_S)
    parts = {
        "token_ready": reply.token_ready,
        "evidence_ready": reply.evidence_ready,
        "database_ready": reply.database_ready,
        "transport_key_approved": reply.transport_key_approved,
    }
    missing = list(reply.missing)
    if not missing and not all(parts.values()):
        missing = [f"signer: {name} is false." for name, ready in parts.items() if not ready]
    return ServiceStatusView(
        answering=True, missing=missing, details={**parts, "token_label": reply.token_label, "workers": reply.workers}
    )


async def _evidence(peers: Peers) -> ServiceStatusView:
    request = evidence_pb2.GetEvidenceStatusRequest()
    try:
        reply = await peers.evidence_log.GetEvidenceStatus(request, timeout=_TIMEOUT_S)
    except WalletError:
        # Nobody appends: any replica says why not.
        reply = await peers.evidence.GetEvidenceStatus(request, timeout=_TIMEOUT_S)
    missing = list(reply.missing)
    if not missing and not reply.appending:
        missing = ["The evidence log cannot be appended to."]
    details = {
        "appending": reply.appending,
        "tree_size": reply.tree_size,
        "checkpoint_size": reply.checkpoint_size,
    }
    return ServiceStatusView(answering=True, missing=missing, details=details)


async def _txbuilder(peers: Peers) -> ServiceStatusView:
    reply = await peers.txbuilder.GetBuilderStatus(txbuilder_pb2.GetBuilderStatusRequest(), timeout=_TIMEOUT_S)
    missing = [
        f"{chain.chain_id}: {chain.nodes_answering} of {chain.nodes_required} needed nodes answer."
        for chain in reply.chains
        if chain.nodes_answering < chain.nodes_required
    ]
    chains = [
        {"chain_id": chain.chain_id, "block_number": chain.block_number, "base_fee_wei": chain.base_fee_wei}
        for chain in reply.chains
    ]
    # Without the lock, allocation goes through the database: slower, not missing.
    details = {"lock_available": reply.lock_available, "chains": chains}
    return ServiceStatusView(answering=True, missing=missing, details=details)


async def _broadcaster(peers: Peers) -> ServiceStatusView:
    request = broadcaster_pb2.GetBroadcasterStatusRequest()
    reply = await peers.broadcaster.GetBroadcasterStatus(request, timeout=_TIMEOUT_S)
    missing = [f"Node {node.name} does not answer." for node in reply.nodes if not node.answering]
    nodes = [
        {"name": node.name, "chain_id": node.chain_id, "block_number": node.block_number, "answering": node.answering}
        for node in reply.nodes
    ]
    broken = [{"chain_id": chain.chain_id, "cause": chain.cause} for chain in reply.broken_chains]
    missing += [f"{chain['chain_id']} is broken: {chain['cause']}" for chain in broken]
    missing += [
        f"{clock.chain_id}: its clock is {clock.behind_s} s behind; nothing is sent until it is right."
        for clock in reply.chain_clocks
        if clock.holds
    ]
    details = {
        "nodes": nodes,
        "nodes_required": reply.nodes_required,
        "broken_chains": broken,
        "chain_clocks": [{"chain_id": clock.chain_id, "behind_s": clock.behind_s} for clock in reply.chain_clocks],
    }
    return ServiceStatusView(answering=True, missing=missing, details=details)
