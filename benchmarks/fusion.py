"""Things with a name and a picture: the text alone, the picture alone, and both fused.

The rows are the emoji of the npm package ``emoji-datasource-google`` (16.0.0) in the categories
Food & Drink, Objects and Travel & Places: the name in lower case, the picture of 64 × 64 pixels,
and the category as label (``--label subcategory``: kinds of 12 things or more, of which stacking
may have too few). Things whose name ends alike are one group. Each group is tested in one of the
folds; the weights are fitted on validation rows of each fold, and the predictions of all folds are
scored together. The intervals resample groups.

Fetch the package with ``npm pack emoji-datasource-google@16.0.0``, unpack it, and name its folder.
Takes about ten minutes on two cores. Asserts nothing.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import timing
from timing import title

CATEGORIES = ("Food & Drink", "Objects", "Travel & Places")
LEAST = 12
IMAGE_BASE = "efficientnet-lite0"
NAME = "things/kind"
FUSED = ("average", "stacked")
SETTINGS: dict[str, dict[str, Any]] = {
    "text": {"num_train_epochs": 4.0, "learning_rate": 5e-4},
    "image": {"num_train_epochs": 4.0, "image_size": 96},
}


def read_things(package: Path, label_field: str) -> list[dict[str, str]]:
    """Path, text, label and group of each thing."""
    rows = []
    for one in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
        path = package / "img" / "google" / "64" / one["image"]
        if one["category"] in CATEGORIES and one["has_img_google"] and path.is_file():
            name = one["name"].lower()
            group = "clock" if name.startswith("clock face") else name.split()[-1]
            label = one[label_field]
            rows.append({"path": str(path), "text": name, "label": label, "group": group})
    counts = Counter(row["label"] for row in rows)
    return [row for row in rows if counts[row["label"]] >= LEAST]


def write_fold(folder: Path, rows: list[dict[str, str]], fold: int, folds: int) -> None:
    """A folder with ``labels.csv``, whose test part is the fold."""
    folder.mkdir()
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, ("path", "text", "label", "group", "split"))
        table.writeheader()
        for row in rows:
            name = Path(row["path"]).name
            shutil.copyfile(row["path"], folder / name)
            number = int(hashlib.sha256(row["group"].encode()).hexdigest(), 16)
            part = "test" if number % folds == fold else "train"
            if part == "train" and number // folds % 4 == 0:
                part = "validation"
            table.writerow({**row, "path": name, "split": part})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path, help="the folder of the unpacked npm package")
    parser.add_argument("--label", choices=("category", "subcategory"), default="category")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a smoke run of few steps")
    options = parser.parse_args()
    timing.say_where(f"smollm2-135m, {IMAGE_BASE}")
    rows = read_things(options.package, options.label)
    settings = {half: dict(own) for half, own in SETTINGS.items()}
    if options.quick:
        settings = {half: {**own, "max_steps": 3} for half, own in settings.items()}
    title(
        f"{len(rows):,} things of {len({row['label'] for row in rows})} kinds in "
        f"{len({row['group'] for row in rows}):,} groups, {options.folds} folds"
    )
    start = time.perf_counter()
    pooled: dict[str, list[Any]] = defaultdict(list)
    baselines: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        for fold in range(options.folds):
            folder = Path(scratch) / str(fold)
            write_fold(folder, rows, fold, options.folds)
            run_fold(folder, fold, settings, pooled, baselines)
    report(pooled, baselines)
    print(f"  all trainings and baselines: {(time.perf_counter() - start) / 60:.1f} min")


def run_fold(
    folder: Path,
    fold: int,
    settings: dict[str, dict[str, Any]],
    pooled: dict[str, list[Any]],
    baselines: dict[str, list[float]],
) -> None:
    """Train and fuse on one fold, and add its predictions and the baselines' scores."""
    import trunkline
    from trunkline.cli.file_options import make_own_recipe

    workspace = folder / "workspace"
    workspace.mkdir()
    platform = trunkline.open(workspace, image_base=IMAGE_BASE, no_plugins=True)
    recipes = [
        make_own_recipe(f"{NAME}-{half}", folder, {"text": "text", "reads": half})
        for half in ("text", "image")
    ]
    text, image, averaged = platform.files.train_fused(
        *recipes, NAME, text_settings=settings["text"], image_settings=settings["image"]
    )
    refs = str(text.version.ref), str(image.version.ref)
    results = {"average": averaged}
    try:
        results["stacked"] = platform.files.fuse_adapters(*refs, NAME, method="stacked")
    except trunkline.errors.RefusedError as error:
        print(f"  fold {fold}: {error.message}")
    versions = {"text alone": text.version, "picture alone": image.version}
    versions |= {method: result.version for method, result in results.items()}
    for name, version in versions.items():
        evaluations = platform.registry.evaluations
        latest = evaluations.list(version=version.ref)[0]
        pooled[name] += evaluations.predictions(latest.id)
    own = averaged.evaluation_report
    for name, scores in own.baselines.items():
        if name not in refs:
            baselines[name].append(scores["accuracy"].value)
    for result in results.values():
        print(f"  fold {fold}: {result.notes[0]}", flush=True)
    for engine in platform.engines.loaded():
        engine.close()
    platform.registry.close()


def report(pooled: dict[str, list[Any]], baselines: dict[str, list[float]]) -> None:
    """Print the scores over all folds, and the paired differences to the better half."""
    import trunkline
    from trunkline.contracts import Scored
    from trunkline.evaluation.intervals import estimate, paired_difference

    catalog = trunkline.open(tempfile.gettempdir(), no_plugins=True).catalog
    accuracy, macro = catalog.metric("accuracy"), catalog.metric("macro-f1")
    scored: dict[str, tuple[Scored, list[str]]] = {}
    for name, records in pooled.items():
        records = sorted(records, key=lambda one: one.row_id)
        targets = [one.target for one in records]
        scored[name] = (
            Scored(
                targets=targets,
                predictions=[one.prediction for one in records],
                labels=tuple(sorted(set(targets))),
            ),
            [one.group for one in records],
        )
    title("Scores over all folds, with 95 % intervals over groups")
    for name, (one, groups) in scored.items():
        cells = [estimate(metric, one, groups) for metric in (accuracy, macro)]
        print(f"  {name:<16} accuracy {shown(cells[0])}  macro-F1 {shown(cells[1])}")
    for name, values in baselines.items():
        print(f"  baseline {name}: accuracy {sum(values) / len(values):.3f}, mean of the folds")
    alone = ["text alone", "picture alone"]
    better = max(alone, key=lambda name: estimate(accuracy, *scored[name], draws=1).value)
    for name in FUSED:
        if name in scored and len(scored[name][1]) == len(scored[better][1]):
            one, groups = scored[name]
            gain = paired_difference(accuracy, one, scored[better][0].predictions, groups)
            verdict = (
                "better" if gain.low > 0 else "worse" if gain.high < 0 else "not clearly better"
            )
            print(f"  {name} less {better}: {shown(gain, '+')}: {verdict}", flush=True)


def shown(one: Any, sign: str = "") -> str:
    """A value with its interval."""
    return f"{one.value:{sign}.3f} [{one.low:{sign}.3f}, {one.high:{sign}.3f}]"


if __name__ == "__main__":
    main()
