"""Which Jaeger is taken, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import jaeger


def _binary(path: Path, git_version: str) -> Path:
    path.write_text(f'#!/bin/sh\necho \'{{"gitCommit":"","gitVersion":"{git_version}","buildDate":""}}\'\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Without Go, and with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("WALLET_JAEGER", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(jaeger, "find_go", lambda oldest: None)
    return tmp_path


def test_the_configured_one_comes_first(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = _binary(machine / "mine", "v2.13.0")
    _binary(machine / "jaeger", "v2.13.0")
    monkeypatch.setenv("WALLET_JAEGER", str(mine))
    assert jaeger.jaeger() == mine


def test_a_configured_one_of_another_version_is_refused(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WALLET_JAEGER", str(_binary(machine / "mine", "v2.16.0")))
    with pytest.raises(jaeger.JaegerMissing, match=r"v2\.13\.0"):
        jaeger.jaeger()


def test_one_on_the_path_is_taken_if_it_is_that_version(machine: Path) -> None:
    found = _binary(machine / "jaeger", "v2.13.0")
    assert jaeger.jaeger() == found


def test_one_that_was_built_before_is_taken(machine: Path) -> None:
    _binary(machine / "jaeger", "v1.76.0")
    built = machine / "cache" / "goldenlink" / "jaeger" / "v2.13.0" / "jaeger"
    built.parent.mkdir(parents=True)
    _binary(built, "v2.13.0")
    assert jaeger.jaeger() == built


def test_what_to_install_is_said_where_it_cannot_be_built(machine: Path) -> None:
    _binary(machine / "jaeger", "v1.76.0")
    with pytest.raises(jaeger.JaegerMissing, match=r"go\.dev/dl"):
        jaeger.jaeger()
