"""Every promise of ``docs/crashes.md`` names an existing test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "crashes.md"

_NAMED = re.compile(r"`(tests/[a-z0-9_/]+\.py)::(test_[a-z0-9_]+)`")
_PROMISE = re.compile(r"^\| (?!promise |---)(?P<promise>.+?) \| (?P<test>.+) \|$", re.MULTILINE)


def functions(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_promise_names_an_existing_test() -> None:
    named = _NAMED.findall(PAGE.read_text(encoding="utf-8"))
    assert [f"{path}::{name}" for path, name in named if name not in functions(path)] == []


def test_every_promise_names_a_test() -> None:
    promises = list(_PROMISE.finditer(PAGE.read_text(encoding="utf-8")))
    assert len(promises) > 20
    assert [one["promise"] for one in promises if not _NAMED.fullmatch(one["test"])] == []


def test_every_kill_is_promised() -> None:
    named = {name for _, name in _NAMED.findall(PAGE.read_text(encoding="utf-8"))}
    kills = {
        name
        for path in sorted(Path(__file__).parent.glob("test_kill*.py"))
        for name in functions(f"tests/faults/{path.name}")
        if name.startswith("test_")
    }
    assert kills - named == set()
