"""Translate texts of the core for the console: errors, findings, conditions and stages.

The core writes English sentences with values in them, for terminals, logs and clients. The console
translates them where it shows them: each sentence is an entry of a catalog of its own with numbered
places for the values, such as ``There is no {0} {1}.``
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import islice, product
from pathlib import Path

from trunkline.settings import Settings

_PACKAGE = Path(__file__).parents[1]
_NOT_SHOWN = (
    "cli", "doctor.py", "reference.py", "testing.py",
    "adapters/archive.py", "adapters/card_usage.py", "adapters/hub.py", "adapters/peft_folder.py",
    "adapters/peft_import.py", "adapters/peft_targets.py", "adapters/provenance.py",
    "adapters/signing.py", "bases/convert.py", "bases/pull.py", "serving/admin", "serving/bodies",
    "serving/fields", "serving/openai", "serving/picture_chat", "serving/predict",
    "serving/responses", "serving/schemas", "training/export",
)  # fmt: skip
"""What only a terminal or an HTTP client reads."""

_CALLS = {
    "DataFinding", "GateCheck", "Interrupted", "_finding", "_on_stage", "_refusal",
    "_syntax_error", "damaged", "error", "invalid", "named", "on_stage", "pass_without_champion",
    "plugin_call", "stage", "unsupported", "warning", "wrong_value",
}  # fmt: skip
"""Calls beside those of errors whose arguments people read."""

_NAMES = {"advice", "hint", "message", "problem", "reason", "subject", "suggestion", "why"}
"""Variables whose texts become part of a sentence."""

_NAMED = ("advice", "hint", "problem", "reason")
"""How functions end whose results do."""

_COMPLETE = (
    "adapters/gc.py", "data/check.py", "data/findings.py", "data/lengths.py", "errors.py",
    "evaluation/gates.py", "plugins/discovery.py", "plugins/host.py", "plugins/isolation.py",
    "promotion.py", "refs.py", "registry/aliases.py", "registry/audit.py", "registry/lookup.py",
    "registry/search_syntax.py",
)  # fmt: skip
"""Modules that build sentences in several steps, so that all of their texts count."""

_COMPOSED = (
    "at least {0}", "at most {0}", "every slice at least {0}", "every slice at most {0}",
    "adapter", "version", "alias", "run", "recipe", "dataset", "plugin", "base", "key", "metric",
    "text and target", "rows",
)  # fmt: skip
"""Sentences put together from values, and the names of things that stand in sentences."""

_NO_SUCH = "There is no "
"""How a sentence begins whose first value is the kind of a thing, and not a name."""

_PLACE = re.compile(r"\{(\d+)\}")
_LETTERS = re.compile(r"[A-Za-z]{2,}")
_MOST_VARIANTS = 16
_LONGEST = 4_000
_NESTING = 3
_ENDS = tuple(re.compile(rf"(?<=[{end}]) ") for end in (".?!", ";", ":"))


def core_texts() -> Iterator[str]:
    """The sentences of the core, with ``{0}``, ``{1}``, … where values stand; some repeatedly."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in sorted(_PACKAGE.rglob("*.py"))}
    named = {name: node for tree in trees.values() for name, node in _constants(tree)}
    for path, tree in trees.items():
        inner = path.relative_to(_PACKAGE).as_posix()
        if not inner.startswith(_NOT_SHOWN):
            own = named | dict(_constants(tree))
            yield from _texts_of(tree, own, complete=inner in _COMPLETE)
    yield from _COMPOSED
    yield from (spec.metadata["help"] for spec in fields(Settings))


def _constants(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value


def _texts_of(tree: ast.Module, named: Mapping[str, ast.expr], *, complete: bool) -> Iterator[str]:
    parts = {part for node in ast.walk(tree) for part in _parts_of_text(node)}
    for node in ast.walk(tree):
        if complete and isinstance(node, ast.JoinedStr | ast.Constant) and node not in parts:
            expressions: Sequence[ast.expr] = [node]
        else:
            expressions = _read_in(node)
        for one in expressions:
            for text in islice(_variants(one, named), _MOST_VARIANTS):
                if _is_sentence(text):
                    yield _numbered(text)


def _read_in(node: ast.AST) -> Sequence[ast.expr]:
    """The expressions of a node whose texts people read."""
    match node:
        case ast.Call(func=function, args=arguments, keywords=keywords) if _is_read(function):
            return [*arguments, *(keyword.value for keyword in keywords)]
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name.lower() in _NAMES:
            return [value]
        case ast.FunctionDef(name=name) if name.endswith(_NAMED):
            returned = (one.value for one in ast.walk(node) if isinstance(one, ast.Return))
            return [value for value in returned if value is not None]
    return ()


def _parts_of_text(node: ast.AST) -> Sequence[ast.AST]:
    """Nodes that are no text of their own: pieces of an f-string, and a docstring."""
    match node:
        case ast.JoinedStr(values=values):
            return values
        case ast.Expr(value=ast.Constant() as docstring):
            return [docstring]
    return ()


def _is_read(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name.endswith("Error") or name in _CALLS


def _variants(node: ast.expr, named: Mapping[str, ast.expr], depth: int = 0) -> Iterator[str]:
    """The texts that an expression may have; ``{}`` is a value."""
    inner = depth + 1
    match node:
        case ast.Constant(value=str(text)):
            yield text.replace("{", "(").replace("}", ")") if _PLACE.search(text) else text
        case ast.Constant(value=None):
            yield ""
        case ast.JoinedStr(values=parts):
            for texts in product(*(list(_variants(part, named, inner)) for part in parts)):
                yield "".join(texts)
        case ast.FormattedValue(value=ast.IfExp() as choice, format_spec=None):
            yield from _variants(choice, named, inner)
        case ast.IfExp(body=one, orelse=other):
            yield from _variants(one, named, inner)
            yield from _variants(other, named, inner)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            for texts in product(_variants(left, named, inner), _variants(right, named, inner)):
                yield "".join(texts)
        case ast.BoolOp(values=values):
            for value in values:
                yield from _variants(value, named, inner)
        case ast.Name(id=name) if name in named and name.isupper() and depth < _NESTING:
            yield from _variants(named[name], named, inner)
        case _:
            yield "{}"


def _is_sentence(text: str) -> bool:
    if text.startswith("trunkline") or "\n" in text or " " not in text.strip():
        return False  # a command line, several lines, or a single word
    return len(_LETTERS.findall(text)) > min(text.count("{}"), 1)


def _numbered(text: str) -> str:
    """Neighboring values are one place; the places are numbered."""
    pieces = re.split(r"(?:\{\})+", text)
    numbers = [f"{{{number}}}" for number in range(len(pieces) - 1)]
    return "".join(part for pair in zip(pieces, [*numbers, ""], strict=True) for part in pair)


@dataclass(frozen=True, slots=True)
class _Pattern:
    pieces: tuple[str, ...]
    translation: str

    def values(self, text: str) -> list[str] | None:
        """What stands at the places of a text, each as short as possible; None: another text.

        It searches once from left to right and never goes back, so that no text takes long.
        """
        first, *middle, last = self.pieces
        if not (text.startswith(first) and text.endswith(last)):
            return None
        values = []
        at, end = len(first), len(text) - len(last)
        for piece in middle:
            there = text.find(piece, at + 1, end)
            if there < 0:
                return None
            values.append(text[at:there])
            at = there + len(piece)
        if at >= end:
            return None
        return [*values, text[at:end]]


class CoreTranslator:
    """Translates sentences of the core.

    Args:
        catalog: text with numbered places → its translation.
    """

    def __init__(self, catalog: Mapping[str, str]) -> None:
        translated = {text: catalog[text] for text in catalog if catalog[text]}
        self._exact = {text: translated[text] for text in translated if not _PLACE.search(text)}
        patterns = [
            _Pattern(tuple(_PLACE.split(text)[::2]), translation)
            for text, translation in translated.items()
            if _PLACE.search(text)
        ]
        self._patterns = sorted(patterns, key=lambda one: -sum(map(len, one.pieces)))
        self.translate = lru_cache(maxsize=2_000)(self._translate)

    def _translate(self, text: str, nesting: int = _NESTING) -> str:
        """The text in the catalog's language; what no entry covers stays as it is."""
        if len(text) > _LONGEST or not _LETTERS.search(text):
            return text
        if (covered := self._covered(text, nesting)) is not None:
            return covered
        for end in _ENDS if nesting else ():
            parts = end.split(text)
            if len(parts) > 1 and any(self._covered(part, 0) is not None for part in parts):
                return " ".join(self._translate(part, nesting - 1) for part in parts)
        return text

    def _covered(self, text: str, nesting: int) -> str | None:
        if text in self._exact:
            return self._exact[text]
        for pattern in self._patterns:
            if (values := pattern.values(text)) is not None:
                if nesting:
                    values = [
                        self._translate(value, nesting - 1) if " " in value else value
                        for value in values
                    ]
                    if pattern.pieces[0] == _NO_SUCH:
                        values[0] = self._exact.get(values[0], values[0])
                parts = _PLACE.split(pattern.translation)
                parts[1::2] = [values[int(place)] for place in parts[1::2]]
                return "".join(parts)
        return None
