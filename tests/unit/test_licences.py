"""The page of licences is made from lock files and from what packages state."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from tools.licences import Unknown, npm_rows, pins, python_rows

LOCK = """
first==1.2.3 \\
    --hash=sha256:00
second[extra]==4.5 ; python_full_version < "3.11.3" \\
    --hash=sha256:11
"""
ROW = "| `not-of-this-python` | 1.0 | ISC | services |"


def test_a_lock_names_packages_and_versions() -> None:
    assert pins(LOCK) == {"first": "1.2.3", "second": "4.5"}


def test_an_installed_package_states_its_licence() -> None:
    (row,) = python_rows({"protobuf": version("protobuf")}, "")
    assert row.licence == "BSD-3-Clause"


def test_an_installed_package_of_another_version_is_refused() -> None:
    with pytest.raises(Unknown, match=r"protobuf .* is installed, not 0\.1"):
        python_rows({"protobuf": "0.1"}, "")


def test_a_package_that_this_python_does_not_need_keeps_its_row() -> None:
    (row,) = python_rows({"not-of-this-python": "1.0"}, ROW)
    assert row.licence == "ISC"
    with pytest.raises(Unknown, match=r"not-of-this-python 2\.0 is not installed"):
        python_rows({"not-of-this-python": "2.0"}, ROW)


def test_the_root_of_an_npm_lock_is_no_dependency() -> None:
    lock = '{"packages": {"": {"version": "0"}, "node_modules/@a/b": {"version": "1", "license": "MIT"}}}'
    assert npm_rows(lock) == [("@a/b", "1", "MIT")]
