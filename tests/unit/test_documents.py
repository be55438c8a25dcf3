"""The documents are about this tree: steps, paths, commands and checks that they name exist."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest
import typer

import tools.verify
from tools.goldenlink.app import app

ROOT = Path(__file__).resolve().parents[2]
LIFE = ROOT / "docs" / "LIFE-OF-A-TRANSFER.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_STEP = re.compile(r"(?<![\w)])\((\d+(?:\.\d+)?)\)")
_LIST_ITEM = re.compile(r"^- .*(?:\n  .*)*", re.MULTILINE)
_SECTION = re.compile(r"^## .* · `(services/[\w/]+\.py)`$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
_QUOTED = re.compile(r"`([^`\n]+)`")
_BLOCK = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What is made by running the suite is not in the tree.
_TOP = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} - {"build", "node_modules"}


def sections() -> dict[str, str]:
    """Module → its section of the life of a transfer."""
    text = LIFE.read_text(encoding="utf-8")
    starts = list(_SECTION.finditer(text))
    ends = [start.start() for start in starts[1:]] + [len(text)]
    return {start[1]: text[start.end() : end].partition("\n## ")[0] for start, end in zip(starts, ends, strict=True)}


def steps_of_code(source: str) -> set[str]:
    """Step numbers in comments and docstrings."""
    texts = [
        token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts += [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, nodes)]
    return {number for text in texts for number in _STEP.findall(text)}


def test_the_life_of_a_transfer_has_a_section_for_each_numbered_module() -> None:
    numbered = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "services").rglob("*.py")
        if {"1", "2", "3"} <= steps_of_code(path.read_text(encoding="utf-8"))
    }
    assert numbered == set(sections())


@pytest.mark.parametrize("module", sections())
def test_its_numbers_are_the_numbers_in_the_code(module: str) -> None:
    section = sections()[module]
    listed = {number for item in _LIST_ITEM.findall(section) for number in _STEP.findall(item)}
    assert listed == steps_of_code((ROOT / module).read_text(encoding="utf-8"))
    assert set(_STEP.findall(section)) == listed


def test_its_checks_are_those_of_the_verifier() -> None:
    documented = re.findall(r"^\| (\d+) \| (\w+) \|", LIFE.read_text(encoding="utf-8"), re.MULTILINE)
    assert documented == re.findall(r"^ ?(\d+)\. (\w+):", tools.verify.__doc__ or "", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_points_to_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [target for target in _LINK.findall(text) if not (page.parent / target).exists()]
    for quoted in _QUOTED.findall(text):
        if quoted.split("/")[0] in _TOP and not re.search(r"[\s<]", quoted) and not list(ROOT.glob(quoted)):
            missing.append(quoted)
    assert not missing


def test_the_commands_of_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    typed = re.sub(r"\\\n\s*", "", "\n".join([*_BLOCK.findall(text), *_QUOTED.findall(text)]))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    wanted = set(re.findall(r"^(?:\$ )?make ([a-z]+)", typed, re.MULTILINE))
    assert wanted
    assert wanted <= targets

    commands = typer.main.get_command(app)
    calls = re.findall(r"^(?:\$ )?goldenlink ([a-z]+)(.*)", typed, re.MULTILINE)
    assert calls
    for name, arguments in calls:
        assert name in commands.commands, name
        command, words = commands.commands[name], arguments.split()
        # A group with options of its own is a command too.
        if hasattr(command, "commands") and not words[0].startswith("--"):
            assert words[0] in command.commands, f"{name} {words[0]}"
            command = command.commands[words[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, f"{name} {arguments}"
