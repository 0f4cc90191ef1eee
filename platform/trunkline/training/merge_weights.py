"""Which adapters can be merged, and merging their weights; PEFT computes.

An update is the matrix ``s·BA`` that an adapter adds to a layer. Every method combines the updates,
never their factors, so the adapters may have different ranks.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from trunkline.adapters.artifact import CONFIG, WEIGHTS, Artifact, write_json
from trunkline.adapters.config import MAX_RANK, PREFIX, adapted_module, is_head
from trunkline.adapters.provenance import MAX_PARENTS, MergeMethod
from trunkline.bases import AnyBase, Base, load_fresh, load_fresh_image
from trunkline.errors import RefusedError, UsageError
from trunkline.registry.records import VersionRecord

METHODS: tuple[str, ...] = get_args(MergeMethod)
_PEFT_METHODS = {"linear": "cat", "ties": "ties_svd", "dare": "dare_linear_svd", "svd": "svd"}
_PRUNING = ("ties", "dare")
DENSITY = 0.5
"""The share of the elements that TIES and DARE keep by default."""

MERGED = "merged"
"""PEFT's name of the merged adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """How to merge.

    Attributes:
        method: ``linear`` (the weighted sum; its rank is the sum of the ranks), or ``svd``,
            ``ties`` or ``dare``, which cut the result to ``rank`` by SVD.
        weights: one per parent; by default equal, with the sum 1.
        density: of ``ties`` and ``dare``: the share of the elements that are kept.
        rank: of ``svd``, ``ties`` and ``dare``; by default the highest of the parents.
        seed: of ``dare``.
    """

    method: MergeMethod = "linear"
    weights: tuple[float, ...] = ()
    density: float | None = None
    rank: int | None = None
    seed: int | None = None


def check_options(options: MergeOptions, parents: int) -> MergeOptions:
    """The options with their defaults.

    Raises:
        UsageError: an option is out of range, or does not belong to the method.
    """
    if options.method not in METHODS:
        raise UsageError(
            f"There is no method {options.method!r}.", f"Use one of {', '.join(METHODS)}."
        )
    if not 2 <= parents <= MAX_PARENTS:
        raise UsageError(
            f"{parents} adapters can't be merged.", f"Name 2 to {MAX_PARENTS} versions."
        )
    weights = options.weights or (1 / parents,) * parents
    if len(weights) != parents:
        raise UsageError(
            f"There are {len(weights)} weights for {parents} adapters.",
            "Give one weight per adapter, in their order: --weights 0.5,0.5.",
        )
    for weight in weights:
        if not (math.isfinite(weight) and 0 < abs(weight) < 1e6):
            raise UsageError(
                f"The weight can't be {weight:g}.", "Use numbers other than 0, below 1,000,000."
            )
    pruning = options.method in _PRUNING
    for name, value, applies in (
        ("density", options.density, pruning),
        ("rank", options.rank, options.method != "linear"),
        ("seed", options.seed, options.method == "dare"),
    ):
        if value is not None and not applies:
            raise UsageError(f"The method {options.method} has no {name}.", f"Omit --{name}.")
    density = (DENSITY if options.density is None else options.density) if pruning else None
    if density is not None and not 0 < density <= 1:
        raise UsageError(f"The density can't be {density:g}.", "Use a number above 0, up to 1.")
    if options.rank is not None and not 1 <= options.rank <= MAX_RANK:
        raise UsageError(f"The rank can't be {options.rank}.", f"Use 1 to {MAX_RANK}.")
    if options.seed is not None and not 0 <= options.seed < 2**31:
        raise UsageError(f"The seed can't be {options.seed}.", "Use 0 to 2,147,483,647.")
    seed = (options.seed or 0) if options.method == "dare" else None
    return replace(options, weights=weights, density=density, seed=seed)


def check_mergeable(versions: Sequence[VersionRecord], artifacts: Sequence[Artifact]) -> None:
    """Check that the versions answer the same question about the same prompts.

    Raises:
        RefusedError: they differ in the base, the task, the template or ``max_length``, or two are
            the same artifact.
    """
    first = artifacts[0].manifest
    digests: dict[str, VersionRecord] = {}
    for version, artifact in zip(versions, artifacts, strict=True):
        if artifact.digest in digests:
            raise RefusedError(
                f"{version.ref} is the same artifact as {digests[artifact.digest].ref}.",
                "Name different versions.",
            )
        digests[artifact.digest] = version
        if artifact.lora.use_dora:
            raise RefusedError(
                f"{version.ref} uses DoRA, whose update is not a product of two matrices.",
                "Merge plain LoRA adapters, or use --ensemble, which averages answers.",
            )
        other = artifact.manifest
        if other.task["kind"] == "tagging":
            raise RefusedError(
                f"{version.ref} is for tagging, which is not merged.",
                "Train one adapter on all rows.",
            )
        for name, ours, theirs, why in (
            ("base", first.base["digest"], other.base["digest"], "an update fits only its base"),
            ("task", first.task["kind"], other.task["kind"], "their outputs mean different things"),
            (
                "task settings",
                without_calibration(first.task),
                without_calibration(other.task),
                "outputs can be averaged only if each means the same",
            ),
            ("preprocessing", first.preprocessing, other.preprocessing, "they see other pixels"),
            ("template", first.template, other.template, "each expects its own prompts"),
            ("max_length", first.max_length, other.max_length, "they cut texts differently"),
        ):
            if ours != theirs:
                raise RefusedError(
                    f"{version.ref} and {versions[0].ref} differ in their {name}: {why}. "
                    f"{_difference(theirs, ours)}",
                    "Merge versions of one recipe, or use --ensemble, which averages answers."
                    if name != "base"
                    else "Train one of them again on the base of the other.",
                )


def _difference(theirs: Any, ours: Any) -> str:
    """Which values differ, in a sentence."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
        parts = [f"{name} {theirs.get(name)!r:.60} and {ours.get(name)!r:.60}" for name in names]
        return f"They have the {'; '.join(parts)}."
    return f"They have {theirs!r:.80} and {ours!r:.80}."


def merged_rank(options: MergeOptions, artifacts: Sequence[Artifact]) -> int:
    """The rank of the merged adapter.

    Raises:
        UsageError, RefusedError: it is higher than a layer, or than an adapter may have.
    """
    ranks = [artifact.lora.rank for artifact in artifacts]
    if options.method == "linear":
        if sum(ranks) > MAX_RANK:
            raise RefusedError(
                f"The weighted sum has the rank {sum(ranks)}; at most {MAX_RANK} is possible.",
                "Use --method svd, which cuts the sum to a rank.",
            )
        return sum(ranks)
    narrowest = min(
        min(artifact.tensors[key].shape[1], artifact.tensors[_second(key)].shape[0])
        for artifact in artifacts
        for key in artifact.tensors
        if adapted_module(key)
    )
    if options.rank is not None and options.rank > narrowest:
        raise UsageError(
            f"The rank can't be {options.rank}.",
            f"Use at most {narrowest}, the narrowest side of an adapted layer.",
        )
    return min(options.rank or max(ranks), narrowest)


def _second(key: str) -> str:
    return key.replace(".lora_A.weight", ".lora_B.weight")


# ----------------------------------------------------------------------------------- computation


def merge_adapters(
    base: AnyBase,
    artifacts: Sequence[Artifact],
    options: MergeOptions,
    rank: int,
    outputs: int | None,
) -> Any:
    """PEFT's model with the merged adapter active, and the weighted mean of the heads in its head.

    Args:
        base: which base to load a fresh copy of, and the device.
        options: from :func:`check_options`.
        rank: from :func:`merged_rank`.
        outputs: of the head; None for a generation.

    Raises:
        UsageError: the heads have no mean, because the weights have no positive sum.
    """
    import torch
    from peft import PeftModel

    device = str(base.device)
    dtype = "fp32" if base.device.type == "cpu" else "auto"
    load = load_fresh if isinstance(base, Base) else load_fresh_image
    model: Any = load(base.info.name, outputs, device=device, dtype=dtype)
    if outputs is not None:
        _set_head(model, artifacts, options.weights)
    with (
        tempfile.TemporaryDirectory(prefix="trunkline-merge-") as name,
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[base.device] if device != "cpu" else []),
    ):
        warnings.simplefilter("ignore")  # of PEFT: transformers' old names, and a density of 1
        names = [f"parent{index}" for index in range(len(artifacts))]
        for parent, artifact in zip(names, artifacts, strict=True):
            folder = Path(name) / parent
            _write_plain_lora(artifact, folder)
            if parent == names[0]:
                model = PeftModel.from_pretrained(model, folder, adapter_name=parent)
            else:
                model.load_adapter(folder, adapter_name=parent)
        torch.manual_seed(options.seed or 0)
        model.base_model.add_weighted_adapter(
            names,
            list(options.weights),
            MERGED,
            combination_type=_PEFT_METHODS[options.method],
            svd_rank=rank,
            svd_full_matrices=False,
            density=options.density,
        )
        model.set_adapter(MERGED)
        for parent in names:
            model.delete_adapter(parent)
    return model.eval()


def _set_head(model: Any, artifacts: Sequence[Artifact], weights: Sequence[float]) -> None:
    """Set the model's head to the weighted mean of the artifacts' heads."""
    import torch
    from safetensors.torch import load_file

    total = sum(weights)
    if total <= 1e-6:
        raise UsageError(
            f"The weights have the sum {total:g}, so the heads have no mean.",
            "Use weights with a sum above 0 for a classification or regression.",
        )
    heads = []
    for artifact in artifacts:
        tensors = load_file(artifact.folder / WEIGHTS)
        heads.append(next(tensor.float() for key, tensor in tensors.items() if is_head(key)))
    mean = sum(weight * head for weight, head in zip(weights, heads, strict=True)) / total
    head = head_name(artifacts[0])
    with torch.no_grad():
        model.get_submodule(head).weight.copy_(mean)


def head_name(artifact: Artifact) -> str:
    """The name of the head's module, such as ``score``."""
    (key,) = (key for key in artifact.tensors if is_head(key))
    return key.removeprefix(PREFIX).removesuffix(".weight")


def _write_plain_lora(artifact: Artifact, folder: Path) -> None:
    """The artifact for PEFT without its head, with full module names and a plain scaling.

    PEFT takes every setting but rank, alpha and targets of a merged adapter from the first parent.
    """
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    tensors = load_file(artifact.folder / WEIGHTS)
    lora = {key: tensor.float() for key, tensor in tensors.items() if not is_head(key)}
    save_file(lora, folder / WEIGHTS)
    config = {
        "peft_type": "LORA",
        "r": artifact.lora.rank,
        "lora_alpha": artifact.lora.scaling * artifact.lora.rank,
        "target_modules": modules_of(artifact),
    }
    write_json(folder / CONFIG, config)


def modules_of(artifact: Artifact) -> list[str]:
    """The names of the adapted modules."""
    return sorted(module for key in artifact.tensors if (module := adapted_module(key)))


def without_calibration(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task as in the manifest, without what was fitted on validation rows."""
    plain = {name: value for name, value in task.items() if name != "calibration"}
    return plain | ({"threshold": 0.5} if task["kind"] == "multilabel" else {})
