"""Load a base: weights and tokenizer, device and dtype; the shared base and models for training."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trunkline.bases.info import BaseInfo, describe
from trunkline.bases.linear import FusedLayers, Quantized, fuse_linear_layers
from trunkline.errors import BaseModelError, UsageError, one_line
from trunkline.process import return_free_memory

if TYPE_CHECKING:
    from pathlib import Path

    import torch

_DTYPES = {
    "fp32": "float32", "float32": "float32",
    "bf16": "bfloat16", "bfloat16": "bfloat16",
    "fp16": "float16", "float16": "float16",
}  # fmt: skip
QUANTIZED: tuple[Quantized, ...] = ("int8", "nf4")


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """A loaded base.

    Attributes:
        info: its name, digest and sizes.
        model: a causal LM of transformers, in eval mode, without gradients. It is shared: for
            training use :func:`load_fresh`.
        tokenizer: has a pad token; callers choose the side of the padding.
        device, dtype: of the parameters.
        fused_layers: its linear layers, fused.
        quantized: how the weights of the linear layers are stored, if not as ``dtype``.
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

    @contextmanager
    def released(self) -> Iterator[None]:
        """Inside the block the linear layers' weights take no memory, and compute nothing.

        Afterwards they are read again from the base's files.
        """
        self.fused_layers.release()
        return_free_memory()
        try:
            yield
        finally:
            return_free_memory()
            with ThreadPoolExecutor(1, "trunkline-load") as apart:
                apart.submit(self._restore).result()

    def _restore(self) -> None:
        pad = self.tokenizer.pad_token_id
        model = _load_model(self.info, None, self.device, self.dtype, pad, seed=0)
        self.fused_layers.restore(model.requires_grad_(False))


_held: Base | None = None
_lock = threading.Lock()


def load(name: str, *, device: str = "auto", dtype: str = "auto") -> Base:
    """Load the base ``name``, or return it if this process holds it, under whatever name.

    Args:
        name: of a base that is on this machine.
        device: ``auto`` (CUDA, else MPS, else CPU) or a device of torch.
        dtype: ``auto`` (fp32 on CPU and MPS; bf16 on CUDA, fp16 if that is not supported),
            ``fp32``, ``bf16``, ``fp16``; ``int8`` (CPU) or ``nf4`` (with bitsandbytes) quantize
            the linear layers and compute the rest as ``auto``.

    Raises:
        BaseModelError: it is missing or damaged, or this process holds another base, or this one
            on another device or in another dtype.
    """
    global _held
    with _lock:
        info = describe(name)
        if _held is not None:
            _check_same(_held, info, device, dtype)
            return _held if info == _held.info else replace(_held, info=info)
        target = pick_device(device)
        quantized = pick_quantized(dtype, target)
        kind = pick_dtype("auto" if quantized else dtype, target)
        with ThreadPoolExecutor(1, "trunkline-load") as apart:
            _held = apart.submit(_load_base, info, target, kind, quantized).result()
        return _held


def _load_base(
    info: BaseInfo, device: torch.device, dtype: torch.dtype, quantized: Quantized | None
) -> Base:
    """Load in a thread of its own, so that the caller's thread keeps no OpenMP workers.

    libgomp puts workers to sleep immediately if the teams of all threads together exceed the
    processors. Waking them for each small product would make the steps of the engine, which runs
    in its own thread, 50 % slower.
    """
    tokenizer = _load_tokenizer(info.folder)
    model = _load_model(info, None, device, dtype, tokenizer.pad_token_id, seed=0)
    model.requires_grad_(False)
    fused_layers = fuse_linear_layers(model, quantized=quantized)
    if device.type == "cpu":  # else the complete file stays mapped for the few parameters left
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    return Base(info, model, tokenizer, device, dtype, fused_layers, quantized)


def local_tokenizer(name: str) -> tuple[Any, int] | None:
    """The tokenizer and the context of a base that is on this machine; None if it is not.

    The weights are not loaded.

    Raises:
        NotFoundError: there is no such base.
    """
    try:
        info = describe(name)
    except BaseModelError:
        return None
    return _load_tokenizer(info.folder), info.context


def release() -> None:
    """Release the shared base, so that another can be loaded; its memory is freed when unused."""
    global _held
    with _lock:
        _held = None


def load_fresh(
    name: str,
    head: int | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    per_token: bool = False,
) -> Any:
    """Load a separate model from the base's files, for training.

    It is not the shared base and shares nothing with :func:`load`.

    Args:
        name: of a base that is on this machine.
        head: None for the causal LM; else a sequence-classification model with this many outputs,
            its head initialized from ``seed``.
        device, dtype: as in :func:`load`.
        seed: of the head; the same on every device.
        per_token: the head reads every token, not the last one: a token-classification model.

    Returns:
        A plain transformers model in eval mode, with gradients enabled.
    """
    info = describe(name)
    target = pick_device(device)
    pad = _load_tokenizer(info.folder).pad_token_id if head is not None else None
    if dtype in QUANTIZED:
        raise UsageError(
            f"A base in {dtype} is for inference only; training needs floating point.",
            "Omit --dtype, or use fp32 or bf16.",
        )
    kind = pick_dtype(dtype, target)
    return _load_model(info, head, target, kind, pad, seed=seed, per_token=per_token)


def pick_quantized(dtype: str, device: torch.device) -> Quantized | None:
    """How ``dtype`` quantizes the linear layers; None for floating point.

    Raises:
        UsageError: this machine can't compute it.
    """
    from importlib.util import find_spec

    if dtype == "int8":
        if device.type != "cpu":
            raise UsageError(f"int8 runs on a CPU, not on {device}.", "Use bf16 or nf4 there.")
        return "int8"
    if dtype == "nf4":
        if find_spec("bitsandbytes") is None:
            raise UsageError(
                "nf4 needs the package bitsandbytes.", "Run: pip install 'trunkline[nf4]'"
            )
        return "nf4"
    return None


def pick_device(device: str) -> torch.device:
    """Resolve a device name.

    Raises:
        UsageError: there is no such device on this machine.
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
            f"The device {device!r} is not available.", "Use auto, cpu, cuda, cuda:1 or mps."
        ) from error
    return picked


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Resolve a dtype name on ``device``.

    Raises:
        UsageError: the name is unknown.
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


def _check_same(held: Base, requested: BaseInfo, device: str, dtype: str) -> None:
    if held.digest != requested.digest:
        raise BaseModelError(
            f"This process holds the base {held.info.name!r} and can't load {requested.name!r} "
            "as well.",
            "Use another process for it, or call trunkline.bases.release() first.",
        )
    quantized = pick_quantized(dtype, held.device)
    same_device = device == "auto" or _same_device(pick_device(device), held.device)
    same_dtype = quantized == held.quantized and (
        quantized is not None or pick_dtype(dtype, held.device) == held.dtype
    )
    if not same_device or (dtype != "auto" and not same_dtype):
        raise BaseModelError(
            f"This process holds the base {held.info.name!r} on {held.device} as {held.kind}, not "
            f"on {device} as {dtype}.",
            "Use the same device and dtype, or call trunkline.bases.release() first.",
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
    except Exception as error:  # transformers and tokenizers raise many types for a bad file
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
    per_token: bool = False,
) -> Any:
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    headed = AutoModelForTokenClassification if per_token else AutoModelForSequenceClassification
    kind = AutoModelForCausalLM if head is None else headed
    settings: dict[str, Any] = {} if head is None else {"num_labels": head}
    try:
        with quiet_transformers():
            model, loading = kind.from_pretrained(
                info.folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **settings,
            )
    except Exception as error:  # transformers raises many types for a bad file or config
        raise _unreadable(info.folder, "weights", error) from error
    missing = set(loading["missing_keys"])
    if head is not None:
        missing -= set(outside_backbone(model))
    if missing or loading["mismatched_keys"]:
        names = sorted({*missing, *(str(key) for key in loading["mismatched_keys"])})
        raise BaseModelError(
            f"The base {info.name!r} is damaged: {len(names)} tensors are missing or of another "
            f"shape, such as {names[0]}.",
            "Fetch it again: `trunkline base pull`, or copy the folder again.",
        )
    if per_token and hasattr(model, "dropout"):
        model.dropout.p = 0.0  # other heads have none either; lora_dropout is the setting
    if head is not None:
        draw_head(model, seed)
        model.config.pad_token_id = pad
    return model.to(device).eval()


def _unreadable(folder: Path, what: str, error: Exception) -> BaseModelError:
    return BaseModelError(
        f"The {what} of the base in {folder} can't be loaded: {one_line(error)}",
        "Check that it is a causal LM in the format of this version of transformers; "
        "custom model code is never run.",
    )


def outside_backbone(model: Any) -> dict[str, Any]:
    """Name → parameter of the head on the backbone: ``score.weight`` ``[labels, hidden]``."""
    prefix = f"{model.base_model_prefix}."
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith(prefix)
    }


def draw_head(model: Any, seed: int) -> None:
    """Initialize the head: normal weights with the config's ``initializer_range``, zero biases.

    They are drawn in fp32 on the CPU, so a seed gives the same head on every device.
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


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress bars and warnings of transformers, unless ``TRANSFORMERS_VERBOSITY`` is set."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    if not os.environ.get("TRANSFORMERS_VERBOSITY"):
        logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
