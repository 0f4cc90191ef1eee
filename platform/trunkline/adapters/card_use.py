"""How a version is used without Trunkline: Python that plain PEFT and transformers run.

Owns: that part of the card. Must not know: where the version comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trunkline.adapters.artifact import Manifest
from trunkline.adapters.markdown import code, words

_CLEANING = {
    "strip": "text = text.strip()",
    "squeeze": 'text = " ".join(text.split())',
    "lowercase": "text = text.lower()",
}


def use_lines(manifest: Manifest) -> list[str]:
    """What the outputs mean, and the code, in Markdown.

    The code wants ``BASE``, a folder or repository of the base, ``ADAPTER``, this folder, and
    ``text``.
    """
    task = manifest.task
    headed = task["kind"] != "generation"
    model = "AutoModelForSequenceClassification" if headed else "AutoModelForCausalLM"
    outputs = len(task.get("labels", ())) if task["kind"] == "classification" else 1
    head = f", num_labels={outputs}" if headed else ""
    return [
        _meaning(task),
        "",
        "```python",
        "from peft import PeftModel",
        f"from transformers import {model}, AutoTokenizer",
        "",
        "tokenizer = AutoTokenizer.from_pretrained(BASE)",
        f"model = {model}.from_pretrained(BASE{head})",
        "model = PeftModel.from_pretrained(model, ADAPTER).eval()",
        *(_CLEANING[step] for step in manifest.template["clean"]),
        *_prompt(manifest.template),
        *_answer(task),
        "```",
    ]


def _prompt(template: Mapping[str, Any]) -> list[str]:
    before, _, after = template["prompt"].partition("{text}")
    filled = " + ".join([repr(part) for part in (before,) if part] + ["text"])
    filled += f" + {after!r}" if after else ""
    if not template["chat"]:
        return [f'inputs = tokenizer({filled}, return_tensors="pt")']
    lines = [f'messages = [{{"role": "user", "content": {filled}}}]']
    if template["system"] is not None:
        lines.append(f'messages.insert(0, {{"role": "system", "content": {template["system"]!r}}})')
    return [
        *lines,
        "prompt = tokenizer.apply_chat_template(",
        "    messages, tokenize=False, add_generation_prompt=True",
        ")",
        'inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")',
    ]


def _answer(task: Mapping[str, Any]) -> list[str]:
    if task["kind"] == "generation":
        return [
            f"made = model.generate(**inputs, max_new_tokens={task['max_new_tokens']!r})[0]",
            'print(tokenizer.decode(made[len(inputs["input_ids"][0]) :]))',
        ]
    lines = [
        "model.config.pad_token_id = tokenizer.pad_token_id",
        "outputs = model(**inputs).logits[0]",
    ]
    if task["kind"] == "classification":
        return [*lines, f"labels = {task['labels']!r}", "print(labels[int(outputs.argmax())])"]
    number = f"float(outputs[0]) * {task['deviation']!r} + {task['mean']!r}"
    if task["scale"] == "log":
        return ["import math", "", *lines, f"print(math.exp({number}))"]
    return [*lines, f"print({number})"]


def _meaning(task: Mapping[str, Any]) -> str:
    if task["kind"] == "classification":
        return f"The outputs at the prompt's last token are the logits of {code(task['labels'])}."
    if task["kind"] == "regression":
        unit = f", in {words(str(task['unit']))}" if task["unit"] else ""
        scale = ", on a log scale" if task["scale"] == "log" else ""
        return f"The output at the prompt's last token is the number, standardized{scale}{unit}."
    return f"An answer has at most {task['max_new_tokens']} new tokens."
