"""The figures count what ended, under labels that nobody can invent."""

from __future__ import annotations

from trunkline.inference.request_state import RequestStats
from trunkline.serving.metrics import MOST_VERSIONS, Metrics


def served(name: str = "medical/icd@1", outcome: str = "done", new_tokens: int = 5) -> RequestStats:
    first = 0.2 if new_tokens else None
    return RequestStats(name, "sha256:1", "generation", outcome, 0.1, first, 0.6, 10, 4, new_tokens)


def lines(metrics: Metrics) -> list[str]:
    text = metrics.exposition(0).decode()
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_requests_and_tokens_are_counted_by_version() -> None:
    metrics = Metrics()
    metrics.observe(served())
    metrics.observe(served(outcome="cancelled", new_tokens=0))
    told = lines(metrics)
    for line in (
        'trunkline_requests_total{outcome="done",version="medical/icd@1"} 1.0',
        'trunkline_requests_total{outcome="cancelled",version="medical/icd@1"} 1.0',
        'trunkline_prompt_tokens_total{version="medical/icd@1"} 20.0',
        'trunkline_cached_tokens_total{version="medical/icd@1"} 8.0',
        'trunkline_new_tokens_total{version="medical/icd@1"} 5.0',
        'trunkline_time_to_first_token_seconds_count{version="medical/icd@1"} 1.0',
        'trunkline_queue_seconds_count{version="medical/icd@1"} 2.0',
    ):
        assert line in told


def test_the_time_for_a_token_leaves_out_the_first() -> None:
    metrics = Metrics()
    metrics.observe(served())
    line = 'trunkline_time_per_token_seconds_sum{version="medical/icd@1"} '
    (told,) = [one for one in lines(metrics) if one.startswith(line)]
    assert round(float(told.removeprefix(line)), 6) == 0.1


def test_versions_beyond_the_bound_count_as_others() -> None:
    metrics = Metrics()
    for number in range(MOST_VERSIONS + 5):
        metrics.observe(served(f"medical/icd@{number + 1}"))
    told = lines(metrics)
    assert 'trunkline_requests_total{outcome="done",version="other"} 5.0' in told
    series = [one for one in told if one.startswith("trunkline_requests_total")]
    assert len(series) == MOST_VERSIONS + 1


def test_an_error_without_a_version_has_no_name() -> None:
    metrics = Metrics()
    metrics.count_error(None, 404)
    assert 'trunkline_errors_total{status="404",version=""} 1.0' in lines(metrics)


def test_two_servers_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.observe(served())
    assert not [line for line in lines(other) if "medical" in line]
