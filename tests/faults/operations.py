"""Operations of the forked processes: commands as a user types them, and direct calls.

Arguments and results are JSON values.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import next_revision


def command(args: list[str]) -> int:
    """Run ``trunkline`` with these arguments and return its exit status."""
    from trunkline.cli.root import trunkline

    if migrations := os.environ.get(next_revision.ENVIRONMENT):
        next_revision.use(migrations)
    try:
        trunkline.main(args, prog_name="trunkline")
    except SystemExit as end:
        return 0 if end.code is None else int(end.code)
    return 0


def commands(lines: list[list[str]]) -> list[dict[str, Any]]:
    """Run several commands; return the status of each and its output on both streams."""
    import contextlib
    import io

    results = []
    for args in lines:
        written = io.StringIO()
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
            status = command(args)
        results.append({"args": args, "status": status, "output": written.getvalue()})
    return results


def publish(source: str, ref: str, base_digest: str) -> int:
    """Publish a sealed folder as a training does at its end, and return an exit status."""
    import trunkline
    from trunkline.cli.errors import exit_code_of
    from trunkline.refs import Ref

    platform = trunkline.open(no_plugins=True)

    def work() -> None:
        platform.store.publish(
            Path(source), Ref.parse(ref), task="classification", run=None, base_digest=base_digest
        )
        platform.registry.close()

    return exit_code_of(work, debug=lambda: False)


def train(source: str, ref: str, base_digest: str) -> int:
    """Publish a sealed folder with an evaluated run, without training."""
    import trunkline
    from trunkline.refs import Ref

    platform = trunkline.open(no_plugins=True)
    registry = platform.registry
    dataset = registry.sources.record_dataset(
        name="toy/animals", fingerprint="f", split_fingerprint="s", rows=3, license="CC0-1.0",
        source="made up", counts={"train": 1, "validation": 1, "test": 1},
    )  # fmt: skip
    run = registry.runs.start(
        recipe="toy/animals", base_digest=base_digest, dataset_id=dataset, seed=0,
        settings={"r": 4}, environment={"torch": "2"},
    )  # fmt: skip
    results = {
        "metric": "accuracy", "verdict": "better", "gate": {}, "counts": {"test": 1},
        "scores": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}},
    }  # fmt: skip
    registry.evaluations.record(
        recipe="toy/animals", base_digest=base_digest, dataset_id=dataset, split="test",
        results=results, run=run,
    )  # fmt: skip
    registry.runs.finish(run, "finished", report={"best_step": 1})
    platform.store.publish(Path(source), Ref.parse(ref), task="classification", run=run)
    registry.close()
    return 0


def write_and_rename(path: str, text: str) -> None:
    """Replace a file atomically, as it should be done."""
    import os

    with open(f"{path}.new", "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)


def publish_before_copying(source: str, ref: str, base_digest: str) -> int:
    """Make a version visible before its files exist, which must never happen."""
    import shutil

    import trunkline
    from trunkline.adapters.artifact import read_artifact
    from trunkline.refs import Ref

    platform = trunkline.open(no_plugins=True)
    name, artifact = Ref.parse(ref), read_artifact(Path(source))
    number = platform.registry.versions.reserve(name.domain, name.name, task="classification")
    path = f"{name.domain}/{name.name}/{number}"
    platform.registry.versions.publish(
        name.domain, name.name, number, digest=artifact.digest, path=path, bytes=artifact.bytes,
        base_digest=base_digest,
    )  # fmt: skip
    shutil.copytree(source, platform.workspace.adapters / path)
    platform.registry.close()
    return 0
