"""What is sampled follows the distribution, and each row is independent."""

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
from trunkline.inference.sampling import InvalidLogits, RandomStream, SamplingParams, sample, score

ALMOST_ONE = 1 - 2.0**-53
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-300, 0.1, 0.7, 1.0, 3.0]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 1e-6]),
    top_k=st.sampled_from([0, 1, 2, 7, 30, 1000]),
    seed=st.integers(0, 2**63 + 15),
    logprobs=st.sampled_from([None, 0, 3, 20]),
)
INTEGERS = st.integers(-4, 4).map(float)  # many ties
LOGITS = st.one_of(INTEGERS, st.floats(-20, 20, width=32), st.just(-math.inf))


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, list[SamplingParams], list[int]]:
    """Logits of some rows, each with a finite one, with parameters and steps."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    numbers = draw(
        st.lists(st.lists(LOGITS, min_size=columns, max_size=columns), min_size=rows, max_size=rows)
    )
    for row in numbers:
        if max(row) == -math.inf:
            row[0] = 0.0
    params = draw(st.lists(PARAMS, min_size=rows, max_size=rows))
    steps = draw(st.lists(st.integers(0, 10_000), min_size=rows, max_size=rows))
    return torch.tensor(numbers), params, steps


def exact(logits: list[float], param: SamplingParams) -> dict[int, float]:
    """Token → probability, computed one token after the other."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    weights = [math.exp((logits[token] - logits[order[0]]) / param.temperature) for token in order]
    kept = list(zip(order, weights, strict=True))[: param.top_k or len(order)]
    total = math.fsum(weight for _, weight in kept)
    nucleus: list[tuple[int, float]] = []
    reached = 0.0
    for token, weight in kept:
        if reached >= param.top_p * total:
            break
        nucleus.append((token, weight))
        reached += weight
    return {token: weight / reached for token, weight in nucleus if weight > 0}


def drawn(logits: list[float], param: SamplingParams, count: int) -> list[int]:
    """The tokens of ``count`` steps."""
    rows = torch.tensor(logits).expand(count, -1).contiguous()
    return sample(rows, [param] * count, range(count)).ids


def support(logits: list[float], param: SamplingParams, patch: pytest.MonkeyPatch) -> set[int]:
    """Tokens that a fine grid of uniform numbers draws, both ends included."""
    count = 2001
    patch.setattr(
        RandomStream, "uniform", lambda _, step: ALMOST_ONE if step == count - 1 else step / count
    )
    return set(drawn(logits, param, count))


# ------------------------------------------------------------------------------- the stream


def test_numbers_depend_on_seed_and_step_alone() -> None:
    once = RandomStream(7)
    forward = [once.uniform(step) for step in range(50)]
    assert [RandomStream(7).uniform(step) for step in reversed(range(50))] == forward[::-1]


def test_random_numbers_are_fixed() -> None:
    assert [
        RandomStream(0).uniform(0),
        RandomStream(0).uniform(1),
        RandomStream(2**63 + 15).uniform(0),
    ] == [
        0.156742553465558,
        0.6269999134633438,
        0.371079009046403,
    ]


def test_numbers_are_uniform_and_differ_between_neighboring_seeds() -> None:
    numbers = [RandomStream(seed).uniform(step) for seed in range(20) for step in range(200)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 1 for number in numbers)
    assert kstest(numbers, "uniform").pvalue > 0.01


# ----------------------------------------------------------------------------------- greedy


@pytest.mark.parametrize("device", DEVICES)
def test_greedy_is_argmax(device: str) -> None:
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0)).to(device)
    tokens = sample(logits, [SamplingParams()] * 5, range(5))
    assert tokens.ids == logits.argmax(-1).tolist()
    assert tokens.logprobs == [None] * 5
    assert tokens.tops == [()] * 5


@pytest.mark.parametrize("device", DEVICES)
def test_greedy_breaks_ties_by_the_smallest_id(device: str) -> None:
    logits = torch.zeros(2, 70_000, device=device)
    logits[1, 40_000:] = 1.0
    assert sample(logits, [SamplingParams()] * 2, [0, 0]).ids == [0, 40_000]


def test_a_greedy_batch_computes_nothing_but_argmax() -> None:
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
        sample(logits, [SamplingParams()] * 3, [0] * 3)
    assert large == ["argmax", "gather"]


# ---------------------------------------------------------------------------- distributions

SKEWED = [math.log(1 / rank) for rank in range(1, 13)][::-1]


@pytest.mark.parametrize(
    "param",
    [
        SamplingParams(1.0),
        SamplingParams(0.5),
        SamplingParams(2.0, top_k=5),
        SamplingParams(1.0, top_p=0.8),
        SamplingParams(1.3, top_p=0.6, top_k=7),
    ],
    ids=["plain", "cold", "top-k", "top-p", "both"],
)
def test_frequencies_are_the_probabilities(param: SamplingParams) -> None:
    expected = exact(SKEWED, param)
    count = 4000
    counts = Counter(drawn(SKEWED, replace(param, seed=11), count))
    assert set(counts) <= set(expected)
    tokens = list(expected)
    assert (
        chisquare(
            [counts[token] for token in tokens], [expected[token] * count for token in tokens]
        ).pvalue
        > 0.01
    )


def test_frequencies_are_the_probabilities_if_few_tokens_are_ranked(
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
    ("param", "tokens"),
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
def test_truncation_leaves_exactly_these_tokens(
    param: SamplingParams, tokens: set[int], likeliest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Probabilities 0.2, 0.2, 0.1, 0.4, 0.1; ties are ordered by id.
    logits = [math.log(2.0), math.log(2.0), 0.0, 2 * math.log(2.0), 0.0]
    monkeypatch.setattr(sampling, "LIKELIEST", likeliest)
    assert support(logits, param, monkeypatch) == tokens


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
    logits, params, steps = batch
    together = sample(logits, params, steps)
    for row, param in enumerate(params):
        alone = sample(logits[row : row + 1], [param], steps[row : row + 1])
        assert alone.ids == [together.ids[row]]
        assert alone.logprobs == [together.logprobs[row]]
        assert alone.tops == [together.tops[row]]


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_of_a_large_vocabulary_draws_alone_what_it_draws_in_a_batch(device: str) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = (torch.randn(35, 5001, generator=generator) * 3).to(device)  # rows not aligned
    params = [SamplingParams(1.0, seed=row, logprobs=row % 2 or None) for row in range(35)]
    together = sample(logits, params, [9] * 35)
    alone = [sample(logits[row, None], [param], [9]) for row, param in enumerate(params)]
    assert [one.ids[0] for one in alone] == together.ids
    assert [one.logprobs[0] for one in alone] == together.logprobs


@settings(deadline=None, max_examples=150)
@given(batches(), st.integers(1, 40))
def test_ranking_some_or_all_tokens_draws_the_same(
    batch: tuple[torch.Tensor, list[SamplingParams], list[int]], likeliest: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "LIKELIEST", likeliest)
        some = sample(*batch)
        patch.setattr(sampling, "LIKELIEST", 10**9)
        assert some == sample(*batch)


@pytest.mark.parametrize("device", DEVICES)
def test_ranking_some_or_all_of_a_real_vocabulary_draws_the_same(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    scales = torch.tensor([[0.1], [1.0], [2.0], [4.0], [8.0], [8.0]])
    logits = (torch.randn(6, 49_152, generator=generator) * scales).to(device)
    params = [SamplingParams(0.9, top_p=p, seed=3) for p in (1.0, 0.95, 1.0, 0.9, 0.5, 1.0)]
    some = [sample(logits, params, [step] * 6).ids for step in range(3)]
    monkeypatch.setattr(sampling, "LIKELIEST", 49_152)
    assert some == [sample(logits, params, [step] * 6).ids for step in range(3)]


def test_the_rest_is_ranked_only_if_it_may_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    ranked: list[int] = []
    rank_all = sampling.RankedTokens.rank_all
    monkeypatch.setattr(
        sampling.RankedTokens, "rank_all", lambda self: (ranked.append(1), rank_all(self))[1]
    )
    peaked = torch.arange(1000, 0, -1).float()[None]
    sample(peaked, [SamplingParams(1.0, top_p=0.95, logprobs=20)], [0])
    assert not ranked
    sample(torch.zeros(1, 1000), [SamplingParams(1.0)], [0])
    assert ranked


# ------------------------------------------------------------------------------------ extremes


def test_the_drawn_token_is_the_first_whose_running_sum_exceeds_the_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        RandomStream, "uniform", lambda _, step: (0.0, 0.25, 0.5, 0.75, ALMOST_ONE)[step]
    )
    assert drawn([0.0] * 4, SamplingParams(1.0), 5) == [0, 1, 2, 3, 3]


def test_the_last_token_of_the_sum_has_a_probability(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RandomStream, "uniform", lambda *_: ALMOST_ONE)
    logits = torch.randn(60, 500, generator=torch.Generator().manual_seed(0))
    logits[:, 400:] = -math.inf
    assert max(sample(logits, [SamplingParams(1.0)] * 60, [0] * 60).ids) < 400


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-38, 1e-9])
def test_a_tiny_temperature_draws_the_likeliest(temperature: float) -> None:
    assert set(drawn([1.0, 3.0, 2.999999, -5.0], SamplingParams(temperature), 50)) == {1}


def test_a_tiny_temperature_draws_among_ties() -> None:
    assert set(drawn([3.0, 1.0, 3.0], SamplingParams(5e-324), 50)) == {0, 2}


def test_logits_at_the_end_of_float32_can_be_drawn_from() -> None:
    top = 3.4e38
    assert set(drawn([top, -top, top, -math.inf], SamplingParams(1.0), 50)) == {0, 2}


def test_a_token_without_probability_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = [-math.inf, 0.0, -math.inf, -1e6, 0.0, -math.inf]
    assert support(logits, SamplingParams(1.0), monkeypatch) == {1, 4}


@pytest.mark.parametrize(
    "param", [SamplingParams(), SamplingParams(1.0), SamplingParams(logprobs=0)]
)
@pytest.mark.parametrize("bad", [[0.0, math.nan], [0.0, math.inf], [-math.inf, -math.inf]])
def test_logits_that_are_not_a_distribution_raise_and_name_the_rows(
    param: SamplingParams, bad: list[float]
) -> None:
    logits = torch.tensor([[0.0, 1.0], bad, [1.0, 0.0], bad])
    with pytest.raises(IntegrityError, match="The model's output is not a number") as caught:
        sample(logits, [param] * 4, [0] * 4)
    assert isinstance(caught.value, InvalidLogits)
    assert caught.value.rows == (1, 3)
    assert caught.value.hint


# --------------------------------------------------------------------------- log probabilities


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "param", [SamplingParams(), SamplingParams(0.3, top_p=0.5, seed=2), SamplingParams(1.0)]
)
def test_log_probabilities_are_those_of_the_plain_softmax(
    param: SamplingParams, device: str
) -> None:
    logits = torch.randn(4, 600, generator=torch.Generator().manual_seed(2)) * 2
    expected = logits.double().log_softmax(-1)
    tokens = sample(logits.to(device), [replace(param, logprobs=5)] * 4, [0] * 4)
    for row, (token, logprob, top) in enumerate(
        zip(tokens.ids, tokens.logprobs, tokens.tops, strict=True)
    ):
        assert logprob == pytest.approx(expected[row, token].item(), abs=1e-9)
        values, ids = expected[row].topk(5)
        assert [one for one, _ in top] == ids.tolist()
        assert [score for _, score in top] == pytest.approx(values.tolist(), abs=1e-9)


def test_log_probabilities_do_not_change_what_is_drawn() -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(3))
    params = [SamplingParams(1.0, seed=row) for row in range(6)]
    with_logprobs = [replace(param, logprobs=2) for param in params]
    assert sample(logits, params, [0] * 6).ids == sample(logits, with_logprobs, [0] * 6).ids


def test_equally_likely_tokens_are_ordered_by_id() -> None:
    logits = torch.zeros(1, 700)
    logits[0, 600] = 1.0
    (top,) = sample(logits, [SamplingParams(logprobs=4)], [0]).tops
    assert [token for token, _ in top] == [600, 0, 1, 2]


def test_more_likeliest_than_tokens_are_all_tokens() -> None:
    (top,) = sample(torch.tensor([[0.0, 1.0]]), [SamplingParams(logprobs=20)], [0]).tops
    assert [token for token, _ in top] == [1, 0]


def test_log_probabilities_of_one_row_leave_the_others_alone() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(4))
    tokens = sample(
        logits, [SamplingParams(), SamplingParams(logprobs=0), SamplingParams(1.0)], [0] * 3
    )
    assert [one is None for one in tokens.logprobs] == [True, False, True]
    assert tokens.tops == [(), (), ()]
    assert np.exp(tokens.logprobs[1]) <= 1


# ------------------------------------------------------------------------------- given tokens


@pytest.mark.parametrize("rows", [1, 2, 33, 65])
def test_score_of_a_sampled_token_is_that_of_its_sample(rows: int) -> None:
    logits = torch.randn(rows, 300, generator=torch.Generator().manual_seed(rows)) * 5
    params = [SamplingParams(1.0, seed=row, logprobs=3) for row in range(rows)]
    sampled = sample(logits, params, [0] * rows)
    scores = score(logits, sampled.ids, 3)
    assert [one for one, _, _ in scores] == sampled.ids
    assert [value for _, value, _ in scores] == sampled.logprobs
    assert [top for _, _, top in scores] == sampled.tops


def test_score_of_no_distribution_is_refused() -> None:
    with pytest.raises(InvalidLogits) as caught:
        score(torch.tensor([[0.0, 1.0], [0.0, math.nan]]), [0, 0], 1)
    assert caught.value.rows == (1,)
