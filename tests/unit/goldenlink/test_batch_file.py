"""A CSV file of transfers: good lines become requests, bad ones are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.goldenlink.batch_file import read_batch
from tools.goldenlink.exits import Exit, Failure


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "batch.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_become_requests(tmp_path: Path) -> None:
    path = written(tmp_path, "to,value,token,amount,account\n0xA,1 gwei,,,\n0xB,,0xT,25,other\n")
    assert read_batch(path, "mine") == [
        {"account_id": "mine", "to": "0xA", "value_wei": "1000000000"},
        {"account_id": "other", "to": "0xB", "erc20": {"token": "0xT", "amount": "25"}},
    ]


@pytest.mark.parametrize(
    ("text", "account", "says"),
    [
        ("to,valeu\n0xA,1\n", "mine", "unknown column valeu"),
        ("to,value\n", "mine", "no transfers"),
        ("", "mine", "no transfers"),
        ("to,value\n0xA,one\n", "mine", "batch.csv:2: value"),
        ("to,value\n0xA,1\n", None, "batch.csv:2: no account"),
        ("to,value\n0xA,1,2\n", "mine", "batch.csv:2: not as many fields"),
        ("to,value\n0xA\n", "mine", "batch.csv:2: not as many fields"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, account: str | None, says: str) -> None:
    with pytest.raises(Failure) as failed:
        read_batch(written(tmp_path, text), account)
    assert failed.value.exit_code is Exit.USAGE
    assert says in failed.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"none\.csv"):
        read_batch(tmp_path / "none.csv", "mine")
