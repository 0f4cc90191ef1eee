"""The adapters that stand beside the base, and the switch between them.

Owns: LoRA at inference. Must not know: refs, the registry, tasks' decoding.

Reads safetensors itself (importing peft takes seconds). One adapter is active at a time: inside
:meth:`Bank.using` every target layer adds ``scaling · B (A x)`` to its output, which is what PEFT
computes (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trunkline.adapters.artifact import WEIGHTS, Artifact, is_head
from trunkline.errors import BaseMismatchError, IntegrityError

if TYPE_CHECKING:
    import torch

_PREFIX = "base_model.model."


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
        self._modules = dict(model.named_modules())
        self._base_digest = base_digest
        self._device = next(model.parameters()).device
        self._residents: dict[str, Resident] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._residents

    def __len__(self) -> int:
        return len(self._residents)

    def load(self, artifact: Artifact) -> Resident:
        """Make an adapter resident; a second time gives what is there.

        Raises:
            BaseMismatchError: it was trained on other weights.
            IntegrityError: its tensors don't fit the base, or are not finite.
        """
        if (resident := self._residents.get(artifact.digest)) is not None:
            return resident
        check_base(artifact, self._base_digest)
        from safetensors.torch import load_file

        tensors = load_file(artifact.folder / WEIGHTS, device=str(self._device))
        layers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        head: torch.Tensor | None = None
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise IntegrityError(
                    f"{artifact.folder / WEIGHTS}: {name} holds NaN or infinity.", "Train it again."
                )
            if is_head(name):
                head = tensor.float()
            elif name.endswith(".lora_A.weight"):
                module = name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
                up = tensors[name.replace(".lora_A.weight", ".lora_B.weight")]
                self._check_fits(artifact, module, tensor, up)
                layers[module] = (tensor.float(), up.float())
        resident = Resident(artifact, layers, head)
        self._residents[artifact.digest] = resident
        return resident

    def unload(self, digest: str) -> None:
        """Forget a resident; unknown digests are ignored."""
        self._residents.pop(digest, None)

    @contextmanager
    def using(self, digest: str | None) -> Iterator[Resident | None]:
        """Run the base with one resident, or bare (None), until the block ends."""
        if digest is None:
            yield None
            return
        resident = self._residents[digest]
        scaling = resident.artifact.lora.scaling
        handles = [
            self._modules[name].register_forward_hook(_adding(down, up, scaling))
            for name, (down, up) in resident.layers.items()
        ]
        try:
            yield resident
        finally:
            for handle in handles:
                handle.remove()

    def _check_fits(
        self, artifact: Artifact, name: str, down: torch.Tensor, up: torch.Tensor
    ) -> None:
        module = self._modules.get(name)
        weight = getattr(module, "weight", None)
        if weight is None or weight.dim() != 2:
            raise IntegrityError(
                f"{artifact.folder} adapts {name!r}, which this base does not have.",
                "It was made for another base.",
            )
        inputs, outputs = _features(module)
        if down.shape[1] != inputs or up.shape[0] != outputs:
            raise IntegrityError(
                f"{artifact.folder} adapts {name!r} with {down.shape[1]} inputs and "
                f"{up.shape[0]} outputs; the base's layer has {inputs} and {outputs}.",
                "It was made for another base.",
            )


def check_base(artifact: Artifact, base_digest: str) -> None:
    """Raise :class:`BaseMismatchError` unless the artifact was trained on these very weights."""
    wanted = artifact.manifest.base
    if wanted["digest"] != base_digest:
        raise BaseMismatchError(
            f"The adapter in {artifact.folder} was trained on {wanted['name']} "
            f"({wanted['digest'][:19]}…); the base here is {base_digest[:19]}….",
            f"Load the base it was trained on (`--base {wanted['name']}`), or train it again.",
        )


def _features(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear layer; GPT-2's Conv1D stores its weight transposed."""
    if hasattr(module, "in_features"):
        return module.in_features, module.out_features
    return module.weight.shape[0], module.weight.shape[1]


def _adding(
    down: torch.Tensor, up: torch.Tensor, scaling: float
) -> Callable[[Any, tuple[Any, ...], Any], Any]:
    from torch.nn.functional import linear

    def hook(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        update = linear(linear(inputs[0].to(down.dtype), down), up) * scaling
        return output + update.to(output.dtype)

    return hook
