"""The findings of `trunkline plugins check`, computed in this interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from farm_plugin import (
    DATASET,
    NAN_ROWS,
    NUMBERS,
    RIGHT,
    ROW,
    ROWS,
    THREE_LABELS,
    baseline,
    errors_of,
    findings_of,
    loss,
    metric,
    recipe,
    rows,
    transform,
    warnings_of,
)
from trunkline.plugins.discovery import core_candidate
from trunkline.training.plugin_check import plugin_findings

AddPlugin = Callable[..., Path]

# ----------------------------------------------------------------------------------------- rows

BAD_ROWS = {
    "failed": ("raise ValueError('x')", "importing module_of_fake_farm raises ValueError: x"),
    "license": (DATASET.format("license=' '"), "its license is empty"),
    "load raises": (DATASET.format("load=lambda: 1 / 0"), "load failed: ZeroDivisionError"),
    "load exits": (DATASET.format("load=lambda: exit(0)"), "load tried to end the program"),
    "load ends the process": (
        "import os\n" + DATASET.format("load=lambda: os._exit(9)"),
        "load tried to end the program with os._exit(9)",
    ),
    "no rows": (rows("range(6)", "range(0)"), "load gives no rows"),
    "no Row": (rows(ROW, "'row'"), "row 0 ('row'): it is str, not Row"),
    "same id": (rows("f'r{i}'", "'r'"), "more than one row has the id 'r'"),
    "empty group": (rows("f'g{i}'", "''"), "its group is '', not a non-empty string"),
    "two groups": (rows("f'g{i}'", "f'g{i % 2}'"), "it has 2 groups"),
    "blank text": (rows("'t'", "' '"), "its text is ' '"),
    "number as label": (rows("'ab'[i % 2]", "1.0"), "its target is 1.0, not a non-empty string"),
    "one class": (rows("'ab'[i % 2]", "'a'"), "every row has the label 'a'"),
    "label unknown": (
        DATASET.format(f"labels=('a',), {ROWS}"),
        "its label 'b' is not among the dataset's labels",
    ),
    "label in another form": (
        DATASET.format(f"labels=('a', 'B'), {ROWS}"),
        "its label 'b' is not among the dataset's labels. Write 'b' as the declared 'B'",
    ),
    "slice missing": (DATASET.format("slices=('country',)"), "it has no slice 'country'"),
    "not finite": (
        DATASET.format(f"task='regression', {NAN_ROWS}"),
        "its target is nan, not a finite number",
    ),
    "other order": (
        "import itertools\ncount = itertools.count()\n" + rows("f'r{i}'", "f'r{i}-{next(count)}'"),
        "load gives other rows, or another order, the second time",
    ),
    "messages as mappings": (
        rows("group=", "history=({'role': 'user', 'content': 'x'},), group="),
        "its history has {'role': 'user', 'content': 'x'}, not a Message(",
    ),
    "no history": (rows("group=", "history=None, group="), "its history is None"),
    "no candidates": (rows("group=", "candidates=None, group="), "its candidates are None"),
    "class with one row": (
        rows("'ab'[i % 2]", "'ab'[i == 0]").replace("text='t'", "text=f't {i}'") + recipe(),
        "The class 'b' of farm/x has one row",
    ),
}

# ----------------------------------------------------------------------------------- transforms

BAD_TRANSFORMS = {
    "raises": (transform("1 / 0"), "farm/t on row 'r0' failed: ZeroDivisionError"),
    "raises on the last row": (transform("[row] if row.id < 'r5' else None"), "on row 'r5'"),
    "gives no row": (transform("['row']"), "A transform must give trunkline.contracts.Row"),
    "gives two rows": (transform("[row, row]"), "gave 2 rows for one"),
    "changes the id": (transform("[replace(row, id='x')]"), "the id 'x'"),
    "drops all rows": (transform("[]"), "has no rows left of 6"),
    "adds half a character": (
        transform("[row, replace(row, id=row.id + 'x', text='\\ud800')]", "augment"),
        "holds half a character",
    ),
    "gives no history": (transform("[replace(row, history=None)]"), "its history is None"),
    "gives no slices": (transform("[replace(row, slices=None)]"), "its slices are None"),
    "gives a number as a slice": (
        transform("[replace(row, slices={'a': 1})]"),
        "its slices have 1, not a text",
    ),
    "gives messages as mappings": (
        transform("[replace(row, history=({'role': 'user'},))]"),
        "not a Message(",
    ),
    "gives a picture": (
        transform("[replace(row, image=row.id.encode())]"),
        "has a picture, and the dataset is of text",
    ),
    "augments with a picture": (
        transform("[replace(row, image=b'x')]", "augment"),
        "has a picture, and the dataset is of text",
    ),
    "gives no candidates": (transform("[replace(row, candidates=None)]"), "candidates are None"),
    "cleans to half a character": (
        transform("[replace(row, text='\\ud800')]"),
        "holds half a character",
    ),
    "ignores rng": (
        transform("[replace(row, text=f'{random.random()}')]"),
        "its transforms give other rows the second time",
    ),
    "augments with another label": (
        transform("[replace(row, id=row.id + 'x', text='new', target='c')]", "augment"),
        "with undeclared label",
    ),
}

# ------------------------------------------------------------------------------ losses, metrics

BAD_LOSSES = {
    "gives no function": (
        loss("build = lambda context: context.labels"),
        "can't be called: build gave tuple",
    ),
    "has parameters of its own": (
        loss("import torch\nbuild = lambda context: torch.nn.PReLU()"),
        "has parameters, which are not trained",
    ),
    "uses a parameter": (
        loss(
            "import torch\nP = torch.nn.Parameter(torch.ones(2))\n"
            "def build(context):\n"
            "    return lambda outputs, targets: (outputs * P).logsumexp(1).mean()"
        ),
        "the loss has parameters of its own, which are not trained",
    ),
    "build exits": (loss("build = lambda context: exit(0)"), "tried to end the program"),
    "raises": (loss("build = lambda context: lambda outputs, targets: 1 / 0"), "ZeroDivisionError"),
    "raises on a batch of the recipe's size": (
        loss(
            "def build(context):\n"
            "    return lambda outputs, targets: outputs.sum() if len(targets) < 16 else 1 / 0\n"
        ),
        "ZeroDivisionError",
    ),
    "raises on a label in the middle": (
        loss(
            "def build(context):\n"
            "    return lambda outputs, targets: 1 / 0 if set(targets.tolist()) == {1} "
            "and len(targets) > 1 else outputs.sum()\n"
        ).replace("dataset('farm/x', )", f"dataset('farm/x', {THREE_LABELS})"),
        "ZeroDivisionError",
    ),
    "gives nan": (
        loss("build = lambda context: lambda outputs, targets: outputs.sum() * float('nan')"),
        "on a random batch the loss is nan",
    ),
    "wrong shape": (
        loss("build = lambda context: lambda outputs, targets: outputs.sum(-1)"),
        "a tensor of shape (8,), not a scalar tensor",
    ),
    "a plain number": (
        loss("build = lambda context: lambda outputs, targets: 1.0"),
        "returned 1.0, not a scalar tensor",
    ),
    "a number of numpy": (
        loss("build = lambda context: lambda outputs, targets: __import__('numpy').float32(1)"),
        "returned np.float32(1.0), not a scalar tensor",
    ),
    "no gradient": (
        loss("build = lambda context: lambda outputs, targets: outputs.detach().sum()"),
        "doesn't depend on the outputs",
    ),
    "zero gradient": (
        loss("build = lambda context: lambda outputs, targets: (outputs * 0).sum()"),
        "the gradient of the loss is zero",
    ),
    "ignores its targets": (
        loss("build = lambda context: lambda outputs, targets: outputs.square().mean()"),
        "it ignores its targets",
    ),
    "ignores the targets of a regression": (
        loss("build = lambda context: lambda a, b: (a * b.numel()).square().mean()", "regression"),
        "it ignores its targets",
    ),
    "gradient of nan": (
        loss("build = lambda context: lambda outputs, targets: (outputs - outputs).sum().sqrt()"),
        "the gradient of the loss is not finite",
    ),
    "changes the targets": (
        loss("build = lambda context: lambda outputs, targets: outputs[0, targets.zero_()].sum()"),
        "the loss changes the targets",
    ),
    "fails on one row": (
        loss("build = lambda context: lambda outputs, targets: outputs.std(0).sum()"),
        "on a batch of one row the loss is nan",
    ),
    "overflows": (
        loss(
            "build = lambda context: lambda outputs, targets: "
            "-(outputs.exp() / outputs.exp().sum(-1, keepdim=True)).log()[0, 0]"
        ),
        "on outputs of ±100 the loss is",
    ),
    "overflows in a regression": (
        loss("build = lambda context: lambda a, b: (a - b).cosh().mean()", "regression"),
        "on outputs of ±100 the loss is inf",
    ),
    "fails without a span": (
        loss(
            "build = lambda context: lambda a, b: "
            "(a.logsumexp(-1) - a[:, 0])[b > 0].mean() if not (b > 0).all() else a.sum()",
            "tagging",
        ),
        "on tokens outside of spans only the loss is nan",
    ),
    "is no mean": (
        loss(
            "from functools import partial\n"
            "def build(context):\n"
            "    from torch import tensor\n"
            "    from torch.nn.functional import cross_entropy\n"
            "    return partial(cross_entropy, weight=tensor([1.0, 9.0]))\n"
        ).replace("build=build", "build=build, is_mean=True"),
        "is_mean is True, but the loss of a batch of 8 is",
    ),
    "is a small sum": (
        loss(
            "def build(context):\n"
            "    from torch.nn.functional import cross_entropy\n"
            "    return lambda a, b: 1e-6 * cross_entropy(a, b, reduction='sum')\n"
        ).replace("build=build", "build=build, is_mean=True"),
        "is_mean is True",
    ),
    "wrong shape in a generation": (
        loss("build = lambda context: lambda a, b: a.mean(0)", "generation"),
        "a tensor of shape (512,)",
    ),
}
BAD_METRICS = {
    "gives a text": (
        metric("compute = lambda scored: '0.5'"),
        "farm/m: with right predictions: The metric farm/m gave '0.5', not a number",
    ),
    "gives nothing": (metric("compute = lambda scored: None"), "gave None, not a number"),
    "gives two numbers": (metric("compute = lambda scored: (1, 2)"), "gave (1, 2), not a number"),
    "exits": (metric("compute = lambda scored: exit(0)"), "tried to end the program with sys.exit"),
    "fails on wrong predictions": (
        metric(f"compute = lambda scored: 1 / {RIGHT}"),
        "with wrong predictions: The metric farm/m failed: ZeroDivisionError",
    ),
    "gives nan on wrong predictions": (
        metric(f"compute = lambda scored: 1.0 if {RIGHT} else float('nan')"),
        "with wrong predictions: The metric farm/m gave nan",
    ),
    "gives a number that no record can hold": (
        metric("compute = lambda scored: 1e300"),
        "with right predictions: The metric farm/m gave 1e+300",
    ),
    "fails on labels that are never predicted": (
        metric(
            "from collections import Counter\n"
            "def compute(scored):\n"
            "    counts = Counter(list(scored.predictions))\n"
            "    return sum(1 / counts[label] for label in scored.labels)\n"
        ),
        "for every row: The metric farm/m failed: ZeroDivisionError",
    ),
    "fails on one row": (
        metric(
            "import statistics\n"
            "compute = lambda scored: statistics.stdev(len(p) for p in scored.predictions)"
        ),
        "farm/m failed: StatisticsError",
    ),
    "fails on arrays": (
        metric(f"compute = lambda scored: {RIGHT} / 9 if scored.targets else 0.0"),
        "in numpy arrays: The metric farm/m failed: ValueError",
    ),
    "fails on equal numbers": (
        metric(
            "import statistics\ncompute = lambda scored: "
            "statistics.correlation(list(scored.targets), list(scored.predictions))",
            "regression",
        ),
        "farm/m failed: StatisticsError",
    ),
    "fails on an empty answer": (
        metric(
            "compute = lambda scored: min(len(p.split()[0]) for p in scored.predictions)",
            "generation",
        ),
        "with the prediction '' for every row: The metric farm/m failed: IndexError",
    ),
    "changes its input": (
        metric("def compute(scored):\n    scored.targets.reverse()\n    return 1.0"),
        "it changes the targets or the predictions",
    ),
    "decides in the wrong direction": (
        metric(f"compute = lambda scored: 1 - {RIGHT} / len(scored.targets)").replace(
            "Gate(metric='accuracy')", "Gate(metric='farm/m')"
        ),
        "right predictions have 0 and wrong ones 1",
    ),
    "decides and is constant": (
        metric("compute = lambda scored: 1.0").replace(
            "Gate(metric='accuracy')", "Gate(metric='farm/m')"
        ),
        "right predictions have 1 and wrong ones 1",
    ),
    "draws random numbers": (
        metric("import random\ncompute = lambda scored: random.random()"),
        "it gives another score the second time",
    ),
}
BAD_BASELINES = {
    "raises": (baseline("1 / 0"), "farm/b failed: ZeroDivisionError"),
    "exits": (baseline("exit(0)"), "tried to end the program with sys.exit(0)"),
    "too few": (baseline("BaselinePredictions(values=[])"), "gave 0 predictions"),
    "no texts": (
        baseline("BaselinePredictions(values=[1] * len(context.test))"),
        "predicted 1, not a text",
    ),
    "nothing": (baseline("None"), "farm/b failed: AttributeError"),
    "not finite": (
        baseline("BaselinePredictions(values=[float('inf')] * len(context.test))", "regression"),
        "predicted inf, not a finite number",
    ),
    "detail is no text": (
        baseline("BaselinePredictions(values=['a'] * len(context.test), detail=5)"),
        "has the detail 5, not one printable line",
    ),
    "fails for the second recipe": (
        baseline(
            "BaselinePredictions(values=['a'] * len(context.test)) "
            "if context.recipe.name == 'farm/x' else 1 / 0"
        )
        + "@hookimpl\ndef trunkline_recipes():\n"
        "    yield recipe('farm/x', baselines=('farm/b',))\n"
        "    yield recipe('farm/y', dataset='farm/x', baselines=('farm/b',))\n",
        "The baseline farm/b failed: ZeroDivisionError",
    ),
}
OPTIONS = (
    "def build(context):\n"
    "    from torch.nn.functional import cross_entropy\n"
    "    return cross_entropy if context.options['mode'] == 'a' else 1 / 0\n"
)
BAD_OPTIONS = {
    "fails with the options of the second recipe": (
        loss(OPTIONS).replace("build=build", "build=build, options={'mode': 'a'}")
        + "@hookimpl\ndef trunkline_recipes():\n"
        "    yield recipe('farm/x', loss='farm/l')\n"
        "    yield recipe('farm/y', dataset='farm/x', loss='farm/l', loss_options={'mode': 'b'})\n",
        "ZeroDivisionError",
    ),
    "out of range": (
        DATASET.format("") + recipe(loss="'focal'", loss_options="{'gamma': -5.0}"),
        "gamma can't be -5.0",
    ),
    "no such option": (
        DATASET.format("") + recipe(loss="'focal'", loss_options="{1: 1}"),
        "JSON can't hold",
    ),
    "not JSON": (
        loss(OPTIONS).replace("build=build", "build=build, options={'mode': object()}"),
        "JSON can't hold",
    ),
    "half a character": (
        DATASET.format("license='\\ud800'"),
        "holds half a character",
    ),
}
BAD = {
    f"{kind}: {name}": case
    for kind, cases in {
        "rows": BAD_ROWS,
        "transform": BAD_TRANSFORMS,
        "loss": BAD_LOSSES,
        "metric": BAD_METRICS,
        "baseline": BAD_BASELINES,
        "options": BAD_OPTIONS,
    }.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize("case", BAD)
def test_what_would_fail_in_a_training_is_an_error(case: str, add_plugin: AddPlugin) -> None:
    body, message = BAD[case]
    add_plugin("farm", body)
    errors = errors_of("farm")
    assert any(message in error for error in errors), errors


@pytest.mark.parametrize("row", range(6))
def test_augmentation_that_fails_on_one_row_is_an_error_in_whatever_part_it_is(
    row: int, add_plugin: AddPlugin
) -> None:
    add_plugin("farm", transform(f"[row] if row.id != 'r{row}' else 1 / 0", "augment"))
    assert any(f"row 'r{row}' failed" in error for error in errors_of("farm"))


def test_metric_of_the_core_that_fails_on_the_rows_is_an_error(add_plugin: AddPlugin) -> None:
    zeros = NUMBERS.replace("target=i + 1.0", "target=0.0")
    fields = {"gate": "Gate(metric='mae')", "metrics": "('median_ape',)", "task": "'regression'"}
    add_plugin("farm", DATASET.format(zeros) + recipe(**fields))
    assert any("The metric median_ape gave inf" in error for error in errors_of("farm"))


def test_baseline_that_uses_the_base_is_not_tried(add_plugin: AddPlugin) -> None:
    add_plugin("farm", baseline("context.base.model(context.test)", "generation"))
    assert errors_of("farm") == []
    assert warnings_of("farm") == ["it uses the base, so it was not tried on a row"]


def test_sound_plugin_has_no_findings(add_plugin: AddPlugin) -> None:
    add_plugin("farm")
    assert findings_of("farm") == []


def test_core_is_checked_like_any_plugin() -> None:
    assert list(plugin_findings(core_candidate())) == []


# --------------------------------------------------------------------------------------- import


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "it contributes nothing"),
        ("print('noise')", "importing it prints 'noise'"),
        ("import os\nos.environ['FARM'] = '1'", "changes the environment variable FARM"),
        ("import os\nos.chdir('/')", "changes the working folder"),
        ("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)", "the handler of SIGTERM"),
        (
            "import threading, time\n"
            "threading.Thread(target=time.sleep, args=(1,), name='feeder', daemon=True).start()",
            "it starts the thread 'feeder'",
        ),
    ],
)
def test_side_effect_of_an_import_is_a_warning(
    code: str, message: str, add_plugin: AddPlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM", "0")
    add_plugin("farm", code)
    assert any(message in text for text in warnings_of("farm"))
    assert errors_of("farm") == []


@pytest.mark.parametrize("kind", ["float32", "int64"])
def test_numbers_of_numpy_are_targets(kind: str, add_plugin: AddPlugin) -> None:
    data = NUMBERS.replace("target=i + 1.0", f"target=__import__('numpy').{kind}(i + 1)")
    add_plugin("farm", DATASET.format(data))
    assert findings_of("farm") == []


def test_slice_that_the_dataset_does_not_name_is_a_warning(add_plugin: AddPlugin) -> None:
    add_plugin("farm", DATASET.format(NUMBERS.replace(", slices=('size',)", "")))
    (warning,) = warnings_of("farm")
    assert "the slice 'size', which `slices` of the dataset does not name" in warning
    assert errors_of("farm") == []


def test_loss_that_no_recipe_uses_is_a_warning(add_plugin: AddPlugin) -> None:
    add_plugin(
        "farm",
        "@hookimpl\ndef trunkline_losses():\n    yield LossSpec(name='farm/l', "
        "description='d', task='regression', build=lambda context: None)",
    )
    assert [finding.level for finding in findings_of("farm")] == ["warning"]


@pytest.mark.parametrize(
    ("named", "nearest"),
    [
        ("metrics=('acuracy',)", "accuracy"),
        ("metrics=('core/macro_f',)", "macro_f1"),
        ("gate=Gate(metric='acc')", "accuracy"),
        ("baselines=('nearst',)", "nearest"),
        ("transforms=('lowercase',)", "lowercase-copy"),
        ("loss='crossentropy'", "cross_entropy"),
    ],
)
def test_misspelled_builtin_is_an_error_with_the_nearest_name(
    named: str, nearest: str, add_plugin: AddPlugin
) -> None:
    source = f"@hookimpl\ndef trunkline_recipes():\n    yield recipe('farm/x', {named})\n"
    add_plugin("farm", DATASET.format("") + source)
    (finding,) = findings_of("farm")
    assert finding.level == "error"
    assert f"which doesn't exist; did you mean {nearest!r}?" in finding.message


def test_testing_module_imports_neither_host_nor_torch() -> None:
    code = (
        "import sys, trunkline.testing; "
        "assert not {'torch', 'trunkline.plugins'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_workspace_fixture_is_an_empty_folder_that_is_in_force(
    trunkline_workspace: Path,
) -> None:
    assert os.environ["TRUNKLINE_WORKSPACE"] == str(trunkline_workspace)
    assert list(trunkline_workspace.iterdir()) == []
