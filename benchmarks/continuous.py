"""transformers' own continuous batching: one manager for all rounds, sized, with adapters."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from peers import Generating

PAGE = 16
"""Tokens of a page of its cache, as many as of a block of ours."""

SIZES = {"page_size": PAGE, "num_blocks": 256, "max_batch_tokens": 512}
"""Room for 4,096 tokens and steps of 512; left unset, its cache takes most of the memory."""


class Continuous:
    """A manager over the base, or over PEFT's model where there are adapters.

    It computes in a thread of its own, so the model is loaded in one too (``bases/load.py``
    says why). It changes the model's attention while it runs, so it starts with the first batch.
    """

    def __init__(self, shape: str | None, folders: Sequence[Path] = ()) -> None:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        logging.disable(logging.WARNING)
        with ThreadPoolExecutor(1) as apart:
            self._plain = apart.submit(Generating, shape, folders).result()
        self._settings = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        self._sizes = ContinuousBatchingConfig(**SIZES)
        self._manager: Any = None

    def batch(
        self, prompts: Sequence[tuple[str, list[int]]], adapter: int | None, new_tokens: int
    ) -> tuple[float, list[str]]:
        """Seconds from asking to the last answer, and the answers."""
        if adapter is not None:
            self._plain.model.set_adapter(str(adapter), inference_mode=True)
        self._start()
        start = time.perf_counter()
        rows = self._ask([ids for _, ids in prompts], new_tokens)
        seconds = time.perf_counter() - start
        return seconds, self._plain.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def right_answers(self, ids: list[int], new_tokens: int) -> tuple[int, int, int, int]:
        """Ask one prompt under each adapter and the base; before the first batch only.

        Returns:
            Of the rows of one ``generate_batch(adapter_names=…)``, how many are those of
            `generate` with the same names, and of how many; then the same of one prompt asked
            under each adapter and the base, one after the other, with the cache shared.
        """
        with ThreadPoolExecutor(1) as apart:
            return apart.submit(self._right_answers, ids, new_tokens).result()

    def _right_answers(self, ids: list[int], new_tokens: int) -> tuple[int, int, int, int]:
        model = self._plain.model
        names = sorted(model.peft_config)
        by_row = self._plain._generate([ids] * len(names), new_tokens, adapter_names=names)
        alone = [self._under(name, self._plain._generate, ids, new_tokens) for name in [*names, ""]]

        model.set_adapter(names[0], inference_mode=True)
        given = model.generate_batch(
            inputs=[ids] * len(names), generation_config=self._settings,
            continuous_batching_config=self._sizes, max_new_tokens=new_tokens,
            adapter_names=names,
        )  # fmt: skip
        tokens = [one.generated_tokens for one in given.values()]
        self._start()
        shared = [self._under(name, self._ask, ids, new_tokens) for name in [*names, ""]]
        return _equal(tokens, by_row), len(by_row), _equal(shared, alone), len(alone)

    def close(self) -> None:
        """End the manager's thread, which would keep the process."""
        if self._manager is not None:
            self._manager.stop(block=True)

    def _under(self, name: str, ask: Any, ids: list[int], new_tokens: int) -> list[int]:
        """One prompt under an adapter; without a name, under the base."""
        model = self._plain.model
        if name:
            model.set_adapter(name, inference_mode=True)
        with nullcontext() if name else model.disable_adapter():
            return ask([ids], new_tokens)[0]

    def _start(self) -> None:
        if self._manager is None:
            self._manager = self._plain.model.init_continuous_batching(
                generation_config=self._settings, continuous_batching_config=self._sizes
            )
            self._manager.start()

    def _ask(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        keys: list[str] = self._manager.add_requests(inputs=prompts, max_new_tokens=new_tokens)
        done: dict[str, Any] = {}
        while len(done) < len(keys):
            one = self._manager.get_result(timeout=1)
            if one is not None and one.is_finished():
                done[one.request_id] = one
            elif not self._manager.is_running():
                raise RuntimeError("transformers' manager has stopped.")
        return [done[key].generated_tokens for key in keys]


def _equal(given: list[list[int]], expected: list[list[int]]) -> int:
    return sum(one == other for one, other in zip(given, expected, strict=True))
