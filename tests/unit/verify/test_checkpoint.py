"""The signed checkpoint, the trusted keys, and the tree they vouch for."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.unit.verify import forge
from tests.unit.verify.verdict import failed, verdict

BUNDLE = forge.seal(forge.plain_link())
TEXT = BUNDLE["checkpoint"].partition("\n\n")[0] + "\n"
ORIGIN, SIZE, ROOT = TEXT.splitlines()
STRANGER = Ed25519PrivateKey.from_private_bytes(b"\x55" * 32)
OWN_LINE = forge.note_line(TEXT)


def signed(text: str, *lines: str) -> dict:
    return BUNDLE | {"checkpoint": text + "\n" + "".join(lines or (forge.note_line(text),))}


def test_accepts_unknown_signatures_beside_a_trusted_one() -> None:
    unknown = forge.note_line("anything", STRANGER, "witness.test/w")
    same_name = forge.note_line("anything", STRANGER)
    for lines in ([unknown, OWN_LINE], [OWN_LINE, unknown, same_name]):
        assert verdict(signed(TEXT, *lines)).accepted


def test_accepts_extension_lines() -> None:
    assert verdict(signed(TEXT + "extension one\nzwei\n")).accepted


def test_rejects_a_bad_signature_by_a_trusted_key_beside_a_good_one() -> None:
    bad = forge.note_line("another text")
    assert failed(verdict(signed(TEXT, OWN_LINE, bad))) == [5]
    assert failed(verdict(signed(TEXT, bad, OWN_LINE))) == [5]


def test_rejects_a_signature_by_strangers_only() -> None:
    assert failed(verdict(signed(TEXT, forge.note_line(TEXT, STRANGER)))) == [5]


def test_rejects_a_trusted_key_of_another_name_than_the_origin() -> None:
    trust = forge.trust()
    trust["evidence_keys"].append(forge.vkey(STRANGER, "witness.test/w")[0])
    witness = forge.note_line(TEXT, STRANGER, "witness.test/w")
    assert failed(verdict(signed(TEXT, witness), trust)) == [5]
    assert verdict(signed(TEXT, witness, OWN_LINE), trust).accepted
    assert failed(verdict(signed(TEXT, forge.note_line("x", STRANGER, "witness.test/w"), OWN_LINE), trust)) == [5]


@pytest.mark.parametrize(
    "text",
    [
        f"{ORIGIN}\n{SIZE}\n",
        f"{ORIGIN}\n0{SIZE}\n{ROOT}\n",
        f"{ORIGIN}\n-1\n{ROOT}\n",
        f"{ORIGIN}\n\u0663\n{ROOT}\n",
        f"{ORIGIN}\n{10**30}\n{ROOT}\n",
        f"{ORIGIN}\n{SIZE}\n{ROOT[:-1]}\n",
        f"{ORIGIN}\n{SIZE}\n{base64.b64encode(b'short').decode()}\n",
        f"\n{SIZE}\n{ROOT}\n",
        f"log test\n{SIZE}\n{ROOT}\n",
        f"log+test\n{SIZE}\n{ROOT}\n",
        f"{ORIGIN}\n{SIZE}\n{ROOT}\n\nextension\n",
        f"{ORIGIN}\n{SIZE}\n{ROOT}\next\tension\n",
        f"{ORIGIN}\r\n{SIZE}\r\n{ROOT}\r\n",
        "",
    ],
)
def test_rejects_a_malformed_text(text: str) -> None:
    assert failed(verdict(signed(text))) == [1]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\n",
        OWN_LINE[:-1],
        OWN_LINE + "\n",
        OWN_LINE + "rest",
        OWN_LINE.replace("— ", "- "),
        OWN_LINE.replace("— ", "—"),
        OWN_LINE.replace(" ", "  "),
        OWN_LINE.replace("\n", " \n"),
        OWN_LINE.replace("=\n", "\n"),
        f"— {ORIGIN} AAAA\n",
        f"— {ORIGIN}\n",
        f"— a+b {'A' * 92}\n",
    ],
)
def test_rejects_a_malformed_signature_line(line: str) -> None:
    assert failed(verdict(BUNDLE | {"checkpoint": TEXT + "\n" + line})) == [1]


def test_rejects_another_tree() -> None:
    for size in (0, 41, 64, 1_000):
        assert failed(verdict(signed(f"{ORIGIN}\n{size}\n{ROOT}\n"))) == [4]
    assert failed(verdict(signed(f"{ORIGIN}\n{SIZE}\n{base64.b64encode(bytes(32)).decode()}\n"))) == [4]


def test_rejects_a_checkpoint_that_does_not_cover_the_last_entry() -> None:
    leaves = [forge.sha256(b"\0" + base64.b64decode(e["leaf"])).digest() for e in BUNDLE["entries"]]
    tree = forge.Tree.over(leaves[:-1])
    entries = [e | {"index": i, "proof": []} for i, e in enumerate(BUNDLE["entries"])]
    for i, entry in enumerate(entries[:-1]):
        entry["proof"] = [forge.hexed(h) for h in tree.proof(i)]
    text = f"{ORIGIN}\n{len(leaves) - 1}\n{base64.b64encode(tree.levels[-1][0]).decode()}\n"
    report = verdict(signed(text) | {"entries": entries})
    assert failed(report) == [4]
    assert "entries[6]" in report.checks[3].detail


@pytest.mark.parametrize("tree_size", [47, 48, 63, 64, 65, 100, 129])
def test_accepts_trees_of_any_shape(tree_size: int) -> None:
    assert verdict(forge.seal(forge.plain_link(), tree_size=tree_size, gap=1)).accepted


OTHER_ALGORITHM = b"\x02" + STRANGER.public_key().public_bytes_raw()
OTHER_KEY_ID = forge.sha256(b"log.test/evidence\n" + OTHER_ALGORITHM).hexdigest()[:8]


@pytest.mark.parametrize(
    "keys",
    [
        [],
        [forge.vkey(forge.EVIDENCE_KEY)[0], f"{ORIGIN}+{OTHER_KEY_ID}+{base64.b64encode(OTHER_ALGORITHM).decode()}"],
        [forge.vkey(forge.EVIDENCE_KEY)[0]] * 2,
        [forge.vkey(forge.EVIDENCE_KEY)[0].replace("AR", "AQ", 1) + "="],
        ["log.test/evidence+00000000+" + forge.vkey(forge.EVIDENCE_KEY)[0].rpartition("+")[2]],
        ["other" + forge.vkey(forge.EVIDENCE_KEY)[0]],
        ["no-vkey"],
        [None],
        "text",
    ],
)
def test_rejects_malformed_trusted_keys(keys: object) -> None:
    assert failed(verdict(BUNDLE, forge.trust() | {"evidence_keys": keys})) == [1]


@pytest.mark.parametrize(
    "change",
    [
        {"format": "goldenlink.trust.v2"},
        {"chain_ids": []},
        {"chain_ids": ["eip155:31337"] * 2},
        {"chain_ids": [31337]},
        {"chain_ids": ["31337"]},
        {"min_agreeing_nodes": 0},
        {"min_agreeing_nodes": True},
        {"min_agreeing_nodes": 1.0},
        {"extra": 1},
    ],
)
def test_rejects_a_malformed_trust_file(change: dict) -> None:
    assert failed(verdict(BUNDLE, forge.trust() | change)) == [1]
