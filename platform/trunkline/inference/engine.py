"""Work on one base: items in any order and of any adapter go in, answers come back in order.

Owns: grouping into batches, and decoding by the adapter's own task and template. Must not know:
refs or the registry; whoever calls has resolved each request to an artifact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trunkline.adapters.artifact import Artifact
from trunkline.adapters.bank import Bank, Resident
from trunkline.contracts import Template
from trunkline.data.encode import encode_chat, encode_prompt
from trunkline.errors import DataError, UsageError
from trunkline.inference.forward import Sampling, last_hidden, new_tokens
from trunkline.inference.request import Answer, Request
from trunkline.tasks import AnyTask, GenerationTask, task_from_json
from trunkline.tasks.batches import by_length

if TYPE_CHECKING:
    from trunkline.base_model import Base

BASE_NEW_TOKENS = 64
BASE_TEMPLATE = Template(chat=True, clean=("strip",))
BASE_TEMPLATE_PLAIN = Template(clean=("strip",))


@dataclass(frozen=True, slots=True)
class Work:
    """A request with the version that answers it; ``artifact`` None is the bare base."""

    request: Request
    artifact: Artifact | None = None
    name: str = "base"


@dataclass(frozen=True, slots=True)
class _Item:
    place: int
    prompt: list[int]
    request: Request
    name: str


class Engine:
    """One base with its bank."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.bank = Bank(base.model, base.digest)
        self._tasks: dict[str, tuple[AnyTask, Template]] = {}

    def run(
        self,
        works: Sequence[Work],
        *,
        batch_size: int = 32,
        streamer: Any = None,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Answer every item; nothing is computed unless all of them can be.

        Args:
            works: in any mixture.
            batch_size: rows of one forward pass.
            streamer: of transformers, for a single generation.
            on_done: told how many more items are answered.

        Raises:
            DataError: a text is empty, or longer than the context of the base.
            IntegrityError, BaseMismatchError: an adapter can't be loaded.
        """
        groups: dict[str | None, list[_Item]] = defaultdict(list)
        for place, work in enumerate(works):
            digest = self._admit(work.artifact)
            try:
                prompt = self._prompt(work, digest)
            except DataError as error:
                if len(works) == 1:
                    raise
                told = f"Text {place + 1} of {len(works)}: {error.message}"
                raise DataError(told, error.hint) from None
            groups[digest].append(_Item(place, prompt, work.request, work.name))
        answers: dict[int, Answer] = {}
        for digest, items in groups.items():
            with self.bank.using(digest) as resident:
                task = self._tasks[digest][0] if digest else GenerationTask(BASE_NEW_TOKENS)
                for batch in self._batches(items, task, batch_size):
                    for item, answer in zip(
                        batch, self._answer(batch, task, digest, resident, streamer), strict=True
                    ):
                        answers[item.place] = answer
                    if on_done is not None:
                        on_done(len(batch))
        return [answers[place] for place in range(len(works))]

    def _admit(self, artifact: Artifact | None) -> str | None:
        if artifact is None:
            return None
        digest = artifact.digest
        if digest not in self._tasks:
            self.bank.load(artifact)
            self._tasks[digest] = (
                task_from_json(dict(artifact.manifest.task)),
                artifact.manifest.make_template(),
            )
        return digest

    def _prompt(self, work: Work, digest: str | None) -> list[int]:
        request, tokenizer = work.request, self.base.tokenizer
        task = self._tasks[digest][0] if digest else None
        if request.messages:
            if task is not None and not isinstance(task, GenerationTask):
                raise UsageError(
                    f"{work.name} answers a {task.kind} and can't hold a talk.",
                    "Ask it with `trunkline predict`.",
                )
            prompt = encode_chat([dict(message) for message in request.messages], tokenizer)
        else:
            plain = BASE_TEMPLATE if tokenizer.chat_template else BASE_TEMPLATE_PLAIN
            template = self._tasks[digest][1] if digest else plain
            prompt = encode_prompt(request.text, template, tokenizer)
        room = self._new_tokens(request, task) if task is None or _generates(task) else 0
        context = self.base.info.context
        if len(prompt) + room > context:
            raise DataError(
                f"The text {_start(request)!r} is too long: {len(prompt)} tokens"
                + (f" and {room} new ones" if room else "")
                + f" don't fit the base's context of {context}.",
                "Shorten the text or ask for fewer new tokens." if room else "Shorten the text.",
            )
        return prompt

    def _new_tokens(self, request: Request, task: AnyTask | None) -> int:
        own = task.max_new_tokens if isinstance(task, GenerationTask) else BASE_NEW_TOKENS
        return request.max_new_tokens or own

    def _batches(self, items: list[_Item], task: AnyTask, batch_size: int) -> list[list[_Item]]:
        """Rows of one batch share the sampling; a sampled request is drawn by itself, so that
        its seed alone decides."""
        alike: dict[Any, list[_Item]] = defaultdict(list)
        for item in items:
            request = item.request
            if not _generates(task):
                alike[None].append(item)
            elif request.temperature > 0:
                alike[item.place].append(item)
            else:
                alike["greedy", self._new_tokens(request, task)].append(item)
        return [
            [group[index] for index in chosen]
            for group in alike.values()
            for chosen in by_length([len(item.prompt) for item in group], batch_size)
        ]

    def _answer(
        self,
        batch: list[_Item],
        task: AnyTask,
        digest: str | None,
        resident: Resident | None,
        streamer: Any,
    ) -> list[Answer]:
        model, tokenizer = self.base.model, self.base.tokenizer
        prompts = [item.prompt for item in batch]
        identity = digest or self.base.digest
        if not isinstance(task, GenerationTask):
            assert resident is not None
            assert resident.head is not None
            outputs = last_hidden(model, prompts, tokenizer.pad_token_id) @ resident.head.T
            return [
                Answer(
                    adapter=item.name,
                    digest=identity,
                    task=task.kind,
                    prompt_tokens=len(item.prompt),
                    label=str(value) if task.kind == "classification" else None,
                    probabilities=dict(zip(task.labels, chances, strict=True)) if chances else None,
                    value=float(value) if task.kind == "regression" else None,
                    unit=getattr(task, "unit", None),
                )
                for item, (value, chances) in zip(batch, task.decode(outputs), strict=True)
            ]
        first = batch[0].request
        sampling = Sampling(
            self._new_tokens(first, task), first.temperature, first.top_p, first.seed
        )
        generated = new_tokens(model, tokenizer, prompts, sampling, streamer)
        return [
            Answer(
                adapter=item.name,
                digest=identity,
                task=task.kind,
                prompt_tokens=len(item.prompt),
                new_tokens=len(ids),
                text=tokenizer.decode(ids, skip_special_tokens=True).strip(),
                finish="stop" if ids and ids[-1] == tokenizer.eos_token_id else "length",
            )
            for item, ids in zip(batch, generated, strict=True)
        ]


def _start(request: Request) -> str:
    text = request.messages[-1]["content"] if request.messages else request.text
    return text if len(text) <= 40 else f"{text[:40]}…"


def _generates(task: AnyTask) -> bool:
    return isinstance(task, GenerationTask)
