"""A base in 8 bits: every row is computed as if it were alone, adapters in floating point."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from driving import Driven, true_chances, true_logits
from products import whole
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
def driven(int8: Base) -> Callable[..., Driven]:
    return lambda **settings: Driven(int8, **settings)


def test_rows_of_a_product_do_not_depend_on_one_another(int8: Base) -> None:
    fused: FusedLinear = int8.fused_layers.fused[0]
    rows = torch.randn(17, fused.inputs) * torch.logspace(-3, 3, 17)[:, None]
    together = whole(fused, rows)
    for start, stop in ((0, 1), (3, 4), (5, 9), (16, 17)):
        assert torch.equal(whole(fused, rows[start:stop].clone()), together[start:stop])


def test_row_of_zeros_gives_no_nan(int8: Base) -> None:
    fused: FusedLinear = int8.fused_layers.fused[0]
    assert whole(fused, torch.zeros(2, fused.inputs)).isfinite().all()


def test_answers_are_the_same_alone_and_in_a_crowd(
    driven: Callable[..., Driven], made: dict[str, Any]
) -> None:
    kinds = (made["low"].artifact, made["high"].artifact, None)
    asked = [(artifact, f"{LONG}{number}") for number in range(3) for artifact in kinds]
    with driven(rows=1) as one:
        alone = [
            one.answers([one.ask(artifact, text, max_new_tokens=8)])[0] for artifact, text in asked
        ]
    with driven(rows=5) as one:
        handles = [one.ask(artifact, text, max_new_tokens=8) for artifact, text in asked]
        assert [answer.text for answer in one.answers(handles)] == [one.text for one in alone]
        one.assert_nothing_is_held()


def test_logits_are_near_those_in_float32(
    driven: Callable[..., Driven], made: dict[str, Any], truth: Any
) -> None:
    with driven() as one:
        asked = [(made["low"].artifact, made["low"].truth), (None, truth)]
        handles = [one.ask(artifact, LONG, max_new_tokens=1) for artifact, _ in asked]
        one.finish()
        for handle, (_, own) in zip(handles, asked, strict=True):
            drawn = one.drawn[handle, 0]
            theirs = true_logits(own, drawn.prompt, drawn.ids)[0]
            off = (drawn.logits[0] - theirs).norm() / theirs.norm()
            assert 1e-5 < off < 0.15


def test_labels_are_near_those_in_float32(
    driven: Callable[..., Driven], made: dict[str, Any]
) -> None:
    with driven() as one:
        handle = one.ask(made["labels"].artifact, LONG)
        (answer,) = one.answers([handle])
        prompt = one.engine.base.tokenizer(LONG.strip(), add_special_tokens=False).input_ids
        assert len(prompt) == answer.prompt_tokens
        chances = true_chances(made["labels"].truth, prompt).softmax(-1).tolist()
        assert list((answer.probabilities or {}).values()) == pytest.approx(chances, abs=0.1)
