"""An artifact's tensors, checked against the base that they are for.

Owns: what is refused before anything is touched, and reading safetensors (importing peft takes
seconds). Must not know: tiers, batches.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from trunkline.adapters.artifact import WEIGHTS, Artifact
from trunkline.adapters.config import adapted_module, is_head
from trunkline.adapters.reasons import PREFIX
from trunkline.errors import BaseMismatchError, IntegrityError
from trunkline.files import REPAIR, TensorInfo, parse_safetensors_header
from trunkline.lora.slots import Matrices

if TYPE_CHECKING:
    import torch

Features = Mapping[str, tuple[int, int]]
"""Linear layer of the base → its inputs and outputs."""

_OWN: dict[str, int] = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
)
"""Of memory that no other process shares; systems without the flags have no other."""

_OTHER_BASE = "It was made for another base."


def read_weights(
    artifact: Artifact, base_digest: str, linear: Features, hidden: int
) -> tuple[Matrices, torch.Tensor | None]:
    """The matrices by module, and the head ``[outputs, hidden]`` or None; all in float32.

    Args:
        artifact: whose digests were checked.
        base_digest: of the base here.
        linear: its layers.
        hidden: its width.

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
        module: (tensor.float(), tensors[f"{PREFIX}{module}.lora_B.weight"].float())
        for key, tensor in tensors.items()
        if (module := adapted_module(key)) is not None
    }
    head = next((tensor for key, tensor in tensors.items() if is_head(key)), None)
    return matrices, None if head is None else head.float()


def check_base(artifact: Artifact, base_digest: str) -> None:
    """Raise :class:`BaseMismatchError` unless the artifact was trained on these very weights."""
    wanted = artifact.manifest.base
    if wanted["digest"] != base_digest:
        raise BaseMismatchError(
            f"The adapter in {artifact.folder} was trained on {wanted['name']} "
            f"({wanted['digest'][:12]}…); the base here is {base_digest[:12]}….",
            f"Load the base it was trained on (`--base {wanted['name']}`), or train it again.",
        )


def _check_fits(artifact: Artifact, linear: Features, hidden: int) -> None:
    """Compare the header's shapes with the base, before a tensor is read."""
    wanted = {name for name in linear if artifact.lora.adapts(name)}
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
    """The tensors, in place in the very bytes whose digest is compared.

    Those lie in pages of their own, which the system has back when the last tensor is gone:
    hundreds of small tensors an adapter would leave holes all over the heap.
    """
    path = artifact.folder / WEIGHTS
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = mmap.mmap(-1, max(1, size), **_OWN)
            read = file.readinto(data)
    except OSError as error:
        raise IntegrityError(f"{path} can't be read: {error.strerror}.", REPAIR) from error
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
    if info.start % dtype.itemsize:  # the format does not forbid it
        plain = bytearray(data[info.start : info.start + numbers * dtype.itemsize])
        return torch.frombuffer(plain, dtype=dtype).view(info.shape)
    return torch.frombuffer(data, dtype=dtype, count=numbers, offset=info.start).view(info.shape)
