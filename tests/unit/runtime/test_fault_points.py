"""A process dies at the point that is armed, and at no other; without the harness there are no points."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.runtime import fault_points

PROCESS = """
import sys
from services.runtime import fault_points
fault_points.prepare("signer", sys.argv[1])
def add(): fault_points.before("commit"); print("written"); fault_points.after("commit")
add()
print("told")
"""


def run(directory: Path, env: str = "development") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-u", "-c", PROCESS, env],
        env={"WALLET_FAULT_DIR": str(directory), "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_points_that_were_reached_are_listed(tmp_path: Path) -> None:
    assert run(tmp_path).stdout == "written\ntold\n"
    assert (tmp_path / "signer.seen").read_text() == "before commit __main__.add\nafter commit __main__.add\n"


@pytest.mark.parametrize(("point", "printed"), [("before", ""), ("after", "written\n")])
def test_the_process_dies_at_the_armed_point_once(tmp_path: Path, point: str, printed: str) -> None:
    (tmp_path / "signer.armed").write_text(f"{point} commit __main__.add")
    first = run(tmp_path)
    assert (first.returncode, first.stdout) == (-signal.SIGKILL, printed)
    assert run(tmp_path).stdout == "written\ntold\n"


def test_another_services_point_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "keys.armed").write_text("before commit __main__.add")
    assert run(tmp_path).returncode == 0


def test_production_refuses_the_harness(tmp_path: Path) -> None:
    done = run(tmp_path, "production")
    assert done.returncode == 1
    assert "WALLET_ENV=production" in done.stderr


def test_without_the_harness_there_are_no_points() -> None:
    fault_points.prepare("signer", "production")
    fault_points.before("commit")
