"""Write the artifact, and prove before publication that it gives the trained model's outputs.

The artifact is loaded from its files into the engine, as a server would load it. On a sample of
rows its outputs must match the trained model's and differ from the bare base's.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.adapters.artifact import Artifact, read_artifact, seal
from trunkline.bases import ImageBaseInfo
from trunkline.data.prepare import Prepared
from trunkline.errors import TrainingError, TrunklineError
from trunkline.inference.forward import last_hidden, next_logits
from trunkline.inference.image_engine import AnyEngine, ImageEngine
from trunkline.tasks import AnyTask, GenerationTask, TaggingTask
from trunkline.tasks.batches import PIXELS, pad
from trunkline.training.job import TrainingJob, prompt_of
from trunkline.training.model import restore_base

if TYPE_CHECKING:
    import torch

    from trunkline.lora.weights import Head

SAMPLE = 16
TOLERANCE = {"torch.float32": 1e-3, "torch.float16": 5e-2, "torch.bfloat16": 2e-1}
"""Largest allowed difference between outputs, as a share of the largest output."""

LEAST_EFFECT = 1e-6
"""An adapter that changes the outputs by a smaller share has no effect."""


class NoEffectError(TrainingError):
    """The adapter changes nothing; neither its checkpoints nor another evaluation help."""


@dataclass(frozen=True, slots=True)
class Proof:
    """Differences from the trained model and the base, as shares of the largest output."""

    rows: int
    to_trained: float
    to_base: float


ProofInput = list[int] | Callable[[], "torch.Tensor"]
"""Token ids of a prompt, or a function that returns a picture ``[3, height, width]``."""


def proof_input(example: Mapping[str, Any]) -> ProofInput:
    """What the proof computes of an example."""
    picture: Callable[[], torch.Tensor] | None = example.get(PIXELS)
    return prompt_of(example) if picture is None else picture


def _pictures(sample: Sequence[ProofInput]) -> torch.Tensor | None:
    """The batch ``[rows, 3, height, width]`` of a sample of pictures; None if it is of prompts."""
    import torch

    if not callable(sample[0]):
        return None
    return torch.stack([one() for one in sample if callable(one)])


def trained_outputs(
    trained: Any, task: AnyTask, prompts: Sequence[ProofInput], pad_id: int
) -> torch.Tensor:
    """What the proof compares: outputs of the head, or logits of the next token, ``[rows, …]``.

    Args:
        trained: the model after training.
        prompts: of some held-out rows, of which :data:`SAMPLE` are used.
    """
    import torch

    sample: Any = list(prompts[:SAMPLE])
    trained.eval()
    with torch.inference_mode():
        if (pictures := _pictures(sample)) is not None:
            logits: torch.Tensor = trained(pixel_values=pictures.to(trained.device)).logits.float()
            return logits
        if isinstance(task, GenerationTask):
            return next_logits(trained, sample, pad_id)
        batch = {name: ids.to(trained.device) for name, ids in pad(sample, pad_id).items()}
        outputs: torch.Tensor = trained(**batch).logits.float()
        if isinstance(task, TaggingTask):  # a head on every token: compare at the last one
            last = [len(ids) - 1 for ids in sample]
            return outputs[range(len(sample)), last]
        return outputs


def prove(
    expected: torch.Tensor,
    engine: AnyEngine,
    artifact: Artifact,
    task: AnyTask,
    prompts: Sequence[ProofInput],
) -> Proof:
    """Compare the artifact with the trained model and with the bare base.

    Args:
        expected: the trained model's outputs, from :func:`trained_outputs`.
        engine: holds a clean copy of the base.
        artifact: written and read back.
        task: decides what is compared: a head's outputs, or the next token's logits.
        prompts: those of ``expected``.

    Raises:
        TrainingError: the outputs differ from the trained model's.
        NoEffectError: they equal the base's.
    """
    import torch

    sample = list(prompts[:SAMPLE])
    resident = engine.pool.load(artifact)
    outputs = partial(_engine_outputs, engine, resident.head, task, sample)
    with torch.inference_mode():
        bare = outputs()
        with engine.pool.activate(artifact.digest):
            actual = outputs()
    expected = expected.to(actual.device)
    size = float(expected.abs().max()) or 1.0
    proof = Proof(
        rows=len(sample),
        to_trained=float((actual - expected).abs().max()) / size,
        to_base=float((actual - bare).abs().max()) / size,
    )
    if not proof.to_trained <= TOLERANCE[str(engine.base.dtype)]:
        raise TrainingError(
            f"The adapter's outputs after loading it from disk differ from the trained model's by "
            f"{proof.to_trained:.1%}: its weights or head were not saved correctly.",
            "Nothing was published. Check the recipe's target_modules.",
        )
    if not proof.to_base > LEAST_EFFECT:
        raise NoEffectError(
            "The adapter has no effect: its outputs equal those of the bare base.",
            "Nothing was published. Train longer or with a higher learning rate.",
        )
    return proof


def _engine_outputs(
    engine: AnyEngine, head: Head | None, task: AnyTask, sample: Any
) -> torch.Tensor:
    """What the engine's base computes now: outputs of the head, or the next token's logits."""
    model = engine.base.model
    if isinstance(engine, ImageEngine):
        pictures = _pictures(sample)
        assert head is not None
        assert pictures is not None
        return head(engine.base.model.pooled(pictures))
    pad_id = engine.base.tokenizer.pad_token_id
    if isinstance(task, GenerationTask):
        return next_logits(model, sample, pad_id)
    assert head is not None
    return head(last_hidden(model, sample, pad_id))


def write_artifact(
    model: Any,
    folder: Path,
    job: TrainingJob,
    prepared: Prepared,
    engine: AnyEngine,
    task: AnyTask,
    max_length: int | None,
    initial: Mapping[str, torch.Tensor],
) -> Artifact:
    """Save a trained model as an artifact, and read it back.

    Args:
        folder: replaced if it exists.
        max_length: the longest prompt with answer, in tokens; None: it reads pictures.
        initial: the first matrices, where the initialization changed the base's weights.

    Raises:
        TrainingError: it can't be served.
    """
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    model.save_pretrained(folder, save_embedding_layers=False)
    restore_base(folder, initial)
    (folder / "README.md").unlink(missing_ok=True)
    info = engine.base.info
    name = Path(info.name).name if Path(info.name).is_absolute() else info.name
    try:
        manifest = seal(
            folder,
            base={"name": name, "digest": info.digest},
            task=task.to_json(),
            template=job.recipe.template,
            max_length=max_length,
            preprocessing=(
                info.preprocessing.resized(job.settings.image_size)
                if isinstance(info, ImageBaseInfo)
                else None
            ),
            data={
                "dataset": job.dataset.name,
                "fingerprint": prepared.fingerprint,
                "split": prepared.split.fingerprint,
            },
        )
        return read_artifact(folder, manifest.digest)
    except TrunklineError as error:
        raise TrainingError(
            f"The trained adapter can't be served: {error.message}", error.hint
        ) from error
