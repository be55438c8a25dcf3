"""What gateway rests on when it reads `evidence`; the writers' contract is test_evidence_contract.py."""

from __future__ import annotations

from protos.wallet.v1.evidence_pb2 import GetBundleRequest, GetEvidenceStatusRequest, GetLinkRequest
from tests.integration.contracts.peers import Peers, refusal, unique


async def test_an_unknown_link_is_not_found(peers: Peers) -> None:
    link_id = unique("t")
    assert await refusal(peers.evidence.GetLink(GetLinkRequest(link_id=link_id))) == ("NOT_FOUND", "link_id")
    assert await refusal(peers.evidence.GetBundle(GetBundleRequest(link_id=link_id))) == ("NOT_FOUND", "link_id")


async def test_the_status_says_that_it_appends(peers: Peers) -> None:
    status = await peers.evidence.GetEvidenceStatus(GetEvidenceStatusRequest())
    assert (status.appending, list(status.missing)) == (True, [])
