"""Read an artifact's tensors, without PEFT, and check that they fit the base."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trunkline.adapters.artifact import WEIGHTS, Artifact
from trunkline.adapters.config import MAGNITUDE, PREFIX, adapted_module, is_head, is_head_bias
from trunkline.errors import BaseMismatchError, IntegrityError, reason_of
from trunkline.files import REPAIR, TensorInfo, parse_safetensors_header
from trunkline.lora.slots import Matrices

if TYPE_CHECKING:
    import torch

Features = Mapping[str, tuple[int, int]]
"""Linear layer or 1×1 convolution of the base → its input and output features."""

_OWN: dict[str, int] = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
)
"""Private memory, on systems that have a choice."""

_OTHER_BASE = "It was made for another base."


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A linear layer on hidden states, in float32.

    Attributes:
        weight: ``[outputs, hidden]``.
        bias: ``[outputs]``, or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[…, hidden]`` of any float type → ``[…, outputs]`` float32."""
        from torch.nn.functional import linear

        return linear(hidden.float(), self.weight, self.bias)

    @property
    def nbytes(self) -> int:
        return int(self.weight.nbytes) + (0 if self.bias is None else int(self.bias.nbytes))

    def to(self, device: torch.device) -> Head:
        """The same head on a device."""
        bias = None if self.bias is None else self.bias.to(device)
        return Head(self.weight.to(device), bias)


def read_weights(
    artifact: Artifact, base_digest: str, linear: Features, hidden: int
) -> tuple[Matrices, Head | None]:
    """Read the matrices by module, and the head if the task has one; all in float32.

    Args:
        artifact: with verified digests.
        base_digest: of the current base.
        linear: layers of the base.
        hidden: hidden size of the base.

    Raises:
        BaseMismatchError: it was trained on other weights.
        IntegrityError: its tensors don't fit the base, are not finite, or changed since the
            artifact was checked.
    """
    check_base(artifact, base_digest)
    _check_fits(artifact, linear, hidden)
    tensors = _read(artifact)
    for key, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise IntegrityError(
                f"{artifact.folder / WEIGHTS}: {key} holds NaN or infinity.", "Train it again."
            )
    matrices = {
        module: (
            tensor.float().flatten(1),
            tensors[f"{PREFIX}{module}.lora_B.weight"].float().flatten(1),
        )
        for key, tensor in tensors.items()
        if (module := adapted_module(key)) is not None
    }
    weight = next((tensor for key, tensor in tensors.items() if is_head(key)), None)
    if weight is None:
        return matrices, None
    bias = next((tensor for key, tensor in tensors.items() if is_head_bias(key)), None)
    return matrices, Head(weight.float(), None if bias is None else bias.float())


def read_magnitudes(artifact: Artifact) -> dict[str, torch.Tensor]:
    """The magnitudes ``[out]`` by module in float32; empty unless the adapter is DoRA.

    Raises:
        IntegrityError: they changed since the artifact was checked.
    """
    if not artifact.lora.use_dora:
        return {}
    return {
        key.removeprefix(PREFIX).removesuffix(MAGNITUDE): tensor.float()
        for key, tensor in _read(artifact).items()
        if key.endswith(MAGNITUDE)
    }


def check_base(artifact: Artifact, base_digest: str) -> None:
    """Raise :class:`BaseMismatchError` unless the artifact was trained on exactly these weights."""
    expected = artifact.manifest.base
    if expected["digest"] != base_digest:
        raise BaseMismatchError(
            f"The adapter in {artifact.folder} was trained on {expected['name']} "
            f"({expected['digest'][:12]}…); the current base is {base_digest[:12]}….",
            f"Load the base it was trained on (`--base {expected['name']}`), or train it again.",
        )


def _check_fits(artifact: Artifact, linear: Features, hidden: int) -> None:
    """Compare the shapes in the header with the base, before any tensor is read."""
    expected = {name for name in linear if artifact.lora.adapts(name)}
    adapted = {
        module: (info.shape[1], artifact.tensors[f"{PREFIX}{module}.lora_B.weight"].shape[0])
        for name, info in artifact.tensors.items()
        if (module := adapted_module(name)) is not None
    }
    for name in sorted(adapted.keys() - expected):
        raise IntegrityError(
            f"{artifact.folder} adapts {name!r}, which this base does not have.", _OTHER_BASE
        )
    for name in sorted(expected - adapted.keys()):
        raise IntegrityError(
            f"{artifact.folder} lacks the matrices of {name!r}, although its configuration "
            "adapts it.",
            REPAIR,
        )
    for name, (inputs, outputs) in adapted.items():
        features = linear[name]
        if (inputs, outputs) != features:
            raise IntegrityError(
                f"{artifact.folder} adapts {name!r} with {inputs} inputs and {outputs} "
                f"outputs; the base's layer has {features[0]} and {features[1]}.",
                _OTHER_BASE,
            )
    for name, info in artifact.tensors.items():
        if is_head(name) and info.shape[1] != hidden:
            raise IntegrityError(
                f"{artifact.folder} has a head for {info.shape[1]} hidden units; the base has "
                f"{hidden}.",
                _OTHER_BASE,
            )


def _read(artifact: Artifact) -> Mapping[str, torch.Tensor]:
    """Read the file, compare its digest, and view the tensors in the same bytes.

    The bytes are mapped memory, which returns to the system with the last tensor. Hundreds of small
    tensors on the heap would fragment it.
    """
    path = artifact.folder / WEIGHTS
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = mmap.mmap(-1, max(1, size), **_OWN)
            read = file.readinto(data)
    except OSError as error:
        raise IntegrityError(f"{path} can't be read: {reason_of(error)}.", REPAIR) from error
    if read != size or hashlib.sha256(data).hexdigest() != artifact.manifest.weights:
        raise IntegrityError(f"{path} was changed after it was published.", REPAIR)
    return {
        name: _tensor(data, info)
        for name, info in parse_safetensors_header(data, size, f"{path}").items()
    }


def _tensor(data: mmap.mmap, info: TensorInfo) -> torch.Tensor:
    import torch

    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[info.dtype]
    numbers = math.prod(info.shape)
    if info.start % dtype.itemsize:  # the format allows unaligned tensors
        plain = bytearray(data[info.start : info.start + numbers * dtype.itemsize])
        return torch.frombuffer(plain, dtype=dtype).view(info.shape)
    return torch.frombuffer(data, dtype=dtype, count=numbers, offset=info.start).view(info.shape)
