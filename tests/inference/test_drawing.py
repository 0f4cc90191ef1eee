"""What a request draws depends on itself alone; streams say what the answer says."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import torch

from driving import Driven, true_logits, work_for
from trunkline.errors import Interrupted, TrunklineError
from trunkline.inference.engine import Engine
from trunkline.inference.request import Answer, StreamChunk
from trunkline.inference.request_state import GenerationHandle

HOT: dict[str, Any] = {"temperature": 1.3, "max_new_tokens": 10}
LONG = "organic whole milk, one gallon, from the dairy department: what is it? " * 2


def crowd(driven: Driven, made: dict[str, Any]) -> None:
    """Others, of every kind, that draw too."""
    driven.ask(made["low"].artifact, LONG, seed=4, **HOT)
    driven.ask(None, "sheep", seed=4, n=2, **HOT)
    driven.ask(made["labels"].artifact, LONG)


@pytest.mark.parametrize(
    "way", [{}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 9, "top_p": 0.9}, {"logprobs": 2}], ids=str
)
def test_same_seed_gives_the_same_alone_and_in_a_crowd(
    driven: Callable[..., Driven], made: dict[str, Any], way: dict[str, Any]
) -> None:
    one = driven(rows=4, chunk_tokens=8)
    texts = []
    for before in (None, 0, 1, 5):
        if before is not None:
            crowd(one, made)
            for _ in range(before):
                one.step()
        handle = one.ask(made["middle"].artifact, LONG, seed=7, **HOT, **way)
        texts.append(one.answers([handle])[0].text)
    assert len(set(texts)) == 1


def test_answers_of_one_request_are_those_of_the_seeds_that_follow(
    driven: Callable[..., Driven], made: dict[str, Any]
) -> None:
    one = driven(rows=3, chunk_tokens=16)
    artifact = made["high"].artifact
    many = one.ask(artifact, LONG, seed=20, n=5, **HOT)
    singles = [one.ask(artifact, LONG, seed=20 + number, **HOT) for number in range(5)]
    together, *apart = one.answers([many, *singles])
    assert [choice.index for choice in together.choices] == list(range(5))
    assert [choice.text for choice in together.choices] == [answer.text for answer in apart]
    assert len({answer.text for answer in apart}) > 1
    assert together.new_tokens == sum(answer.new_tokens for answer in apart)
    assert (together.text, together.finish) == (apart[0].text, apart[0].finish)


def test_answers_of_one_request_read_its_prompt_once(
    driven: Callable[..., Driven], made: dict[str, Any]
) -> None:
    one = driven(rows=8, chunk_tokens=16)
    handle = one.ask(made["low"].artifact, LONG, n=6, max_new_tokens=2)
    read: list[int] = []
    one.engine._waiting.served = lambda key, prompt, new: read.append(prompt)  # type: ignore[method-assign]
    one.finish()
    again = 5 * (handle.prompt_tokens - (handle.prompt_tokens - 1) // 16 * 16)
    assert sum(read) == handle.prompt_tokens + again


def test_other_seeds_give_other_texts(driven: Callable[..., Driven]) -> None:
    one = driven()
    answers = one.answers([one.ask(None, seed=seed, **HOT) for seed in range(6)])
    assert len({answer.text for answer in answers}) > 1


def test_random_numbers_of_the_caller_are_left_alone(driven: Callable[..., Driven]) -> None:
    one = driven()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one.answers([one.ask(None, **HOT)])
    assert torch.equal(torch.rand(3), expected)


# -------------------------------------------------------------------------- log probabilities


@pytest.mark.parametrize("heat", [0.0, 1.3])
def test_log_probabilities_are_those_of_peft(
    driven: Callable[..., Driven], made: dict[str, Any], heat: float
) -> None:
    one = driven(rows=3, chunk_tokens=8)
    crowd(one, made)
    handle = one.ask(
        made["high"].artifact, LONG, max_new_tokens=6, temperature=heat, seed=3, logprobs=4
    )
    (answer,) = one.answers([handle])
    scores, drawn = answer.choices[0].scores, one.drawn[handle, 0]
    assert [score.id for score in scores] == drawn.ids
    assert len(scores) == answer.new_tokens
    truth = true_logits(made["high"].truth, drawn.prompt, drawn.ids).log_softmax(-1)
    for score, row in zip(scores, truth, strict=True):
        assert score.logprob == pytest.approx(float(row[score.id]), abs=1e-4)
        assert [value for _, _, value in score.top] == pytest.approx(
            row.topk(4).values.tolist(), abs=1e-4
        )
        assert all(value == pytest.approx(float(row[one]), abs=1e-4) for one, _, value in score.top)
        assert score.token == one.engine.base.tokenizer.decode([score.id])
        if heat == 0:
            assert score.id == score.top[0][0]


def test_log_probability_of_the_drawn_token_alone(driven: Callable[..., Driven]) -> None:
    one = driven()
    (answer,) = one.answers([one.ask(None, max_new_tokens=3, logprobs=0)])
    assert [score.top for score in answer.choices[0].scores] == [()] * answer.new_tokens


def test_no_log_probabilities_unless_asked(driven: Callable[..., Driven]) -> None:
    one = driven()
    (answer,) = one.answers([one.ask(None, max_new_tokens=3)])
    assert answer.choices[0].scores == ()


# ---------------------------------------------------------------------------------------- ends


def without_end(driven: Driven) -> Driven:
    driven.engine._ends = frozenset()
    return driven


def test_answer_ends_before_the_stop_that_comes_first(driven: Callable[..., Driven]) -> None:
    one = without_end(driven())
    whole = one.answers([one.ask(None, max_new_tokens=30)])[0].text or ""
    assert len(whole) > 12
    for start, stop in ((0, 2), (3, 5), (8, 12)):
        string = whole[start:stop]
        handle = one.ask(None, max_new_tokens=30, stop=("never, ever", string))
        (answer,) = one.answers([handle])
        assert (answer.text, answer.finish) == (whole[: whole.index(string)], "stop")
        assert "".join(piece.text for piece in handle.chunks()) == answer.text


def test_stop_that_never_comes_cuts_nothing(driven: Callable[..., Driven]) -> None:
    one = without_end(driven())
    handles = [one.ask(None, max_new_tokens=12, stop=stop) for stop in ((), ("never, ever",))]
    plain, stopped = one.answers(handles)
    assert stopped.text == plain.text
    assert stopped.finish == plain.finish == "length"


@pytest.mark.parametrize("wanted", [1, 2, 7])
def test_limit_ends_the_answer(driven: Callable[..., Driven], wanted: int) -> None:
    one = without_end(driven())
    (answer,) = one.answers([one.ask(None, max_new_tokens=wanted)])
    assert (answer.new_tokens, answer.finish) == (wanted, "length")


def test_end_token_ends_the_answer_and_is_no_part_of_the_text(
    driven: Callable[..., Driven],
) -> None:
    one = without_end(driven())
    first = one.ask(None, max_new_tokens=6)
    one.finish()
    ids = one.ids(first)
    end = next(token for token in ids[1:] if token != ids[0])
    one.engine._ends = frozenset({end})
    (answer,) = one.answers([one.ask(None, max_new_tokens=6, logprobs=0)])
    assert answer.finish == "stop"
    assert answer.new_tokens == ids.index(end) + 1
    assert [score.id for score in answer.choices[0].scores] == ids[: ids.index(end) + 1]
    assert answer.text == one.engine.base.tokenizer.decode(
        ids[: ids.index(end)], skip_special_tokens=True
    )


# -------------------------------------------------------------------------------------- streams


def assert_pieces_say_the_answer(pieces: list[StreamChunk], answer: Answer) -> None:
    for choice in answer.choices:
        own = [piece for piece in pieces if piece.index == choice.index]
        assert "".join(piece.text for piece in own) == choice.text
        assert [piece.finish for piece in own] == [None] * (len(own) - 1) + [choice.finish]
        assert sum((piece.scores for piece in own), ()) == choice.scores


@pytest.mark.parametrize("asked", [{}, {"n": 3}, {"logprobs": 1}, {"stop": ("e",)}], ids=str)
def test_pieces_together_are_the_answer(
    engine: Engine, made: dict[str, Any], asked: dict[str, Any]
) -> None:
    handle = engine.submit(work_for(made["low"].artifact, seed=5, **HOT, **asked))
    pieces = list(handle.chunks())
    assert_pieces_say_the_answer(pieces, handle.answer(0))
    assert list(handle.chunks()) == pieces


def test_label_has_no_pieces(engine: Engine, made: dict[str, Any]) -> None:
    handle = engine.submit(work_for(made["labels"].artifact))
    assert list(handle.chunks()) == []
    assert handle.answer(0).label is not None


def test_async_stream_and_answer_say_the_same(engine: Engine, made: dict[str, Any]) -> None:
    async def ask() -> tuple[list[StreamChunk], Answer]:
        work = work_for(made["low"].artifact, n=2, seed=5, **HOT)
        handle = await asyncio.to_thread(engine.submit, work)
        pieces = [piece async for piece in handle.stream()]
        return pieces, await handle.answer_async()

    assert_pieces_say_the_answer(*asyncio.run(ask()))


def test_many_async_streams_at_once(engine: Engine, made: dict[str, Any]) -> None:
    names = ("low", "middle", "high", None)
    works = [
        work_for(made[name].artifact if name else None, f"goat {number}", seed=number, **HOT)
        for number, name in enumerate(names * 5)
    ]
    expected = [answer.text for answer in engine.run(works)]

    async def read(handle: GenerationHandle) -> str:
        return "".join([piece.text async for piece in handle.stream()])

    async def ask() -> list[str]:
        handles = [await asyncio.to_thread(engine.submit, work) for work in works]
        return await asyncio.gather(*(read(handle) for handle in handles))

    assert asyncio.run(ask()) == expected


def test_failure_is_raised_in_mid_stream(engine: Engine) -> None:
    whole, steps = engine._stepper.run, itertools.count()

    def run(parts: Any) -> Any:
        if next(steps) == 4:
            raise RuntimeError("out of memory")
        return whole(parts)

    engine._stepper.run = run  # type: ignore[method-assign]
    engine._ends = frozenset()

    got: list[StreamChunk] = []

    async def ask(stream: AsyncIterator[StreamChunk]) -> None:
        async for piece in stream:
            got.append(piece)

    stream = engine.submit(work_for(max_new_tokens=20)).stream()
    with pytest.raises(TrunklineError, match="out of memory"):
        asyncio.run(ask(stream))
    assert got


def test_leaving_an_async_stream_does_not_cancel(engine: Engine) -> None:
    engine._ends = frozenset()

    async def ask() -> Answer:
        handle = await asyncio.to_thread(engine.submit, work_for(max_new_tokens=20))
        stream = handle.stream()
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        return await handle.answer_async()

    assert asyncio.run(ask()).new_tokens == 20


def test_awaiting_a_cancelled_request_tells_so(driven: Callable[..., Driven]) -> None:
    one = driven()

    async def ask() -> None:
        handle = one.ask(None)
        waiting = asyncio.create_task(handle.answer_async())
        await asyncio.sleep(0)
        handle.cancel()
        one.step()
        with pytest.raises(Interrupted):
            await waiting

    asyncio.run(ask())


def test_waiting_too_shortly_leaves_the_request_alone(driven: Callable[..., Driven]) -> None:
    one = driven()
    handle = one.ask(None, max_new_tokens=2)
    with pytest.raises(TimeoutError):
        handle.answer(0.001)
    assert one.answers([handle])[0].text is not None


# -------------------------------------------------------------------------------------- threads


def test_many_threads_each_get_their_own_answers(engine: Engine, made: dict[str, Any]) -> None:
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (made["low"].artifact, HOT), (made["high"].artifact, {"max_new_tokens": 5}),
        (None, HOT), (made["labels"].artifact, {}), (made["number"].artifact, {}),
    ]  # fmt: skip
    works = [
        [work_for(artifact, f"{LONG if one % 2 else ''}goat {one}", **asked)]
        for one in range(6)
        for artifact, asked in kinds
    ]
    alone = [engine.run(work)[0] for work in works]
    wrong: list[int] = []
    ready = threading.Barrier(len(works))

    def ask(place: int) -> None:
        ready.wait()
        for _ in range(2):
            answer, expected = engine.run(works[place])[0], alone[place]
            same = answer.text == expected.text and answer.label == expected.label
            close = (answer.value or 0) == pytest.approx(expected.value or 0, rel=1e-4)
            if not (same and close and answer.digest == expected.digest):
                wrong.append(place)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
