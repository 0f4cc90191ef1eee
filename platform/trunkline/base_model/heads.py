"""A classification head on the base's own trunk.

Owns: making a sequence-classification model that shares every parameter of the loaded base.
Must not know: labels, losses, adapters.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from trunkline.errors import BaseModelError

if TYPE_CHECKING:
    from trunkline.base_model.load import Base


def classification_model(base: Base, num_labels: int, *, seed: int = 0) -> Any:
    """The model that ``AutoModelForSequenceClassification.from_pretrained`` would make, without
    its memory: the trunk is the base's own module, only the head is new.

    Logits ``[batch, labels]`` of the last token that is no padding. PEFT replaces modules in
    place, so an adapter put into this model is in the base too: for training take
    :func:`~trunkline.base_model.load.load_fresh`.

    Args:
        base: the loaded base.
        num_labels: outputs of the head; 1 for a regression.
        seed: of the head's weights; the same as in ``load_fresh``.

    Raises:
        BaseModelError: transformers has no classification model for this architecture.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    from trunkline.base_model.quiet import quiet_transformers

    config = copy.deepcopy(base.model.config)
    config.num_labels = num_labels
    config.pad_token_id = base.tokenizer.pad_token_id
    try:
        with quiet_transformers(), torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, dtype=base.dtype)
    except ValueError as error:
        raise BaseModelError(
            f"The base {base.info.name!r} ({base.info.architecture}) can't classify: transformers "
            "has no such model for it.",
            "Use a base such as a Llama, Qwen2 or GPT-2 for classification and regression.",
        ) from error
    setattr(model, model.base_model_prefix, getattr(base.model, base.model.base_model_prefix))
    for name, parameter in outside_backbone(model).items():
        owner, _, leaf = name.rpartition(".")
        empty = torch.empty_like(parameter, device=base.device)
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(empty))
    draw_head(model, seed)
    return model.eval()


def outside_backbone(model: Any) -> dict[str, Any]:
    """Name → parameter of the head on top of the trunk: ``score.weight`` ``[labels, hidden]``."""
    prefix = f"{model.base_model_prefix}."
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith(prefix)
    }


def draw_head(model: Any, seed: int) -> None:
    """Fill the head: weights normal with the config's ``initializer_range``, biases zero.

    Drawn in fp32 on the CPU, so that the same seed gives the same head everywhere.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    deviation = float(getattr(model.config, "initializer_range", 0.02))
    with torch.no_grad():
        for parameter in outside_backbone(model).values():
            if parameter.dim() < 2:
                parameter.zero_()
                continue
            drawn = torch.empty(parameter.shape, dtype=torch.float32)
            parameter.copy_(drawn.normal_(0.0, deviation, generator=generator))
