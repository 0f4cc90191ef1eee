"""How much of the base's general ability is left under an adapter.

Base and adapter read the same fixed English texts. At each token, the distribution of the next one
is compared: its log likelihood, its most likely token, and the divergence (Kullback & Leibler 1951)
from the base's to the adapter's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trunkline.adapters.artifact import Artifact
from trunkline.evaluation.general_texts import GENERAL_TEXTS
from trunkline.evaluation.intervals import Estimate, estimate_statistic

if TYPE_CHECKING:
    import torch

    from trunkline.inference.engine import Engine


@dataclass(frozen=True, slots=True)
class RetentionReport:
    """Base and adapter on the same texts, per predicted token; intervals resample texts.

    Attributes:
        texts, tokens: how many were predicted; the first token of each text is not.
        base_log_likelihood, log_likelihood: natural logarithm, mean per token.
        difference: adapter minus base.
        base_perplexity, perplexity: exp of the negative log likelihood.
        agreement: share of the tokens at which both find the same next token most likely.
        kl_divergence: from base to adapter, in nats per token; 0 if nothing changed.
    """

    texts: int
    tokens: int
    base_log_likelihood: Estimate
    log_likelihood: Estimate
    difference: Estimate
    base_perplexity: Estimate
    perplexity: Estimate
    agreement: Estimate
    kl_divergence: Estimate


def measure_retention(
    engine: Engine,
    artifact: Artifact,
    texts: Sequence[str] = GENERAL_TEXTS,
    *,
    on_done: Callable[[int], None] | None = None,
) -> RetentionReport:
    """Compare the next-token distributions of the base and of the base with an adapter.

    The head of a classification or regression is not used: the language-model head reads the hidden
    states that the adapter changes.

    Args:
        engine: holds the adapter's base.
        artifact: of the adapter.
        texts: of two tokens or more each.
        on_done: called with the number of finished texts.
    """
    import numpy as np

    base, pool = engine.base, engine.pool
    pool.load(artifact)
    sums = []
    for number, text in enumerate(texts, 1):
        ids = base.tokenizer(text, add_special_tokens=False).input_ids
        bare = _log_probabilities(base.model, ids)
        with pool.activate(artifact.digest):
            adapted = _log_probabilities(base.model, ids)
        sums.append(_compare(bare, adapted, ids))
        if on_done is not None:
            on_done(number)
    rows = np.asarray(sums)
    names = [f"{number:04}" for number in range(len(rows))]

    def per_token(column: int) -> Callable[[Any], float]:
        return lambda draw: float(rows[draw, column].sum() / rows[draw, 0].sum())

    def estimate(statistic: Callable[[Any], float]) -> Estimate:
        return estimate_statistic(statistic, names)

    bare_mean, adapted_mean = per_token(1), per_token(2)
    return RetentionReport(
        texts=len(rows),
        tokens=int(rows[:, 0].sum()),
        base_log_likelihood=estimate(bare_mean),
        log_likelihood=estimate(adapted_mean),
        difference=estimate(lambda draw: adapted_mean(draw) - bare_mean(draw)),
        base_perplexity=estimate(lambda draw: float(np.exp(-bare_mean(draw)))),
        perplexity=estimate(lambda draw: float(np.exp(-adapted_mean(draw)))),
        agreement=estimate(per_token(3)),
        kl_divergence=estimate(per_token(4)),
    )


def _log_probabilities(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Of each next token, ``[tokens - 1, vocabulary]`` float32."""
    import torch

    with torch.inference_mode():
        inputs = torch.tensor([list(ids)], device=model.device)
        logits = model(input_ids=inputs, use_cache=False).logits[0, :-1]
        return logits.float().log_softmax(-1)


def _compare(
    bare: torch.Tensor, adapted: torch.Tensor, ids: Sequence[int]
) -> tuple[float, float, float, float, float]:
    """Sums over a text: tokens, both log likelihoods, agreements, divergence."""
    import torch

    targets = torch.tensor(ids[1:], device=bare.device)[:, None]
    return (
        float(len(targets)),
        float(bare.gather(1, targets).double().sum()),
        float(adapted.gather(1, targets).double().sum()),
        float((bare.argmax(-1) == adapted.argmax(-1)).sum()),
        float((bare.exp() * (bare - adapted)).double().sum()),
    )
