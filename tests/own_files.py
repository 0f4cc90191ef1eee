"""Small files of a user's own, for labels, spans and candidates, and their recipes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from trunkline.training.config import RecipeConfig, make_config

COLORS = ("red", "green", "blue")
DRUGS = ("aspirin", "ibuprofen", "insulin")
GOODS = ("milk", "bread", "soap", "tea", "rice")

OWN_TASKS = ("shop/colors", "clinic/drugs", "shop/next")

_SETTINGS: dict[str, Any] = {
    "max_steps": 6,
    "r": 4,
    "evals_per_epoch": 2,
    "max_length": 96,
    "learning_rate": 5e-3,
    "precision": "fp32",
}


def own_recipe(name: str, folder: Path, **settings: Any) -> RecipeConfig:
    """The recipe of one of :data:`OWN_TASKS`, with its file written into ``folder``."""
    file, data = {
        "shop/colors": _write_colors,
        "clinic/drugs": _write_drugs,
        "shop/next": _write_baskets,
    }[name](folder)
    return make_config(
        {
            "name": name,
            "data": {"file": str(file), **data},
            "settings": {**_SETTINGS, **settings},
        },
        "made",
    )


def _write_colors(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Ninety texts with none, one, two or three colors."""
    drawn = random.Random(1)
    rows = []
    for number in range(90):
        colors = drawn.sample(COLORS, drawn.randrange(4))
        text = f"shirt {number} in {' and '.join(colors) or 'white'}"
        rows.append({"text": text, "colors": "; ".join(colors)})
    return _write(folder / "colors.jsonl", rows), {"labels": "colors"}


def _write_drugs(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Ninety texts with none or more drugs, some after characters of several bytes."""
    drawn = random.Random(2)
    rows = []
    for number in range(90):
        text, spans = f"Patient №{number} took", []
        for drug in drawn.sample(DRUGS, drawn.randrange(3)):
            text += drawn.choice((" ", " “", " und\n"))
            spans.append({"start": len(text), "end": len(text) + len(drug), "label": "DRUG"})
            text += drug
        rows.append({"text": f"{text} today", "spans": json.dumps(spans)})
    return _write(folder / "drugs.jsonl", rows), {"spans": "spans"}


def _write_baskets(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Ninety baskets with the next of three to five goods."""
    drawn = random.Random(3)
    rows = []
    for number in range(90):
        candidates = drawn.sample(GOODS, 3 + number % 3)
        rows.append(
            {
                "basket": f"basket {number}: {drawn.choice(GOODS)}",
                "next": candidates[number % len(candidates)],
                "goods": "|".join(candidates),
            }
        )
    columns = {"text": "basket", "relevant": "next", "candidates": "goods", "separator": "|"}
    return _write(folder / "baskets.jsonl", rows), columns


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
