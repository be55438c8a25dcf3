"""The stand-alone verifier, in this process, on bundles of plain finalized transfers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from time import perf_counter, process_time

from tools.bench.effort import Effort
from tools.bench.figures import Figures
from tools.bench.suite import Account, BenchFailed, Suite
from tools.verify import load_trust, verify_bundle

# Distinct ones, in turns.
_BUNDLES = 40


async def make_links(suite: Suite, account: Account) -> list[str]:
    """Finalized links. Made early: a leaf at the right edge of the tree has a shorter proof than the others."""
    links = await suite.transfer_batch(account, _BUNDLES)
    for link_id in links:
        await suite.wait_finalized(link_id)
    return links


async def measure_verifier(suite: Suite, links: Sequence[str], effort: Effort, figures: Figures) -> None:
    bundles = [await suite.get_bytes(f"/v1/links/{link_id}/bundle") for link_id in links]
    trust = load_trust(await asyncio.to_thread(suite.stack.trust_file.read_bytes))
    tree_size = 0
    for bundle in bundles:
        report = verify_bundle(bundle, trust)
        if not report.accepted:
            raise BenchFailed(f"a bundle is rejected: {[check.detail for check in report.checks if not check.ok]}")
        tree_size = report.tree_size or 0
    cpu, started = process_time(), perf_counter()
    for number in range(effort.verified_bundles):
        verify_bundle(bundles[number % len(bundles)], trust)
    cpu, elapsed = process_time() - cpu, perf_counter() - started
    levels = max(len(entry["proof"]) for entry in json.loads(bundles[0])["entries"])
    figures.add(
        "verifier_bundles_per_s",
        effort.verified_bundles / cpu,
        f"per second of one core; finalized, {tree_size:,} entries in the log, proofs of {levels} levels",
    )
    figures.add("verifier_bundles_per_s_wall", effort.verified_bundles / elapsed, "the same by the clock on the wall")
    figures.samples["verifier"] = {
        "distinct_bundles": len(bundles),
        "bundle_bytes": sum(len(bundle) for bundle in bundles) / len(bundles),
        "tree_size": tree_size,
        "proof_levels": levels,
    }
