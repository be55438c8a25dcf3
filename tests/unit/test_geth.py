"""Which geth the tests take, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import geth


def _binary(directory: Path, name: str, says: str) -> Path:
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(geth, "_BUILT", tmp_path / "cache" / "geth")
    monkeypatch.delenv("WALLET_GETH", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def test_the_configured_one_comes_first(no_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = _binary(no_cache, "mine", "Version: 1.17.10-stable")
    _binary(no_cache, "geth", "Version: 1.16.0-stable")
    monkeypatch.setenv("WALLET_GETH", str(mine))
    assert geth.geth() == mine


def test_a_configured_one_that_is_too_old_is_refused(no_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WALLET_GETH", str(_binary(no_cache, "mine", "Version: 1.13.15-stable")))
    with pytest.raises(geth.GethMissing, match=r"1\.14"):
        geth.geth()


def test_one_on_the_path_is_taken_if_it_is_new_enough(no_cache: Path) -> None:
    found = _binary(no_cache, "geth", "Version: 1.14.0-stable")
    assert geth.geth() == found


def test_what_to_install_is_said_where_it_cannot_be_built(no_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _binary(no_cache, "geth", "Version: 1.10.0-stable")
    monkeypatch.setattr(geth, "find_go", lambda oldest: None)
    with pytest.raises(geth.GethMissing, match=r"go\.dev/dl"):
        geth.geth()
