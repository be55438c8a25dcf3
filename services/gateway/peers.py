"""The services that the gateway calls, one channel each; two to the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from protos.wallet.v1.broadcaster_pb2_grpc import BroadcasterStub
from protos.wallet.v1.evidence_pb2_grpc import EvidenceStub
from protos.wallet.v1.keys_pb2_grpc import KeysStub
from protos.wallet.v1.signer_pb2_grpc import SignerStub
from protos.wallet.v1.tracestore_pb2_grpc import TraceStoreStub
from protos.wallet.v1.txbuilder_pb2_grpc import TxBuilderStub
from services.runtime.channel import PeerChannel, as_channel
from services.runtime.evidence_log import APPENDING
from services.runtime.settings import ServiceSettings


@dataclass
class Peers:
    """Generated stubs over `PeerChannel`: calls are awaited, streams iterated, failures are WalletError."""

    keys: Any
    txbuilder: Any
    signer: Any
    broadcaster: Any
    evidence: Any
    # To the replica that appends; the one above reads from any.
    evidence_log: Any
    tracestore: Any
    channels: list[PeerChannel]

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()


def open_peers(settings: ServiceSettings) -> Peers:
    channels: list[PeerChannel] = []

    def stub(kind: Any, peer: str, part: str | None = None) -> Any:
        channels.append(PeerChannel(peer, settings, part))
        return kind(as_channel(channels[-1]))

    return Peers(
        keys=stub(KeysStub, "keys"),
        txbuilder=stub(TxBuilderStub, "txbuilder"),
        signer=stub(SignerStub, "signer"),
        broadcaster=stub(BroadcasterStub, "broadcaster"),
        evidence=stub(EvidenceStub, "evidence"),
        evidence_log=stub(EvidenceStub, "evidence", APPENDING),
        tracestore=stub(TraceStoreStub, "tracestore"),
        channels=channels,
    )
