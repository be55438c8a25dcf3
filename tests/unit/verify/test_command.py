"""The command: exit codes, what it prints, and no traceback whatever it is given."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.verify import forge
from tests.unit.verify.verdict import failed, verdict
from tools.verify.__main__ import main

ROOT = Path(__file__).parents[3]
VECTORS = ROOT / "tests" / "vectors" / "bundles"
PLAIN = [str(VECTORS / "plain" / name) for name in ("bundle.json", "trust.json")]
NAMES = (
    "form commitments chain log checkpoint anchor intent signature submission block state times".split()  # noqa: SIM905
)


def test_accepted_is_0_with_twelve_numbered_marks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(PLAIN) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "golden link 7883c3e1-49ce-480a-b0cd-f8e2c8dc46fa: accepted"
    assert [line.split()[:3] for line in lines[1:]] == [[str(n), "✓", name] for n, name in enumerate(NAMES, 1)]


def test_rejected_is_1_and_names_the_check(capsys: pytest.CaptureFixture[str]) -> None:
    trust = str(VECTORS / "bump" / "trust.json")
    assert main([PLAIN[0], trust]) == 1
    out = capsys.readouterr().out
    assert "REJECTED" in out
    assert "  5 ✗ checkpoint  no trusted key" in out
    assert out.count("✗") == 1


def test_json_carries_checks_and_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PLAIN, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["accepted"] is True
    assert report["state"] == "FINALIZED"
    assert [check["number"] for check in report["checks"]] == list(range(1, 13))


def test_state_asks_for_less(tmp_path: Path) -> None:
    bundle, trust = tmp_path / "bundle.json", tmp_path / "trust.json"
    bundle.write_text(json.dumps(forge.seal(forge.plain_link()[:4])))
    trust.write_text(json.dumps(forge.trust()))
    call = [str(bundle), str(trust)]
    assert main(call) == 1
    assert main([*call, "--state", "SUBMITTED"]) == 0
    assert main([*call, "--state", "INCLUDED"]) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        PLAIN[:1],
        [*PLAIN, "more"],
        [*PLAIN, "--state", "MINED"],
        [*PLAIN, "--state"],
        [*PLAIN, "--loud"],
        ["no-such-file", PLAIN[1]],
        [PLAIN[0], "no-such-file"],
        [str(VECTORS), PLAIN[1]],
        ["a\0b", PLAIN[1]],
    ],
)
def test_a_wrong_call_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_as_a_process_on_any_terminal(encoding: str, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.json"
    hostile.write_text(json.dumps(forge.seal(forge.plain_link()) | {"format": "\x1b[2J\ud800é"}))
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    call = [sys.executable, "-m", "tools.verify"]
    for bundle, code in ((PLAIN[0], 0), (str(hostile), 1)):
        done = subprocess.run([*call, bundle, PLAIN[1]], cwd=ROOT, env=environment, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (code, b"")
        assert b"\x1b" not in done.stdout


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.verify", *PLAIN], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 0


BOMBS = [b"", b"\xff\xfe", b"[" * 10**6, b'{"a":' * 10**6, b"9" * 10**6, b"NaN", b"null", b"[]", b"{}", b'"\\ud800"']


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_rejected(bomb: bytes) -> None:
    assert failed(verdict(bomb)) == [1]
    assert failed(verdict(forge.seal(forge.plain_link()), bomb)) == [1]


@settings(deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_are_rejected(bundle: bytes, trust: bytes) -> None:
    assert failed(verdict(bundle, trust)) == [1]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["0x", "AA==", "—"])
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)
BUNDLE = forge.seal(forge.plain_link())
LINK = forge.plain_link()
FIELDS = [(i, name) for i, draft in enumerate(LINK) for name in draft.body]


@settings(deadline=None)
@given(JSON, JSON)
def test_any_json_is_rejected(bundle: object, trust: object) -> None:
    assert failed(verdict(bundle, trust)) == [1]


@settings(deadline=None)
@given(st.sampled_from(sorted(BUNDLE)), JSON)
def test_any_json_in_a_member_of_the_bundle_gets_a_report(name: str, value: object) -> None:
    verdict(BUNDLE | {name: value})


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FIELDS), JSON)
def test_any_json_in_a_field_of_a_body_gets_a_report(place: tuple[int, str], value: object) -> None:
    position, name = place
    try:
        bundle = forge.seal(forge.edited(LINK, position, **{name: value}))
    except forge.rfc8785.CanonicalizationError:
        return
    verdict(bundle)


HEX_FIELDS = [(i, name) for i, name in FIELDS if str(LINK[i].body[name]).startswith("0x")]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(HEX_FIELDS), st.binary(max_size=100))
def test_any_bytes_in_a_hex_field_get_a_report(place: tuple[int, str], value: bytes) -> None:
    position, name = place
    verdict(forge.seal(forge.edited(LINK, position, **{name: forge.hexed(value)})))
