"""The core's losses, each with its source; a recipe's ``loss_options`` set their options.

Classification: logits ``[batch, labels]`` and label indices ``[batch]``. Regression: outputs and
targets ``[batch]``, standardized. ``LossSpec`` has the shapes of the other tasks. Every loss is a
mean over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trunkline.contracts import LossContext, LossFunction, LossSpec
from trunkline.errors import NotFoundError, UsageError
from trunkline.settings import is_finite

if TYPE_CHECKING:
    import torch

_CLASS_WEIGHTS = ("none", "balanced")


def cross_entropy(context: LossContext) -> LossFunction:
    """Cross-entropy, with weights of the labels or smoothed labels.

    Options: ``label_smoothing`` e gives every label e / labels of the target's probability (Szegedy
    et al. 2016, section 7). ``class_weight`` ``balanced`` weights a row by rows / (labels · rows of
    its label), as scikit-learn does (King & Zeng 2001).
    """
    from torch.nn.functional import cross_entropy as entropy

    smoothing, kind = context.options["label_smoothing"], context.options["class_weight"]
    _check_range("label_smoothing", smoothing, 0.0, 0.999)
    _check_class_weight(kind)
    counts = _counts(context)
    total = sum(counts)
    weights = [total / (len(counts) * count) for count in counts] if kind == "balanced" else None

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rows = entropy(logits, targets, reduction="none", label_smoothing=smoothing)
        return (rows * _tensor(weights, logits)[targets]).mean() if weights else rows.mean()

    return loss


def token_cross_entropy(context: LossContext) -> LossFunction:
    """Cross-entropy of the answer's tokens, ``[tokens, vocabulary]`` and ``[tokens]``."""
    from torch.nn.functional import cross_entropy as entropy

    return entropy


def binary_cross_entropy(context: LossContext) -> LossFunction:
    """Binary cross-entropy of each label, averaged over labels and rows.

    Option: ``class_weight`` ``balanced`` weights a present label by the rows without it over the
    rows with it, at most 100.
    """
    from torch.nn.functional import binary_cross_entropy_with_logits

    kind = context.options["class_weight"]
    _check_class_weight(kind)
    counts = _counts(context)
    weights = [min(100.0, max(1, context.rows - count) / count) for count in counts]

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weight = _tensor(weights, logits) if kind == "balanced" else None
        return binary_cross_entropy_with_logits(logits, targets, pos_weight=weight)

    return loss


def tag_cross_entropy(context: LossContext) -> LossFunction:
    """Cross-entropy of the tags of the texts' tokens, ``[tokens, tags]`` and ``[tokens]``."""
    return token_cross_entropy(context)


def listwise(context: LossContext) -> LossFunction:
    """Cross-entropy of the relevant candidate among those of its query (ListNet, Cao et al. 2007).

    Scores ``[batch, candidates]``, -inf where a query has fewer, and indices ``[batch]``.
    """
    from torch.nn.functional import cross_entropy as entropy

    return entropy


def focal(context: LossContext) -> LossFunction:
    """(1 - p)^gamma · -log p of the target's probability p (Lin et al. 2017, equation 4).

    Easy rows count less; gamma 0 is cross-entropy.
    """
    gamma = context.options["gamma"]
    _check_range("gamma", gamma, 0.0, 10.0)

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        log_p = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
        # 1 - p is clamped: the power's gradient is infinite at zero where gamma is below 1
        return (-((1 - log_p.exp()).clamp(min=1e-6) ** gamma) * log_p).mean()

    return loss


def class_balanced(context: LossContext) -> LossFunction:
    """Cross-entropy weighted by the effective number of rows (Cui et al. 2019, equation 12).

    A label with n rows has the weight (1 - beta) / (1 - beta^n); the weights sum to the number of
    labels. beta 0 weights all labels the same, beta near 1 by 1 / n.
    """
    from torch.nn.functional import cross_entropy as entropy

    beta = context.options["beta"]
    _check_range("beta", beta, 0.0, 0.999999)
    raw = [(1 - beta) / (1 - beta**count) for count in _counts(context)]
    weights = [len(raw) * weight / sum(raw) for weight in raw]

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rows = entropy(logits, targets, reduction="none")
        return (rows * _tensor(weights, logits)[targets]).mean()

    return loss


def cost_sensitive(context: LossContext) -> LossFunction:
    """Cross-entropy plus ``weight`` times the expected cost of a mistake (Elkan 2001, section 1).

    The cost of predicting j for a row of the label i is ``costs[i][j]``, else ``other``; a right
    label costs nothing. The expectation is over the model's own probabilities.
    """
    from torch.nn.functional import cross_entropy as entropy

    options, labels = context.options, context.labels
    _check_range("weight", options["weight"], 0.0, 1e6)
    _check_range("other", options["other"], 0.0, 1e6)
    table = [[0.0 if i == j else float(options["other"]) for j in labels] for i in labels]
    for truth, row in options["costs"].items():
        if not isinstance(row, Mapping):
            raise UsageError(
                f"costs of {truth!r} are {row!r:.60}, not a mapping.",
                "Write for example costs: {fraud: {legitimate: 20}}.",
            )
        first = _index(truth, labels)
        for predicted, cost in row.items():
            _check_range(f"costs of {truth!r}", cost, 0.0, 1e6)
            if predicted == truth:
                raise UsageError(
                    f"costs of {truth!r} contain the label itself, which is right.",
                    "A right label costs nothing; leave it out.",
                )
            table[first][_index(predicted, labels)] = float(cost)

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        costs = _tensor(table, logits)[targets]
        expected = (logits.softmax(-1) * costs).sum(-1).mean()
        return entropy(logits, targets) + options["weight"] * expected

    return loss


def hierarchical(context: LossContext) -> LossFunction:
    """Hierarchical cross-entropy of labels such as ``food/fruit/apple`` (Bertinetto et al. 2020).

    With the nodes C0 (the label), C1, … up to the root, and p(C) the sum of the probabilities
    below C: -Σ exp(-alpha · l) · log p(Cl | Cl+1), their equation 5 with l, the steps above the
    label, as the height. alpha 0 is cross-entropy; a larger one weighs the upper levels more.
    """
    alpha, separator = context.options["alpha"], context.options["separator"]
    _check_range("alpha", alpha, 0.0, 20.0)
    if not separator or not any(separator in label for label in context.labels):
        raise UsageError(
            f"No label contains the separator {separator!r}, so there is no hierarchy.",
            "Write labels such as food/fruit/apple, or set the loss option separator.",
        )
    chains = [_ancestors(label, separator) for label in context.labels]
    nodes = list(dict.fromkeys(node for chain in chains for node in chain))
    below = [[node in chain for chain in chains] for node in nodes]
    coefficients = [[0.0] * len(nodes) for _ in chains]
    for label, chain in enumerate(chains):
        for level, node in enumerate(chain):
            factor = math.exp(-alpha * level)
            coefficients[label][nodes.index(node)] += factor
            if level + 1 < len(chain):
                coefficients[label][nodes.index(chain[level + 1])] -= factor

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        outside = _tensor([[0.0 if one else -math.inf for one in row] for row in below], logits)
        log_p = (logits.log_softmax(-1)[:, None, :] + outside).logsumexp(-1)
        return -(log_p * _tensor(coefficients, logits)[targets]).sum(-1).mean()

    return loss


def mse(context: LossContext) -> LossFunction:
    """Mean squared error."""
    from torch.nn.functional import mse_loss

    return mse_loss


def huber(context: LossContext) -> LossFunction:
    """Huber loss (Huber 1964, section 4), with ``delta`` in standard deviations of the target.

    Half the squared error where it is at most delta, else delta · (\\|error\\| - delta / 2).
    """
    from torch.nn.functional import huber_loss

    delta = context.options["delta"]
    _check_range("delta", delta, 1e-6, 1e6)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return huber_loss(outputs, targets, delta=delta)

    return loss


def quantile(context: LossContext) -> LossFunction:
    """Pinball loss, whose optimum is a quantile of the target (Koenker & Bassett 1978).

    max(q · e, (q - 1) · e) for the error e = target - output and q = ``quantile``.
    """
    share = context.options["quantile"]
    _check_range("quantile", share, 0.001, 0.999)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        error = targets - outputs
        return (error * share).maximum(error * (share - 1)).mean()

    return loss


def pairwise_ranking(context: LossContext) -> LossFunction:
    """Squared error plus ``weight`` times RankNet's loss over the pairs of a batch.

    For every pair with targets a > b: log(1 + exp(-(output of a - output of b))), averaged (Burges
    et al. 2005, section 3). The squared error keeps the outputs in the target's unit.
    """
    from torch.nn.functional import mse_loss, softplus

    weight = context.options["weight"]
    _check_range("weight", weight, 0.0, 1e6)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        above = targets[:, None] > targets[None, :]
        pairs = softplus(outputs[None, :] - outputs[:, None])[above]
        ranking = pairs.mean() if pairs.numel() else outputs.sum() * 0
        return mse_loss(outputs, targets) + weight * ranking

    return loss


def check_options(spec: LossSpec, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a loss: its defaults, with a recipe's values.

    Raises:
        NotFoundError: the loss has no such option.
        UsageError: a value has another type than the default.
    """
    values = dict(spec.options)
    for owner, given in ((f"the loss {spec.name}", values), ("loss_options", options)):
        if not _is_json(given):
            for row in given.values():
                for label in [*row] if isinstance(row, Mapping) else ():
                    _index(label, [str(label)])
            raise UsageError(
                f"The options of {owner} are {given!r:.80}, which JSON can't hold.",
                "Use texts, finite numbers, true, false, lists, and mappings with texts as keys.",
            )
    for name, value in options.items():
        if name not in values:
            known = ", ".join(values) or "none"
            raise NotFoundError.named(
                f"option of the loss {spec.name}", name, values, f"Its options are: {known}."
            )
        default = values[name]
        numbers = isinstance(default, float) and isinstance(value, int)
        if isinstance(value, bool) != isinstance(default, bool) or not (
            numbers or isinstance(value, type(default))
        ):
            raise UsageError(
                f"The option {name} of the loss {spec.name} can't be {value!r:.60}.",
                f"Its default is {default!r}.",
            )
        values[name] = float(value) if numbers else value
    return values


def _is_json(value: Any) -> bool:
    """Whether JSON gives a value back as it is; integers must be finite as floats."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_json(one) for key, one in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    return value is None or isinstance(value, bool | str) or is_finite(value)


def _counts(context: LossContext) -> list[int]:
    """Training rows of each label; at least one, so that a rare label has a finite weight."""
    return [max(1, context.counts.get(label, 0)) for label in context.labels]


def _ancestors(label: str, separator: str) -> list[tuple[str, ...]]:
    """The path of a label, the paths above it, and the root, an empty path.

    The label itself is marked, since a label may also be the parent of others.
    """
    parts = tuple(label.split(separator))
    return [(*parts, "leaf"), *(parts[:size] for size in range(len(parts) - 1, -1, -1))]


def _index(label: Any, labels: Sequence[str]) -> int:
    if not isinstance(label, str):
        raise UsageError(
            f"The label {label!r:.60} in costs is not a text.",
            f"Write it in quotes: '{label!s:.60}'.",
        )
    if label not in labels:
        raise NotFoundError.named(
            "label in costs", str(label), labels, "`trunkline datasets show` lists the labels."
        )
    return labels.index(label)


def _check_class_weight(kind: Any) -> None:
    if kind not in _CLASS_WEIGHTS:
        raise UsageError(
            f"The loss option class_weight can't be {kind!r}.",
            f"Use one of: {', '.join(_CLASS_WEIGHTS)}.",
        )


def _check_range(name: str, value: Any, least: float, most: float) -> None:
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    if not usable or not least <= value <= most:
        raise UsageError(
            f"The loss option {name} can't be {value!r}.",
            f"It must be between {least:g} and {most:g}.",
        )


def _tensor(values: Any, like: torch.Tensor) -> torch.Tensor:
    return like.new_tensor(values)


def _spec(
    name: str, task: Any, build: Callable[[LossContext], LossFunction], **options: Any
) -> LossSpec:
    return LossSpec(
        name=name,
        description=(build.__doc__ or "").split("\n")[0].rstrip("."),
        task=task,
        build=build,
        options=options,
        is_mean=build is not pairwise_ranking,
    )


LOSSES: tuple[LossSpec, ...] = (
    _spec(
        "cross_entropy", "classification", cross_entropy, label_smoothing=0.0, class_weight="none"
    ),
    _spec("focal", "classification", focal, gamma=2.0),
    _spec("class_balanced", "classification", class_balanced, beta=0.999),
    _spec("cost_sensitive", "classification", cost_sensitive, costs={}, other=1.0, weight=1.0),
    _spec("hierarchical", "classification", hierarchical, separator="/", alpha=0.1),
    _spec("binary_cross_entropy", "multilabel", binary_cross_entropy, class_weight="none"),
    _spec("mse", "regression", mse),
    _spec("huber", "regression", huber, delta=1.0),
    _spec("quantile", "regression", quantile, quantile=0.5),
    _spec("pairwise_ranking", "regression", pairwise_ranking, weight=1.0),
    _spec("token_cross_entropy", "generation", token_cross_entropy),
    _spec("tag_cross_entropy", "tagging", tag_cross_entropy),
    _spec("listwise", "ranking", listwise),
)
"""Registered by the plugin ``core``; the first of each task is its default."""
