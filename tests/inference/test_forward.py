"""Batches through a model give what single prompts give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tiny_base import Family, make_tiny_base
from trunkline.inference.forward import (
    GenerationSettings,
    generate_texts,
    generate_tokens,
    last_hidden,
    next_logits,
    truncate_after,
)

PROMPTS = [[5, 6, 7], [40, 41, 42, 43, 44, 45], [9]]


@pytest.fixture(params=["llama", "qwen2", "gpt2"], scope="module")
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any]:
    """Model and tokenizer of a family."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    family: Family = request.param
    folder = make_tiny_base(tmp_path_factory.mktemp("forward") / family, family)
    return (
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )


@pytest.mark.parametrize("function", [last_hidden, next_logits])
def test_rows_do_not_depend_on_their_neighbors(loaded: tuple[Any, Any], function: Any) -> None:
    model, tokenizer = loaded
    together = function(model, PROMPTS, tokenizer.pad_token_id)
    for row, prompt in zip(together, PROMPTS, strict=True):
        alone = function(model, [prompt], tokenizer.pad_token_id)[0]
        assert torch.allclose(row, alone, atol=1e-5)


def test_next_logits_are_those_of_the_head_on_the_last_hidden_state(
    loaded: tuple[Any, Any],
) -> None:
    model, tokenizer = loaded
    hidden = last_hidden(model, PROMPTS, tokenizer.pad_token_id)
    logits = next_logits(model, PROMPTS, tokenizer.pad_token_id)
    with torch.inference_mode():
        assert torch.allclose(model.get_output_embeddings()(hidden), logits, atol=1e-4)


def test_greedy_continuation_does_not_depend_on_the_batch(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    together = generate_tokens(model, tokenizer, PROMPTS, GenerationSettings(6))
    alone = [
        generate_tokens(model, tokenizer, [prompt], GenerationSettings(6))[0] for prompt in PROMPTS
    ]
    assert together == alone


def test_texts_of_many_prompts_come_in_their_order(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    texts = generate_texts(model, tokenizer, PROMPTS, 6, batch_size=2)
    assert texts == [generate_texts(model, tokenizer, [prompt], 6)[0] for prompt in PROMPTS]


def test_ids_are_cut_after_the_end_token() -> None:
    assert truncate_after([4, 2, 9, 2], 2) == [4, 2]
    assert truncate_after([4, 9], 2) == [4, 9]
