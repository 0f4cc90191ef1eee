"""However a request ends, its row, blocks and adapter are free, and the others go on."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from driving import Driven, work_for
from trunkline.bases import Base
from trunkline.errors import (
    BusyError,
    DeadlineError,
    Interrupted,
    TrunklineError,
    UnavailableError,
)
from trunkline.inference.engine import Engine
from trunkline.inference.request import Answer
from trunkline.inference.request_state import GenerationHandle, RequestStats
from trunkline.inference.settings import EngineSettings

LONG = "organic whole milk, one gallon, from the dairy department: what is it? " * 2


def idle(engine: Engine) -> None:
    """Wait until the engine's thread has nothing left."""
    with engine._changed:
        assert engine._changed.wait_for(lambda: not engine._open, 30)


def never_ending(engine: Engine) -> Engine:
    """No token ends an answer, and steps leave others time to run."""
    engine._ends = frozenset()
    whole = engine._stepper.run

    def run(parts: Any) -> Any:
        threading.Event().wait(0.003)
        return whole(parts)

    engine._stepper.run = run  # type: ignore[method-assign]
    return engine


def alike(answer: Answer, other: Answer) -> bool:
    """Whether two answers are the same but for the last digits."""
    if answer.value is not None:
        return answer.value == pytest.approx(other.value, rel=1e-4)
    return answer.output == other.output


def mixture(driven: Driven, made: dict[str, Any]) -> list[GenerationHandle]:
    """Every kind of request; more sequences than rows."""
    return [
        driven.ask(made["low"].artifact, LONG, max_new_tokens=6),
        driven.ask(made["high"].artifact, "a goat", max_new_tokens=4, n=3),
        driven.ask(None, LONG, max_new_tokens=3),
        driven.ask(made["labels"].artifact, "a hen"),
        driven.ask(made["number"].artifact, LONG),
    ]


# ------------------------------------------------------------------------------- cancellation


def test_cancelled_after_any_number_of_steps_nothing_is_held(
    driven: Callable[..., Driven], made: dict[str, Any]
) -> None:
    one = driven(rows=3, chunk_tokens=16)
    for steps in itertools.count():
        one.engine._blocks.forget()
        handles = mixture(one, made)
        for _ in range(steps):
            one.step()
        left = [handle for handle in handles if not handle.ended]
        for handle in handles:
            handle.cancel()
        one.step()
        one.assert_nothing_is_held()
        assert all(isinstance(one.error(handle), Interrupted) for handle in left)
        assert all(handle.answer(0) for handle in handles if handle not in left)
        if not left:
            break
    assert steps > 10


def test_cancelling_one_changes_nothing_for_its_neighbors(
    driven: Callable[..., Driven], made: dict[str, Any]
) -> None:
    one = driven(rows=8, chunk_tokens=16)
    undisturbed = one.answers(mixture(one, made))
    for steps, victim in itertools.product((0, 1, 3, 6), (0, 1)):
        one.engine._blocks.forget()
        handles = mixture(one, made)
        for _ in range(steps):
            one.step()
        handles[victim].cancel()
        one.finish()
        for place, handle in enumerate(handles):
            if place != victim:
                assert alike(handle.answer(0), undisturbed[place])
        one.assert_nothing_is_held()


def test_place_of_a_cancelled_request_is_given_in_the_next_step(
    driven: Callable[..., Driven],
) -> None:
    one = driven(rows=1)
    never_ending(one.engine)
    first = one.ask(None, max_new_tokens=100)
    second = one.ask(None, max_new_tokens=100)
    one.step()
    assert (len(one.ids(first)), len(one.ids(second))) == (1, 0)
    first.cancel()
    one.step()
    assert (len(one.ids(first)), len(one.ids(second))) == (1, 1)


def test_cancelled_while_waiting(driven: Callable[..., Driven]) -> None:
    one = driven(rows=1)
    first, second = (one.ask(None, max_new_tokens=3) for _ in range(2))
    one.step()
    second.cancel()
    one.finish()
    assert isinstance(one.error(second), Interrupted)
    assert first.answer(0).text is not None
    assert second.stats is not None
    assert second.stats.outcome == "cancelled"
    assert second.stats.first_token_seconds is None


def test_cancelling_twice_or_after_the_end_changes_nothing(driven: Callable[..., Driven]) -> None:
    one = driven()
    handle = one.ask(None, max_new_tokens=2)
    (answer,) = one.answers([handle])
    handle.cancel()
    handle.cancel()
    one.step()
    assert handle.answer(0) == answer


@pytest.mark.parametrize("pieces", [0, 1, 3, 7])
def test_reader_that_cancels_after_some_pieces_frees_its_place(
    engine: Engine, made: dict[str, Any], pieces: int
) -> None:
    never_ending(engine)
    handle = engine.submit(work_for(made["low"].artifact, max_new_tokens=200))

    def read() -> None:
        for number, _ in enumerate(handle.chunks()):
            if number == pieces:
                handle.cancel()

    with pytest.raises(Interrupted):
        read()
    idle(engine)
    state = engine.state()
    assert (state.running, state.waiting, state.kv_tokens_used) == (0, 0, 0)
    assert not any(info.in_use for info in engine.pool.residents())


@pytest.mark.slow
def test_thousands_of_requests_that_come_and_are_cancelled_at_random_leave_nothing(
    base: Base, made: dict[str, Any]
) -> None:
    engine = Engine(base, EngineSettings(rows=5, chunk_tokens=16, queue=10_000))
    artifacts = [None, *(one.artifact for one in made.values())]
    lost: list[BaseException] = []

    def ask(seed: int) -> None:
        chance = random.Random(seed)
        for number in range(150):
            artifact = chance.choice(artifacts)
            text = LONG[: chance.randrange(1, len(LONG))].strip() or "x"
            work = work_for(artifact, text, max_new_tokens=12, n=1 + (number % 7 == 0))
            handle = engine.submit(work)
            if chance.random() < 0.5:
                threading.Event().wait(chance.random() * 0.02)
                handle.cancel()
            try:
                handle.answer(60)
            except Interrupted:
                pass
            except BaseException as error:
                lost.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == []
    idle(engine)
    state = engine.state()
    assert (state.running, state.waiting, state.kv_tokens_used) == (0, 0, 0)
    assert not any(info.in_use for info in engine.pool.residents())
    assert engine._waiting._running == {}
    engine.close()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C counts, also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_keyboard_interrupt_while_waiting_ends_all_of_it(base: Base) -> None:
    engine = never_ending(Engine(base, EngineSettings(rows=2)))
    whole, steps = engine._stepper.run, itertools.count()

    def run(parts: Any) -> Any:
        if next(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(parts)

    engine._stepper.run = run  # type: ignore[method-assign]
    told: list[RequestStats] = []
    engine.observers.append(told.append)
    with pytest.raises(KeyboardInterrupt):
        engine.run([work_for(max_new_tokens=200) for _ in range(5)])
    idle(engine)
    assert [account.outcome for account in told] == ["cancelled"] * 5
    assert engine.state().kv_tokens_used == 0
    assert len(engine.run([work_for(max_new_tokens=2)])) == 1
    engine.close()


def test_keyboard_interrupt_between_answers_ends_the_rest(engine: Engine) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    never_ending(engine)
    told: list[RequestStats] = []
    engine.observers.append(told.append)
    works = [work_for(max_new_tokens=2), work_for(max_new_tokens=200)]
    with pytest.raises(KeyboardInterrupt):
        engine.run(works, on_done=stop)
    idle(engine)
    assert [account.outcome for account in told] == ["done", "cancelled"]
    assert engine.state().kv_tokens_used == 0


# ----------------------------------------------------------------------------------- deadline


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_late_request_is_told_so_and_frees_its_place(
    driven: Callable[..., Driven], made: dict[str, Any], steps: int
) -> None:
    one = driven(rows=1, chunk_tokens=16)
    late = one.ask(made["low"].artifact, LONG, max_new_tokens=50, deadline=60)
    other = one.ask(None, max_new_tokens=3)
    for _ in range(steps):
        one.step()
    for asked in one.engine._open:
        asked.submitted -= 61
    one.finish()
    error = one.error(late)
    assert isinstance(error, DeadlineError)
    assert "60 seconds" in error.message
    assert error.hint
    assert late.stats is not None
    assert late.stats.outcome == "deadline"
    assert other.answer(0).text is not None
    one.assert_nothing_is_held()


def test_deadline_that_holds_changes_nothing(driven: Callable[..., Driven]) -> None:
    one = driven()
    handles = [one.ask(None, max_new_tokens=4, deadline=deadline) for deadline in (None, 600)]
    first, second = one.answers(handles)
    assert first.text == second.text


def test_thread_that_has_nothing_to_compute_sees_the_deadline_too(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(base)
    monkeypatch.setattr(engine, "_seat", lambda key, sequence: None)
    with pytest.raises(DeadlineError):
        engine.submit(work_for(deadline=0.05)).answer(30)
    engine.close()


# --------------------------------------------------------------------------- full, and closing


def test_more_than_the_queue_holds_is_refused(driven: Callable[..., Driven]) -> None:
    one = driven(rows=1, queue=2)
    handles = [one.ask(None, max_new_tokens=2) for _ in range(2)]
    with pytest.raises(BusyError) as caught:
        one.ask(None, max_new_tokens=2)
    assert "2 requests" in caught.value.message
    assert caught.value.hint
    one.step()
    handles.append(one.ask(None, max_new_tokens=2))
    assert len(one.answers(handles)) == 3


def test_crowd_never_makes_the_queue_longer_than_it_may_be(
    driven: Callable[..., Driven],
) -> None:
    one = driven(queue=5)
    refused: list[BusyError] = []
    ready = threading.Barrier(12)

    def ask() -> None:
        ready.wait()
        try:
            one.ask(None, max_new_tokens=1)
        except BusyError as error:
            refused.append(error)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (one.engine.state().waiting, len(refused)) == (5, 7)
    one.finish()


def test_draining_refuses_and_lets_finish_what_there_is(
    driven: Callable[..., Driven], made: dict[str, Any]
) -> None:
    one = driven(rows=2)
    handles = mixture(one, made)
    one.step()
    assert not one.engine.drain(0)
    assert one.engine.state().draining
    with pytest.raises(UnavailableError) as caught:
        one.ask(None)
    assert caught.value.hint
    with pytest.raises(UnavailableError):
        one.engine.run([work_for()])
    assert all(one.answers(handles))
    assert one.engine.drain(0)


def test_drain_waits_for_the_last(engine: Engine) -> None:
    handles = [engine.submit(work_for(max_new_tokens=30)) for _ in range(20)]
    assert engine.drain(60)
    assert all(handle.ended for handle in handles)
    assert all(handle.answer(0).text is not None for handle in handles)


def test_closing_tells_all_that_is_left(
    driven: Callable[..., Driven], made: dict[str, Any]
) -> None:
    one = driven(rows=2)
    handles = mixture(one, made)
    one.step()
    one.engine.close()
    assert all(isinstance(one.error(handle), UnavailableError) for handle in handles)
    one.assert_nothing_is_held()
    with pytest.raises(UnavailableError):
        one.ask(None)


def test_closed_engine_goes_at_once_with_all_its_memory(base: Base) -> None:
    engine = Engine(base)
    engine.run([work_for(max_new_tokens=1)])
    engine.close()
    gone = [weakref.ref(one) for one in (engine, engine.pool, engine._stepper)]
    gc.collect()
    gc.disable()
    try:
        del engine
        assert [one() for one in gone] == [None, None, None]
    finally:
        gc.enable()


def test_time_that_an_adapter_takes_to_load_counts_against_the_deadline(
    base: Base, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(base)
    load = engine.pool.load

    def slowly(*what: Any) -> Any:
        time.sleep(0.3)
        return load(*what)

    monkeypatch.setattr(engine.pool, "load", slowly)
    with pytest.raises(DeadlineError):
        engine.run([work_for(made["low"].artifact, max_new_tokens=1, deadline=0.2)])
    engine.close()


def test_closing_ends_the_thread(base: Base) -> None:
    engine = never_ending(Engine(base))
    handle = engine.submit(work_for(max_new_tokens=200))
    next(handle.chunks())
    engine.close()
    assert engine._thread is not None
    assert not engine._thread.is_alive()
    with pytest.raises(UnavailableError):
        handle.answer(0)


# ------------------------------------------------------------------------------------ failures


def failing_once(engine: Engine, step: int) -> None:
    """Let the given step raise."""
    whole, steps = engine._stepper.run, itertools.count()

    def run(parts: Any) -> Any:
        result = whole(parts)
        if next(steps) == step:
            raise RuntimeError("the device is on fire\nand more")
        return result

    engine._stepper.run = run  # type: ignore[method-assign]


@pytest.mark.parametrize("step", [0, 2, 5])
def test_step_that_fails_ends_its_requests_and_no_others(
    driven: Callable[..., Driven], made: dict[str, Any], step: int
) -> None:
    one = driven(rows=2, chunk_tokens=16)
    before = one.answers(mixture(one, made))
    one.engine._blocks.forget()
    failing_once(one.engine, step)
    handles = mixture(one, made)
    one.finish()
    ended = [isinstance(handle._end, TrunklineError) for handle in handles]
    assert 1 <= sum(ended) <= 2
    for handle, failed, undisturbed in zip(handles, ended, before, strict=True):
        if failed:
            error = one.error(handle)
            assert "the device is on fire" in error.message
            assert error.hint
            assert handle.stats is not None
            assert handle.stats.outcome == "failed"
        else:
            assert alike(handle.answer(0), undisturbed)
    one.assert_nothing_is_held()


def test_thread_outlives_a_step_that_fails(base: Base) -> None:
    engine = Engine(base)
    failing_once(engine, 1)
    with pytest.raises(TrunklineError, match="RuntimeError: the device is on fire"):
        engine.run([work_for(max_new_tokens=5)])
    assert engine.run([work_for(max_new_tokens=2)])[0].text is not None
    engine.close()


@pytest.mark.parametrize("where", ["_take", "_seat"])
def test_thread_outlives_a_fault_outside_of_the_step(
    base: Base, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    engine = Engine(base)

    def fail(*_: Any) -> None:
        raise ValueError("no such thing")

    with monkeypatch.context() as patch:
        patch.setattr(engine, where, fail)
        with pytest.raises(TrunklineError, match="no such thing"):
            engine.submit(work_for(max_new_tokens=5)).answer(30)
    assert engine.submit(work_for(max_new_tokens=2)).answer(30).text is not None
    assert engine.state().kv_tokens_used == 0
    engine.close()


def test_observer_that_fails_harms_nobody(driven: Callable[..., Driven]) -> None:
    one = driven()
    told: list[RequestStats] = []

    def fail(_: RequestStats) -> None:
        raise OSError("disk full")

    one.engine.observers += [fail, told.append]
    with pytest.warns(UserWarning, match="disk full"):
        answers = one.answers([one.ask(None, max_new_tokens=2) for _ in range(2)])
    assert len(answers) == len(told) == 2


# ------------------------------------------------------------------------------------- accounts


def test_account_of_a_request_is_told_once_it_has_ended(
    driven: Callable[..., Driven], made: dict[str, Any]
) -> None:
    one = driven()
    told: list[RequestStats] = []
    one.engine.observers.append(told.append)
    text = one.ask(made["low"].artifact, LONG, max_new_tokens=3, n=2)
    label = one.ask(made["labels"].artifact, LONG)
    one.finish()
    assert told == [label.stats, text.stats]
    assert [account.outcome for account in told] == ["done", "done"]
    assert [account.name for account in told] == ["toy/labels@1", "toy/low@1"]
    assert [account.digest for account in told] == [label.digest, text.digest]
    assert [account.new_tokens for account in told] == [0, text.answer(0).new_tokens]
    assert told[0].first_token_seconds is None
    assert told[1].first_token_seconds is not None
    assert 0 <= told[1].queue_seconds <= told[1].first_token_seconds <= told[1].seconds
