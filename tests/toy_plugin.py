"""The plugin ``toy``: a recipe of each task, small enough to train in seconds.

``toy/animals`` (classification), ``toy/prices`` (regression) and ``toy/plurals`` (generation).
``toy/prices`` and ``toy/plurals`` pass their gates however badly they are trained; ``toy/animals``
must reach an accuracy of 0.99, which a few steps on a tiny random base can't do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.contracts import (
    DatasetSpec,
    Gate,
    LossContext,
    LossFunction,
    LossSpec,
    MetricSpec,
    RecipeSpec,
    Row,
    Scored,
    Settings,
    Template,
)
from trunkline.hookspecs import hookimpl

if TYPE_CHECKING:
    import pytest

TRUNKLINE_API = 1

_ANIMALS = {
    "bird": ("sparrow", "eagle", "robin", "heron", "stork", "finch", "raven"),
    "fish": ("salmon", "trout", "herring", "carp", "pike", "perch", "cod"),
    "mammal": ("horse", "badger", "otter", "weasel", "donkey", "rabbit", "whale"),
}
_FORMS = ("a {} in the wild", "the young {}", "an old {} at rest")
_SETTINGS = Settings(
    num_train_epochs=1,
    r=4,
    lora_alpha=8,
    per_device_train_batch_size=16,
    evals_per_epoch=1,
    max_length=96,
)


def read_animals() -> Iterator[Row]:
    """63 good rows in 21 groups, a duplicate of the first, and one without a text."""
    for label, names in _ANIMALS.items():
        for name in names:
            for index, form in enumerate(_FORMS):
                yield Row(
                    id=f"{name}-{index}",
                    text=form.format(name),
                    target=label,
                    group=name,
                    slices={"age": ("unknown", "young", "old")[index]},
                )
    rest: dict[str, Any] = {"target": "bird", "slices": {"age": "unknown"}}
    yield Row(id="again", text="a  sparrow in the wild", group="sparrow", **rest)
    yield Row(id="empty", text="   ", group="nobody", **rest)


def read_prices() -> Iterator[Row]:
    """60 rows in 20 groups; the price follows from the words."""
    for good in range(20):
        for size in (1, 2, 5):
            yield Row(
                id=f"{good}-{size}",
                text=f"{size} kg of good number {good}",
                target=float(size * (good + 1)),
                group=str(good),
                slices={"size": f"{size} kg"},
            )


def read_plurals() -> Iterator[Row]:
    """63 rows in 21 groups: a name and its plural."""
    for names in _ANIMALS.values():
        for name in names:
            for number in ("two", "three", "four"):
                yield Row(id=f"{number}-{name}", text=f"{number} {name}", target=f"{name}s",
                          group=name)  # fmt: skip


def soft_loss(context: LossContext) -> LossFunction:
    """Cross entropy with smoothed labels."""
    from functools import partial

    from torch.nn.functional import cross_entropy

    return partial(cross_entropy, label_smoothing=0.1)


def hit_rate(scored: Scored) -> float:
    """Share of rows that were hit."""
    pairs = zip(scored.targets, scored.predictions, strict=True)
    return sum(bool(one == other) for one, other in pairs) / len(scored.targets)


@hookimpl
def trunkline_datasets() -> Iterator[DatasetSpec]:
    shared: dict[str, Any] = {"license": "CC0-1.0", "source": "made up"}
    yield DatasetSpec(
        name="toy/animals",
        description="animals and the class they belong to",
        task="classification",
        load=read_animals,
        grouping="an animal: its rows say the same thing in other words",
        slices=("age",),
        test_share=0.3,
        **shared,
    )
    yield DatasetSpec(
        name="toy/prices",
        description="goods and what they cost",
        task="regression",
        load=read_prices,
        grouping="a good: its sizes cost in proportion",
        unit="EUR",
        slices=("size",),
        **shared,
    )
    yield DatasetSpec(
        name="toy/plurals",
        description="animals, and several of them",
        task="generation",
        load=read_plurals,
        grouping="an animal: its plural is one",
        **shared,
    )


@hookimpl
def trunkline_recipes() -> Iterator[RecipeSpec]:
    yield RecipeSpec(
        name="toy/animals",
        description="class of an animal",
        dataset="toy/animals",
        task="classification",
        template=Template(prompt="Animal: {text}"),
        settings=_SETTINGS,
        loss="toy/soft",
        metrics=("accuracy", "macro_f1", "toy/hit_rate"),
        gate=Gate(metric="accuracy", at_least=0.99),
    )
    yield RecipeSpec(
        name="toy/prices",
        description="price of a good",
        dataset="toy/prices",
        task="regression",
        settings=_SETTINGS,
        metrics=("mae", "median_ape"),
        scale="log",
        gate=Gate(metric="mae", beats_baseline=False, at_least=10_000),
    )
    yield RecipeSpec(
        name="toy/plurals",
        description="plural of an animal",
        dataset="toy/plurals",
        task="generation",
        template=Template(prompt="Plural: {text}", chat=True),
        settings=_SETTINGS,
        metrics=("exact_match",),
        gate=Gate(metric="exact_match", beats_baseline=False, at_least=0.0),
        max_new_tokens=8,
    )


@hookimpl
def trunkline_losses() -> Iterator[LossSpec]:
    yield LossSpec(
        name="toy/soft",
        description="cross entropy with smoothed labels",
        task="classification",
        build=soft_loss,
    )


@hookimpl
def trunkline_metrics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="toy/hit_rate",
        description="share of rows that were hit",
        task="classification",
        compute=hit_rate,
    )


def install_toy(folder: Path, monkeypatch: pytest.MonkeyPatch, *, broken: bool = False) -> Path:
    """Install this module as the plugin ``toy``, the only one that loads, also in subprocesses.

    Args:
        folder: receives a folder ``site`` with the fake distribution; may be used again.
        broken: also install the plugin ``broken``, which can't be imported.

    Returns:
        The folder ``site``.
    """
    site = folder / "site"
    write_distribution(site, "toy", __name__)
    if broken:
        (site / "trunkline_broken.py").write_text("import no_such_module\n")
        write_distribution(site, "broken", "trunkline_broken")
    monkeypatch.syspath_prepend(str(site))
    paths = (str(site), str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    monkeypatch.setenv("TRUNKLINE_LOAD_PLUGINS", "toy,broken" if broken else "toy")
    return site


def write_distribution(site: Path, domain: str, module: str) -> None:
    """Write the metadata that makes a module on the path the plugin of a domain."""
    info = site / f"trunkline_{domain}-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: trunkline-{domain}\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text(f"[trunkline]\n{domain} = {module}\n")
