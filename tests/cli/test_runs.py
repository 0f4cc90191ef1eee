"""``trunkline runs``: curves as bars in the terminal, as pictures, and for TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli_runner import invoke
from trunkline.api import Platform
from trunkline.cli.runs import sparkline
from workbench import platform, tiny, trained_platform, trained_workspace

__all__ = ["platform", "tiny", "trained_platform", "trained_workspace"]

quick = settings(max_examples=100, deadline=None)


@quick
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=200))
def test_a_sparkline_has_the_extremes_and_blanks_for_what_is_not_finite(
    values: list[float],
) -> None:
    line = sparkline(values, width=200)
    assert len(line) == len(values)
    finite = [value for value in values if math.isfinite(value)]
    for value, bar in zip(values, line, strict=True):
        assert (bar == " ") == (not math.isfinite(value))
    if finite and math.isfinite(max(finite) - min(finite)) and max(finite) > min(finite):
        assert line[values.index(max(finite))] == "█"
        assert line[values.index(min(finite))] == "▁"


def test_a_long_curve_is_thinned_out() -> None:
    assert len(sparkline([float(step) for step in range(1000)])) <= 32


def test_show_prints_a_bar_curve_of_each_metric(trained_platform: Platform) -> None:
    done = invoke("--workspace", str(trained_platform.workspace.root), "runs", "show", "1")
    assert done.exit_code == 0
    lines = [line for line in done.stdout.splitlines() if line.startswith("loss ")]
    assert len(lines) == 1
    assert "lowest" in lines[0]
    assert set("▁▂▃▄▅▆▇█") & set(lines[0])


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_runs_are_drawn_over_each_other(
    suffix: str, start: bytes, trained_platform: Platform, tmp_path: Path
) -> None:
    where = ("--workspace", str(trained_platform.workspace.root))
    out = tmp_path / f"runs.{suffix}"
    done = invoke(*where, "runs", "plot", "1", "2", "--out", str(out))
    assert (done.exit_code, "of 2 runs" in done.stderr) == (0, True), done.output
    assert out.read_bytes().startswith(start)
    done = invoke(*where, "runs", "plot", "1", "--metric", "loss", "--out", str(out))
    assert "1 metric of 1 run" in done.stderr
    done = invoke(*where, "runs", "plot", "1", "2", "--out", str(out), "--json")
    assert json.loads(done.stdout)["runs"] == [1, 2]


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("1", "--out", "run.pdf"), "file.png"),
        (("1", "--out", "no/folder/run.png"), "does not exist"),
        (("99", "--out", "run.png"), "99"),
        (("1", "--metric", "los", "--out", "run.png"), "loss"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    args: tuple[str, ...], part: str, trained_platform: Platform, tmp_path: Path
) -> None:
    done = invoke("--workspace", str(trained_platform.workspace.root), "runs", "plot", *args)
    assert done.exit_code in (1, 2)
    assert part in done.output


def test_tensorboard_reads_the_figures_of_a_run(platform: Platform) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = platform.train(
        "toy/animals", report_to=("tensorboard",), max_steps=4, evals_per_epoch=1
    )
    folder = platform.workspace.root / "tensorboard" / f"run-{result.number}"
    events = EventAccumulator(str(folder)).Reload()
    assert "train/loss" in events.Tags()["scalars"]
    logged = platform.registry.runs.metrics(result.number, name="loss")
    stored = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert stored == [(one.step, pytest.approx(one.value, rel=1e-5)) for one in logged]
