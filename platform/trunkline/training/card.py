"""The model card of a version. Owns its words; lies outside the version's identity."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trunkline.adapters.artifact import Manifest
from trunkline.contracts import DatasetSpec, RecipeSpec
from trunkline.evaluation.intervals import Estimate
from trunkline.evaluation.judgement import Judgement

_WITH_HEAD = "AutoModelForSequenceClassification.from_pretrained(BASE, num_labels={outputs})"
_LIBRARY_CALLS = {
    "classification": _WITH_HEAD,
    "regression": _WITH_HEAD.format(outputs=1),
    "generation": "AutoModelForCausalLM.from_pretrained(BASE)",
}


def model_card(
    recipe: RecipeSpec,
    dataset: DatasetSpec,
    manifest: Manifest,
    judgement: Judgement,
    report: dict[str, Any],
) -> str:
    """Markdown with a Hugging Face metadata block."""
    call = _LIBRARY_CALLS[recipe.task].format(outputs=len(manifest.task.get("labels", ())))
    lines = [
        "---",
        f"base_model: {manifest.base['name']}",
        "library_name: peft",
        f"datasets: [{dataset.name}]",
        f"tags: [lora, trunkline, {recipe.task}]",
        "---",
        f"# {recipe.name}",
        "",
        f"{recipe.description}. A LoRA adapter on `{manifest.base['name']}` "
        f"(sha256 of the base `{manifest.base['digest']}`).",
        "",
        "## Data",
        f"- {dataset.name}: {dataset.description}",
        f"- source: {dataset.source}; licence: {dataset.licence}",
        f"- split by group, {dataset.grouping}",
        f"- rows: {json.dumps(report['data']['parts'])}; dropped: "
        f"{json.dumps(report['data']['dropped'])}",
        "",
        "## Judgement",
        f"On {judgement.rows} held-out rows in {judgement.groups} groups; intervals are 95 %, "
        "groups resampled.",
        "",
        "| | " + " | ".join(judgement.scores) + " |",
        "|---" * (len(judgement.scores) + 1) + "|",
        "| this adapter | " + _cells(judgement.scores) + " |",
        *(f"| floor: {name} | {_cells(scores)} |" for name, scores in judgement.floors.items()),
        "",
        f"{judgement.metric} minus that of {judgement.best_floor}: "
        f"{_estimate(judgement.difference)}: **{judgement.verdict}** the floor.",
        "",
        "## Use",
        "The prompt is made by this template: "
        f"`{json.dumps(dict(manifest.template), ensure_ascii=False)}`. {_output(manifest.task)}",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification",
        f"model = {call}",
        'model = PeftModel.from_pretrained(model, "THIS FOLDER")',
        "```",
        "",
        "## Intended use, limits, contact",
        "NOT PROVIDED",
        "",
    ]
    return "\n".join(lines)


def _output(task: Mapping[str, Any]) -> str:
    """How an output is read."""
    if task["kind"] == "classification":
        labels = json.dumps(task["labels"], ensure_ascii=False)
        return f"The outputs at the prompt's last token are the logits of `{labels}`."
    if task["kind"] == "regression":
        number = f"output · {task['deviation']:g} + {task['mean']:g}"
        value = f"exp({number})" if task["scale"] == "log" else number
        unit = f" {task['unit']}" if task["unit"] else ""
        scale = ", on a log scale" if task["scale"] == "log" else ""
        return f"The output at the prompt's last token means {value}{unit}{scale}."
    return f"An answer has at most {task['max_new_tokens']} new tokens."


def _cells(scores: dict[str, Estimate]) -> str:
    return " | ".join(_estimate(score) for score in scores.values())


def _estimate(score: Estimate) -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
