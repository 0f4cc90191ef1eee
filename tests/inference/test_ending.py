"""However a request ends, its row, blocks and adapter are free, and other requests go on."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from driving import Clock, EngineDriver, MakeDriver, MakeEngine, make_request
from trunkline.bases import Base
from trunkline.errors import (
    BusyError,
    DeadlineError,
    Interrupted,
    TrunklineError,
    UnavailableError,
)
from trunkline.inference.batching import Stepper, StepResult
from trunkline.inference.engine import Engine
from trunkline.inference.request import Answer
from trunkline.inference.request_state import GenerationHandle, RequestStats
from trunkline.inference.settings import EngineSettings

LONG = "organic whole milk, one gallon, from the dairy department: what is it? " * 2


def assert_idle(engine: Engine) -> None:
    """Wait until the engine's thread has nothing left; then nothing is held."""
    for _ in range(30_000):
        state = engine.state()
        if not state.running and not state.waiting:
            break
        time.sleep(0.001)
    assert (state.running, state.waiting, state.kv_tokens_used) == (0, 0, 0)
    assert not any(info.in_use for info in engine.pool.residents())


def run_slowly(stepper: Stepper, parts: Any) -> StepResult:
    """A step that leaves other threads time to run."""
    threading.Event().wait(0.003)
    return stepper.run(parts)


ENDLESS: dict[str, Any] = {"run_step": run_slowly, "end_ids": ()}
"""Arguments of an engine whose answers reach their limit, slowly."""


def is_close(answer: Answer, other: Answer) -> bool:
    """Whether two answers are equal except for rounding."""
    if answer.value is not None:
        return answer.value == pytest.approx(other.value, rel=1e-4)
    return answer.output == other.output


def submit_mixture(driver: EngineDriver, adapters: dict[str, Any]) -> list[GenerationHandle]:
    """Submit every kind of request, with more sequences than rows."""
    return [
        driver.submit(adapters["low"].artifact, LONG, max_new_tokens=6),
        driver.submit(adapters["high"].artifact, "a goat", max_new_tokens=4, n=3),
        driver.submit(None, LONG, max_new_tokens=3),
        driver.submit(adapters["labels"].artifact, "a hen"),
        driver.submit(adapters["number"].artifact, LONG),
    ]


# ------------------------------------------------------------------------------- cancellation


def test_cancelled_after_any_number_of_steps_nothing_is_held(
    make_driver: MakeDriver, adapters: dict[str, Any]
) -> None:
    driver = make_driver(rows=3, chunk_tokens=16)
    for steps in itertools.count():
        driver.engine.reset_prefix_cache()
        handles = submit_mixture(driver, adapters)
        for _ in range(steps):
            driver.step()
        left = [handle for handle in handles if not handle.ended]
        for handle in handles:
            handle.cancel()
        driver.step()
        driver.assert_nothing_is_held()
        assert all(isinstance(driver.error(handle), Interrupted) for handle in left)
        assert all(handle.answer(0) for handle in handles if handle not in left)
        if not left:
            break
    assert steps > 10


def test_cancelling_one_changes_nothing_for_its_neighbors(
    make_driver: MakeDriver, adapters: dict[str, Any]
) -> None:
    driver = make_driver(rows=8, chunk_tokens=16)
    undisturbed = driver.answers(submit_mixture(driver, adapters))
    for steps, victim in itertools.product((0, 1, 3, 6), (0, 1)):
        driver.engine.reset_prefix_cache()
        handles = submit_mixture(driver, adapters)
        for _ in range(steps):
            driver.step()
        handles[victim].cancel()
        driver.finish()
        for index, handle in enumerate(handles):
            if index != victim:
                assert is_close(handle.answer(0), undisturbed[index])
        driver.assert_nothing_is_held()


def test_row_of_a_cancelled_request_is_free_in_the_next_step(
    make_driver: MakeDriver,
) -> None:
    driver = make_driver(rows=1, end_ids=())
    first = driver.submit(None, max_new_tokens=100)
    second = driver.submit(None, max_new_tokens=100)
    driver.step()
    assert (len(driver.ids(first)), len(driver.ids(second))) == (1, 0)
    first.cancel()
    driver.step()
    assert (len(driver.ids(first)), len(driver.ids(second))) == (1, 1)


def test_cancelled_while_waiting(make_driver: MakeDriver) -> None:
    driver = make_driver(rows=1)
    first, second = (driver.submit(None, max_new_tokens=3) for _ in range(2))
    driver.step()
    second.cancel()
    driver.finish()
    assert isinstance(driver.error(second), Interrupted)
    assert first.answer(0).text is not None
    assert second.stats is not None
    assert second.stats.outcome == "cancelled"
    assert second.stats.first_token_seconds is None


def test_cancelling_twice_or_after_the_end_changes_nothing(make_driver: MakeDriver) -> None:
    driver = make_driver()
    handle = driver.submit(None, max_new_tokens=2)
    (answer,) = driver.answers([handle])
    handle.cancel()
    handle.cancel()
    driver.step()
    assert handle.answer(0) == answer


@pytest.mark.parametrize("chunks", [0, 1, 3, 7])
def test_reader_that_cancels_after_some_chunks_frees_its_row(
    make_engine: MakeEngine, adapters: dict[str, Any], chunks: int
) -> None:
    engine = make_engine(**ENDLESS)
    handle = engine.submit(make_request(adapters["low"].artifact, max_new_tokens=200))

    def read() -> None:
        for number, _ in enumerate(handle.chunks()):
            if number == chunks:
                handle.cancel()

    with pytest.raises(Interrupted):
        read()
    assert_idle(engine)


@pytest.mark.slow
def test_thousands_of_requests_that_are_cancelled_at_random_leave_nothing(
    make_engine: MakeEngine, adapters: dict[str, Any]
) -> None:
    engine = make_engine(EngineSettings(rows=5, chunk_tokens=16, queue=10_000))
    artifacts = [None, *(one.artifact for one in adapters.values())]
    lost: list[BaseException] = []

    def submit(seed: int) -> None:
        draw = random.Random(seed)
        for number in range(150):
            artifact = draw.choice(artifacts)
            text = LONG[: draw.randrange(1, len(LONG))].strip() or "x"
            request = make_request(artifact, text, max_new_tokens=12, n=1 + (number % 7 == 0))
            handle = engine.submit(request)
            if draw.random() < 0.5:
                threading.Event().wait(draw.random() * 0.02)
                handle.cancel()
            try:
                handle.answer(60)
            except Interrupted:
                pass
            except BaseException as error:
                lost.append(error)

    threads = [threading.Thread(target=submit, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == []
    assert_idle(engine)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Handle Ctrl-C also where a shell runs the tests in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_keyboard_interrupt_while_waiting_cancels_all_requests(make_engine: MakeEngine) -> None:
    steps = itertools.count()

    def run_step(stepper: Stepper, parts: Any) -> StepResult:
        if next(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return run_slowly(stepper, parts)

    engine = make_engine(EngineSettings(rows=2), run_step=run_step, end_ids=())
    accounts: list[RequestStats] = []
    engine.observers.append(accounts.append)
    with pytest.raises(KeyboardInterrupt):
        engine.run([make_request(max_new_tokens=200) for _ in range(5)])
    assert_idle(engine)
    assert [account.outcome for account in accounts] == ["cancelled"] * 5
    assert len(engine.run([make_request(max_new_tokens=2)])) == 1


def test_keyboard_interrupt_between_answers_cancels_the_rest(make_engine: MakeEngine) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    engine = make_engine(**ENDLESS)
    accounts: list[RequestStats] = []
    engine.observers.append(accounts.append)
    requests = [make_request(max_new_tokens=2), make_request(max_new_tokens=200)]
    with pytest.raises(KeyboardInterrupt):
        engine.run(requests, on_done=stop)
    assert_idle(engine)
    assert [account.outcome for account in accounts] == ["done", "cancelled"]


# ----------------------------------------------------------------------------------- deadline


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_late_request_ends_and_frees_its_row(
    make_driver: MakeDriver, adapters: dict[str, Any], steps: int
) -> None:
    clock = Clock()
    driver = make_driver(rows=1, chunk_tokens=16, clock=clock)
    late = driver.submit(adapters["low"].artifact, LONG, max_new_tokens=50, deadline=60)
    other = driver.submit(None, max_new_tokens=3)
    for _ in range(steps):
        driver.step()
    clock.advance(61)
    driver.finish()
    error = driver.error(late)
    assert isinstance(error, DeadlineError)
    assert "60 seconds" in error.message
    assert error.hint
    assert late.stats is not None
    assert late.stats.outcome == "deadline"
    assert other.answer(0).text is not None
    driver.assert_nothing_is_held()


def test_deadline_that_is_met_changes_nothing(make_driver: MakeDriver) -> None:
    driver = make_driver()
    handles = [driver.submit(None, max_new_tokens=4, deadline=deadline) for deadline in (None, 600)]
    first, second = driver.answers(handles)
    assert first.text == second.text


def test_deadline_passes_while_there_is_nothing_to_compute(
    make_engine: MakeEngine, adapters: dict[str, Any]
) -> None:
    engine = make_engine(EngineSettings(slots=1))
    engine.pool.load(adapters["low"].artifact)
    assert engine.pool.acquire(adapters["low"].artifact.digest)  # its slot stays in use
    handle = engine.submit(make_request(adapters["middle"].artifact, deadline=0.05))
    with pytest.raises(DeadlineError):
        handle.answer(30)


# --------------------------------------------------------------------------- full, and closing


def test_request_beyond_the_queue_is_refused(make_driver: MakeDriver) -> None:
    driver = make_driver(rows=1, queue=2)
    handles = [driver.submit(None, max_new_tokens=2) for _ in range(2)]
    with pytest.raises(BusyError) as caught:
        driver.submit(None, max_new_tokens=2)
    assert "2 requests" in caught.value.message
    assert caught.value.hint
    driver.step()
    handles.append(driver.submit(None, max_new_tokens=2))
    assert len(driver.answers(handles)) == 3


def test_state_has_the_longest_wait_and_the_adapters_that_are_waited_for(
    make_driver: MakeDriver, adapters: dict[str, Any]
) -> None:
    clock = Clock()
    driver = make_driver(rows=1, clock=clock)
    assert driver.engine.state().wait_seconds == 0.0
    handles = [driver.submit(None, max_new_tokens=2)]
    driver.step()
    handles.append(driver.submit(adapters["low"].artifact, max_new_tokens=2))
    clock.advance(3.0)
    handles.append(driver.submit(None, max_new_tokens=2))
    state = driver.engine.state()
    assert state.wait_seconds == pytest.approx(3.0)
    assert len(state.waiting_adapters) == 1
    driver.answers(handles)
    assert driver.engine.state().waiting_adapters == ()


def test_many_threads_never_exceed_the_queue(
    make_driver: MakeDriver,
) -> None:
    driver = make_driver(queue=5)
    refused: list[BusyError] = []
    ready = threading.Barrier(12)

    def submit() -> None:
        ready.wait()
        try:
            driver.submit(None, max_new_tokens=1)
        except BusyError as error:
            refused.append(error)

    threads = [threading.Thread(target=submit) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (driver.engine.state().waiting, len(refused)) == (5, 7)
    driver.finish()


def test_draining_refuses_new_requests_and_finishes_the_others(
    make_driver: MakeDriver, adapters: dict[str, Any]
) -> None:
    driver = make_driver(rows=2)
    handles = submit_mixture(driver, adapters)
    driver.step()
    assert not driver.engine.drain(0)
    assert driver.engine.state().draining
    with pytest.raises(UnavailableError) as caught:
        driver.submit(None)
    assert caught.value.hint
    with pytest.raises(UnavailableError):
        driver.engine.run([make_request()])
    assert all(driver.answers(handles))
    assert driver.engine.drain(0)


def test_drain_waits_for_the_last(engine: Engine) -> None:
    handles = [engine.submit(make_request(max_new_tokens=30)) for _ in range(20)]
    assert engine.drain(60)
    assert all(handle.ended for handle in handles)
    assert all(handle.answer(0).text is not None for handle in handles)


def test_closing_ends_all_open_requests(make_driver: MakeDriver, adapters: dict[str, Any]) -> None:
    driver = make_driver(rows=2)
    handles = submit_mixture(driver, adapters)
    driver.step()
    driver.engine.close()
    assert all(isinstance(driver.error(handle), UnavailableError) for handle in handles)
    driver.assert_nothing_is_held()
    with pytest.raises(UnavailableError):
        driver.submit(None)


def test_closed_engine_frees_its_memory_without_garbage_collection(base: Base) -> None:
    steppers: list[weakref.ref[Stepper]] = []

    def run_step(stepper: Stepper, parts: Any) -> StepResult:
        steppers.append(weakref.ref(stepper))
        return stepper.run(parts)

    engine = Engine(base, run_step=run_step)
    engine.run([make_request(max_new_tokens=1)])
    engine.close()
    references = [weakref.ref(engine), weakref.ref(engine.pool), steppers[0]]
    gc.collect()
    gc.disable()
    try:
        del engine
        assert [reference() for reference in references] == [None, None, None]
    finally:
        gc.enable()


def test_time_that_an_adapter_takes_to_load_counts_against_the_deadline(
    engine: Engine, adapters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = engine.pool.load

    def load_slowly(*args: Any) -> Any:
        time.sleep(0.3)
        return load(*args)

    monkeypatch.setattr(engine.pool, "load", load_slowly)
    with pytest.raises(DeadlineError):
        engine.run([make_request(adapters["low"].artifact, max_new_tokens=1, deadline=0.2)])


def test_closing_ends_the_thread(make_engine: MakeEngine) -> None:
    before = set(threading.enumerate())
    engine = make_engine(**ENDLESS)
    handle = engine.submit(make_request(max_new_tokens=200))
    next(handle.chunks())
    assert [one.name for one in set(threading.enumerate()) - before] == ["trunkline-engine"]
    engine.close()
    assert set(threading.enumerate()) <= before
    with pytest.raises(UnavailableError):
        handle.answer(0)


# ------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("step", [0, 2, 5])
def test_failing_step_ends_its_requests_and_no_others(
    make_driver: MakeDriver, adapters: dict[str, Any], step: int
) -> None:
    driver = make_driver(rows=2, chunk_tokens=16)
    before = driver.answers(submit_mixture(driver, adapters))
    driver.engine.reset_prefix_cache()
    driver.fail_at = len(driver.steps) + step
    handles = submit_mixture(driver, adapters)
    driver.finish()
    outcomes = [handle.stats.outcome for handle in handles if handle.stats is not None]
    assert len(outcomes) == len(handles)
    assert 1 <= outcomes.count("failed") <= 2
    for handle, outcome, undisturbed in zip(handles, outcomes, before, strict=True):
        if outcome == "failed":
            error = driver.error(handle)
            assert "the device is on fire" in error.message
            assert error.hint
        else:
            assert is_close(handle.answer(0), undisturbed)
    driver.assert_nothing_is_held()


def test_thread_survives_a_failing_step(make_engine: MakeEngine) -> None:
    steps = itertools.count()

    def run_step(stepper: Stepper, parts: Any) -> StepResult:
        if next(steps) == 1:
            raise RuntimeError("the device is on fire\nand more")
        return stepper.run(parts)

    engine = make_engine(run_step=run_step, end_ids=())
    with pytest.raises(TrunklineError, match="RuntimeError: the device is on fire"):
        engine.run([make_request(max_new_tokens=5)])
    assert engine.run([make_request(max_new_tokens=2)])[0].text is not None


def test_thread_survives_a_result_that_can_not_be_applied(make_engine: MakeEngine) -> None:
    steps = itertools.count()

    def run_step(stepper: Stepper, parts: Any) -> StepResult:
        result = stepper.run(parts)
        if next(steps) == 0:
            result.sampled[0] = (result.sampled[0][0], "no token", None, ())  # type: ignore[assignment]
        return result

    engine = make_engine(run_step=run_step)
    with pytest.raises(TrunklineError, match="The step failed"):
        engine.submit(make_request(max_new_tokens=5)).answer(30)
    assert engine.submit(make_request(max_new_tokens=2)).answer(30).text is not None
    assert engine.state().kv_tokens_used == 0


def test_thread_survives_a_failing_admission(
    engine: Engine, adapters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = adapters["low"].artifact

    def fail(_: str) -> None:
        raise ValueError("no such thing")

    with monkeypatch.context() as patch:
        patch.setattr(engine.pool, "acquire", fail)
        with pytest.raises(TrunklineError, match="no such thing"):
            engine.submit(make_request(artifact, max_new_tokens=5)).answer(30)
    assert engine.submit(make_request(artifact, max_new_tokens=2)).answer(30).text is not None
    assert engine.state().kv_tokens_used == 0


def test_failing_observer_ends_no_request(make_driver: MakeDriver) -> None:
    driver = make_driver()
    accounts: list[RequestStats] = []

    def fail(_: RequestStats) -> None:
        raise OSError("disk full")

    driver.engine.observers += [fail, accounts.append]
    with pytest.warns(UserWarning, match="disk full"):
        answers = driver.answers([driver.submit(None, max_new_tokens=2) for _ in range(2)])
    assert len(answers) == len(accounts) == 2


# ------------------------------------------------------------------------------------- accounts


def test_observer_receives_the_account_of_a_request_that_has_ended(
    make_driver: MakeDriver, adapters: dict[str, Any]
) -> None:
    driver = make_driver()
    accounts: list[RequestStats] = []
    driver.engine.observers.append(accounts.append)
    text = driver.submit(adapters["low"].artifact, LONG, max_new_tokens=3, n=2)
    label = driver.submit(adapters["labels"].artifact, LONG)
    driver.finish()
    assert accounts == [label.stats, text.stats]
    assert [account.outcome for account in accounts] == ["done", "done"]
    assert [account.name for account in accounts] == ["toy/labels@1", "toy/low@1"]
    assert [account.digest for account in accounts] == [label.digest, text.digest]
    assert [account.new_tokens for account in accounts] == [0, text.answer(0).new_tokens]
    assert accounts[0].first_token_seconds is None
    assert accounts[1].first_token_seconds is not None
    assert 0 <= accounts[1].queue_seconds <= accounts[1].first_token_seconds <= accounts[1].seconds
