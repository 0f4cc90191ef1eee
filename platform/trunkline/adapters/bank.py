"""The adapters that stand beside the base, and the switch between them.

Owns: LoRA at inference. Must not know: refs, the registry, tasks' decoding.

Reads safetensors itself (importing peft takes seconds). One adapter is active at a time: inside
:meth:`Bank.using` every target layer adds ``scaling · B (A x)`` to its output, which is what PEFT
computes (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trunkline.adapters.artifact import WEIGHTS, Artifact
from trunkline.adapters.formats import REPAIR
from trunkline.adapters.lora import PREFIX, adapted_module, is_head
from trunkline.errors import BaseMismatchError, IntegrityError

if TYPE_CHECKING:
    import torch

_OTHER_BASE = "It was made for another base."


@dataclass(frozen=True, slots=True)
class Resident:
    """One adapter in memory.

    ``layers`` maps a module's name in the base to ``A [rank, in]`` and ``B [out, rank]``;
    ``head`` is ``[outputs, hidden]`` or None.
    """

    artifact: Artifact
    layers: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    head: torch.Tensor | None


class Bank:
    """The resident adapters of one base, by digest."""

    def __init__(self, model: Any, base_digest: str) -> None:
        trunk = f"{model.base_model_prefix}."
        self._linear = {
            name: (module, features)
            for name, module in model.named_modules()
            if name.startswith(trunk) and (features := _features(module)) is not None
        }
        self._hidden = int(model.config.get_text_config().hidden_size)
        self._base_digest = base_digest
        self._device = next(model.parameters()).device
        self._residents: dict[str, Resident] = {}
        self._lock = threading.RLock()
        self._in_use = False

    def __contains__(self, digest: str) -> bool:
        return digest in self._residents

    def __len__(self) -> int:
        return len(self._residents)

    def load(self, artifact: Artifact) -> Resident:
        """Make an adapter resident; a second time gives what is there.

        Raises:
            BaseMismatchError: it was trained on other weights.
            IntegrityError: its tensors don't fit the base, are not finite, or changed since the
                artifact was checked.
        """
        if (resident := self._residents.get(artifact.digest)) is not None:
            return resident
        check_base(artifact, self._base_digest)
        self._check_fits(artifact)
        tensors = {
            name: tensor.to(self._device).float()
            for name, tensor in _read_weights(artifact).items()
        }
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise IntegrityError(
                    f"{artifact.folder / WEIGHTS}: {name} holds NaN or infinity.", "Train it again."
                )
        layers = {
            module: (tensor, tensors[f"{PREFIX}{module}.lora_B.weight"])
            for name, tensor in tensors.items()
            if (module := adapted_module(name)) is not None
        }
        head = next((tensor for name, tensor in tensors.items() if is_head(name)), None)
        resident = Resident(artifact, layers, head)
        self._residents[artifact.digest] = resident
        return resident

    def get(self, digest: str) -> Resident | None:
        """The resident of this digest, if there is one."""
        return self._residents.get(digest)

    def unload(self, digest: str) -> None:
        """Forget a resident; unknown digests are ignored."""
        self._residents.pop(digest, None)

    @contextmanager
    def using(self, digest: str | None) -> Iterator[Resident | None]:
        """Run the base with one resident, or bare (None), until the block ends.

        Another thread waits until then. Blocks don't nest.
        """
        with self._lock:
            if self._in_use:
                raise RuntimeError("Bank.using does not nest: one adapter is active at a time.")
            resident = None if digest is None else self._residents[digest]
            handles: list[Any] = []
            self._in_use = True
            try:
                if resident is not None:
                    scaling = resident.artifact.lora.scaling
                    for name, (down, up) in resident.layers.items():
                        hook = _adding(down, up, scaling)
                        handles.append(self._linear[name][0].register_forward_hook(hook))
                yield resident
            finally:
                for handle in handles:
                    handle.remove()
                self._in_use = False

    def _check_fits(self, artifact: Artifact) -> None:
        """Compare the header's shapes with the base, before a tensor is read."""
        wanted = {name for name in self._linear if artifact.lora.adapts(name)}
        adapted = {
            module: (info.shape[1], artifact.tensors[f"{PREFIX}{module}.lora_B.weight"].shape[0])
            for name, info in artifact.tensors.items()
            if (module := adapted_module(name)) is not None
        }
        for name in sorted(adapted.keys() - wanted):
            raise IntegrityError(
                f"{artifact.folder} adapts {name!r}, which this base does not have.", _OTHER_BASE
            )
        for name in sorted(wanted - adapted.keys()):
            raise IntegrityError(
                f"{artifact.folder} lacks the matrices of {name!r}, though its configuration "
                "adapts it.",
                REPAIR,
            )
        for name, (inputs, outputs) in adapted.items():
            features = self._linear[name][1]
            if (inputs, outputs) != features:
                raise IntegrityError(
                    f"{artifact.folder} adapts {name!r} with {inputs} inputs and {outputs} "
                    f"outputs; the base's layer has {features[0]} and {features[1]}.",
                    _OTHER_BASE,
                )
        for name, info in artifact.tensors.items():
            if is_head(name) and info.shape[1] != self._hidden:
                raise IntegrityError(
                    f"{artifact.folder} has a head for {info.shape[1]} hidden units; the base has "
                    f"{self._hidden}.",
                    _OTHER_BASE,
                )


def check_base(artifact: Artifact, base_digest: str) -> None:
    """Raise :class:`BaseMismatchError` unless the artifact was trained on these very weights."""
    wanted = artifact.manifest.base
    if wanted["digest"] != base_digest:
        raise BaseMismatchError(
            f"The adapter in {artifact.folder} was trained on {wanted['name']} "
            f"({wanted['digest'][:12]}…); the base here is {base_digest[:12]}….",
            f"Load the base it was trained on (`--base {wanted['name']}`), or train it again.",
        )


def _read_weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    """The tensors, out of the very bytes whose digest is compared."""
    from safetensors.torch import load

    path = artifact.folder / WEIGHTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"{path} can't be read: {error.strerror}.", REPAIR) from error
    if hashlib.sha256(data).hexdigest() != artifact.manifest.weights:
        raise IntegrityError(f"{path} was changed after it was published.", REPAIR)
    return load(data)


def _features(module: Any) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer, None for any other module.

    GPT-2's Conv1D is linear too, with its weight transposed.
    """
    weight = getattr(module, "weight", None)
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and weight is not None:
        return weight.shape[0], weight.shape[1]
    return None


def _adding(
    down: torch.Tensor, up: torch.Tensor, scaling: float
) -> Callable[[Any, tuple[Any, ...], Any], Any]:
    from torch.nn.functional import linear

    def hook(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        update = linear(linear(inputs[0].to(down.dtype), down), up) * scaling
        return output + update.to(output.dtype)

    return hook
