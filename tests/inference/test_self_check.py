"""A base that packed steps would compute incorrectly is refused before the first request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from driving import EngineDriver, count_ties
from trunkline.bases import Base
from trunkline.bases.linear import fuse_linear_layers
from trunkline.errors import BaseModelError
from trunkline.inference import kv_cache
from trunkline.inference.engine import Engine
from trunkline.inference.kv_cache import bytes_per_token
from trunkline.inference.settings import EngineSettings

SMALL: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4, "original_max_position_embeddings": 64,
}  # fmt: skip


def llama(**more: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, **more))


def bloom() -> Any:
    config = transformers.BloomConfig(vocab_size=384, hidden_size=32, n_layer=2, n_head=4, **ENDS)
    return transformers.BloomForCausalLM(config)


def gptj() -> Any:
    config = transformers.GPTJConfig(
        vocab_size=384, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, **ENDS
    )
    return transformers.GPTJForCausalLM(config)


def mamba() -> Any:
    config = transformers.MambaConfig(vocab_size=384, hidden_size=32, num_hidden_layers=2, **ENDS)
    return transformers.MambaForCausalLM(config)


def mistral(window: int | None) -> Any:
    config = transformers.MistralConfig(**SMALL, sliding_window=window)
    return transformers.MistralForCausalLM(config)


def gemma2() -> Any:
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SMALL, head_dim=8))


def granite(scaling: float) -> Any:
    config = transformers.GraniteConfig(**SMALL, logits_scaling=scaling)
    return transformers.GraniteForCausalLM(config)


UNSUPPORTED: dict[str, tuple[Callable[[], Any], str]] = {
    "a sliding window": (lambda: mistral(8), "sliding_window = 8"),
    "windows and soft caps": (gemma2, "sliding_window|softcap"),
    "scaled logits": (lambda: granite(4.0), "scales its outputs"),
    "positions as biases": (bloom, "mixes tokens"),
    "an attention of its own": (gptj, "mixes tokens"),
    "no attention": (mamba, "'mamba'"),
    "positions that depend on the batch": (lambda: llama(rope_parameters=LONGROPE), "longrope"),
}
SUPPORTED: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "mistral": lambda: mistral(None),
    "granite": lambda: granite(1.0),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL, head_dim=8)),
    "olmo2": lambda: transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**SMALL)),
    "phi": lambda: transformers.PhiForCausalLM(transformers.PhiConfig(**SMALL)),
}


def with_model(base: Base, make: Callable[[], Any]) -> tuple[Base, Any]:
    """The base with a random model of another type, and transformers' own with the same weights."""
    models = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = make().eval().requires_grad_(False)
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.2)
        models.append(model)
    return replace(base, model=models[0], fused_layers=fuse_linear_layers(models[0])), models[1]


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_unsupported_base_is_refused_when_the_engine_is_created(base: Base, kind: str) -> None:
    make, reason = UNSUPPORTED[kind]
    other, _ = with_model(base, make)
    with pytest.raises(BaseModelError, match=reason) as caught:
        Engine(other)
    assert caught.value.hint


@pytest.mark.parametrize("kind", SUPPORTED)
def test_supported_base_answers_like_its_own_model(base: Base, kind: str) -> None:
    other, truth = with_model(base, SUPPORTED[kind])
    with EngineDriver(other, rows=2, chunk_tokens=8, end_ids=()) as driver:
        texts = ("a goat", "organic whole milk, one gallon, from the dairy department", "x")
        handles = [driver.submit(None, text, max_new_tokens=5) for text in texts]
        driver.finish()
        for handle in handles:
            count_ties(truth, driver.record(handle, 0), end_ids=frozenset(), limit=5)


def test_too_large_kv_cache_is_refused_before_it_is_allocated(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 64 * bytes_per_token(base.model)
    for free, fits in ((needed, True), (needed - 1, False), (None, True)):
        monkeypatch.setattr(kv_cache, "free_bytes", lambda _, free=free: free)
        if fits:
            kv_cache.KVCache(base.model, 64)
            continue
        with pytest.raises(BaseModelError, match="MiB are free") as caught:
            Engine(base, EngineSettings(kv_tokens=64))
        assert "kv_mib" in (caught.value.hint or "")


def test_free_memory_is_that_of_the_machine_or_of_its_container() -> None:
    device = torch.device("cpu")
    texts = {"/proc/meminfo": "MemTotal:  9 kB\nMemAvailable:    7 kB\n"}

    def free_bytes() -> int | None:
        return kv_cache.free_bytes(device, lambda path: texts.get(path, ""))

    assert free_bytes() == 7 * 1024
    texts["/sys/fs/cgroup/memory.max"] = "max\n"
    assert free_bytes() == 7 * 1024
    texts["/sys/fs/cgroup/memory.max"] = "5000\n"
    assert free_bytes() == 5000
    texts.clear()
    assert free_bytes() is None


def test_memory_below_one_block_is_refused(base: Base) -> None:
    with pytest.raises(BaseModelError, match="less than a block") as caught:
        Engine(base, EngineSettings(kv_tokens=15))
    assert caught.value.hint
