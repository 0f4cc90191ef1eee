"""Multilabel, tagging and ranking: encoding, decoding, losses."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from made_rows import make_row
from tiny_base import make_tokenizer
from trunkline.contracts import LossContext, Span, Template
from trunkline.data.encode import Prompt, encode_prompt
from trunkline.plugins import load_plugins
from trunkline.tasks import MultilabelTask, RankingTask, TaggingTask
from trunkline.tasks.ranking import candidate_prompts, ranked
from trunkline.tasks.tagging import IGNORED

quick = settings(max_examples=60, deadline=None)
COLORS = MultilabelTask(("red", "green", "blue"), 0.5)
TAGS = TaggingTask(("DRUG", "DOSE"))
TOKENIZER = make_tokenizer()
LOSSES = {spec.name: spec for spec in load_plugins().losses()}


def prompt(*ids: int) -> Prompt:
    return Prompt([*ids], "", len(ids))


# ------------------------------------------------------------------------------------ multilabel


def test_labels_are_encoded_as_zeros_and_ones() -> None:
    rows = [make_row(1, target=("blue", "red")), make_row(2, target=())]
    examples = [COLORS.example([prompt(4, 5)], row, None) for row in rows]
    assert COLORS.collate(examples, 0)["targets"].tolist() == [[1, 0, 1], [0, 0, 0]]
    assert COLORS.loss_context(rows).counts == {"red": 1, "green": 0, "blue": 1}


@quick
@given(st.lists(st.floats(-9, 9), min_size=3, max_size=3), st.floats(0.05, 0.95))
def test_every_label_from_the_threshold_on_is_predicted(
    logits: list[float], threshold: float
) -> None:
    task = replace(COLORS, threshold=threshold)
    ((labels, probabilities),) = task.decode(torch.tensor([logits], dtype=torch.float64))
    for label, probability in zip(task.labels, probabilities, strict=True):
        assert (label in labels) == (probability >= threshold)
    assert list(labels) == sorted(labels)


def test_binary_cross_entropy_is_its_closed_form() -> None:
    context = LossContext(
        labels=COLORS.labels,
        counts={"red": 1, "green": 3, "blue": 4},
        rows=4,
        options={"class_weight": "balanced"},
    )
    loss = LOSSES["binary_cross_entropy"].build(context)
    logits = torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.0, -3.0]], dtype=torch.float64)
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    weights = (3.0, 1 / 3, 0.25)  # rows without the label, at least 1, over rows with it
    total = 0.0
    for row, column in itertools.product(range(2), range(3)):
        p = 1 / (1 + math.exp(-float(logits[row, column])))
        y = float(targets[row, column])
        total -= weights[column] * y * math.log(p) + (1 - y) * math.log(1 - p)
    assert float(loss(logits, targets)) == pytest.approx(total / 6)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets), (logits.requires_grad_(),))


# --------------------------------------------------------------------------------------- tagging

letters = st.sampled_from(["aspirin", "10 mg", "ß", "🦄", "né", "of", "-", "New York", "\n", "„"])


@st.composite
def tagged_texts(draw: st.DrawFn) -> tuple[str, tuple[Span, ...]]:
    """A text of parts, some of which are spans, with spaces or punctuation between them."""
    text, spans = draw(st.sampled_from(["", "took ", "№"])), []
    for part in draw(st.lists(letters, min_size=1, max_size=8)):
        if part.strip() and draw(st.booleans()):
            spans.append(Span(len(text), len(text) + len(part), draw(st.sampled_from(TAGS.labels))))
        text += part + draw(st.sampled_from([" ", ", ", "  "]))
    return text, tuple(spans)


@quick
@given(tagged_texts(), st.sampled_from(["{text}", "Tag: {text}\nTags:", "x{text}"]))
def test_right_tags_give_the_spans_back(
    tagged: tuple[str, tuple[Span, ...]], template: str
) -> None:
    text, spans = tagged
    if not text.strip():
        return
    encoded = encode_prompt(text, Template(prompt=template, clean=()), TOKENIZER, with_offsets=True)
    assert len(encoded.offsets) == len(encoded.ids)
    example = TAGS.example([encoded], make_row(1, text=text, target=spans), TOKENIZER)
    tags = [tag for tag in example["tags"] if tag != IGNORED]
    logits = torch.nn.functional.one_hot(torch.tensor(tags), TAGS.head_size) * 9.0
    ((decoded, probabilities),) = TAGS.decode(logits, [example])
    assert decoded == spans
    assert len(probabilities) == len(spans)


def test_offsets_cover_the_text_without_spaces_and_no_template() -> None:
    encoded = encode_prompt(
        "took 10 mg", Template(prompt="Tag: {text}\nTags:", clean=()), TOKENIZER, with_offsets=True
    )
    covered = sorted({at for one in encoded.offsets if one for at in range(*one)})
    assert "".join("took 10 mg"[at] for at in covered) == "took10mg"


def test_inside_of_another_label_begins_a_span() -> None:
    example = {"offsets": [(0, 2), (3, 5), (6, 8), (8, 9)]}
    tags = torch.tensor([2, 4, 4, 0])  # I-DRUG, I-DOSE, I-DOSE, O
    logits = torch.nn.functional.one_hot(tags, TAGS.head_size) * 9.0
    ((spans, _),) = TAGS.decode(logits, [example])
    assert spans == (Span(0, 2, "DRUG"), Span(3, 8, "DOSE"))


def test_rows_of_a_batch_keep_their_own_spans() -> None:
    texts = ("took aspirin", "of", "aspirin 10 mg")
    examples = []
    for number, text in enumerate(texts):
        start = text.find("aspirin")
        spans = (Span(start, start + 7, "DRUG"),) if start >= 0 else ()
        encoded = encode_prompt(text, Template(clean=()), TOKENIZER, with_offsets=True)
        examples.append(TAGS.example([encoded], make_row(number, text=text, target=spans), None))
    targets = TAGS.collate(examples, 0)["targets"]
    logits = torch.nn.functional.one_hot(targets[targets != IGNORED], TAGS.head_size) * 9.0
    decoded = [spans for spans, _ in TAGS.decode(logits, examples)]
    assert decoded == [(Span(5, 12, "DRUG"),), (), (Span(0, 7, "DRUG"),)]


# --------------------------------------------------------------------------------------- ranking


def test_candidates_are_one_example_and_a_prompt_each() -> None:
    task = RankingTask()
    row = make_row(1, target="b", candidates=("a", "b"))
    example = task.example([prompt(1, 2), prompt(3, 4, 5)], row, None)
    assert candidate_prompts(example) == [[1, 2], [3, 4, 5]]
    other = task.example([prompt(6)] * 3, replace(row, candidates=("b", "c", "d")), None)
    batch = task.collate([example, other], 0)
    assert batch["input_ids"].shape == (5, 3)
    assert batch["targets"].tolist() == [1, 0]
    assert batch["sizes"].tolist() == [2, 3]


@quick
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=9))
def test_ranked_scores_fall_and_sum_to_one(scores: list[float]) -> None:
    order, probabilities = ranked(scores)
    assert sorted(order) == list(range(len(scores)))
    assert [scores[index] for index in order] == sorted(scores, reverse=True)
    assert sum(probabilities) == pytest.approx(1)


def test_listwise_is_softmax_over_the_candidates_that_a_row_has() -> None:
    loss = LOSSES["listwise"].build(LossContext())
    scores = torch.tensor([[1.0, 2.0, -math.inf], [0.0, 1.0, 3.0]], requires_grad=True)
    value = loss(scores, torch.tensor([1, 2]))
    first = math.exp(2) / (math.exp(1) + math.exp(2))
    second = math.exp(3) / (1 + math.exp(1) + math.exp(3))
    assert value.item() == pytest.approx(-(math.log(first) + math.log(second)) / 2)
    value.backward()
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())
