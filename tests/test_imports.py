"""Import contracts, lazy imports, and no domain names in the core."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "platform" / "trunkline"
DOMAINS = ("medical", "finance", "manufacturing", "retail")
SHOWN_AS_EXAMPLES = {"refs.py": {"medical", "medical/icd10-chapter@3"}}
"""Example names in hints."""

SUBCLASS_HEAVY_CLASSES = {
    "bases/efficientnet_lite.py",
    "bases/image_model.py",
    "training/frozen_layers.py",
    "training/trackers.py",
    "training/trainer.py",
}
"""Modules that subclass a class of a heavy package, and are imported inside functions only."""

HEAVY = (
    "torch",
    "transformers",
    "peft",
    "sklearn",
    "pandas",
    "pyarrow",
    "datasets",
    "accelerate",
    "PIL",
    "timm",
    "torchvision",
)


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


def names_in_code(path: Path) -> set[str]:
    """Names, and string constants other than docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    statements = {
        id(node.value) for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }  # fmt: skip
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in statements:
                names.add(node.value)
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.alias):
            names.add(node.name)
    return names


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_core_contains_no_domain_name(path: Path) -> None:
    named = {
        name
        for name in names_in_code(path)
        if any(domain in name.lower() for domain in DOMAINS)
        and not name.startswith("trunkline ")  # an example in a command's --help
    }
    assert named <= SHOWN_AS_EXAMPLES.get(name_of(path), set())


def test_names_in_code_are_collected(tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text('"""medical"""\nimport trunkline_retail\nx = "finance"\n')
    assert {"finance", "trunkline_retail"} <= names_in_code(module)
    assert "medical" not in names_in_code(module)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_heavy_packages_are_imported_inside_functions(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    assert not names & set(HEAVY) or name_of(path) in SUBCLASS_HEAVY_CLASSES


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_module_has_a_docstring(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring or path.read_text() == ""
