"""Train several adapters at once on one copy of the base.

Every training runs unchanged in a thread of its own: its data, loss, schedule, early stopping and
checkpoints are its own. One thread runs at a time, in a fixed order and with its own random
numbers, so the outcome can be repeated. A training that needs the base waits; when all of them do,
their rows are computed in one pass (:mod:`trunkline.training.packed`), and so are the gradients.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from trunkline.contracts import ProgressListener, Settings
from trunkline.errors import UsageError, plugin_ends_refused
from trunkline.training.model import frozen_in_bf16, uses_bf16
from trunkline.training.packed import PackedBackbone, Part, backbone_of, part_of, share_frozen

if TYPE_CHECKING:
    import torch

    from trunkline.inference.image_engine import AnyEngine

Value = TypeVar("Value")
Context = AbstractContextManager[Any]

_GRADIENT = "The gradient of the loss"


class Place:
    """The place of a training that has the base to itself.

    Attributes:
        count: trainings that share the base.
        others: names of the other ones.
    """

    count = 1
    others: tuple[str, ...] = ()

    def base_released(self, engine: AnyEngine) -> Context:
        """Inside, the engine's weights are not in memory; see :meth:`Engine.base_released`."""
        return engine.base_released()

    def trains(self, model: Any, base_name: str, settings: Settings) -> Context:
        """Inside, the model takes its steps; see :func:`frozen_in_bf16`."""
        return frozen_in_bf16(model, base_name, settings)

    def passes(self, model: Any) -> Context:
        """Inside, the model computes the forward pass of a training step."""
        return nullcontext()

    def backward(self, loss: torch.Tensor, compute: Callable[[torch.Tensor], None]) -> None:
        """Compute the gradients of a loss by ``compute``."""
        with plugin_ends_refused(_GRADIENT):
            compute(loss)

    def call(self, function: Callable[[], Value]) -> Value:
        """Call a function that needs much memory; of a group, all do so in one thread.

        Each thread keeps the memory that it freed for itself.
        """
        return function()


ALONE = Place()


class SharedPlace(Place):
    """The place of one training in a group, for its thread.

    Args:
        group: that it trains in.
        index: of the training.
        names: of all trainings.
    """

    def __init__(self, group: _Group, index: int, names: Sequence[str]) -> None:
        self.count = len(names)
        self.others = tuple(name for other, name in enumerate(names) if other != index)
        self._group, self._index = group, index

    @contextmanager
    def base_released(self, engine: AnyEngine) -> Iterator[None]:
        group = self._group
        group.wait(_Meeting(lambda: group.enter(engine.base_released())))
        yield
        group.wait(_Meeting(group.close))

    @contextmanager
    def trains(self, model: Any, base_name: str, settings: Settings) -> Iterator[None]:
        group = self._group
        group.add(self._index, model)
        group.wait(
            _Meeting(lambda: group.begin(lambda first: frozen_in_bf16(first, base_name, settings)))
        )
        yield
        group.wait(_Meeting(group.end))

    @contextmanager
    def passes(self, model: Any) -> Iterator[None]:
        import torch

        backbone = backbone_of(model)
        device = model.device.type

        def forward(input_ids: torch.Tensor, **inputs: Any) -> Any:
            from transformers.modeling_outputs import BaseModelOutputWithPast

            part = part_of(self._index, {"input_ids": input_ids, **inputs})
            hidden = self._group.wait(_Pass(part, torch.is_autocast_enabled(device)))
            return BaseModelOutputWithPast(last_hidden_state=hidden)

        backbone.forward = forward
        try:
            yield
        finally:
            del backbone.forward

    def backward(self, loss: torch.Tensor, compute: Callable[[torch.Tensor], None]) -> None:
        self._group.wait(_Backward(loss))

    def call(self, function: Callable[[], Value]) -> Value:
        value: Value = self._group.wait(_Call(function))
        return value


def train_together(
    names: Sequence[str], functions: Sequence[Callable[[Place], Value]]
) -> list[Value | Exception]:
    """Call each function in a thread of its own, one at a time, and let them share the base.

    Args:
        names: of the trainings.
        functions: each trains one adapter; gets its place, which it passes to ``train_adapter``.

    Returns:
        What each function returned or raised.
    """
    if len(functions) == 1:
        return [_outcome(lambda: functions[0](ALONE))]
    group = _Group()
    places = [SharedPlace(group, index, names) for index in range(len(names))]
    return group.run([partial(one, place) for one, place in zip(functions, places, strict=True)])


def check_together(named: Mapping[str, Settings], device: Any) -> None:
    """Raise :class:`UsageError` if adapters with these settings can't share the base's weights."""
    for name, settings in named.items():
        if settings.use_dora or settings.subtracts_initial:
            setting = "use_dora" if settings.use_dora else "init_lora_weights"
            raise UsageError(
                f"{name} can't be trained together with others: {setting} computes with weights "
                "of its own.",
                f"Train it alone: `trunkline train {name}`.",
            )
    precisions = {name: uses_bf16(one.precision, device) for name, one in named.items()}
    if len(set(precisions.values())) > 1:
        rounded = next(name for name, bf16 in precisions.items() if bf16)
        raise UsageError(
            f"{rounded} trains in bf16 and others in fp32, so they can't share the base's weights.",
            "Use --set precision=fp32 for all, or train them one after another.",
        )


class SharedProgress:
    """The progress of several trainings as one: their steps are added up."""

    def __init__(self, listener: ProgressListener) -> None:
        self._listener = listener
        self._current = ""
        self._counts: dict[str, tuple[int, int]] = {}

    def of(self, name: str) -> ProgressListener:
        """The listener of one training."""
        return _OneOfSeveral(self, name)

    def stage(self, name: str, text: str) -> None:
        """A stage of the training ``name`` begins."""
        shown = text if text == "training" else f"{name}: {text}"
        if shown != self._current:
            self._current = shown
            self._listener.stage(shown)

    def progress(self, name: str, done: int, total: int) -> None:
        """The training ``name`` took ``done`` of ``total`` steps."""
        self._counts[name] = (done, total)
        self._listener.progress(
            sum(one for one, _ in self._counts.values()),
            sum(one for _, one in self._counts.values()),
            {},
        )


class _OneOfSeveral:
    def __init__(self, shared: SharedProgress, name: str) -> None:
        self._shared, self._name = shared, name

    def stage(self, text: str) -> None:
        self._shared.stage(self._name, text)

    def progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
        self._shared.progress(self._name, done, total)


# ---------------------------------------------------------------------------------- the group


@dataclass(frozen=True, slots=True)
class _Pass:
    """A thread waits for the hidden states of its rows."""

    part: Part
    bf16: bool


@dataclass(frozen=True, slots=True)
class _Backward:
    """A thread waits for the gradients of its loss."""

    loss: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Call:
    """A thread waits for the value of a function."""

    function: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class _Meeting:
    """A thread waits for all others; then the first one's action is called."""

    action: Callable[[], None]


_Request = _Pass | _Backward | _Call | _Meeting


class _Thread(Generic[Value]):
    """One training; it runs only between :meth:`turn` and its next request."""

    def __init__(self, function: Callable[[], Value]) -> None:
        self.outcome: Value | Exception | None = None
        self.request: _Request | None = None
        self.answer: Any = None
        self.ended = False
        self._running = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._state: _State | None = None
        self._function = function
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def turn(self) -> None:
        """Let the thread run until it waits or ends."""
        self.request = None
        before = _State()
        if self._state is not None:
            self._state.restore()
        self._running = True
        self._go.release()
        self.pause()
        self._state = _State()
        before.restore()

    def take_state(self) -> None:
        """Continue in this thread with the random numbers of the training."""
        if self._state is not None:
            self._state.restore()

    def pause(self) -> None:
        """Return when the thread does not run."""
        if self._running:
            self._back.acquire()
            self._running = False

    def wait(self, request: _Request) -> Any:
        """Called by the thread itself: wait until the request is answered."""
        self.request = request
        self._back.release()
        self._go.acquire()
        answer, self.answer = self.answer, None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _run(self) -> None:
        self._go.acquire()
        try:
            if self.answer is None:  # the group was not stopped
                self.outcome = _outcome(self._function)
        except BaseException as stop:  # the group was stopped, and its own thread raises it
            self.answer = stop
        finally:
            self.ended = True
            self._back.release()


class _Group:
    """Runs the threads in turn and answers their requests."""

    def __init__(self) -> None:
        self._threads: list[_Thread[Any]] = []
        self._models: dict[int, Any] = {}
        self._packed: PackedBackbone | None = None
        self._merges = True
        self._release, self._frozen = ExitStack(), ExitStack()

    def run(self, functions: Sequence[Callable[[], Value]]) -> list[Value | Exception]:
        """Run all functions to their ends; see :func:`train_together`."""
        before = _State()
        self._threads = [_Thread(function) for function in functions]
        try:
            while live := [one for one in self._threads if not one.ended]:
                for thread in live:
                    if thread.request is None:
                        thread.turn()
                self._serve([one for one in live if not one.ended])
        except BaseException as stop:
            self._stop(stop)
            raise
        finally:
            self.close()
            before.restore()
        return [thread.outcome for thread in self._threads]  # type: ignore[misc]  # all ended

    def _stop(self, stop: BaseException) -> None:
        """Raise an exception in every thread that has not ended."""
        for thread in self._threads:
            thread.pause()
            while not thread.ended:
                thread.answer = stop
                thread.turn()

    def _serve(self, waiting: Sequence[_Thread[Any]]) -> None:
        """Answer the calls if there are any, else the passes, the gradients, the meeting of all."""
        for kind, serve in ((_Call, _call), (_Pass, self._forward), (_Backward, self._backward)):
            asking = [one for one in waiting if isinstance(one.request, kind)]
            if asking:
                try:
                    answers = serve([one.request for one in asking])
                except Exception as error:
                    answers = [error] * len(asking)
                break
        else:
            asking = list(waiting)
            answers = [None] * len(asking)
            if asking:
                self._meet(asking[0])
        for thread, answer in zip(asking, answers, strict=True):
            thread.answer, thread.request = answer, None

    def _meet(self, first: _Thread[Any]) -> None:
        assert isinstance(first.request, _Meeting)
        first.request.action()

    def _forward(self, passes: Sequence[Any]) -> Sequence[Any]:
        import torch

        assert self._packed is not None
        parts = [one.part for one in passes]
        device = parts[0].input_ids.device.type
        with torch.autocast(device, torch.bfloat16, enabled=passes[0].bf16):
            if self._merges and len(parts) > 1:
                return self._packed.hidden(parts)
            return [self._packed.alone(part) for part in parts]

    def _backward(self, requests: Sequence[Any]) -> Sequence[Any]:
        import torch

        with plugin_ends_refused(_GRADIENT):
            torch.autograd.backward([one.loss for one in requests])
        return [None] * len(requests)

    # Called from the threads, or as the action of a meeting.

    def wait(self, request: _Request) -> Any:
        """Wait until a request of the thread that runs is answered."""
        current = threading.current_thread()
        thread = next(one for one in self._threads if one.thread is current)
        return thread.wait(request)

    def enter(self, context: Context) -> None:
        """Keep a context until :meth:`close`."""
        self._release.enter_context(context)

    def add(self, index: int, model: Any) -> None:
        """A model joins; its frozen weights become those of the first."""
        if self._models:
            share_frozen(model, next(iter(self._models.values())))
        self._models[index] = model

    def begin(self, context: Callable[[Any], Context]) -> None:
        """All models are there."""
        order = sorted(self._models)
        self._threads[order[0]].take_state()  # dropout in the passes draws from a training's seed
        self._packed = PackedBackbone({index: self._models[index] for index in order})
        self._merges = len(order) > 1 and self._packed.is_exact()
        self._frozen.enter_context(context(self._models[order[0]]))

    def end(self) -> None:
        """No model takes another step."""
        self._packed = None
        self._frozen.close()

    def close(self) -> None:
        """No model is used any more."""
        self._packed = None
        self._models.clear()
        self._frozen.close()
        self._release.close()


class _State:
    """What trainings in one process share, and each has for itself here.

    That is the random generators, and what accelerate keeps for the current step.
    """

    def __init__(self) -> None:
        import numpy as np
        import torch
        from accelerate.state import GradientState

        self._step = dict(GradientState._shared_state)
        self._python, self._numpy = random.getstate(), np.random.get_state()
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def restore(self) -> None:
        import numpy as np
        import torch
        from accelerate.state import GradientState

        GradientState._shared_state.clear()
        GradientState._shared_state.update(self._step)
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)


def _call(requests: Sequence[Any]) -> Sequence[Any]:
    return [_outcome(one.function) for one in requests]


def _outcome(function: Callable[[], Value]) -> Value | Exception:
    """What a function returns, or the exception that it raises."""
    try:
        return function()
    except Exception as error:
        return error
