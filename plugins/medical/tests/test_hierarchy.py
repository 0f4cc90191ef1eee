"""The tree of chapters, and the loss and the metrics that use it."""

from __future__ import annotations

import math

import pytest
import torch

from trunkline.contracts import LossContext, Scored
from trunkline.errors import NotFoundError, UsageError
from trunkline_medical.chapters import BY_NUMBER, CHAPTERS, tree_distance
from trunkline_medical.losses import WEIGHT, build_hierarchical
from trunkline_medical.metrics import hierarchy_distance, title_overlap, word_f1

HEART, LUNG, INJURY = (BY_NUMBER[number].title for number in (9, 10, 19))
LABELS = (HEART, LUNG, INJURY)


def loss_of(probabilities: list[float], target: int) -> float:
    loss = build_hierarchical(LossContext(labels=LABELS))
    logits = torch.tensor([probabilities]).log()
    return float(loss(logits, torch.tensor([target])))


def test_distance_is_zero_only_to_itself() -> None:
    for one in CHAPTERS:
        assert [other for other in CHAPTERS if tree_distance(one, other) == 0] == [one]


def test_distance_is_symmetric() -> None:
    assert all(tree_distance(a, b) == tree_distance(b, a) for a in CHAPTERS for b in CHAPTERS)


def test_distance_obeys_the_triangle_inequality() -> None:
    for a in CHAPTERS:
        for b in CHAPTERS:
            detours = [tree_distance(a, c) + tree_distance(c, b) for c in CHAPTERS]
            assert tree_distance(a, b) <= min(detours)


def test_every_chapter_has_another_at_each_distance() -> None:
    for one in CHAPTERS:
        assert {tree_distance(one, other) for other in CHAPTERS} == {0, 1, 2}


def test_loss_is_the_documented_formula() -> None:
    expected = -math.log(0.5) + WEIGHT * (0.3 * 1 + 0.2 * 2)
    assert loss_of([0.5, 0.3, 0.2], target=0) == pytest.approx(expected, rel=1e-5)


def test_a_mistake_within_the_family_costs_less() -> None:
    assert loss_of([0.1, 0.8, 0.1], target=0) < loss_of([0.1, 0.1, 0.8], target=0)


def test_the_gradient_is_larger_for_another_family() -> None:
    loss = build_hierarchical(LossContext(labels=LABELS))
    logits = torch.zeros(1, 3, requires_grad=True)
    loss(logits, torch.tensor([0])).backward()
    assert logits.grad is not None
    right, same_family, other_family = logits.grad[0].tolist()
    assert right < 0 < same_family < other_family


def test_the_loss_approaches_zero_for_a_confident_correct_answer() -> None:
    loss = build_hierarchical(LossContext(labels=LABELS))
    assert float(loss(torch.tensor([[30.0, 0.0, 0.0]]), torch.tensor([0]))) < 1e-6


def test_the_loss_is_the_mean_over_the_batch() -> None:
    loss = build_hierarchical(LossContext(labels=LABELS))
    logits, targets = torch.randn(4, 3, generator=torch.manual_seed(0)), torch.tensor([0, 1, 2, 0])
    rows = [loss(logits[i : i + 1], targets[i : i + 1]) for i in range(4)]
    assert float(loss(logits, targets)) == pytest.approx(float(sum(rows)) / 4, rel=1e-5)


def test_half_precision_logits_are_summed_in_float32() -> None:
    loss = build_hierarchical(LossContext(labels=LABELS))
    assert loss(torch.zeros(2, 3, dtype=torch.bfloat16), torch.tensor([0, 1])).dtype == (
        torch.float32
    )


def test_the_loss_refuses_an_unknown_chapter_and_names_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="Neoplasm of the moon") as caught:
        build_hierarchical(LossContext(labels=(HEART, "Neoplasm of the moon")))
    assert "default" in (caught.value.hint or "")


def test_the_loss_refuses_a_context_without_labels() -> None:
    with pytest.raises(UsageError, match="without labels"):
        build_hierarchical(LossContext())


def test_hierarchy_distance_by_hand() -> None:
    scored = Scored(targets=[HEART] * 4, predictions=[HEART, LUNG, INJURY, INJURY])
    assert hierarchy_distance(scored) == (0 + 1 + 2 + 2) / 4


def test_hierarchy_distance_refuses_an_unknown_chapter() -> None:
    with pytest.raises(NotFoundError, match="'hert'"):
        hierarchy_distance(Scored(targets=[HEART], predictions=["hert"]))


@pytest.mark.parametrize(
    ("title", "answer", "f1"),
    [
        ("Cholera", "Cholera", 1.0),
        ("Viral warts", "viral WARTS.", 1.0),
        ("Other headache syndromes", "Headache syndromes", 2 * 2 / (3 + 2)),
        ("Pressure ulcer", "ulcer ulcer ulcer", 2 * 1 / (2 + 3)),
        ("Cholera", "Measles", 0.0),
        ("Cholera", "", 0.0),
    ],
)
def test_word_f1_by_hand(title: str, answer: str, f1: float) -> None:
    assert word_f1(title, answer) == pytest.approx(f1)


def test_title_overlap_is_the_mean_over_rows() -> None:
    scored = Scored(targets=["Cholera", "Measles"], predictions=["Cholera", "Mumps"])
    assert title_overlap(scored) == 0.5
