"""The environment that is recorded with a run."""

from __future__ import annotations

import json

import torch

from trunkline.training.model import uses_bf16
from trunkline.training.run_info import PACKAGES, environment


def test_versions_and_machine_are_plain_values() -> None:
    facts = environment(torch.device("cpu"), bf16=False)
    assert set(facts["packages"]) == set(PACKAGES)
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["precision"] == "fp32"
    assert json.dumps(facts)


def test_requested_precision_is_used() -> None:
    assert uses_bf16("bf16", torch.device("cpu"))
    assert not uses_bf16("fp32", torch.device("cuda"))


def test_pictures_are_computed_in_float32_on_a_cpu() -> None:
    assert not uses_bf16("auto", torch.device("cpu"), "image")
    assert uses_bf16("bf16", torch.device("cpu"), "image")
