"""Who may import whom, and that the core names no domain."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "platform" / "trunkline"
DOMAINS = ("medical", "finance", "retail")
SHOWN_AS_EXAMPLES = {"refs.py": {"medical", "medical/icd10-chapter@3"}}
"""Texts that a hint shows to say what a name looks like."""

HEAVY = ("torch", "transformers", "peft", "sklearn", "pandas", "pyarrow", "datasets", "accelerate")


def modules() -> list[Path]:
    return sorted(CORE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(CORE).as_posix()


def test_import_contracts_are_kept() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [command, "--no-cache"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def words_in_code(path: Path) -> set[str]:
    """Names, and texts that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    statements = {
        id(node.value) for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }  # fmt: skip
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in statements:
                found.add(node.value)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.alias):
            found.add(node.name)
    return found


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_core_names_no_domain(path: Path) -> None:
    named = {
        word
        for word in words_in_code(path)
        if any(domain in word.lower() for domain in DOMAINS)
        and not word.startswith("trunkline ")  # an example in a command's --help
    }
    assert named <= SHOWN_AS_EXAMPLES.get(name_of(path), set())


def test_words_in_code_are_found(tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text('"""medical"""\nimport trunkline_retail\nx = "finance"\n')
    assert {"finance", "trunkline_retail"} <= words_in_code(module)
    assert "medical" not in words_in_code(module)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_heavy_packages_are_imported_inside_functions(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    assert not names & set(HEAVY)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_module_says_first_what_it_owns(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring or path.read_text() == ""
