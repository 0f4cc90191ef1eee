"""The rules that a plugin's domain, names and specs must keep; no rows are read."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

from trunkline import contracts
from trunkline.contracts import (
    CLEAN_STEPS,
    MODALITIES,
    TASKS,
    DatasetSpec,
    Gate,
    RecipeSpec,
    Settings,
    TaskSpec,
    Template,
)
from trunkline.plugins.catalog import (
    CORE,
    RESERVED_DOMAINS,
    SPECS,
    Contribution,
    Kind,
    without_core,
)
from trunkline.settings import is_kind

_DOMAIN = re.compile(r"[a-z][a-z0-9-]{0,39}")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,63}")
_FORMULA_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")


def domain_violation(domain: str) -> str | None:
    """Why an entry point of this name can't be a plugin, or None."""
    if domain in RESERVED_DOMAINS:
        return f"the name {domain!r} is reserved for {RESERVED_DOMAINS[domain]}"
    if not _DOMAIN.fullmatch(domain):
        return (
            f"{domain!r} is not a valid domain: use lower-case letters, digits and '-', "
            "a letter first, at most 40 characters"
        )
    return None


def violations(
    domain: str, contribution: Contribution, core: Contribution | None = None
) -> Iterator[str]:
    """Yield every rule that the specs of one plugin break, one sentence each; reads no rows.

    Args:
        domain: of the plugin.
        contribution: its specs.
        core: the built-ins, which recipes and tasks may name too; None for the core itself.
    """
    broken: list[str] = []
    for kind in SPECS:
        specs = getattr(contribution, kind)
        broken += _name_violations(domain, kind, [spec.name for spec in specs])
        for spec in specs:
            broken += type_violations(spec)
    yield from broken
    if broken:  # what a value of the wrong type refers to can't be looked up
        return
    for dataset in contribution.datasets:
        yield from _share_violations(dataset)
    targets = _Targets(contribution, core or Contribution())
    for task in contribution.tasks:
        yield from targets.task_violations(task)
    for recipe in contribution.recipes:
        yield from targets.recipe_violations(recipe)


def _name_violations(domain: str, kind: Kind, names: list[Any]) -> Iterator[str]:
    grammar, extra = (_FORMULA_NAME, ", '_'") if kind in ("losses", "metrics") else (_NAME, "")
    for name in names:
        if not isinstance(name, str):
            yield f"a name in trunkline_{kind} is {name!r}, not a string"
            continue
        owner, slash, local = name.partition("/")
        if domain == CORE:
            owner, slash, local = CORE, "/", name
        if not slash or owner != domain:
            yield f"{name!r} in trunkline_{kind} is not qualified by its domain: '{domain}/…'"
        elif not grammar.fullmatch(local):
            yield (
                f"{name!r} in trunkline_{kind} is not a valid name: after '{domain}/' use "
                f"lower-case letters, digits{extra} and '-', a letter first, at most 64 characters"
            )
    for name, count in Counter(map(str, names)).items():
        if count > 1:
            yield f"trunkline_{kind} yields {name!r} {count} times"


def _share_violations(dataset: DatasetSpec) -> Iterator[str]:
    held_out = {
        "validation_share": dataset.validation_share,
        "test_share": dataset.test_share,
    }
    for name, share in held_out.items():
        if not 0 < share < 1:
            yield f"{name} of {dataset.name!r} is {share!r}, not between 0 and 1"
            return
    if sum(held_out.values()) >= 1:
        yield f"validation_share and test_share of {dataset.name!r} leave nothing to train on"


# ---------------------------------------------------------------------------------------- types

_TEXTS: dict[str, tuple[str, ...]] = {
    "Task": TASKS,
    "CleanStep": CLEAN_STEPS,
    "Modality": MODALITIES,
}
_EXAMPLES: dict[type, str] = {
    Template: "Template(prompt='…{text}…')",
    Settings: "Settings(r=16)",
    Gate: "Gate(metric='…')",
}
_KINDS: dict[str, tuple[type, str]] = {
    "str": (str, "a string"),
    "bool": (bool, "True or False"),
    "int": (int, "an integer"),
    "float": (float, "a finite number"),
}


def type_violations(spec: Any) -> Iterator[str]:
    """Yield a sentence for each field of a spec whose value does not have the declared type.

    The fields of its template and gate are checked too; those of its settings check themselves.
    """
    for name, annotation, value in _typed_fields(spec, ""):
        if name == "name":  # has rules of its own
            continue
        problem = type_problem(annotation, value)
        if problem is None:
            continue
        if annotation.startswith("Callable"):
            yield f"{name} of {spec.name!r} can't be called: it is {problem}"
        else:
            yield f"{name} of {spec.name!r} is {problem}"


def _typed_fields(spec: Any, prefix: str) -> Iterator[tuple[str, str, Any]]:
    """Name, annotation and value of each field, also of the dataclasses in its fields."""
    for field in fields(spec):
        value = getattr(spec, field.name)
        yield f"{prefix}{field.name}", str(field.type), value
        if isinstance(value, Template | Gate):
            yield from _typed_fields(value, f"{prefix}{field.name}.")


def type_problem(annotation: str, value: Any) -> str | None:
    """The value and what is wanted instead of it, or None if it has the type.

    Args:
        annotation: of a field of the specs, as :mod:`trunkline.contracts` writes it.
        value: of the field; with an annotation that has no rule here, any value passes.

    """
    if annotation.endswith(" | None"):
        return None if value is None else type_problem(annotation.removesuffix(" | None"), value)
    shown = f"{value!r:.80}"
    if annotation in _KINDS:
        kind, noun = _KINDS[annotation]
        if not is_kind(value, kind):
            return f"{shown}, not {noun}"
        halves = isinstance(value, str) and any("\ud800" <= one <= "\udfff" for one in value)
        return f"{shown}, which holds half a character" if halves else None
    if annotation.startswith("tuple["):
        return _tuple_problem(annotation, value)
    if annotation in _TEXTS or annotation.startswith("Literal["):
        accepted = _TEXTS.get(annotation) or _literal(annotation)
        usable = isinstance(value, str) and value in accepted
        return None if usable else f"{shown}, not one of {', '.join(accepted)}"
    if annotation.startswith("Callable["):
        return None if callable(value) else shown
    if annotation.startswith("Mapping["):
        return None if isinstance(value, Mapping) else f"{shown}, {_noun(value)}, not a mapping"
    wanted = getattr(contracts, annotation, None)
    if wanted not in _EXAMPLES:
        return None
    if isinstance(value, wanted):
        return None
    return f"{shown}, {_noun(value)}; write {_EXAMPLES[wanted]}"


def _tuple_problem(annotation: str, value: Any) -> str | None:
    shown = f"{value!r:.80}"
    if not isinstance(value, tuple | list):
        example = f"({shown},)" if isinstance(value, str) else "('…',)"
        return f"{shown}, {_noun(value)}; a tuple is wanted: {example}"
    element = annotation.removeprefix("tuple[").removesuffix(", ...]")
    for item in value:
        problem = type_problem(element, item)
        if problem is not None:
            return f"{shown}, which contains {problem}"
    return None


def _literal(annotation: str) -> tuple[str, ...]:
    """The texts of ``Literal['a', 'b']``."""
    return ast.literal_eval(f"({annotation.removeprefix('Literal[').removesuffix(']')},)")


def _noun(value: Any) -> str:
    """The type of a value with its article: ``a string``."""
    if isinstance(value, str):
        return "a string"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def with_tuples(contribution: Contribution) -> Contribution:
    """The contribution with a tuple in each field that was given as a list."""
    parts: dict[str, Any] = {}
    for kind in SPECS:
        specs: list[Any] = []
        for spec in getattr(contribution, kind):
            lists = {
                field.name: tuple(value)
                for field in fields(spec)
                if isinstance(value := getattr(spec, field.name), list)
            }
            specs.append(replace(spec, **lists) if lists else spec)
        parts[kind] = tuple(specs)
    return Contribution(**parts)


# ----------------------------------------------------------------------------------- references


class _Targets:
    """What the recipes and tasks of one plugin may name: its own specs and the built-ins."""

    def __init__(self, own: Contribution, core: Contribution) -> None:
        self.datasets = {spec.name: (spec.task,) for spec in own.datasets}
        self.losses = {spec.name: (spec.task,) for spec in (*core.losses, *own.losses)}
        self.metrics = {spec.name: (spec.task,) for spec in (*core.metrics, *own.metrics)}
        self.transforms = {spec.name: TASKS for spec in (*core.transforms, *own.transforms)}
        self.baselines = {spec.name: spec.tasks for spec in (*core.baselines, *own.baselines)}
        self.tasks = {spec.name: spec.kind for spec in (*core.tasks, *own.tasks)}

    def task_violations(self, task: TaskSpec) -> Iterator[str]:
        subject = f"the task {task.name!r}"
        yield from _reference(subject, task.kind, "loss", task.loss, self.losses)
        for name in task.baselines:
            yield from _reference(subject, task.kind, "baseline", name, self.baselines)

    def recipe_violations(self, recipe: RecipeSpec) -> Iterator[str]:
        subject = f"the recipe {recipe.name!r}"
        kind = self.tasks.get(without_core(recipe.task))
        if kind is None:
            yield _unknown(subject, "task", recipe.task, self.tasks)
        yield from _reference(subject, kind, "dataset", recipe.dataset, self.datasets)
        if recipe.loss != "default":
            yield from _reference(subject, kind, "loss", recipe.loss, self.losses)
        for name in dict.fromkeys((*recipe.metrics, recipe.gate.metric)):
            yield from _reference(subject, kind, "metric", name, self.metrics)
        for name in recipe.transforms:
            yield from _reference(subject, kind, "transform", name, self.transforms)
        for name in recipe.baselines:
            yield from _reference(subject, kind, "baseline", name, self.baselines)


def _reference(
    subject: str, kind: str | None, noun: str, name: str, targets: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Check that the target exists and fits ``kind``; None skips the second check."""
    tasks = targets.get(without_core(name))
    if tasks is None:
        yield _unknown(subject, noun, name, targets)
    elif kind is not None and kind not in tasks:
        yield f"{subject} is a {kind} task but its {noun} {name!r} is for {', '.join(tasks)}"


def _unknown(subject: str, noun: str, name: str, known: Iterable[str]) -> str:
    close = get_close_matches(without_core(str(name)), known, n=1, cutoff=0.5)
    nearest = f"; did you mean {close[0]!r}?" if close else ""
    return f"{subject} names the {noun} {name!r}, which doesn't exist{nearest}"
