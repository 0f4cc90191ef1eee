"""Proof that what lies on disk is what was trained.

Owns: the comparison made before every publication. Must not know: the registry.

The artifact is loaded from its files beside the clean base, as a server would. On a sample of
rows it must give what the trained model gave, and must differ from the bare base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trunkline.adapters.artifact import Artifact
from trunkline.errors import TrainingError
from trunkline.inference.engine import Engine
from trunkline.inference.forward import last_hidden, next_logits
from trunkline.tasks import AnyTask, GenerationTask
from trunkline.tasks.batches import pad

SAMPLE = 16
TOLERANCE = {"torch.float32": 1e-3, "torch.float16": 5e-2, "torch.bfloat16": 2e-1}
"""Largest difference allowed between outputs, as a share of the largest output."""

LEAST_EFFECT = 1e-6
"""An adapter that moves the outputs by a smaller share does nothing."""


@dataclass(frozen=True, slots=True)
class Proof:
    """Differences as shares of the largest output of the trained model."""

    rows: int
    to_trained: float
    to_base: float


def prove(
    trained: Any, engine: Engine, artifact: Artifact, task: AnyTask, prompts: Sequence[list[int]]
) -> Proof:
    """Compare the artifact with the trained model and with the bare base.

    Args:
        trained: the model as training left it.
        engine: on a clean copy of the base.
        artifact: just written, read back.
        task: what is compared: a head's outputs, or the next token's logits.
        prompts: token ids of some held-out rows.

    Raises:
        TrainingError: the outputs differ from the trained model's, or do not differ from the
            base's.
    """
    import torch

    sample = list(prompts[:SAMPLE])
    pad_id = engine.base.tokenizer.pad_token_id
    model = engine.base.model
    resident = engine.pool.load(artifact)
    trained.eval()
    with torch.inference_mode():
        if isinstance(task, GenerationTask):
            wanted = next_logits(trained, sample, pad_id)
            bare = next_logits(model, sample, pad_id)
            with engine.pool.activate(artifact.digest):
                ours = next_logits(model, sample, pad_id)
        else:
            batch = pad(sample, pad_id)
            wanted = trained(**{name: ids.to(trained.device) for name, ids in batch.items()})
            wanted = wanted.logits.float()
            assert resident.head is not None
            bare = last_hidden(model, sample, pad_id) @ resident.head.T
            with engine.pool.activate(artifact.digest):
                ours = last_hidden(model, sample, pad_id) @ resident.head.T
    wanted = wanted.to(ours.device)
    size = float(wanted.abs().max()) or 1.0
    proof = Proof(
        rows=len(sample),
        to_trained=float((ours - wanted).abs().max()) / size,
        to_base=float((ours - bare).abs().max()) / size,
    )
    if not proof.to_trained <= TOLERANCE[str(engine.base.dtype)]:
        raise TrainingError(
            f"Loaded back from disk, the adapter's outputs differ from the trained model's by "
            f"{proof.to_trained:.1%}: weights or head did not survive.",
            "Nothing was published. Check the recipe's target_modules.",
        )
    if not proof.to_base > LEAST_EFFECT:
        raise TrainingError(
            "The adapter does nothing: its outputs are those of the bare base.",
            "Nothing was published. Train longer or with a higher learning rate.",
        )
    return proof
