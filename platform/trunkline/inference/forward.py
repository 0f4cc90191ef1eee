"""Padded batches through a model, for training and evaluation: hidden states, logits, texts.

Works on the base alone, on the base inside :meth:`AdapterPool.activate`, and on a model in
training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trunkline.tasks.batches import by_length, pad

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How tokens are generated; temperature 0 takes the likeliest."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def last_hidden(model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> torch.Tensor:
    """Compute the hidden state of each prompt's last token, ``[batch, hidden]`` float32."""
    import torch

    backbone = getattr(model, model.base_model_prefix)
    batch = pad(prompts, pad_id)
    with torch.inference_mode():
        hidden = backbone(
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            use_cache=False,
        ).last_hidden_state
        last = torch.tensor([len(ids) - 1 for ids in prompts], device=hidden.device)
        return hidden[torch.arange(len(prompts), device=hidden.device), last].float()


def next_logits(model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> torch.Tensor:
    """Compute the logits of the token after each prompt, ``[batch, vocabulary]`` float32."""
    import torch

    batch = pad(prompts, pad_id, left=True)
    with torch.inference_mode():
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        return model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float()


def generate_tokens(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
) -> list[list[int]]:
    """Generate token ids for each prompt, including the end-of-sequence token.

    An answer without that token has reached the limit.
    """
    from contextlib import ExitStack

    import torch

    batch = pad(prompts, tokenizer.pad_token_id, left=True)
    options: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        options = {
            "do_sample": True,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": 0,
        }
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if settings.temperature > 0:
            stack.enter_context(torch.random.fork_rng())
            torch.manual_seed(settings.seed)
        output = model.generate(
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            max_new_tokens=settings.max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **options,
        )
    start = batch["input_ids"].shape[1]
    return [truncate_after(row[start:].tolist(), tokenizer.eos_token_id) for row in output]


def truncate_after(ids: list[int], end: int) -> list[int]:
    """Cut ids after the first end-of-sequence token."""
    return ids[: ids.index(end) + 1] if end in ids else ids


def generate_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int = 32,
) -> list[str]:
    """Generate greedy texts for many prompts, in their order."""
    texts = [""] * len(prompts)
    settings = GenerationSettings(max_new_tokens)
    for batch in by_length([len(ids) for ids in prompts], batch_size):
        outputs = generate_tokens(model, tokenizer, [prompts[index] for index in batch], settings)
        for index, ids in zip(batch, outputs, strict=True):
            texts[index] = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return texts
