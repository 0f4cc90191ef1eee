"""transformers and PEFT: single forwards, `generate` with and without adapters, and the two ways of
serving many adapters with it.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from made import load_plain, load_tokenizer
from streams import Arrival, Course

MIXED_MOST = 16


def decode(model: Any, prompts: Sequence[list[int]], **settings: Any) -> Callable[[], Any]:
    """A forward for the last token of each prompt; what precedes it is in the cache.

    Takes the likeliest next tokens, and can be called over and over.
    """
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    ids = torch.tensor(prompts, device=model.device)
    with torch.inference_mode():
        model(input_ids=ids[:, :-1], past_key_values=cache, logits_to_keep=1, **settings)

    def step() -> None:
        with torch.inference_mode():
            logits = model(input_ids=ids[:, -1:], past_key_values=cache, **settings).logits
            logits[:, -1].argmax(-1).tolist()
            cache.crop(-1)

    return step


def prefill(model: Any, prompts: Sequence[list[int]], **settings: Any) -> Callable[[], Any]:
    """A forward over whole prompts that keeps keys and values, with the last logits only."""
    import torch

    ids = torch.tensor(prompts, device=model.device)

    def step() -> None:
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=True, logits_to_keep=1, **settings).logits
            logits[:, -1].argmax(-1).tolist()

    return step


def with_adapters(model: Any, folders: Sequence[Path]) -> Any:
    """PEFT's model with adapters named ``0``, ``1``, …; they compute in the base's dtype."""
    from peft import PeftModel

    warnings.simplefilter("ignore", FutureWarning)
    first, *others = folders
    adapted = PeftModel.from_pretrained(
        model, first, adapter_name="0", autocast_adapter_dtype=False
    )
    for number, folder in enumerate(others, 1):
        load_adapter(adapted, folder, str(number))
    return adapted.eval()


def load_adapter(adapted: Any, folder: Path, name: str, **settings: Any) -> None:
    """One more adapter beside the others."""
    adapted.load_adapter(folder, adapter_name=name, autocast_adapter_dtype=False, **settings)


class Generating:
    """`generate` on the base, or on PEFT's model where there are adapters; greedy, fixed length."""

    def __init__(self, shape: str | None, folders: Sequence[Path] = ()) -> None:
        self.tokenizer = load_tokenizer()
        self.model = load_plain(shape)
        if folders:
            self.model = with_adapters(self.model, folders)

    def batch(
        self, prompts: Sequence[tuple[str, list[int]]], adapter: int | None, new_tokens: int
    ) -> tuple[float, list[str]]:
        """Seconds for one static batch, and the answers."""
        if adapter is not None:
            self.model.set_adapter(str(adapter), inference_mode=True)
        start = time.perf_counter()
        rows = self._generate([ids for _, ids in prompts], new_tokens)
        seconds = time.perf_counter() - start
        return seconds, self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def serve(self, stream: Sequence[Arrival], new_tokens: int, way: str) -> list[Course]:
        """Serve what has arrived, batch after batch.

        Args:
            way: ``groups``: all that wait for the same adapter as the one that waits longest,
                after switching to it. ``mixed``: up to :data:`MIXED_MOST` that wait longest, by
                ``adapter_names``.
        """
        first = _FirstToken()
        courses: dict[int, Course] = {}
        to_come = deque(enumerate(stream))
        waiting: list[tuple[int, Arrival]] = []
        start = time.perf_counter()
        while to_come or waiting:
            now = time.perf_counter() - start
            while to_come and to_come[0][1].due <= now:
                waiting.append(to_come.popleft())
            if not waiting:
                time.sleep(to_come[0][1].due - now)
                continue
            settings: dict[str, Any] = {}
            if way == "groups":
                adapter = waiting[0][1].adapter
                batch = [one for one in waiting if one[1].adapter == adapter]
                self.model.set_adapter(str(adapter), inference_mode=True)
            else:
                batch = waiting[:MIXED_MOST]
                settings["adapter_names"] = [str(one.adapter) for _, one in batch]
            chosen = {number for number, _ in batch}
            waiting = [one for one in waiting if one[0] not in chosen]
            first.reset()
            ids = [one.ids for _, one in batch]
            self._generate(ids, new_tokens, streamer=first, **settings)
            end = time.perf_counter() - start
            for number, one in batch:
                courses[number] = Course(first.at - start - one.due, end)
        return [courses[number] for number in range(len(stream))]

    def _generate(
        self, prompts: Sequence[list[int]], new_tokens: int, **settings: Any
    ) -> list[list[int]]:
        import torch

        ids = torch.tensor(prompts, device=self.model.device)
        with torch.inference_mode():
            rows = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens,
                do_sample=False, pad_token_id=0, **settings,
            )  # fmt: skip
        assert rows.shape[1] == ids.shape[1] + new_tokens
        return rows[:, ids.shape[1] :].tolist()


class _FirstToken:
    """A streamer that notes when the first new tokens of a batch were there."""

    def reset(self) -> None:
        self.at = 0.0
        self._calls = 0

    def put(self, tokens: Any) -> None:
        """`generate` puts the prompts first, then the new tokens of each step."""
        self._calls += 1
        if self._calls == 2:
            self.at = time.perf_counter()

    def end(self) -> None:
        """Do nothing: every token was put before."""
