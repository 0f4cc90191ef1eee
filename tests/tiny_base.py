"""Tiny random bases on disk, of several families."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

Family = Literal["llama", "qwen2", "gpt2"]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 256
HIDDEN = 32
LAYERS = 3
_SENTENCES = (
    "Type 2 diabetes mellitus with diabetic chronic kidney disease",
    "Acute appendicitis and other diseases of the digestive system",
    "Commercial banking, credit unions and other lenders",
    "Organic whole milk, one gallon, from the dairy department",
    "The quick brown fox jumps over the lazy dog, twice",
    "system user assistant classify the following text",
)


def make_tiny_base(folder: Path, family: Family = "llama", seed: int = 0) -> Path:
    """Write a random causal LM with a byte-level tokenizer and a ChatML template into ``folder``.

    Hidden 32, 3 layers, context 256; any text can be tokenized. The same seed gives the same
    weights. Returns ``folder``.
    """
    import torch
    from transformers.utils import logging

    tokenizer = make_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make_model(family, len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()
    return folder


def make_tokenizer() -> Any:
    """A byte-level BPE with a few merges, special tokens as in ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(_SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        chat_template=CHATML,
    )


def make_model(family: Family, vocabulary: int, pad: int, end: int) -> Any:
    """A random model from torch's current seed."""
    import transformers

    ids = {"pad_token_id": pad, "eos_token_id": end, "bos_token_id": end}
    if family == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=vocabulary,
                n_embd=HIDDEN,
                n_layer=LAYERS,
                n_head=4,
                n_positions=CONTEXT,
                initializer_range=0.2,
                **ids,
            )
        )
    measures = {
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        **ids,
    }
    if family == "qwen2":
        return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**measures))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**measures))
