"""Weights and tokenizer in memory, once.

Owns: device and dtype, the one base that this process holds, and fresh models for training.
Must not know: adapters; how prompts are made.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trunkline.bases.info import BaseInfo, describe
from trunkline.bases.linear import FusedLayers, Quantized, fuse_linear_layers
from trunkline.bases.quiet import quiet_transformers
from trunkline.errors import BaseModelError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

_DTYPES = {
    "fp32": "float32", "float32": "float32",
    "bf16": "bfloat16", "bfloat16": "bfloat16",
    "fp16": "float16", "float16": "float16",
}  # fmt: skip
QUANTISED: tuple[Quantized, ...] = ("int8", "nf4")


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """The loaded base.

    Attributes:
        info: what it is.
        model: a causal LM of transformers, in eval mode, no parameter asking for a gradient.
            Whatever is injected into it, others see too: for training take :func:`load_fresh`.
        tokenizer: has a pad token; callers choose the side of the padding.
        device, dtype: of the parameters.
        trunk: what its linear layers became.
        quantized: how the weights of those are kept, if not as ``dtype``.
    """

    info: BaseInfo
    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    fused_layers: FusedLayers
    quantized: Quantized | None = None

    @property
    def digest(self) -> str:
        """The base's identity, 64 hex digits."""
        return self.info.digest

    @property
    def kind(self) -> str:
        """The arithmetic of the linear layers: ``float32``, ``bfloat16``, ``int8``, ``nf4``."""
        return self.quantized or str(self.dtype).removeprefix("torch.")


_held: Base | None = None
_lock = threading.Lock()


def load(name: str, *, device: str = "auto", dtype: str = "auto") -> Base:
    """The base ``name`` in memory; the same object every time.

    Args:
        name: of a base that is on this machine.
        device: ``auto`` (CUDA, else MPS, else CPU) or a device of torch.
        dtype: ``auto`` (CPU and MPS fp32; CUDA bf16, fp16 where it has none), ``fp32``, ``bf16``,
            ``fp16``; ``int8`` (CPU) or ``nf4`` (with bitsandbytes) keep the linear layers so, and
            compute the rest as ``auto``.

    Raises:
        BaseModelError: it is not here or damaged, or this process holds another base, or this one
            on another device or in another dtype.
    """
    global _held
    with _lock:
        info = describe(name)
        if _held is not None:
            _check_same(_held, info, device, dtype)
            return _held
        target = pick_device(device)
        quantized = pick_quantized(dtype, target)
        kind = pick_dtype("auto" if quantized else dtype, target)
        with ThreadPoolExecutor(1, "trunkline-load") as apart:
            _held = apart.submit(_load_base, info, target, kind, quantized).result()
        return _held


def _load_base(
    info: BaseInfo, device: torch.device, dtype: torch.dtype, quantized: Quantized | None
) -> Base:
    """Runs in a thread of its own: the caller's thread must not keep OpenMP workers.

    libgomp lets workers sleep at once where the teams of all threads together have more members
    than there are processors, and waking them at each small product makes a step of the engine,
    which has its own thread, half as fast again.
    """
    tokenizer = _load_tokenizer(info.folder)
    model = _load_model(info, None, device, dtype, tokenizer.pad_token_id, seed=0)
    model.requires_grad_(False)
    fused_layers = fuse_linear_layers(model, quantized=quantized)
    return Base(info, model, tokenizer, device, dtype, fused_layers, quantized)


def release() -> None:
    """Forget the held base, so that another can be loaded; memory goes when nobody uses it."""
    global _held
    with _lock:
        _held = None


def load_fresh(
    name: str, head: int | None = None, *, device: str = "auto", dtype: str = "auto", seed: int = 0
) -> Any:
    """A model of its own from the base's files, to be trained and thrown away.

    Stands outside the one-base rule and shares nothing with :func:`load`.

    Args:
        name: of a base that is on this machine.
        head: None for the causal LM; else a sequence-classification model with so many outputs,
            its head drawn from ``seed``.
        device, dtype: as in :func:`load`.
        seed: of the head; the same on every device.

    Returns:
        A plain transformers model in eval mode, its parameters asking for gradients.
    """
    info = describe(name)
    target = pick_device(device)
    pad = _load_tokenizer(info.folder).pad_token_id if head is not None else None
    if dtype in QUANTISED:
        raise UsageError(
            f"A base in {dtype} is for inference; training needs it in floating point.",
            "Leave --dtype away, or take fp32 or bf16.",
        )
    return _load_model(info, head, target, pick_dtype(dtype, target), pad, seed=seed)


def pick_quantized(dtype: str, device: torch.device) -> Quantized | None:
    """How the linear layers are kept under ``dtype``, if not in floating point.

    Raises:
        UsageError: it can't be computed here.
    """
    from importlib.util import find_spec

    if dtype == "int8":
        if device.type != "cpu":
            raise UsageError(
                f"int8 is computed on a CPU, not on {device}.", "Take bf16 or nf4 there."
            )
        return "int8"
    if dtype == "nf4":
        if find_spec("bitsandbytes") is None:
            raise UsageError("nf4 needs the package bitsandbytes.", "pip install 'trunkline[nf4]'")
        return "nf4"
    return None


def pick_device(device: str) -> torch.device:
    """The device that ``device`` stands for.

    Raises:
        UsageError: no such device, or not on this machine.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"The device {device!r} can't be used here.", "Use auto, cpu, cuda, cuda:1 or mps."
        ) from error
    return picked


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype that ``dtype`` stands for on ``device``.

    Raises:
        UsageError: an unknown word.
    """
    import torch

    if dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if dtype not in _DTYPES:
        raise UsageError(
            f"The base can't be loaded as {dtype!r}.", "Use auto, fp32, bf16, fp16, int8 or nf4."
        )
    kind: torch.dtype = getattr(torch, _DTYPES[dtype])
    return kind


def _check_same(held: Base, wanted: BaseInfo, device: str, dtype: str) -> None:
    if held.digest != wanted.digest:
        raise BaseModelError(
            f"This process holds the base {held.info.name!r} and can't load {wanted.name!r} "
            "beside it.",
            "Use another process for it, or call trunkline.bases.release() first.",
        )
    wants = pick_quantized(dtype, held.device)
    on_it = device == "auto" or _same_device(pick_device(device), held.device)
    same = wants == held.quantized and (
        wants is not None or pick_dtype(dtype, held.device) == held.dtype
    )
    if not on_it or (dtype != "auto" and not same):
        raise BaseModelError(
            f"This process holds the base {held.info.name!r} on {held.device} as {held.kind}, not "
            f"on {device} as {dtype}.",
            "Ask for the same device and dtype, or call trunkline.bases.release() first.",
        )


def _same_device(one: torch.device, other: torch.device) -> bool:
    return one.type == other.type and (one.index or 0) == (other.index or 0)


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # transformers and tokenizers raise whatever a bad file leads to
        raise _unreadable(folder, "tokenizer", error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise BaseModelError(
            f"The tokenizer of the base in {folder} has neither a pad nor an end token.",
            "Set tokenizer.eos_token and save it again.",
        )
    return tokenizer


def _load_model(
    info: BaseInfo,
    head: int | None,
    device: torch.device,
    dtype: torch.dtype,
    pad: int | None,
    *,
    seed: int,
) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from trunkline.bases.heads import draw_head, outside_backbone

    kind = AutoModelForCausalLM if head is None else AutoModelForSequenceClassification
    settings: dict[str, Any] = {} if head is None else {"num_labels": head}
    try:
        with quiet_transformers():
            model, told = kind.from_pretrained(
                info.folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **settings,
            )
    except Exception as error:  # transformers raises whatever a bad file or config leads to
        raise _unreadable(info.folder, "weights", error) from error
    missing = set(told["missing_keys"])
    if head is not None:
        missing -= set(outside_backbone(model))
    if missing or told["mismatched_keys"]:
        names = sorted({*missing, *(str(key) for key in told["mismatched_keys"])})
        raise BaseModelError(
            f"The base {info.name!r} is damaged: {len(names)} tensors are missing or of another "
            f"shape, such as {names[0]}.",
            "Fetch it again: `trunkline base pull`, or copy the folder anew.",
        )
    if head is not None:
        draw_head(model, seed)
        model.config.pad_token_id = pad
    return model.to(device).eval()


def _unreadable(folder: Path, what: str, error: Exception) -> BaseModelError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return BaseModelError(
        f"The {what} of the base in {folder} can't be loaded: {reason}",
        "Check that it is a causal LM as this version of transformers writes it; "
        "custom model code is never run.",
    )
