"""Rank candidates for queries: one request for each candidate, all in the engine's batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from trunkline.contracts import MAX_CANDIDATES
from trunkline.errors import UsageError
from trunkline.inference.request import Answer, Request, ResolvedRequest
from trunkline.labels import is_blank
from trunkline.tasks.ranking import ranked

if TYPE_CHECKING:
    from trunkline.adapters.artifact import Artifact
    from trunkline.inference.engine import Engine


@dataclass(frozen=True, slots=True)
class Ranking:
    """The candidates of one query.

    Attributes:
        adapter, digest: the version that ranked them.
        candidates: the best first; equal scores keep their order.
        probabilities: of being the relevant one among these candidates, in the same order.
        prompt_tokens: of all candidates' prompts.
        truncated: whether the end of the query was cut off for some candidate.
    """

    adapter: str
    digest: str
    candidates: tuple[str, ...]
    probabilities: tuple[float, ...]
    prompt_tokens: int
    truncated: bool

    @classmethod
    def of(cls, candidates: Sequence[str], answers: Sequence[Answer]) -> Ranking:
        """The ranking by the answers to the candidates, in their order."""
        order, probabilities = ranked([answer.value or 0.0 for answer in answers])
        return cls(
            adapter=answers[0].adapter,
            digest=answers[0].digest,
            candidates=tuple(candidates[index] for index in order),
            probabilities=probabilities,
            prompt_tokens=sum(answer.prompt_tokens for answer in answers),
            truncated=any(answer.truncated for answer in answers),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_candidates(candidates: Sequence[str]) -> None:
    """Raise :class:`UsageError` unless these candidates can be ranked."""
    if isinstance(candidates, str) or len(candidates) < 2:
        raise UsageError("There is nothing to rank.", "Give two or more candidates.")
    if len(candidates) > MAX_CANDIDATES:
        raise UsageError(
            f"{len(candidates):,} candidates are too many.", f"Give at most {MAX_CANDIDATES:,}."
        )
    for candidate in candidates:
        if not isinstance(candidate, str) or is_blank(candidate):
            raise UsageError(f"The candidate {candidate!r:.60} is no text.", "Leave it out.")
    if len(set(candidates)) < len(candidates):
        raise UsageError("A candidate occurs twice.", "Give each one once.")


def rank_candidates(
    engine: Engine,
    artifact: Artifact,
    name: str,
    queries: Sequence[tuple[str, Sequence[str]]],
    on_done: Callable[[int], None] | None = None,
) -> list[Ranking]:
    """Rank the candidates of each query with one adapter.

    Args:
        engine: holds the base.
        artifact: the adapter, for ranking.
        name: of the adapter, for the requests.
        queries: texts, each with its candidates.
        on_done: called with the number of candidates done so far.
    """
    requests = [
        ResolvedRequest(Request(name, query, candidate=one), artifact, name)
        for query, candidates in queries
        for one in candidates
    ]
    answers = engine.run(requests, on_done=on_done)
    ends = accumulate((len(candidates) for _, candidates in queries), initial=0)
    return [
        Ranking.of(candidates, answers[start:end])
        for (_, candidates), (start, end) in zip(queries, pairwise(ends), strict=True)
    ]


def rank(
    run: Callable[[Sequence[Request]], Sequence[Answer]],
    adapter: str,
    query: str,
    candidates: Sequence[str],
) -> Ranking:
    """Rank candidates for one query.

    Args:
        run: answers requests, in their order.
        adapter: the ref of an adapter for ranking.

    Raises:
        UsageError: the candidates can't be ranked; and what ``run`` raises.
    """
    check_candidates(candidates)
    return Ranking.of(
        candidates, run([Request(adapter, query, candidate=one) for one in candidates])
    )
