"""The example bundles are accepted, and no change of any field of theirs is."""

import base64
import copy
import json
from pathlib import Path

import pytest
import rfc8785

from tests.unit.verify.mutation import mutations
from tests.unit.verify.verdict import failed, verdict
from tools.verify import load_trust, verify_bundle

VECTORS = Path(__file__).parents[2] / "vectors" / "bundles"
NAMES = ["plain", "bump", "reorg", "denied", "create", "anchored"]


def load(name: str) -> tuple[dict, dict]:
    bundle, trust = ((VECTORS / name / f"{part}.json").read_text() for part in ("bundle", "trust"))
    return json.loads(bundle), json.loads(trust)


def recoded(bundle: dict, position: int, part: str, raw: bytes) -> dict:
    copied = copy.deepcopy(bundle)
    copied["entries"][position][part] = base64.b64encode(raw).decode()
    return copied


@pytest.mark.parametrize("name", NAMES)
def test_accepts(name: str) -> None:
    report = verdict(*load(name))
    assert report.accepted, report.checks
    assert report.state == ("FAILED" if name == "denied" else "FINALIZED")


def test_reports_the_facts_of_the_link() -> None:
    report = verdict(*load("anchored"))
    facts = report.as_json()
    assert facts["accepted"] is True
    assert facts["link_id"] == "3781ad8b-e350-4dc5-9715-7972fc6fb443"
    assert facts["trace_id"] == "1a038a78e9f6919f60b8be880da66c5b"
    assert facts["tx_hash"] == "0x22f9485755af78d0416684384e62e27318b63202a8d1af8b88939e6336658b85"
    assert (facts["block_number"], facts["receipt_status"], facts["anchor_height"]) == (2, 1, 2)
    assert (facts["sender"], facts["nonce"]) == ("0x6d29155348045e352a5c0e4d0e48d9a8a6dba5e6", 0)
    assert (facts["value_wei"], facts["entries"], facts["tree_size"]) == ("1000000000000000007", 7, 35)


def test_reorg_reports_the_block_that_stands() -> None:
    assert verdict(*load("reorg")).block_number == 3


def test_takes_a_loaded_trust() -> None:
    bundle, trust = load("plain")
    assert verify_bundle(json.dumps(bundle).encode(), load_trust(json.dumps(trust).encode())).accepted


@pytest.mark.parametrize("name", NAMES)
def test_rejects_every_change_of_the_bundle(name: str) -> None:
    bundle, trust = load(name)
    entries = bundle["entries"]
    # Strings of leaf and body differ per entry, so two entries of long links are as good as all.
    thinned = [path_and_copy for path_and_copy in mutations(bundle) if not _is_middle(path_and_copy[0], len(entries))]
    assert len(thinned) > 200
    for path, mutated in thinned:
        assert failed(verdict(mutated, trust)), path


def _is_middle(path: tuple, length: int) -> bool:
    return path[0] == "entries" and len(path) > 1 and 1 < path[1] < length - 2


@pytest.mark.parametrize(
    ("name", "part"), [("plain", "leaf"), ("plain", "body"), ("reorg", "body"), ("denied", "body")]
)
def test_rejects_every_change_inside_leaf_and_body(name: str, part: str) -> None:
    bundle, trust = load(name)
    loaded = load_trust(json.dumps(trust).encode())
    for position, entry in enumerate(bundle["entries"]):
        raw = base64.b64decode(entry[part])
        for path, mutated in mutations(json.loads(raw)):
            try:
                changed = rfc8785.dumps(mutated)
            except rfc8785.CanonicalizationError:
                changed = json.dumps(mutated).encode()
            if changed == raw:
                continue
            report = verify_bundle(json.dumps(recoded(bundle, position, part, changed)).encode(), loaded)
            assert {2, 4} & set(failed(report)), (position, path)


@pytest.mark.parametrize("part", ["leaf", "body"])
def test_rejects_a_changed_byte_anywhere(part: str) -> None:
    bundle, trust = load("denied")
    raw = base64.b64decode(bundle["entries"][0][part])
    for i in range(len(raw)):
        for byte in {raw[i] ^ 1, 0x00, 0x20, 0x80, 0xFF} - {raw[i]}:
            changed = raw[:i] + bytes([byte]) + raw[i + 1 :]
            assert failed(verdict(recoded(bundle, 0, part, changed), trust)), (i, byte)


@pytest.mark.parametrize("name", NAMES)
def test_rejects_entries_dropped_swapped_or_repeated(name: str) -> None:
    bundle, trust = load(name)
    entries = bundle["entries"]
    for i in range(len(entries)):
        orders = [entries[:i] + entries[i + 1 :], entries[: i + 1] + entries[i:]]
        if i:
            orders.append([*entries[: i - 1], entries[i], entries[i - 1], *entries[i + 1 :]])
        for order in orders:
            assert failed(verdict(bundle | {"entries": order}, trust))


@pytest.mark.parametrize("name", NAMES)
def test_rejects_every_change_of_the_trust_file(name: str) -> None:
    bundle, trust = load(name)
    for path, mutated in mutations(trust):
        if name == "denied" and path == ("min_agreeing_nodes",) and mutated.get("min_agreeing_nodes") in (2, 7):
            continue  # a denied link has no inclusion for nodes to agree on
        if path == ("ledger", "validators") and _same_members(mutated, trust):
            continue  # the same set in another order: CometBFT sorts it
        assert failed(verdict(bundle, mutated)), path


def _same_members(left: dict, right: dict) -> bool:
    sets = [trust["ledger"].get("validators") for trust in (left, right)]
    return isinstance(sets[0], list) and sorted(map(str, sets[0])) == sorted(map(str, sets[1]))


def test_rejects_another_links_trust_or_anchor() -> None:
    bundle, trust = load("anchored")
    other_bundle, other_trust = load("plain")
    assert failed(verdict(bundle, other_trust)) == [5, 6]
    assert failed(verdict(other_bundle, trust)) == [5, 6]
    assert failed(verdict(bundle | {"anchor": None}, trust)) == [6]
    assert failed(verdict(bundle, trust | {"ledger": None})) == [6]
    assert failed(verdict(bundle | {"checkpoint": other_bundle["checkpoint"]}, trust)) == [4, 5, 6]


@pytest.mark.parametrize("name", NAMES)
def test_rejects_members_twice(name: str) -> None:
    bundle, trust = load(name)
    text = json.dumps(bundle)
    for member in ("format", "link_id", "index", "salt"):
        start = text.index(f'"{member}"')
        end = text.index(",", start)
        doubled = text[:end] + ", " + text[start:end] + text[end:]
        assert failed(verdict(doubled.encode(), trust)) == [1], member
