"""Callbacks of a trainer: what it reports to the user and to other programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trunkline.contracts import MetricSpec, ProgressListener
from trunkline.errors import UsageError
from trunkline.registry.records import TOKENS
from trunkline.training.distributed import share
from trunkline.training.scoring import LOSS, SCORE

Log = Callable[[int, Mapping[str, float]], None]
"""Receives metrics by optimizer step."""


def tensorboard_callback(folder: Path) -> Any:
    """Write the trainer's log into a folder for TensorBoard.

    Raises:
        UsageError: TensorBoard is not installed.
    """
    from transformers.integrations import TensorBoardCallback

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            "--report-to tensorboard needs the package tensorboard.",
            "Run: pip install 'trunkline[tensorboard]'",
        ) from None
    return TensorBoardCallback(SummaryWriter(str(folder)))


class Reporter(TrainerCallback):  # type: ignore[misc]  # untyped package
    """Reports progress and metrics, and stops the training on request."""

    def __init__(
        self,
        metric: MetricSpec,
        listener: ProgressListener,
        log: Log,
        should_stop: Callable[[], bool],
        *,
        tokens: bool = True,
    ) -> None:
        self.stopped = False
        self._listener, self._log, self._should_stop = listener, log, should_stop
        self._latest: dict[str, float] = {}
        self._tokens = tokens
        self._names = {
            "loss": "loss",
            "learning_rate": "learning_rate",
            "grad_norm": "grad_norm",
            SCORE: f"validation.{metric.name}",
            LOSS: "validation.loss",
        }

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        self._listener.progress(state.global_step, state.max_steps, self._latest)
        if state.global_step < state.max_steps and share(self._should_stop()):
            self.stopped = True
            control.should_training_stop = control.should_save = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        metrics = {
            self._names[name]: float(value)
            for name, value in (logs or {}).items()
            if name in self._names and value is not None
        }
        self._latest.update(metrics)
        if metrics and self._tokens:
            metrics[TOKENS] = float(state.num_input_tokens_seen)
        self._log(state.global_step, metrics)
