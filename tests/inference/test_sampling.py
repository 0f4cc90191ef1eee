"""What is drawn follows the distribution, and is each row's own affair."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from torch.utils._python_dispatch import TorchDispatchMode

from trunkline.errors import IntegrityError
from trunkline.inference import sampling
from trunkline.inference.sampling import BrokenLogits, Draws, SamplingParams, choose

ALMOST_ONE = 1 - 2.0**-53
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

WAYS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-300, 0.1, 0.7, 1.0, 3.0]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 1e-6]),
    top_k=st.sampled_from([0, 1, 2, 7, 30, 1000]),
    seed=st.integers(0, 2**63 + 15),
    logprobs=st.sampled_from([None, 0, 3, 20]),
)
WHOLE = st.integers(-4, 4).map(float)  # many ties
LOGITS = st.one_of(WHOLE, st.floats(-20, 20, width=32), st.just(-math.inf))


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, list[SamplingParams], list[int]]:
    """Logits of some rows, finite at one place at least, with ways and steps."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    numbers = draw(
        st.lists(st.lists(LOGITS, min_size=columns, max_size=columns), min_size=rows, max_size=rows)
    )
    for row in numbers:
        if max(row) == -math.inf:
            row[0] = 0.0
    ways = draw(st.lists(WAYS, min_size=rows, max_size=rows))
    steps = draw(st.lists(st.integers(0, 10_000), min_size=rows, max_size=rows))
    return torch.tensor(numbers), ways, steps


def exact(logits: list[float], way: SamplingParams) -> dict[int, float]:
    """Token → probability, worked out one token after the other."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    weights = [math.exp((logits[token] - logits[order[0]]) / way.temperature) for token in order]
    kept = list(zip(order, weights, strict=True))[: way.top_k or len(order)]
    total = math.fsum(weight for _, weight in kept)
    nucleus: list[tuple[int, float]] = []
    reached = 0.0
    for token, weight in kept:
        if reached >= way.top_p * total:
            break
        nucleus.append((token, weight))
        reached += weight
    return {token: weight / reached for token, weight in nucleus if weight > 0}


def drawn(logits: list[float], way: SamplingParams, count: int) -> list[int]:
    """The tokens of ``count`` steps."""
    rows = torch.tensor(logits).expand(count, -1).contiguous()
    return choose(rows, [way] * count, range(count)).ids


def support(logits: list[float], way: SamplingParams, patch: pytest.MonkeyPatch) -> set[int]:
    """Tokens that a fine grid of uniform numbers draws, both ends included."""
    count = 2001
    patch.setattr(
        Draws, "uniform", lambda _, step: ALMOST_ONE if step == count - 1 else step / count
    )
    return set(drawn(logits, way, count))


# ------------------------------------------------------------------------------- the stream


def test_numbers_depend_on_seed_and_step_alone() -> None:
    once = Draws(7)
    forward = [once.uniform(step) for step in range(50)]
    assert [Draws(7).uniform(step) for step in reversed(range(50))] == forward[::-1]


def test_numbers_stay_the_same_in_every_release() -> None:
    assert [Draws(0).uniform(0), Draws(0).uniform(1), Draws(2**63 + 15).uniform(0)] == [
        0.156742553465558,
        0.6269999134633438,
        0.371079009046403,
    ]


def test_numbers_are_uniform_and_differ_between_neighboring_seeds() -> None:
    numbers = [Draws(seed).uniform(step) for seed in range(20) for step in range(200)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 1 for number in numbers)
    assert kstest(numbers, "uniform").pvalue > 0.01


# ----------------------------------------------------------------------------------- greedy


@pytest.mark.parametrize("device", DEVICES)
def test_greedy_is_argmax(device: str) -> None:
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0)).to(device)
    chosen = choose(logits, [SamplingParams()] * 5, range(5))
    assert chosen.ids == logits.argmax(-1).tolist()
    assert chosen.logprobs == [None] * 5
    assert chosen.tops == [()] * 5


@pytest.mark.parametrize("device", DEVICES)
def test_greedy_takes_the_smallest_id_of_equals(device: str) -> None:
    logits = torch.zeros(2, 70_000, device=device)
    logits[1, 40_000:] = 1.0
    assert choose(logits, [SamplingParams()] * 2, [0, 0]).ids == [0, 40_000]


def test_a_greedy_batch_is_weighed_by_nothing_but_argmax() -> None:
    large: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if isinstance(args[0], torch.Tensor) and args[0].shape[-1] == 500:
                large.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    logits = torch.randn(3, 500)
    with Watch():
        choose(logits, [SamplingParams()] * 3, [0] * 3)
    assert large == ["argmax", "gather"]


# ---------------------------------------------------------------------------- distributions

SKEWED = [math.log(1 / rank) for rank in range(1, 13)][::-1]


@pytest.mark.parametrize(
    "way",
    [
        SamplingParams(1.0),
        SamplingParams(0.5),
        SamplingParams(2.0, top_k=5),
        SamplingParams(1.0, top_p=0.8),
        SamplingParams(1.3, top_p=0.6, top_k=7),
    ],
    ids=["plain", "cold", "top-k", "top-p", "both"],
)
def test_frequencies_are_the_probabilities(way: SamplingParams) -> None:
    expected = exact(SKEWED, way)
    count = 4000
    found = Counter(drawn(SKEWED, replace(way, seed=11), count))
    assert set(found) <= set(expected)
    tokens = list(expected)
    assert (
        chisquare(
            [found[token] for token in tokens], [expected[token] * count for token in tokens]
        ).pvalue
        > 0.01
    )


def test_frequencies_are_the_probabilities_beyond_the_likeliest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "LIKELIEST", 3)
    test_frequencies_are_the_probabilities(SamplingParams(1.0))


def test_answers_of_other_seeds_are_drawn_independently() -> None:
    pairs = Counter(
        (first, second)
        for first, second in zip(
            drawn([0.0, 0.0], SamplingParams(1.0, seed=3), 2000),
            drawn([0.0, 0.0], SamplingParams(1.0, seed=4), 2000),
            strict=True,
        )
    )
    assert chisquare(list(pairs.values())).pvalue > 0.01


@pytest.mark.parametrize("likeliest", [1, 3, 256])
@pytest.mark.parametrize(
    ("way", "tokens"),
    [
        (SamplingParams(1.0), {0, 1, 2, 3, 4}),
        (SamplingParams(1.0, top_k=1), {3}),
        (SamplingParams(1.0, top_k=2), {3, 0}),
        (SamplingParams(1.0, top_k=3), {3, 0, 1}),
        (SamplingParams(1.0, top_k=99), {0, 1, 2, 3, 4}),
        (SamplingParams(1.0, top_p=0.39), {3}),
        (SamplingParams(1.0, top_p=0.41), {3, 0}),
        (SamplingParams(1.0, top_p=0.61), {3, 0, 1}),
        (SamplingParams(1.0, top_p=1e-9), {3}),
        (SamplingParams(1.0, top_p=0.79, top_k=3), {3, 0, 1}),
        (SamplingParams(1.0, top_p=0.74, top_k=3), {3, 0}),
    ],
)
def test_cut_offs_leave_exactly_these_tokens(
    way: SamplingParams, tokens: set[int], likeliest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Probabilities 0.2, 0.2, 0.1, 0.4, 0.1; of equals the smaller id comes first.
    logits = [math.log(2.0), math.log(2.0), 0.0, 2 * math.log(2.0), 0.0]
    monkeypatch.setattr(sampling, "LIKELIEST", likeliest)
    assert support(logits, way, monkeypatch) == tokens


def test_the_token_that_crosses_the_threshold_is_in_the_nucleus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert support([0.0, 0.0], SamplingParams(1.0, top_p=0.5), monkeypatch) == {0}
    assert support([0.0, 0.0], SamplingParams(1.0, top_p=0.5000001), monkeypatch) == {0, 1}


# -------------------------------------------------------------------------- independent rows


@settings(deadline=None, max_examples=150)
@given(batches())
def test_a_row_draws_alone_what_it_draws_in_a_batch(
    batch: tuple[torch.Tensor, list[SamplingParams], list[int]],
) -> None:
    logits, ways, steps = batch
    together = choose(logits, ways, steps)
    for row, way in enumerate(ways):
        alone = choose(logits[row : row + 1], [way], steps[row : row + 1])
        assert alone.ids == [together.ids[row]]
        assert alone.logprobs == [together.logprobs[row]]
        assert alone.tops == [together.tops[row]]


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_of_a_large_vocabulary_draws_alone_what_it_draws_in_a_batch(device: str) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = (torch.randn(35, 5001, generator=generator) * 3).to(device)  # rows not aligned
    ways = [SamplingParams(1.0, seed=row, logprobs=row % 2 or None) for row in range(35)]
    together = choose(logits, ways, [9] * 35)
    alone = [choose(logits[row, None], [way], [9]) for row, way in enumerate(ways)]
    assert [one.ids[0] for one in alone] == together.ids
    assert [one.logprobs[0] for one in alone] == together.logprobs


@settings(deadline=None, max_examples=150)
@given(batches(), st.integers(1, 40))
def test_ranking_some_or_all_tokens_draws_the_same(
    batch: tuple[torch.Tensor, list[SamplingParams], list[int]], likeliest: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "LIKELIEST", likeliest)
        some = choose(*batch)
        patch.setattr(sampling, "LIKELIEST", 10**9)
        assert some == choose(*batch)


@pytest.mark.parametrize("device", DEVICES)
def test_ranking_some_or_all_of_a_real_vocabulary_draws_the_same(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    scales = torch.tensor([[0.1], [1.0], [2.0], [4.0], [8.0], [8.0]])
    logits = (torch.randn(6, 49_152, generator=generator) * scales).to(device)
    ways = [SamplingParams(0.9, top_p=p, seed=3) for p in (1.0, 0.95, 1.0, 0.9, 0.5, 1.0)]
    some = [choose(logits, ways, [step] * 6).ids for step in range(3)]
    monkeypatch.setattr(sampling, "LIKELIEST", 49_152)
    assert some == [choose(logits, ways, [step] * 6).ids for step in range(3)]


def test_the_rest_is_ranked_only_if_it_may_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    ranked: list[int] = []
    rank_all = sampling._Row._rank_all
    monkeypatch.setattr(
        sampling._Row, "_rank_all", lambda self: (ranked.append(1), rank_all(self))[1]
    )
    peaked = torch.arange(1000, 0, -1).float()[None]
    choose(peaked, [SamplingParams(1.0, top_p=0.95, logprobs=20)], [0])
    assert not ranked
    choose(torch.zeros(1, 1000), [SamplingParams(1.0)], [0])
    assert ranked


# ------------------------------------------------------------------------------------ extremes


def test_the_drawn_token_is_the_first_whose_running_sum_exceeds_the_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Draws, "uniform", lambda _, step: (0.0, 0.25, 0.5, 0.75, ALMOST_ONE)[step])
    assert drawn([0.0] * 4, SamplingParams(1.0), 5) == [0, 1, 2, 3, 3]


def test_the_last_of_the_sum_is_no_token_without_probability(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Draws, "uniform", lambda *_: ALMOST_ONE)
    logits = torch.randn(60, 500, generator=torch.Generator().manual_seed(0))
    logits[:, 400:] = -math.inf
    assert max(choose(logits, [SamplingParams(1.0)] * 60, [0] * 60).ids) < 400


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-38, 1e-9])
def test_a_tiny_temperature_draws_the_likeliest(temperature: float) -> None:
    assert set(drawn([1.0, 3.0, 2.999999, -5.0], SamplingParams(temperature), 50)) == {1}


def test_a_tiny_temperature_draws_among_equals() -> None:
    assert set(drawn([3.0, 1.0, 3.0], SamplingParams(5e-324), 50)) == {0, 2}


def test_logits_at_the_end_of_float32_can_be_drawn_from() -> None:
    top = 3.4e38
    assert set(drawn([top, -top, top, -math.inf], SamplingParams(1.0), 50)) == {0, 2}


def test_a_token_of_no_probability_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = [-math.inf, 0.0, -math.inf, -1e6, 0.0, -math.inf]
    assert support(logits, SamplingParams(1.0), monkeypatch) == {1, 4}


@pytest.mark.parametrize("way", [SamplingParams(), SamplingParams(1.0), SamplingParams(logprobs=0)])
@pytest.mark.parametrize("bad", [[0.0, math.nan], [0.0, math.inf], [-math.inf, -math.inf]])
def test_logits_that_are_no_distribution_are_an_error_that_names_the_rows(
    way: SamplingParams, bad: list[float]
) -> None:
    logits = torch.tensor([[0.0, 1.0], bad, [1.0, 0.0], bad])
    with pytest.raises(IntegrityError, match="The model's output is not a number") as caught:
        choose(logits, [way] * 4, [0] * 4)
    assert isinstance(caught.value, BrokenLogits)
    assert caught.value.rows == (1, 3)
    assert caught.value.hint


# --------------------------------------------------------------------------- log probabilities


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "way", [SamplingParams(), SamplingParams(0.3, top_p=0.5, seed=2), SamplingParams(1.0)]
)
def test_log_probabilities_are_those_of_the_plain_softmax(way: SamplingParams, device: str) -> None:
    logits = torch.randn(4, 600, generator=torch.Generator().manual_seed(2)) * 2
    expected = logits.double().log_softmax(-1)
    chosen = choose(logits.to(device), [replace(way, logprobs=5)] * 4, [0] * 4)
    for row, (token, logprob, top) in enumerate(
        zip(chosen.ids, chosen.logprobs, chosen.tops, strict=True)
    ):
        assert logprob == pytest.approx(expected[row, token].item(), abs=1e-9)
        values, ids = expected[row].topk(5)
        assert [one for one, _ in top] == ids.tolist()
        assert [score for _, score in top] == pytest.approx(values.tolist(), abs=1e-9)


def test_log_probabilities_do_not_change_what_is_drawn() -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(3))
    ways = [SamplingParams(1.0, seed=row) for row in range(6)]
    asked = [replace(way, logprobs=2) for way in ways]
    assert choose(logits, ways, [0] * 6).ids == choose(logits, asked, [0] * 6).ids


def test_of_equally_likely_tokens_the_smaller_ids_come_first() -> None:
    logits = torch.zeros(1, 700)
    logits[0, 600] = 1.0
    (top,) = choose(logits, [SamplingParams(logprobs=4)], [0]).tops
    assert [token for token, _ in top] == [600, 0, 1, 2]


def test_more_likeliest_than_tokens_are_all_tokens() -> None:
    (top,) = choose(torch.tensor([[0.0, 1.0]]), [SamplingParams(logprobs=20)], [0]).tops
    assert [token for token, _ in top] == [1, 0]


def test_log_probabilities_of_one_row_leave_the_others_alone() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(4))
    chosen = choose(
        logits, [SamplingParams(), SamplingParams(logprobs=0), SamplingParams(1.0)], [0] * 3
    )
    assert [one is None for one in chosen.logprobs] == [True, False, True]
    assert chosen.tops == [(), (), ()]
    assert np.exp(chosen.logprobs[1]) <= 1
