"""Sources of fake plugins with one thing of their own, and the findings of their check."""

from __future__ import annotations

from trunkline.plugins import Finding
from trunkline.plugins.discovery import find_plugins
from trunkline.training.plugin_check import plugin_findings

DATASET = "@hookimpl\ndef trunkline_datasets():\n    yield dataset('farm/x', {})\n"
ROW = "Row(id=f'r{i}', text='t', target='ab'[i % 2], group=f'g{i}')"
ROWS = f"load=lambda: [{ROW} for i in range(6)]"
THREE_LABELS = f"load=lambda: [{ROW} for i in range(18)]".replace("'ab'[i % 2]", "'abc'[i % 3]")
THREE_LABELS = THREE_LABELS.replace("text='t'", "text=f't{i}'")
NAN_ROWS = ROWS.replace("'ab'[i % 2]", "float('nan')")


def findings_of(domain: str) -> list[Finding]:
    (candidate,) = (one for one in find_plugins() if one.domain == domain)
    return list(plugin_findings(candidate))


def errors_of(domain: str) -> list[str]:
    return [
        f"{finding.subject}: {finding.message}"
        for finding in findings_of(domain)
        if finding.level == "error"
    ]


def warnings_of(domain: str) -> list[str]:
    return [finding.message for finding in findings_of(domain) if finding.level == "warning"]


def rows(old: str, new: str) -> str:
    return DATASET.format(ROWS.replace(old, new))


def recipe(**fields: str) -> str:
    given = "".join(f", {name}={value}" for name, value in fields.items())
    return f"@hookimpl\ndef trunkline_recipes():\n    yield recipe('farm/x'{given})\n"


def transform(expression: str, stage: str = "clean") -> str:
    return (
        DATASET.format("")
        + recipe(transforms="('farm/t',)")
        + "import random\nfrom dataclasses import replace\n"
        + "@hookimpl\ndef trunkline_transforms():\n"
        f"    yield TransformSpec(name='farm/t', description='d', stage='{stage}', "
        f"apply=lambda row, rng: {expression})\n"
    )


NUMBERS = (
    "load=lambda: [Row(id=f'r{i}', text=chr(97 + i) * 6, target=i + 1.0, group=f'g{i}', "
    "slices={'size': 'large' if i else 'small'}) for i in range(12)], "
    "task='regression', unit='EUR', slices=('size',)"
)
ANSWERS = (
    "load=lambda: [Row(id=f'r{i}', text=chr(97 + i) * 6, target=f'the answer {i}', group=f'g{i}') "
    "for i in range(12)], task='generation'"
)
SPANS = (
    "load=lambda: [Row(id=f'r{i}', text=f'{chr(97 + i) * 6} b', target=((0, 6, 'X'),), "
    "group=f'g{i}') for i in range(12)], task='tagging'"
)
BASKETS = (
    "load=lambda: [Row(id=f'r{i}', text=chr(97 + i) * 6, target='xyz'[i % 3], "
    "candidates=('x', 'y', 'z'), group=f'g{i}') for i in range(12)], task='ranking'"
)
DATA = {
    "classification": "", "regression": NUMBERS, "generation": ANSWERS, "tagging": SPANS,
    "ranking": BASKETS,
}  # fmt: skip
TEMPLATES = {"tagging": "Template(clean=())", "ranking": "Template(prompt='{text} {candidate}')"}
CORE_METRICS = {
    "classification": "accuracy", "regression": "mae", "generation": "exact_match",
    "tagging": "entity_f1", "ranking": "mrr",
}  # fmt: skip


def metric(code: str, task: str = "classification") -> str:
    """A plugin whose recipe uses the metric ``compute``, which the code defines."""
    fields = {"metrics": "('farm/m',)", "task": repr(task)}
    fields["gate"] = f"Gate(metric={CORE_METRICS[task]!r})"
    return (
        DATASET.format(DATA[task])
        + recipe(**fields)
        + f"{code}\n@hookimpl\ndef trunkline_metrics():\n"
        f"    yield MetricSpec(name='farm/m', description='d', task={task!r}, compute=compute)\n"
    )


def loss(code: str, task: str = "classification") -> str:
    """A plugin whose recipe uses the loss ``build``, which the code defines."""
    fields = {"loss": "'farm/l'", "task": repr(task)}
    if task in TEMPLATES:
        fields["template"] = TEMPLATES[task]
    fields["gate"] = f"Gate(metric={CORE_METRICS[task]!r})"
    return (
        DATASET.format(DATA[task])
        + recipe(**fields)
        + f"{code}\n@hookimpl\ndef trunkline_losses():\n"
        f"    yield LossSpec(name='farm/l', description='d', task={task!r}, build=build)\n"
    )


def baseline(expression: str, task: str = "classification") -> str:
    fields = {"baselines": "('farm/b',)", "task": repr(task)}
    fields["gate"] = f"Gate(metric={CORE_METRICS[task]!r})"
    return (
        DATASET.format(DATA[task]) + recipe(**fields) + "@hookimpl\ndef trunkline_baselines():\n"
        f"    yield BaselineSpec(name='farm/b', description='d', tasks=({task!r},), "
        f"predict=lambda context: {expression})\n"
    )


RIGHT = "sum(a == b for a, b in zip(scored.targets, scored.predictions))"
"""Source: how many predictions are right."""
