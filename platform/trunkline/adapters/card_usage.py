"""The part of a model card that shows how plain PEFT and transformers use the adapter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from trunkline.adapters.artifact import Manifest
from trunkline.adapters.config import TASK_TYPES, head_outputs
from trunkline.contracts import Template

_MARKUP = re.compile(r"([\\`*\[\]<>|])")
_MODELS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
}
_CLEANING = {
    "strip": "text = text.strip()",
    "squeeze": 'text = " ".join(text.split())',
    "lowercase": "text = text.lower()",
}


_FUSED_USAGE = [
    "It needs both parents, and the bases of both. PEFT can't load it.",
    "",
    "```python",
    "import trunkline",
    "",
    "platform = trunkline.open(base=TEXT_BASE, image_base=IMAGE_BASE)",
    "print(platform.predict_pairs(ADAPTER_NAME, [(text, picture)])[0])",
    "```",
]


def usage(manifest: Manifest) -> list[str]:
    """What the outputs mean, and Python for plain PEFT and transformers.

    The code needs ``BASE``, a folder or repository of the base, ``ADAPTER``, this folder, and
    ``text``.
    """
    task = manifest.task
    if manifest.fusion is not None:
        return _FUSED_USAGE
    if manifest.reads_images:
        return _image_usage(manifest)
    headed = task["kind"] != "generation"
    model = _MODELS[TASK_TYPES[task["kind"]]]
    head = f", num_labels={head_outputs(task)}" if headed else ""
    return [
        _meaning(task),
        *(
            ()
            if manifest.max_length is None
            else ("This code does not cut a text that is too long.",)
        ),
        "",
        "```python",
        "from peft import PeftModel",
        f"from transformers import {model}, AutoTokenizer",
        "",
        "tokenizer = AutoTokenizer.from_pretrained(BASE)",
        f"model = {model}.from_pretrained(BASE{head})",
        "model = PeftModel.from_pretrained(model, ADAPTER).eval()",
        *(_CLEANING[step] for step in manifest.template["clean"]),
        *_prompt_code(manifest.make_template()),
        *_output_code(task),
        "```",
    ]


def _image_usage(manifest: Manifest) -> list[str]:
    """The same for an adapter that reads pictures; the code needs ``picture``, a path."""
    steps = manifest.make_preprocessing()
    resized = (
        f"resized so that the shorter edge has {steps.shortest_edge} pixels"
        if steps.resize is None
        else f"resized to {steps.resize[0]} × {steps.resize[1]} pixels"
    )
    task = manifest.task
    meaning = _meaning(task).replace(" at the prompt's last token", "")
    return [
        meaning,
        f"A picture is {resized} ({steps.resample}), its center of {steps.height} × {steps.width} "
        f"cropped, scaled to 0…1, less {list(steps.image_mean)}, divided by "
        f"{list(steps.image_std)}.",
        "",
        "```python",
        "import trunkline",
        "",
        "platform = trunkline.open(base=BASE)",
        "print(platform.predict_images(ADAPTER_NAME, [picture])[0])",
        "```",
        "",
        "The matrices are PEFT's, for the modules of transformers' `AutoModel`; the head reads the "
        "backbone's pooled features.",
    ]


def _meaning(task: Mapping[str, Any]) -> str:
    if task["kind"] == "multilabel":
        return (
            "The sigmoid of the outputs at the prompt's last token are the probabilities of "
            f"{code(task['labels'])}; a label counts from {task['threshold']:g}."
        )
    if task["kind"] == "tagging":
        return (
            "The outputs at each token are the logits of O, then B- and I- of each of "
            f"{code(task['labels'])}."
        )
    if task["kind"] == "ranking":
        return (
            "The output at the prompt's last token is the score of `candidate` for the query "
            "`text`; a higher one is better."
        )
    if task["kind"] == "classification":
        return f"The outputs at the prompt's last token are the logits of {code(task['labels'])}."
    if task["kind"] == "regression":
        unit = f", in {escape(task['unit'])}" if task["unit"] else ""
        scale = ", on a log scale" if task["scale"] == "log" else ""
        return f"The output at the prompt's last token is the number, standardized{scale}{unit}."
    return f"An answer has at most {task['max_new_tokens']} new tokens."


def _prompt_code(template: Template) -> list[str]:
    prompt = " + ".join(
        field or repr(literal)
        for part in template.parts
        for literal, field in ((part[0], None), ("", part[1]))
        if literal or field
    )
    if not template.chat:
        return [f'inputs = tokenizer({prompt}, return_tensors="pt")']
    lines = [f'messages = [{{"role": "user", "content": {prompt}}}]']
    if (system := template.system_message) is not None:
        lines.append(f'messages.insert(0, {{"role": "system", "content": {system!r}}})')
    return [
        *lines,
        "prompt = tokenizer.apply_chat_template(",
        "    messages, tokenize=False, add_generation_prompt=True",
        ")",
        'inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")',
    ]


def _output_code(task: Mapping[str, Any]) -> list[str]:
    if task["kind"] == "generation":
        return [
            f"tokens = model.generate(**inputs, max_new_tokens={task['max_new_tokens']!r})[0]",
            'print(tokenizer.decode(tokens[len(inputs["input_ids"][0]) :]))',
        ]
    lines = [
        "model.config.pad_token_id = tokenizer.pad_token_id",
        "outputs = model(**inputs).logits[0]",
    ]
    if task["kind"] == "multilabel":
        return [
            *lines, f"labels = {task['labels']!r}",
            f"chosen = outputs.sigmoid() >= {task['threshold']!r}",
            "print([label for label, yes in zip(labels, chosen) if yes])",
        ]  # fmt: skip
    if task["kind"] == "tagging":
        return [
            *lines, f"labels = {task['labels']!r}",
            'tags = ["O"] + [f"{part}-{label}" for label in labels for part in "BI"]',
            "print([tags[int(one.argmax())] for one in outputs])",
        ]  # fmt: skip
    if task["kind"] == "ranking":
        return [*lines, "print(float(outputs[0]))"]
    if task["kind"] == "classification":
        return [*lines, f"labels = {task['labels']!r}", "print(labels[int(outputs.argmax())])"]
    number = f"float(outputs[0]) * {task['deviation']!r} + {task['mean']!r}"
    if task["scale"] == "log":
        return ["import math", "", *lines, f"print(math.exp({number}))"]
    return [*lines, f"print({number})"]


def escape(value: Any) -> str:
    """A value as text in one line, with Markdown's markup escaped."""
    return _MARKUP.sub(r"\\\1", " ".join(str(value).split()))


def code(value: Any) -> str:
    """A value as inline code: a text unchanged, anything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{' '.join(text.replace('`', chr(39)).split()) or ' '}`"
