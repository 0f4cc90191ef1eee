"""Refuse identifiers, module headers and spellings that docs/glossary.md rules out.

Run by `make lint`; `python .ci/vocabulary.py PATH …` checks files or folders, by default all
tracked Python files. Exits with 1 and a line per finding.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

BANNED = {
    "told": "message, event, text or a noun for the value",
    "said": "text, value or config",
    "asked": "request or requested",
    "found": "match, row or result",
    "tell": "print, report, notify or emit",
    "tells": "prints, reports or emits",
    "talk": "conversation or chat",
    "whole": "complete, full or integer",
    "stands": "a verb that says what it does",
    "whoever": "caller or user",
    "heard": "received",
    "floor": "baseline",
    "floors": "baselines",
    "judge": "evaluate",
    "judged": "evaluated",
    "judgement": "evaluation",
    "bank": "pool",
    "trunk": "base or backbone",
    "doorkeeper": "authenticator",
    "wording": "detokenizer",
    "licence": "license",
    "catalogue": "catalog",
    "colour": "color",
    "behaviour": "behavior",
    "neighbour": "neighbor",
    "neighbours": "neighbors",
}
"""Part of an identifier → what to write."""

WHOLE = {"word": "text or token", "words": "text, tokens or arguments"}
"""Identifiers that are banned as they stand; `word_drop` and the like are fine."""

BRITISH = re.compile(r"(?i)^(?:quantis|normalis|optimis|initialis|standardis|serialis|recognis)")
ALLOWED = {"NotFoundError", "floor", "bank_lines", "bank_line"}
"""`math.floor` and the bank-statement data of the finance plugin."""

HEADER = re.compile(r"^\s*(?:Owns|Must not know): ?|Must not know:", re.MULTILINE)
LINES = 550
PARTS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Names that a file defines: modules' own, not those of libraries that it calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.lineno, node.name
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname


def problem(name: str) -> str | None:
    """What to write instead of an identifier, or None where it is fine."""
    if name in ALLOWED or "bank_lines" in name:
        return None
    if (instead := WHOLE.get(name.strip("_").lower())) is not None:
        return instead
    for part in PARTS.findall(name):
        if (instead := BANNED.get(part.lower())) is not None:
            return instead
        if BRITISH.match(part):
            return "American spelling"
    return None


def findings(path: Path) -> Iterator[str]:
    source = path.read_text(encoding="utf-8")
    seen = set()
    for line, name in sorted(identifiers(ast.parse(source))):
        instead = problem(name)
        if instead is not None and name not in seen:
            seen.add(name)
            yield f"{path}:{line}: identifier {name!r}: write {instead}"
    for match in HEADER.finditer(source):
        yield f"{path}:{source.count(chr(10), 0, match.start()) + 1}: drop the header {match[0]!r}"
    count = source.count("\n")
    if count > LINES:
        yield f"{path}: {count} lines; over {LINES} it has two subjects"


def main(arguments: list[str]) -> int:
    listed = subprocess.run(
        ["git", "ls-files", "--", *(arguments or ["."])], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    lines = [
        line
        for name in listed
        if name.endswith(".py") and Path(name) != Path(".ci/vocabulary.py") and Path(name).exists()
        for line in findings(Path(name))
    ]
    print("\n".join(lines) or "vocabulary: nothing to change")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
