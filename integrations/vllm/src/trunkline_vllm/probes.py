"""Probes: prompts with the first tokens of their published answers, stored with the version.

A probe is recorded once, where our own engine answers as the evaluation stored it. vLLM must repeat
the tokens before an adapter takes traffic there. The tokens end before the first near-tie, which
another kernel or precision may decide otherwise; and the base alone answers differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trunkline.errors import IntegrityError, RefusedError
from trunkline.inference.request import Request
from trunkline.registry.records import VersionRecord
from trunkline.registry.registry import Registry

if TYPE_CHECKING:
    from trunkline.api import Platform
    from trunkline.registry.events import VersionEvent

PROBED: VersionEvent = "version.probed"

MARGIN = 0.25
"""How much likelier than the next one a token of a probe is, as a difference of log
probabilities."""

MAX_TOKENS = 16
PROBES = (
    "The delivery arrived two days late and one box was damaged.",
    "Acute appendicitis without abscess",
    "What does the warranty cover?",
    "a",
    "Der Zug nach München fährt um 9 Uhr.",
    "Please cancel my order and refund the amount.",
    "Card payment 12.40 EUR, supermarket, Berlin",
    "Whole milk, 1 gallon",
)
"""The fixed texts."""

_CANDIDATES = 16
_PAGE = 100


@dataclass(frozen=True, slots=True)
class Probe:
    """Token ids of a prompt, and of the start of its published answer."""

    prompt: tuple[int, ...]
    expected: tuple[int, ...]

    def body(self, model: str) -> dict[str, Any]:
        """The body of ``POST /v1/completions`` that asks vLLM for the answer."""
        return {
            "model": model,
            "prompt": list(self.prompt),
            "max_tokens": len(self.expected),
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }


def stored_probes(registry: Registry, version: VersionRecord) -> tuple[Probe, ...]:
    """The probes that were recorded last for a version; none if none were.

    Raises:
        RegistryError: the registry can't be read.
        IntegrityError: they are malformed.
    """
    before: int | None = None
    while True:
        page = registry.events.list(version.ref.adapter, PROBED, before, _PAGE)
        for event in page:
            if event.detail.get("digest") == version.digest:
                return _parse(event.detail.get("probes"), version)
        if len(page) < _PAGE:
            return ()
        before = page[-1].seq


def check_answer(version: VersionRecord, probe: Probe, actual: Sequence[int]) -> None:
    """Compare the tokens of an answer with those that were published.

    Raises:
        IntegrityError: they differ.
    """
    if tuple(actual[: len(probe.expected)]) != probe.expected:
        raise IntegrityError(
            f"{version.ref} does not answer here as it was published: a stored probe expects the "
            f"tokens {list(probe.expected)}, and vLLM answers {list(actual)}.",
            "It takes no traffic. Check vLLM's --dtype, --quantization and --hf-overrides; the "
            "base may be computed differently.",
        )


def record_probes(platform: Platform, ref: str, count: int = 4, *, fixed: bool = False) -> int:
    """Store probes of a version in the registry, as an event; returns their number.

    The prompts are test rows whose answer the newest evaluation stored; those of a version without
    a dataset, or with ``fixed``, are fixed texts of this package. The registry keeps the prompts.

    Raises:
        RefusedError: the engine does not repeat the stored predictions, or no prompt tells the
            adapter from the base.
        TrunklineError: the version, its artifact or its rows can't be read.
    """
    from trunkline.inference.prompts import encode_request
    from trunkline.tasks import prompt_limit, task_from_json

    model = platform.resolve(ref)
    model.check_task(ref, generates=True)
    version, artifact, tokenizer = model.version, model.artifact(), platform.engine.base.tokenizer
    assert artifact is not None  # of a version
    manifest, task = artifact.manifest, task_from_json(artifact.manifest.task)
    published = {} if fixed or version.dataset is None else _published(platform, version)
    fixed = not published
    published = published or dict.fromkeys(PROBES)
    limit = None if manifest.max_length is None else prompt_limit(task, manifest.max_length)
    new_tokens = MAX_TOKENS if fixed else None
    requests = [
        Request(model.name, text, max_new_tokens=new_tokens, logprobs=2) for text in published
    ]
    template = manifest.make_template()
    prompts = [
        tuple(encode_request(one, model.name, task, template, tokenizer, limit).ids)
        for one in requests
    ]
    bare = [
        Request(None, token_ids=prompt, max_new_tokens=MAX_TOKENS, logprobs=0) for prompt in prompts
    ]
    answers = platform.run([*requests, *bare])
    probes: list[Probe] = []
    for text, prompt, answer, base in zip(
        published, prompts, answers, answers[len(requests) :], strict=False
    ):
        choice = answer.choices[0]
        if published[text] is not None and choice.text.strip() != published[text]:
            raise RefusedError(
                f"The engine answers {text!r:.60} with {version.ref} otherwise than its evaluation "
                "stored.",
                f"Evaluate it again on this machine: `trunkline eval {version.ref}`.",
            )
        expected = _decisive(choice.scores)
        of_base = tuple(score.id for score in base.choices[0].scores)
        if expected and expected != of_base[: len(expected)] and len(probes) < count:
            probes.append(Probe(prompt, expected))
    if not probes:
        raise RefusedError(
            f"No prompt tells {version.ref} from the base: the first tokens are near-ties, or the "
            "same.",
            "Train it longer; or serve it unproven with TRUNKLINE_VLLM_PROBE=optional.",
        )
    detail = {
        "probes": [{"prompt": one.prompt, "expected": one.expected} for one in probes],
        "source": "fixed texts" if fixed else "evaluation",
    }
    platform.registry.events.append(PROBED, version.ref, detail)
    return len(probes)


def _decisive(scores: Sequence[Any]) -> tuple[int, ...]:
    """The tokens before the first near-tie."""
    ids: list[int] = []
    for score in scores[:MAX_TOKENS]:
        first, second = score.top[:2]
        if first.logprob - second.logprob < MARGIN:
            break
        ids.append(score.id)
    return tuple(ids)


def _published(platform: Platform, version: VersionRecord) -> dict[str, str | None]:
    """Texts of test rows with the answers that the newest evaluation stored."""
    from trunkline.training.cross_validation import prepare_version
    from trunkline.training.export import stored_predictions

    _, prepared, _ = prepare_version(platform.store, platform.job_of(version), version)
    replay = stored_predictions(platform.store, version, prepared.split.test)
    pairs = zip(replay.rows, replay.predictions, strict=True)
    texts = {row.text: stored.prediction.strip() for row, stored in pairs if not row.history}
    return dict(list(texts.items())[:_CANDIDATES])


def _parse(value: Any, version: VersionRecord) -> tuple[Probe, ...]:
    try:
        probes = tuple(
            Probe(tuple(map(int, one["prompt"])), tuple(map(int, one["expected"]))) for one in value
        )
        if not all(probe.prompt and probe.expected for probe in probes):
            raise ValueError("empty")
    except (TypeError, ValueError, KeyError) as error:
        raise IntegrityError(
            f"The stored probes of {version.ref} are malformed.",
            f"Record them again: `trunkline-vllm probe {version.ref}`.",
        ) from error
    return probes
