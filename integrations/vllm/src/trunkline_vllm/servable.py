"""Which versions vLLM can serve exactly; the others are refused with the reason.

vLLM ignores tensors of modules that it does not adapt, and heads. What it would ignore is refused
here, so that an answer is never partly the base's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.adapters.artifact import Artifact
from trunkline.adapters.config import adapted_module
from trunkline.bases import describe
from trunkline.bases.identity import stored_tensors
from trunkline.errors import BaseMismatchError, RefusedError
from trunkline.registry.records import VersionRecord
from trunkline.serving.errors import ApiError

OWN_SERVER = "`trunkline serve` serves it."

_LINEAR = ".weight"
_NOT_ADAPTED = ("embed_tokens", "lm_head")


@dataclass(frozen=True, slots=True)
class ServedBase:
    """The base that vLLM serves, and its limits.

    Attributes:
        source: the base as :func:`trunkline.bases.describe` takes it.
        digest: its identity.
        names: under which vLLM serves it; the first one is used.
        modules: the names of its layers.
        max_rank: vLLM's ``--max-lora-rank``; None: vLLM checks it by itself.
        targets: the ends of module names that vLLM adapts; None: all that it can.
    """

    source: str
    digest: str
    names: tuple[str, ...]
    modules: frozenset[str]
    max_rank: int | None = None
    targets: frozenset[str] | None = None

    @classmethod
    def read(
        cls,
        source: str,
        names: tuple[str, ...] = (),
        max_rank: int | None = None,
        targets: frozenset[str] | None = None,
    ) -> ServedBase:
        """Identify the base by its files.

        Raises:
            TrunklineError: it is not on this machine.
        """
        if not Path(source).is_dir() and "/" in source and ":" not in source:
            source = f"hf:{source}"
        info = describe(source)
        modules = frozenset(
            tensor.name.removesuffix(_LINEAR)
            for tensor in stored_tensors(info.folder)
            if tensor.name.endswith(_LINEAR)
        )
        return cls(source, info.digest, names or (source,), modules, max_rank, targets)

    @classmethod
    def of_app(cls, state: Any, source: str | None = None) -> ServedBase:
        """The base of vLLM's application.

        Args:
            state: ``app.state`` of a vLLM server that is up.
            source: of the base; by default vLLM's model.

        Raises:
            TrunklineError: the base is not on this machine.
        """
        models = state.openai_serving_models
        lora = state.vllm_config.lora_config
        targets = getattr(lora, "target_modules", None)
        return cls.read(
            source or state.vllm_config.model_config.model,
            tuple(one.name for one in models.base_model_paths),
            None if lora is None else lora.max_lora_rank,
            None if targets is None else frozenset(targets),
        )


def check_version(version: VersionRecord, base: ServedBase) -> None:
    """Refuse what the registry alone shows; nothing is fetched.

    Raises:
        ApiError: 400, the version does not generate text.
        BaseMismatchError: it was trained on another base.
    """
    if version.task != "generation":
        raise ApiError(
            f"{version.ref} is a {version.task} model, and vLLM would ignore its head.",
            f"{OWN_SERVER} This server answers with versions that generate text.",
            param="model",
            code="wrong_task",
        )
    if version.base_digest != base.digest:
        raise BaseMismatchError(
            f"{version.ref} was trained on the base {version.base_name} "
            f"({version.base_digest[:12]}…); this server's base is {base.digest[:12]}….",
            "Start vLLM with the base that it was trained on.",
        )


def check_artifact(version: VersionRecord, artifact: Artifact, base: ServedBase) -> None:
    """Refuse an adapter that vLLM would not apply completely.

    Raises:
        RefusedError: it is DoRA, its rank is too large, or it adapts modules that vLLM does not.
    """
    lora = artifact.lora
    if lora.use_dora:
        raise RefusedError(f"{version.ref} is DoRA, which vLLM does not support.", OWN_SERVER)
    if base.max_rank is not None and lora.rank > base.max_rank:
        raise RefusedError(
            f"{version.ref} has the rank {lora.rank}; this server takes ranks up to "
            f"{base.max_rank}.",
            f"Start vLLM with --max-lora-rank {_next_power(lora.rank)}.",
        )
    modules = {name for tensor in artifact.tensors if (name := adapted_module(tensor)) is not None}
    ignored = sorted(
        name
        for name in modules
        if name not in base.modules
        or name.rpartition(".")[2] in _NOT_ADAPTED
        or (base.targets is not None and name.rpartition(".")[2] not in base.targets)
    )
    if ignored or not modules:
        reason = f"{len(ignored)} of its {len(modules)} modules, such as {ignored[:1]}"
        raise RefusedError(
            f"{version.ref} would not be applied completely: vLLM ignores {reason}.", OWN_SERVER
        )


def _next_power(rank: int) -> int:
    """The smallest rank that vLLM can be started with, from 8, for an adapter of ``rank``."""
    return max(8, 1 << (rank - 1).bit_length())
