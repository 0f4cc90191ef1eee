"""Metrics count requests under labels that clients can't choose."""

from __future__ import annotations

from trunkline.inference.request_state import RequestStats
from trunkline.serving.metrics import Metrics


def stats(name: str = "medical/icd@1", outcome: str = "done", new_tokens: int = 5) -> RequestStats:
    first = 0.2 if new_tokens else None
    return RequestStats(name, "sha256:1", "generation", outcome, 0.1, first, 0.6, 10, 4, new_tokens)


def samples(metrics: Metrics) -> list[str]:
    text = metrics.render(0).decode()
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_requests_and_tokens_are_counted_by_version() -> None:
    metrics = Metrics()
    metrics.observe(stats())
    metrics.observe(stats(outcome="cancelled", new_tokens=0))
    rendered = samples(metrics)
    for line in (
        'trunkline_requests_total{outcome="done",version="medical/icd@1"} 1.0',
        'trunkline_requests_total{outcome="cancelled",version="medical/icd@1"} 1.0',
        'trunkline_prompt_tokens_total{version="medical/icd@1"} 20.0',
        'trunkline_cached_prompt_tokens_total{version="medical/icd@1"} 8.0',
        'trunkline_generation_tokens_total{version="medical/icd@1"} 5.0',
        'trunkline_time_to_first_token_seconds_count{version="medical/icd@1"} 1.0',
        'trunkline_queue_time_seconds_count{version="medical/icd@1"} 2.0',
    ):
        assert line in rendered


def test_time_per_output_token_excludes_the_first_token() -> None:
    metrics = Metrics()
    metrics.observe(stats())
    name = 'trunkline_time_per_output_token_seconds_sum{version="medical/icd@1"} '
    (line,) = [line for line in samples(metrics) if line.startswith(name)]
    assert round(float(line.removeprefix(name)), 6) == 0.1


def test_versions_beyond_the_limit_count_as_other() -> None:
    metrics = Metrics(max_versions=10)
    for number in range(15):
        metrics.observe(stats(f"medical/icd@{number + 1}"))
    rendered = samples(metrics)
    assert 'trunkline_requests_total{outcome="done",version="other"} 5.0' in rendered
    series = [line for line in rendered if line.startswith("trunkline_requests_total")]
    assert len(series) == 11


def test_error_without_a_version_has_an_empty_label() -> None:
    metrics = Metrics()
    metrics.count_error(None, 404)
    assert 'trunkline_errors_total{status="404",version=""} 1.0' in samples(metrics)


def test_servers_in_one_process_count_separately() -> None:
    first, second = Metrics(), Metrics()
    first.observe(stats())
    assert not [line for line in samples(second) if "medical" in line]


def requests_of(metrics: Metrics, version: str) -> float | None:
    """The counter of a version's requests; None if it has no series."""
    name = f'trunkline_requests_total{{outcome="done",version="{version}"}} '
    values = [float(line.removeprefix(name)) for line in samples(metrics) if line.startswith(name)]
    return values[0] if values else None


def test_version_that_is_used_more_takes_the_label_of_the_least_used_one() -> None:
    metrics = Metrics(max_versions=2)
    for name, times in (("a/a@1", 9), ("a/b@1", 2), ("a/c@1", 4)):
        for _ in range(times):
            metrics.observe(stats(name))
    assert requests_of(metrics, "a/b@1") == 2
    assert (requests_of(metrics, "a/c@1"), requests_of(metrics, "other")) == (None, 4)
    metrics.observe(stats("a/c@1"))
    assert requests_of(metrics, "a/b@1") is None
    assert (requests_of(metrics, "a/c@1"), requests_of(metrics, "other")) == (1, 4)
    metrics.observe(stats("a/b@1"))
    assert requests_of(metrics, "other") == 5


def test_counters_of_other_never_fall() -> None:
    metrics = Metrics(max_versions=3)
    highest = 0.0
    for step in range(2_000):
        metrics.observe(stats(f"a/a@{1 + step * step % 17}"))
        other = requests_of(metrics, "other") or 0.0
        assert other >= highest
        highest = other


def test_number_of_series_is_bounded_whatever_is_used() -> None:
    metrics = Metrics(max_versions=5)
    for number in range(3_000):
        metrics.observe(stats(f"a/a@{1 + number // 3}"))
    series = [line for line in samples(metrics) if line.startswith("trunkline_requests_total")]
    assert len(series) <= 6
