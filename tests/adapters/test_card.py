"""The model card: what it tells, what it leaves to people, and that its code runs."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from origins import COMMIT, provenance
from trunkline.adapters.account import card_text
from trunkline.adapters.artifact import read_artifact
from trunkline.adapters.origin import Provenance
from trunkline.adapters.provenance import unknown_origin
from trunkline.contracts import Template
from workbench import make_artifact

EVIL = "x` | [a](http://b) <script>\n# Heading\n---\nlicense: mit"


def card(folder: Path, said: Provenance | None = None) -> str:
    return card_text(read_artifact(folder), said or provenance(folder), "toy/animals@1")


def metadata(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


@pytest.mark.parametrize(
    "said",
    [
        "animals and their class",
        "license: CC0-1.0",
        '"train": 39',
        "`toy/lower` (clean), sha256 of its code `c0de`",
        f"commit `{COMMIT}` with uncommitted changes",
        "run 7, begun 2026-03-29 01:30 UTC",
        "12 s of training",
        "5.4e+09 operations, estimated: 6 x parameters x tokens",
        "energy: not measured: no counter",
        "| this adapter | 0.500 [0.250, 0.750] |",
        "| baseline: majority | 0.330 [0.100, 0.500] |",
        "**ties** the baseline",
        "| age = young | 6 | 0.250 |\n| age = old | 6 | 0.750 |",
        "3 training rows were cut off",
        "2 test rows have a near-copy",
        "it ties against a cheap method",
        "2 slices have fewer than 30 rows",
    ],
)
def test_card_tells_the_lineage(artifact: Path, said: str) -> None:
    assert said in card(artifact)


def test_metadata_block_has_the_scores_as_a_model_index(artifact: Path) -> None:
    found = metadata(card(artifact))
    (result,) = found["model-index"][0]["results"]
    assert result["dataset"]["split"] == "test"
    assert result["metrics"][0]["value"] == 0.5
    assert result["metrics"][0]["args"] == {"interval_95": [0.25, 0.75]}


def test_metadata_block_is_one_that_the_hub_client_reads(artifact: Path) -> None:
    from huggingface_hub import ModelCard

    found = ModelCard(card(artifact)).data
    assert found.base_model == "tiny"
    assert found.eval_results is not None
    assert [one.metric_type for one in found.eval_results] == ["accuracy"]


def test_newest_evaluation_of_a_split_counts(artifact: Path) -> None:
    said = provenance(artifact)
    later = replace(
        said.evaluations[0], results={"scores": {"accuracy": {"value": 0.9, "low": 0.8}}}
    )
    text = card(artifact, replace(said, evaluations=(*said.evaluations, later)))
    assert "| this adapter | 0.900 |" in text
    assert "0.500" not in text


def test_version_of_unknown_origin_says_so(artifact: Path) -> None:
    text = card(artifact, unknown_origin(artifact))
    assert "- everything else: NOT PROVIDED" in text
    assert "## Evaluation\nNOT PROVIDED" in text
    assert "model-index" not in text


def test_imported_version_says_what_was_not_verified(artifact: Path) -> None:
    imported = {"folder": "pubmed-lora", "named_base": "org/base", "by": "system:ada"}
    text = card(artifact, replace(unknown_origin(artifact), imported=imported))
    assert "Made elsewhere and imported" in text
    assert "- folder: `pubmed-lora`" in text
    assert "`org/base`; that it was trained on the base above was not verified" in text
    assert "imported" in metadata(text)["tags"]


def test_moved_version_says_from_where(artifact: Path) -> None:
    at = datetime(2026, 5, 6, tzinfo=UTC)
    said = provenance(artifact).moved_here(run=1, origin="toy/animals@4", by="key/a bo", at=at)
    assert "`toy/animals@4` of run 7; brought by key/a bo, 2026-05-06" in card(artifact, said)


def test_foreign_words_stay_words(artifact: Path) -> None:
    said = provenance(artifact)
    assert said.dataset is not None
    assert said.run is not None
    evil = replace(said.dataset, license=EVIL, source=EVIL, description=EVIL, grouping=EVIL)
    run = replace(said.run, specification={"description": EVIL, "loss": {"name": EVIL}})
    text = card(artifact, replace(said, dataset=evil, run=run, imported={"folder": EVIL}))
    assert "license" not in metadata(text)
    shown = MarkdownIt().render(text)
    assert "# Heading" in shown
    assert not any(found in shown for found in ("<h1># H", "<h1>H", "<script>", 'href="http://b'))


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
def test_code_for_plain_peft_answers_as_the_platform_does(
    tmp_path: Path, tiny: Path, kind: str, template: str
) -> None:
    from trunkline.bases import load
    from trunkline.inference.engine import Engine
    from trunkline.inference.request import Request, ResolvedRequest

    folder = tmp_path / "made"
    make_artifact(folder, tiny, kind, template=TEMPLATES[template])
    said = run_code(card(folder), BASE=str(tiny), ADAPTER=str(folder), text="  A  Sparrow ")
    engine = Engine(load(str(tiny), device="cpu"))
    try:
        work = ResolvedRequest(
            Request("toy/animals", "  A  Sparrow "), read_artifact(folder), "toy/animals@1"
        )
        answer = engine.run([work])[0]
    finally:
        engine.close()
    if kind == "regression":
        assert float(said) == pytest.approx(answer.value, rel=1e-3)
    elif kind == "classification":
        assert said == answer.label
    else:
        assert said.removesuffix("<|im_end|>").strip() == str(answer.text).strip()
