"""Retention: the figures of base and adapter on general texts are those of PEFT's own model."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from cli_runner import invoke
from toy_plugin import install_toy
from trunkline.adapters.artifact import read_artifact
from trunkline.api import Platform
from trunkline.bases import load_fresh, release
from trunkline.evaluation.general_texts import GENERAL_TEXTS
from trunkline.evaluation.retention import RetentionReport, measure_retention
from workbench import make_artifact, platform, tiny, trained_workspace

__all__ = ["platform", "tiny", "trained_workspace"]


def report_of(platform: Platform, folder: Path) -> RetentionReport:
    return measure_retention(platform.engine, read_artifact(folder))


def test_the_texts_are_different_and_plain() -> None:
    assert len(set(GENERAL_TEXTS)) == len(GENERAL_TEXTS) == 40
    assert all(text.isascii() and 40 < len(text) < 200 for text in GENERAL_TEXTS)


@pytest.mark.parametrize("kind", ["generation", "classification"])
def test_figures_are_those_of_peft(
    platform: Platform, tiny: Path, tmp_path: Path, kind: str
) -> None:
    make_artifact(tmp_path / "artifact", tiny, kind)
    report = report_of(platform, tmp_path / "artifact")
    bare = load_fresh(str(tiny), None, device="cpu", dtype="fp32")
    adapted = load_fresh(str(tiny), None, device="cpu", dtype="fp32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the model has no head for PEFT to load
        adapted = PeftModel.from_pretrained(adapted, tmp_path / "artifact").base_model.model
    tokens, sums = 0, torch.zeros(4, dtype=torch.float64)
    for text in GENERAL_TEXTS:
        ids = torch.tensor([platform.engine.base.tokenizer(text).input_ids])
        with torch.inference_mode():
            left = bare(ids).logits[0, :-1].double().log_softmax(-1)
            right = adapted(ids).logits[0, :-1].double().log_softmax(-1)
        targets = ids[0, 1:, None]
        tokens += len(targets)
        sums[0] += left.gather(1, targets).sum()
        sums[1] += right.gather(1, targets).sum()
        sums[2] += (left.argmax(-1) == right.argmax(-1)).sum()
        sums[3] += (left.exp() * (left - right)).sum()
    means = (sums / tokens).tolist()
    assert report.tokens == tokens
    assert report.base_log_likelihood.value == pytest.approx(means[0], rel=1e-4)
    assert report.log_likelihood.value == pytest.approx(means[1], rel=1e-4)
    assert report.difference.value == pytest.approx(means[1] - means[0], abs=1e-3)
    assert report.agreement.value == pytest.approx(means[2], abs=2 / tokens)
    assert report.kl_divergence.value == pytest.approx(means[3], rel=1e-3)
    assert report.perplexity.value == pytest.approx(float(torch.tensor(-means[1]).exp()), rel=1e-3)
    assert report.kl_divergence.low <= report.kl_divergence.value <= report.kl_divergence.high


def test_an_adapter_without_effect_retains_everything(
    platform: Platform, tiny: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    from workbench import reseal

    folder = tmp_path / "artifact"
    make_artifact(folder, tiny, "generation")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    zeros = {name: tensor * ("lora_A" in name) for name, tensor in tensors.items()}
    save_file(zeros, file)
    reseal(folder)
    report = report_of(platform, folder)
    assert report.agreement.value == 1
    assert report.kl_divergence.value == pytest.approx(0, abs=1e-6)
    assert report.difference.low == pytest.approx(0, abs=1e-6)


def test_the_table_fits_and_explains_a_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_workspace: Path, tiny: Path
) -> None:
    install_toy(tmp_path, monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    release()
    workspace = shutil.copytree(trained_workspace, tmp_path / "workspace")
    place = ("--workspace", str(workspace), "--base", str(tiny))
    shown = invoke(*place, "eval", "toy/animals", "--retention")
    assert shown.exit_code == 0, shown.output
    table = [line for line in shown.stdout.splitlines() if "  " in line]
    assert max(map(len, table)) <= 80
    assert "KL divergence" in shown.stdout
    assert "Its head answers its own task only" in shown.stdout
    printed = invoke(*place, "eval", "toy/plurals", "--retention", "--json")
    value = json.loads(printed.stdout)
    assert value["texts"] == 40
    assert 0 <= value["agreement"]["value"] <= 1
    assert "head" not in invoke(*place, "eval", "toy/plurals", "--retention").stdout
    refused = invoke(*place, "eval", "toy/plurals", "--retention", "--seeds", "2")
    assert refused.exit_code == 2
