"""Tables, figures and progress, on a terminal and in a pipe."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from trunkline.cli import output
from trunkline.cli.eval import print_evaluation_report
from trunkline.cli.progress import Lines, Live, Pace, stop_on_interrupt
from trunkline.evaluation.intervals import Estimate
from trunkline.evaluation.report import EvaluationReport

LONG = "a name that goes on and on " * 8


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch, write: Callable[[], None]) -> str:
    """The output on a terminal of 80 columns."""
    stdout = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        patch.setenv("COLUMNS", "80")
        patch.setenv("TERM", "xterm-256color")
        write()
    return stdout.getvalue()


@pytest.fixture(autouse=True)
def no_color_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def _evaluation_report(verdict: str = "ties", groups: int = 60) -> EvaluationReport:
    one = Estimate(0.7, 0.6, 0.8)
    names = ("accuracy", "macro_f1", "domain/some_longer_metric")
    return EvaluationReport(
        metric="accuracy",
        higher_is_better=True,
        rows=200,
        groups=groups,
        scores=dict.fromkeys(names, one),
        baselines={"tfidf": dict.fromkeys(names, one)},
        baseline_details={"tfidf": "words 1-2, C=1"},
        best_baseline="tfidf",
        difference=Estimate(0.01, -0.02, 0.04),
        verdict=verdict,
        slices=(),
    )


def test_table_in_a_pipe_is_not_folded(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["name", "text"], [("a", LONG)], fold=("text",))
    assert LONG.strip() in capsys.readouterr().out


def test_table_in_a_pipe_has_neither_color_nor_boxes_nor_trailing_blanks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.print_table(["name", "text"], [("a", "b"), ("long name", "c")])
    assert capsys.readouterr().out == "name       text\na          b\nlong name  c\n"


def test_table_on_a_terminal_fits_and_keeps_every_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        output.print_table(["name", "text"], [("domain/name", LONG)], fold=("text",))

    plain = re.sub(r"\x1b\[[0-9;]*m", "", on_terminal(monkeypatch, write))
    assert max(map(len, plain.splitlines())) <= 80
    assert plain.split().count("name") == 9


def _plain(monkeypatch: pytest.MonkeyPatch, *table: Any, **expected: Any) -> str:
    """A table on a terminal of 80 columns, without colors."""
    text = on_terminal(monkeypatch, lambda: output.print_table(*table, **expected))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)


def test_column_without_room_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    id = "5b0f6f0c0a6b4dd0a1f5a37d2c9b8e41"
    rows = [(id, "retail/department retail/unit-price", 200, "14+0")]
    heads = ["id", "adapters", "status", "tokens"]
    assert _plain(monkeypatch, heads, rows, right=("status",), fold=("adapters",)) == (
        "id                                adapters                        status  tokens\n"
        f"{id}  retail/department                  200  14+0\n"
        "                                  retail/unit-price\n"
    )


def test_fold_breaks_lines_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    refs = [f"retail/a-name-{number}@1" for number in range(3)]
    rows = [("0" * 20, one, f"made with {one}, as an example") for one in refs]
    text = _plain(monkeypatch, ["id", "ref", "reason"], rows, fold=("ref", "reason"))
    assert [text.replace(",", "").split().count(one) for one in refs] == [2, 2, 2]


def test_without_room_for_folding_every_column_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    text = _plain(monkeypatch, ["one", "other"], [("a" * 50, "b" * 50), ("c", "d")])
    assert (text.count("a"), text.count("b"), text.count("…")) == (50, 50, 0)
    assert max(map(len, text.splitlines())) <= 80


def test_table_of_exactly_80_columns_stays_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    text = _plain(monkeypatch, ["one", "other"], [("a" * 39, "b" * 39)], fold=("other",))
    assert text.splitlines()[1] == f"{'a' * 39}  {'b' * 39}"


def test_no_line_ends_with_blanks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write() -> None:
        output.print_table(["name", "remark"], [("a", "a long remark"), ("b", ""), ("c", "x ")])
        output.print_fields([("name", "a"), ("remark", "")])

    write()
    piped, colored = capsys.readouterr().out, on_terminal(monkeypatch, write)
    for text in (piped, re.sub(r"\x1b\[[0-9;]*m", "", colored)):
        assert [line for line in text.splitlines() if line != line.rstrip()] == []
    assert "\x1b[1mname" in colored


def test_terminal_gets_its_heads_in_bold(monkeypatch: pytest.MonkeyPatch) -> None:
    text = on_terminal(monkeypatch, lambda: output.print_table(["name"], [("a",)]))
    assert "\x1b[1mname" in text


def test_no_color_is_honored(monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        output.print_table(["name"], [("a",)])
        output.print_fields([("name", "a")])
        output.heading("Title")

    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in on_terminal(monkeypatch, write)


def test_text_in_brackets_is_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["name"], [("[bold]x[/bold] :smile:",)])
    assert "[bold]x[/bold] :smile:" in capsys.readouterr().out


def test_evaluation_report_fits_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    text = on_terminal(monkeypatch, lambda: print_evaluation_report(_evaluation_report()))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    table = plain.partition("groups resampled)\n")[2].partition("baseline tfidf: words")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert "[0.600, 0.800]" in table


@pytest.mark.parametrize(
    ("verdict", "args"),
    [
        ("beats", "It beats the baseline tfidf"),
        ("ties", "It ties with the baseline tfidf"),
        ("loses", "It loses to the baseline tfidf"),
    ],
)
def test_verdict_is_a_sentence_with_the_difference(
    verdict: str, args: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_evaluation_report(_evaluation_report(verdict))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (f"{args}: accuracy 0.700 against 0.700, difference +0.010 [-0.020, +0.040].")


def test_verdict_on_few_groups_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_evaluation_report(_evaluation_report(groups=4))
    assert "There are 4 groups; a verdict needs 6." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.86199, "0.862"), (123.456, "123.5"), (98765.4, "98,765"), (float("nan"), "-")],
)
def test_figures_have_the_digits_that_matter(value: float, expected: str) -> None:
    assert output.figure(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(4.21, "4.2 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_have_readable_units(seconds: float, expected: str) -> None:
    assert output.duration(seconds) == expected


def test_json_takes_nan_dates_paths_and_dataclasses() -> None:
    value = {
        "nan": float("nan"),
        "at": datetime(2026, 1, 2, tzinfo=UTC),
        "path": Path("a"),
        "estimate": Estimate(1, 2, 3),
        "names": ("a",),
    }
    assert output.plain(value) == {
        "nan": None,
        "at": "2026-01-02T00:00:00+00:00",
        "path": "a",
        "estimate": {"value": 1, "low": 2, "high": 3},
        "names": ["a"],
    }


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _stderr_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_plain_progress_prints_a_line_about_every_ten_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    lines = Lines(clock=clock)
    for done in range(1, 101):
        clock.now = float(done)
        lines.progress(done, 1000, {})
    assert len(_stderr_lines(capsys)) == 10


def test_plain_progress_of_fast_work_is_its_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = Lines(clock=clock)
    lines.stage("training")
    for done in range(1, 51):
        clock.now = done / 100
        lines.progress(done, 50, {"loss": 1.0, "validation.accuracy": 0.5, "grad_norm": 3.0})
    lines.stage("evaluating")
    assert _stderr_lines(capsys) == [
        "training",
        "  50 of 50, loss 1.000, accuracy 0.500, 100.0 steps/s",
        "evaluating",
    ]


def test_plain_progress_prints_rate_and_time_left_of_a_resumed_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    lines = Lines(clock=clock)
    clock.now = 4.0
    lines.progress(501, 1000, {})
    assert _stderr_lines(capsys) == ["  501 of 1,000, 4.0 s/step, 33 min 16 s left"]


def test_time_left_follows_the_recent_pace() -> None:
    pace = Pace("steps", 0.0)
    now = 0.0
    for done in range(1, 11):
        now += 20.0
        slow = pace.at(now, done, 100)
    assert slow == ["20.0 s/step", "30 min 0 s left"]
    for done in range(11, 61):
        now += 1.0
        fast = pace.at(now, done, 100)
    assert fast == ["1.0 steps/s", "40 s left"]


def test_time_left_of_steps_that_take_long_is_that_of_the_last_few() -> None:
    pace = Pace("steps", 0.0)
    now = 0.0
    for done, seconds in enumerate([100.0, 100.0, *[40.0] * 6], 1):
        now += seconds
        texts = pace.at(now, done, 10)
    assert texts == ["40.0 s/step", "1 min 20 s left"]


def test_pauses_are_part_of_the_time_left_but_not_of_the_pace() -> None:
    pace = Pace("steps", 0.0)
    now = 0.0
    for done in range(1, 21):
        now += 1.0
        texts = pace.at(now, done, 40)
        if done % 10 == 0 and done < 20:
            pace.pause(now)
            now += 20.0
            pace.resume(now)
    assert texts == ["1.0 steps/s", "40 s left"]


def test_stage_that_goes_on_after_another_keeps_its_pace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    lines = Lines(clock=clock)
    lines.stage("training")
    for done, validation in ((1, 1.0), (2, 1.0), (3, 9.0), (4, 1.0)):
        clock.now += 4.0
        lines.progress(done, 8, {})
        lines.stage("validating")
        clock.now += validation
        lines.stage("training")
    lines.stage("evaluating")
    lines.close()
    assert _stderr_lines(capsys) == [
        "training",
        "  1 of 8, 4.0 s/step, 28 s left",
        "validating",
        "  2 of 8, 4.0 s/step, 27 s left",
        "  3 of 8, 4.0 s/step, 23 s left",
        "  4 of 8, 4.0 s/step, 27 s left",
        "validating",
        "evaluating",
    ]


def test_live_progress_of_interrupted_stages_ends_with_their_total_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    live = Live(clock=clock)
    for name in ("reading data", "training", "validating", "training", "evaluating"):
        live.stage(name)
        clock.now += 4.0
        if name == "training":
            live.progress(int(clock.now), 20, {"loss": 1.0})
    live.close()
    printed = [line for line in _stderr_lines(capsys) if line.endswith(" s")]
    assert printed == ["reading data  4.0 s", "training  8.0 s", "evaluating  4.0 s"]


def test_interrupt_outside_the_steps_stops_after_the_stage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import signal

    lines = Lines()
    lines.stage("reading data")
    with stop_on_interrupt(lines) as expected:
        assert not expected()
        signal.raise_signal(signal.SIGINT)
        assert expected()
    assert "stopping after this stage" in capsys.readouterr().err


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_closed_stream_is_not_a_failure(closed: str) -> None:
    command = f"exec '{sys.executable}' -c 'from trunkline.cli import main; main()' --version"
    assert subprocess.run(["sh", "-c", f"{command} {closed}"], check=False).returncode == 0
