"""The rules that a plugin's specs must keep, told one sentence a violation.

Owns: names, references between specs, and values that the contracts' types can't enforce.
Must not know: how the specs were obtained. Nothing here reads rows; see ``checks.py`` for that.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from trunkline.contracts import TASKS, DatasetSpec, RecipeSpec
from trunkline.plugins.catalog import SPECS, Contribution, Kind

RESERVED_DOMAINS = frozenset({"base"})
_DOMAIN = re.compile(r"[a-z][a-z0-9-]{0,39}")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,63}")
_FORMULA_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_CALLABLES: dict[Kind, str] = {
    "datasets": "load",
    "losses": "build",
    "metrics": "compute",
    "transforms": "apply",
}


def domain_violation(domain: str) -> str | None:
    """Why an entry point of this name can't be a plugin, or None."""
    if domain in RESERVED_DOMAINS:
        return f"the name {domain!r} is reserved for the bare base model"
    if not _DOMAIN.fullmatch(domain):
        return (
            f"{domain!r} is no domain: lower-case letters, digits and '-', "
            "a letter first, at most 40 characters"
        )
    return None


def violations(
    domain: str, contribution: Contribution, core_metrics: Collection[str] | None = None
) -> Iterator[str]:
    """Yield every rule that the specs of one plugin break, one sentence each.

    Args:
        core_metrics: metrics that recipes may name beside the plugin's own; None: names without a
            domain are taken on trust.
    """
    for kind in SPECS:
        specs = getattr(contribution, kind)
        yield from _names(domain, kind, [spec.name for spec in specs])
        for spec in specs:
            yield from _values(kind, spec)
    for recipe in contribution.recipes:
        yield from _references(domain, recipe, contribution, core_metrics)


def _names(domain: str, kind: Kind, names: list[Any]) -> Iterator[str]:
    grammar, extra = (_FORMULA_NAME, ", '_'") if kind in ("losses", "metrics") else (_NAME, "")
    for name in names:
        if not isinstance(name, str):
            yield f"a name in trunkline_{kind} is {name!r}, not a string"
            continue
        owner, slash, local = name.partition("/")
        if not slash or owner != domain:
            yield f"{name!r} in trunkline_{kind} is not qualified by its domain: '{domain}/…'"
        elif not grammar.fullmatch(local):
            yield (
                f"{name!r} in trunkline_{kind} is no name: after '{domain}/' lower-case letters, "
                f"digits{extra} and '-', a letter first, at most 64 characters"
            )
    for name, count in Counter(map(str, names)).items():
        if count > 1:
            yield f"trunkline_{kind} yields {name!r} {count} times"


def _values(kind: Kind, spec: Any) -> Iterator[str]:
    if kind in _CALLABLES and not callable(getattr(spec, _CALLABLES[kind])):
        yield f"{_CALLABLES[kind]} of {spec.name!r} can't be called"
    if kind == "transforms":
        if spec.stage not in ("clean", "augment"):
            yield f"stage of {spec.name!r} is {spec.stage!r}, not 'clean' or 'augment'"
    elif spec.task not in TASKS:
        yield f"task of {spec.name!r} is {spec.task!r}, not one of {', '.join(TASKS)}"
    if isinstance(spec, DatasetSpec):
        yield from _shares(spec)
    if isinstance(spec, RecipeSpec) and spec.scale not in ("linear", "log"):
        yield f"scale of {spec.name!r} is {spec.scale!r}, not 'linear' or 'log'"


def _shares(dataset: DatasetSpec) -> Iterator[str]:
    held_out = {
        "validation_share": dataset.validation_share,
        "test_share": dataset.test_share,
    }
    for name, share in held_out.items():
        if not isinstance(share, int | float) or not 0 < share < 1:
            yield f"{name} of {dataset.name!r} is {share!r}, not between 0 and 1"
            return
    if sum(held_out.values()) >= 1:
        yield f"validation_share and test_share of {dataset.name!r} leave nothing to train on"


def _references(
    domain: str,
    recipe: RecipeSpec,
    contribution: Contribution,
    core_metrics: Collection[str] | None,
) -> Iterator[str]:
    datasets = {spec.name: spec.task for spec in contribution.datasets}
    losses = {spec.name: spec.task for spec in contribution.losses}
    metrics = {spec.name: spec.task for spec in contribution.metrics}
    transforms = [spec.name for spec in contribution.transforms]

    yield from _reference(recipe, "dataset", recipe.dataset, datasets)
    if recipe.loss != "default":
        yield from _reference(recipe, "loss", recipe.loss, losses)
    for metric in dict.fromkeys((*recipe.metrics, recipe.gate.metric)):
        trusted = core_metrics is None and isinstance(metric, str) and "/" not in metric
        if not trusted and metric not in (core_metrics or ()):
            yield from _reference(recipe, "metric", metric, metrics, core_metrics or ())
    for transform in recipe.transforms:
        if transform not in transforms:
            yield _unknown(recipe, "transform", transform, transforms)


def _reference(
    recipe: RecipeSpec, noun: str, name: str, tasks: Mapping[str, str], core: Iterable[str] = ()
) -> Iterator[str]:
    if name not in tasks:
        yield _unknown(recipe, noun, name, [*tasks, *core])
    elif tasks[name] != recipe.task:
        yield (
            f"the recipe {recipe.name!r} is a {recipe.task} task but its {noun} {name!r} is for "
            f"{tasks[name]}"
        )


def _unknown(recipe: RecipeSpec, noun: str, name: str, known: list[str]) -> str:
    close = get_close_matches(str(name), known, n=1, cutoff=0.5)
    nearest = f"; did you mean {close[0]!r}?" if close else ""
    return f"the recipe {recipe.name!r} names the {noun} {name!r}, which isn't there{nearest}"
