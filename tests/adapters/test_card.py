"""The model card: its content, its placeholders, and that its code runs."""

from __future__ import annotations

import contextlib
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from origins import COMMIT, provenance
from trunkline.adapters.artifact import read_artifact
from trunkline.adapters.card import render_card
from trunkline.adapters.provenance import Provenance, manifest_provenance
from trunkline.contracts import Template
from workbench import make_artifact

EVIL = "x` | [a](http://b) <script>\n# Heading\n---\nlicense: mit"


def card(folder: Path, origin: Provenance | None = None) -> str:
    return render_card(read_artifact(folder), origin or provenance(folder), "toy/animals@1")


def unknown_origin(folder: Path) -> Provenance:
    return manifest_provenance(read_artifact(folder))


def metadata(text: str) -> dict[str, Any]:
    block: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return block


@pytest.mark.parametrize(
    "line",
    [
        "animals and their class",
        "license: CC0-1.0",
        '"train": 39',
        "`toy/lower` (clean), sha256 of its code `c0de`",
        f"commit `{COMMIT}` with uncommitted changes",
        "run 7, started 2026-03-29 01:30 UTC",
        "12 s of training",
        "5.4e+09 operations, estimated: 6 x parameters x tokens",
        "energy: not measured: no counter",
        "| this adapter | 0.500 [0.250, 0.750] |",
        "| baseline: majority | 0.330 [0.100, 0.500] |",
        "**ties** the baseline",
        "| age = young | 6 | 0.250 |\n| age = old | 6 | 0.750 |",
        "median 20, 95 % 90, longest 120 tokens; 3 of 60 texts (5.0%) were cut to fit 96",
        "2 test rows have a near-duplicate",
        "it ties against a simple baseline",
        "2 slices have fewer than 30 rows",
    ],
)
def test_card_has_the_lineage(artifact: Path, line: str) -> None:
    assert line in card(artifact)


def test_metadata_block_has_the_scores_as_a_model_index(artifact: Path) -> None:
    block = metadata(card(artifact))
    (result,) = block["model-index"][0]["results"]
    assert result["dataset"]["split"] == "test"
    assert result["metrics"][0]["value"] == 0.5
    assert result["metrics"][0]["args"] == {"interval_95": [0.25, 0.75]}


def test_hub_client_reads_the_metadata_block(artifact: Path) -> None:
    from huggingface_hub import ModelCard

    block: Any = ModelCard(card(artifact)).data
    assert block.base_model == "tiny"
    assert block.eval_results is not None
    assert [result.metric_type for result in block.eval_results] == ["accuracy"]


def test_newest_evaluation_of_a_split_counts(artifact: Path) -> None:
    origin = provenance(artifact)
    results = {"scores": {"accuracy": {"value": 0.9, "low": 0.8}}}
    later = origin.evaluations[0].model_copy(update={"results": results})
    evaluations = (*origin.evaluations, later)
    text = card(artifact, origin.model_copy(update={"evaluations": evaluations}))
    assert "| this adapter | 0.900 |" in text
    assert "0.500" not in text


def test_version_of_unknown_origin_says_so(artifact: Path) -> None:
    text = card(artifact, unknown_origin(artifact))
    assert "- everything else: NOT PROVIDED" in text
    assert "## Evaluation\nNOT PROVIDED" in text
    assert "model-index" not in text


def test_imported_version_says_what_was_not_verified(artifact: Path) -> None:
    imported = {"folder": "pubmed-lora", "named_base": "org/base", "by": "system:ada"}
    text = card(artifact, unknown_origin(artifact).model_copy(update={"imported": imported}))
    assert "Trained elsewhere and imported" in text
    assert "- folder: `pubmed-lora`" in text
    assert "`org/base`; only that it fits the base above was verified" in text
    assert "imported" in metadata(text)["tags"]


def test_transferred_version_names_its_origin(artifact: Path) -> None:
    at = datetime(2026, 5, 6, tzinfo=UTC)
    origin = provenance(artifact).with_transfer(run=1, origin="toy/animals@4", by="key/a bo", at=at)
    assert "`toy/animals@4` of run 7; by key/a bo, 2026-05-06" in card(artifact, origin)


def test_foreign_text_does_not_become_markup(artifact: Path) -> None:
    origin = provenance(artifact)
    assert origin.dataset is not None
    assert origin.run is not None
    dataset = origin.dataset.model_copy(
        update=dict.fromkeys(("license", "source", "description", "grouping"), EVIL)
    )
    run = origin.run.model_copy(
        update={"specification": {"description": EVIL, "loss": {"name": EVIL}}}
    )
    changes = {"dataset": dataset, "run": run, "imported": {"folder": EVIL}}
    text = card(artifact, origin.model_copy(update=changes))
    assert "license" not in metadata(text)
    html = MarkdownIt().render(text)
    assert "# Heading" in html
    assert not any(tag in html for tag in ("<h1># H", "<h1>H", "<script>", 'href="http://b'))


def run_code(markdown: str, **names: Any) -> str:
    code = markdown.split("```python\n")[1].split("\n```")[0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue().strip()


TEMPLATES = {
    "plain": Template(prompt='Animal\'s: "{text}"?', clean=("strip", "squeeze", "lowercase")),
    "chat": Template(prompt="{text}", chat=True, system="Answer."),
}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["classification", "regression", "generation"])
def test_code_for_plain_peft_agrees_with_the_platform(
    tmp_path: Path, tiny: Path, kind: str, template: str
) -> None:
    from trunkline.bases import load
    from trunkline.inference.engine import Engine
    from trunkline.inference.request import Request, ResolvedRequest

    folder = tmp_path / "made"
    make_artifact(folder, tiny, kind, template=TEMPLATES[template])
    output = run_code(card(folder), BASE=str(tiny), ADAPTER=str(folder), text="  A  Sparrow ")
    engine = Engine(load(str(tiny), device="cpu"))
    try:
        work = ResolvedRequest(
            Request("toy/animals", "  A  Sparrow "), read_artifact(folder), "toy/animals@1"
        )
        answer = engine.run([work])[0]
    finally:
        engine.close()
    if kind == "regression":
        assert float(output) == pytest.approx(answer.value, rel=1e-3)
    elif kind == "classification":
        assert output == answer.label
    else:
        assert output.removesuffix("<|im_end|>").strip() == str(answer.text).strip()
