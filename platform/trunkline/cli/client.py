"""The client behind predict, generate and chat: this process, or a running server."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from trunkline.cli.output import note
from trunkline.cli.root import GlobalOptions
from trunkline.contracts import Modality, Reads
from trunkline.refs import BASE

if TYPE_CHECKING:
    from pathlib import Path

    from trunkline.cli.progress import Lines, Live
    from trunkline.inference.ranking import Ranking
    from trunkline.inference.request import Answer, StreamChunk
    from trunkline.resolution import ResolvedModel

Messages = Sequence[Mapping[str, str]]

TRUNCATED = "(the end of the text was cut off: the adapter reads at most its max_length tokens)"


@dataclass(frozen=True, slots=True)
class Model:
    """The model that answers: one immutable version, or the bare base."""

    name: str = BASE
    task: str = "generation"
    digest: str = ""
    modality: Reads = "text"

    @property
    def generates(self) -> bool:
        return self.task == "generation"


class Client(Protocol):
    """Resolves refs and answers requests. Both implementations give the same answers."""

    def resolve(self, ref: str) -> Model:
        """The model that ``ref`` selects, printed on stderr."""

    def prepare(self, listener: Lines | Live, modality: Modality) -> None:
        """Load the base of a modality, so that loading does not count as answering."""

    def predict(
        self, model: Model, texts: Sequence[str], abstain: float | None = None
    ) -> list[Answer]:
        """A label or a number for each text; ``abstain`` as in a ``Request``."""

    def predict_images(
        self, model: Model, paths: Sequence[Path], abstain: float | None = None
    ) -> list[Answer]:
        """A label or a number for each picture."""

    def predict_pair(self, model: Model, text: str, path: Path, abstain: float | None) -> Answer:
        """A label for a text and a picture together, of a fusion."""

    def rank(self, model: Model, query: str, candidates: Sequence[str]) -> Ranking:
        """The candidates, the best first."""

    def generate(self, model: Model, prompt: str, sampling: Mapping[str, Any]) -> Answer:
        """One generated text."""

    def stream(
        self, model: Model, messages: Messages, sampling: Mapping[str, Any]
    ) -> Generator[StreamChunk]:
        """The reply in a conversation, chunk by chunk; closing the generator cancels it."""

    def adapters(self) -> list[tuple[str, str]]:
        """Name and task of each adapter."""


@contextmanager
def open_client(options: GlobalOptions, url: str | None) -> Iterator[Client]:
    """A client of the server at ``url``, or of this process if it is None."""
    if url is None:
        yield LocalClient(options)
        return
    from trunkline.cli.http_client import HttpClient, Server

    with Server(url) as server:
        yield HttpClient(server)


class LocalClient:
    """Answers in this process; a ref is resolved once, by :meth:`resolve`."""

    def __init__(self, options: GlobalOptions) -> None:
        self._options = options
        self._resolved: dict[str | None, ResolvedModel] = {}

    def resolve(self, ref: str) -> Model:
        if ref == BASE:
            note(BASE)
            return Model()
        model = self._options.resolve(ref)
        self._resolved[model.name] = model
        return Model(model.name, model.task, model.digest, model.modality)

    def prepare(self, listener: Lines | Live, modality: Modality) -> None:
        listener.stage("opening the base")
        self._options.platform.engines.of(modality)

    def predict(
        self, model: Model, texts: Sequence[str], abstain: float | None = None
    ) -> list[Answer]:
        from trunkline.inference.request import Request

        requests = [Request(model.name, text, abstain=abstain) for text in texts]
        self._model(model).check_task(model.name, generates=False)
        return self._options.platform.run(requests, self._resolved)

    def predict_images(
        self, model: Model, paths: Sequence[Path], abstain: float | None = None
    ) -> list[Answer]:
        from trunkline.images import ImageSource
        from trunkline.inference.request import Request

        requests = [Request(model.name, image=ImageSource(path), abstain=abstain) for path in paths]
        return self._options.platform.run(requests, self._resolved)

    def predict_pair(self, model: Model, text: str, path: Path, abstain: float | None) -> Answer:
        from trunkline.images import ImageSource
        from trunkline.inference.request import Request

        request = Request(model.name, text, image=ImageSource(path), abstain=abstain)
        return self._options.platform.run([request], self._resolved)[0]

    def rank(self, model: Model, query: str, candidates: Sequence[str]) -> Ranking:
        from trunkline.inference.ranking import rank

        self._model(model).check_task(model.name, generates=False)
        platform = self._options.platform
        return rank(
            lambda requests: platform.run(requests, self._resolved), model.name, query, candidates
        )

    def generate(self, model: Model, prompt: str, sampling: Mapping[str, Any]) -> Answer:
        from trunkline.inference.request import Request

        self._model(model).check_task(model.name, generates=True)
        request = Request(model.name, prompt, **sampling)
        return self._options.platform.run([request], self._resolved)[0]

    def stream(
        self, model: Model, messages: Messages, sampling: Mapping[str, Any]
    ) -> Generator[StreamChunk]:
        from trunkline.inference.request import Request

        conversation = tuple(dict(message) for message in messages)
        prompt = conversation[-1]["content"]
        request = Request(model.name, prompt, messages=conversation, **sampling)
        handle = self._options.platform.submit(request, self._model(model))
        if handle.truncated:
            note(TRUNCATED)
        try:
            yield from handle.chunks()
        finally:
            handle.cancel()

    def adapters(self) -> list[tuple[str, str]]:
        records = self._options.platform.adapters()
        return [(str(record.ref), record.task) for record in records]

    def _model(self, model: Model) -> ResolvedModel:
        if model.name not in self._resolved:
            self._resolved[model.name] = self._options.platform.resolve(model.name)
        return self._resolved[model.name]
