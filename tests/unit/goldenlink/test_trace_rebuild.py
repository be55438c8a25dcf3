"""`goldenlink trace rebuild` without a gateway."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from typer.testing import CliRunner

from tools.goldenlink.app import app
from tools.goldenlink.exits import Failure

_BUNDLES = Path(__file__).resolve().parents[2] / "vectors" / "bundles"


@pytest.mark.parametrize("vector", ["plain", "bump", "reorg", "create", "denied"])
def test_a_bundle_is_shown_as_the_spans_that_its_entries_name(vector: str) -> None:
    bundle = _BUNDLES / vector / "bundle.json"
    reply = CliRunner().invoke(app, ["trace", "rebuild", "--bundle", str(bundle), "--json"])
    assert reply.exit_code == 0
    document = json.loads(reply.stdout)
    spans = [span for one in document["resourceSpans"] for scope in one["scopeSpans"] for span in scope["spans"]]
    assert {span["traceId"] for span in spans} == {json.loads(bundle.read_bytes())["trace_id"]}
    assert all({"key": "wallet.rebuilt", "value": {"boolValue": True}} in span["attributes"] for span in spans)
    # Whoever reads OTLP/JSON reads it.
    ParseDict(document, TracesData())
    shown = CliRunner().invoke(app, ["trace", "rebuild", "--bundle", str(bundle)])
    assert shown.stdout.startswith(f"{len(spans)} spans")


@pytest.mark.parametrize("content", ["", "{}", '{"entries": [{"index": 0, "leaf": "AA==", "body": ""}]}', "[]"])
def test_what_is_no_bundle_is_told(tmp_path: Path, content: str) -> None:
    file = tmp_path / "bundle.json"
    file.write_text(content)
    reply = CliRunner().invoke(app, ["trace", "rebuild", "--bundle", str(file)])
    assert isinstance(reply.exception, Failure)
    assert "not a bundle" in reply.exception.message


def test_a_link_or_a_bundle_is_named() -> None:
    reply = CliRunner().invoke(app, ["trace", "rebuild"])
    assert isinstance(reply.exception, Failure)
    assert "one of the two" in reply.exception.message
