"""The model card of a version that was made elsewhere. Owns its words; lies outside the identity.

The card that the adapter may have come with is not read: what is not known here is NOT PROVIDED.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trunkline.adapters.artifact import Manifest
from trunkline.refs import Ref


def imported_card(
    ref: Ref,
    manifest: Manifest,
    config: Mapping[str, Any],
    folder: str,
    named_base: str | None,
) -> str:
    """Markdown with a Hugging Face metadata block.

    Args:
        ref: of the adapter.
        manifest: of the version.
        config: PEFT's, its targets as names.
        folder: the name of the folder that it came from.
        named_base: what it says of its base, unverified.
    """
    base, task = manifest.base, manifest.task
    lora = f"Rank {config['r']}, alpha {config['lora_alpha']:g}"
    if config.get("use_rslora"):
        lora += ", rank-stabilised"
    return "\n".join(
        [
            "---",
            f"base_model: {json.dumps(base['name'])}",
            "library_name: peft",
            f"tags: [lora, trunkline, imported, {task['kind']}]",
            "---",
            f"# {ref}",
            "",
            "Made elsewhere and imported; what is not known of it stands here as NOT PROVIDED. A "
            f"LoRA adapter on {_code(base['name'])} (sha256 of the base `{base['digest']}`).",
            "",
            "## Origin",
            f"- imported from a folder called {_code(folder)}",
            f"- the base that it names: {_code(named_base) if named_base else 'NOT PROVIDED'}; "
            "that it was trained on the base above was not verified, only that it fits",
            "- author, licence, training: NOT PROVIDED",
            "",
            "## Data",
            "NOT PROVIDED",
            "",
            "## Judgement",
            "NOT PROVIDED",
            "",
            "## Use",
            f"{lora}. Task: {_code(dict(task))}. The prompt is made by this template: "
            f"{_code(dict(manifest.template))}.",
            "",
            "## Intended use, limits, contact",
            "NOT PROVIDED",
            "",
        ]
    )


def _code(value: Any) -> str:
    """A value as code in Markdown; foreign text can't end it or begin a new line."""
    return f"`{json.dumps(value, ensure_ascii=False).replace('`', chr(39))}`"
