"""A run is stopped by another process, which only knows its number."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from cli_runner import invoke
from trunkline.api import Platform
from trunkline.errors import Interrupted, NotFoundError, RefusedError
from trunkline.training.stopping import is_resumable, is_trained, request_stop
from workbench import SETTINGS, TrainedAdapter


class StopAt:
    """A listener that asks for the end of run 1 after a step, as another process would."""

    def __init__(self, platform: Platform, step: int) -> None:
        self._platform, self._step = platform, step
        self.steps: list[int] = []

    def stage(self, text: str) -> None: ...

    def progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
        self.steps.append(done)
        if done == self._step:
            assert is_trained(self._platform.workspace.run_path(1))
            result = invoke("--workspace", str(self._platform.workspace.root), "runs", "stop", "1")
            assert result.exit_code == 0, result.output


def test_stopped_run_is_resumed_exactly(
    platform: Platform, trained: dict[str, TrainedAdapter]
) -> None:
    listener = StopAt(platform, 3)
    with pytest.raises(Interrupted) as stop:
        platform.train("toy/animals", listener=listener, **SETTINGS)
    assert "--resume 1" in str(stop.value.hint)
    assert listener.steps[-1] == 3
    folder = platform.workspace.run_path(1)
    assert platform.registry.runs.get(1).status == "interrupted"
    assert is_resumable(folder, "interrupted")
    kinds = [one.kind for one in platform.registry.events.list("run/1")]
    assert kinds == ["run.interrupted", "run.stop_requested", "run.started"]
    resumed = platform.train("toy/animals", resume=1)
    assert resumed.version.digest == trained["toy/animals"].digest


def test_request_for_a_run_that_nobody_trains_is_refused(stopped: Platform) -> None:
    workspace, registry = stopped.workspace, stopped.registry
    with pytest.raises(RefusedError, match="ended already"):
        request_stop(workspace, registry, 1)
    registry.runs.resume(1)  # as after a kill: running, and no process
    with pytest.raises(RefusedError, match="No process trains run 1"):
        request_stop(workspace, registry, 1)
    with pytest.raises(NotFoundError):
        request_stop(workspace, registry, 99)
    registry.runs.finish(1, "interrupted")
    result = invoke("--workspace", str(workspace.root), "runs", "stop", "1")
    assert result.exit_code == 1
    assert "ended already" in result.output


def test_actor_is_recorded_for_every_event_of_a_run(platform: Platform) -> None:
    from dataclasses import replace

    from trunkline.training.run import train

    seen: list[int] = []
    job = platform.training_job("toy/animals", {"max_steps": 1})
    context = replace(platform.run_context(job, None), actor="key/0aaaaaaa ada", on_run=seen.append)
    result = train(context, job)
    assert seen == [result.number]
    events = platform.registry.events.list(limit=20)
    kinds = {one.kind for one in events if one.actor == "key/0aaaaaaa ada"}
    assert {"run.started", "version.published", "run.finished"} <= kinds
    assert platform.registry.versions.contributors(result.version) == ["key/0aaaaaaa ada"]


def test_tokens_are_counted_beside_the_other_metrics(platform: Platform) -> None:
    result = platform.train("toy/animals", **SETTINGS)
    metrics = platform.registry.runs.metrics(result.number)
    tokens = {one.step: one.value for one in metrics if one.name == "tokens"}
    assert set(tokens) == {one.step for one in metrics}
    assert list(tokens.values()) == sorted(tokens.values())
    assert tokens[max(tokens)] == result.report["tokens_trained"]
