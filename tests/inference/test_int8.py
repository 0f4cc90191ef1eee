"""A base in 8 bits: rows are independent of one another, adapters compute in floating point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from driving import EngineDriver, MakeDriver, reference_logits, reference_outputs
from products import compute_all
from trunkline.bases import Base
from trunkline.bases.linear import FusedLinear

LONG = "organic whole milk, one gallon, from the dairy department: what is it? "


@pytest.fixture(scope="module")
def int8(tiny: Path) -> Base:
    from trunkline.bases import load, release

    release()
    loaded = load(str(tiny), device="cpu", dtype="int8")
    release()
    return loaded


@pytest.fixture
def make_driver(int8: Base) -> MakeDriver:
    return lambda **options: EngineDriver(int8, **options)


def test_rows_of_a_fused_layer_do_not_depend_on_one_another(int8: Base) -> None:
    fused: FusedLinear = int8.fused_layers.fused[0]
    rows = torch.randn(17, fused.inputs) * torch.logspace(-3, 3, 17)[:, None]
    together = compute_all(fused, rows)
    for start, stop in ((0, 1), (3, 4), (5, 9), (16, 17)):
        assert torch.equal(compute_all(fused, rows[start:stop].clone()), together[start:stop])


def test_row_of_zeros_gives_no_nan(int8: Base) -> None:
    fused: FusedLinear = int8.fused_layers.fused[0]
    assert compute_all(fused, torch.zeros(2, fused.inputs)).isfinite().all()


def test_answers_are_the_same_alone_and_in_a_crowd(
    make_driver: MakeDriver, adapters: dict[str, Any]
) -> None:
    kinds = (adapters["low"].artifact, adapters["high"].artifact, None)
    requested = [(artifact, f"{LONG}{number}") for number in range(3) for artifact in kinds]
    with make_driver(rows=1) as driver:
        alone = [
            driver.answers([driver.submit(artifact, text, max_new_tokens=8)])[0]
            for artifact, text in requested
        ]
    with make_driver(rows=5) as driver:
        handles = [driver.submit(artifact, text, max_new_tokens=8) for artifact, text in requested]
        assert [answer.text for answer in driver.answers(handles)] == [one.text for one in alone]
        driver.assert_nothing_is_held()


def test_answers_are_the_same_after_the_weights_were_released(
    int8: Base, make_driver: MakeDriver
) -> None:
    with make_driver() as driver:
        before = driver.answers([driver.submit(None, LONG, max_new_tokens=4)])[0]
        fused = int8.fused_layers.fused[0]
        with driver.engine.base_released(), pytest.raises(RuntimeError, match="not in memory"):
            compute_all(fused, torch.zeros(1, fused.inputs))
        after = driver.answers([driver.submit(None, LONG, max_new_tokens=4)])[0]
        assert after.text == before.text


def test_logits_are_near_those_in_float32(
    make_driver: MakeDriver, adapters: dict[str, Any], truth: Any
) -> None:
    with make_driver() as driver:
        requested = [(adapters["low"].artifact, adapters["low"].truth), (None, truth)]
        handles = [driver.submit(artifact, LONG, max_new_tokens=1) for artifact, _ in requested]
        driver.finish()
        for handle, (_, own) in zip(handles, requested, strict=True):
            record = driver.record(handle, 0)
            theirs = reference_logits(own, record.prompt, record.ids)[0]
            off = (record.logits[0] - theirs).norm() / theirs.norm()
            assert 1e-5 < off < 0.15


def test_labels_are_near_those_in_float32(
    make_driver: MakeDriver, adapters: dict[str, Any]
) -> None:
    with make_driver() as driver:
        handle = driver.submit(adapters["labels"].artifact, LONG)
        (answer,) = driver.answers([handle])
        prompt = driver.engine.base.tokenizer(LONG.strip(), add_special_tokens=False).input_ids
        assert len(prompt) == answer.prompt_tokens
        chances = reference_outputs(adapters["labels"].truth, prompt).softmax(-1).tolist()
        assert list((answer.probabilities or {}).values()) == pytest.approx(chances, abs=0.1)
