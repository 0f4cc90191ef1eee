"""The head of a sequence-classification model on top of the base's trunk.

Owns: which parameters are the head's, and how a new one is drawn. Must not know: labels, losses,
adapters.
"""

from __future__ import annotations

from typing import Any


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
