"""The bases of one process, one for each modality, with their engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from trunkline.contracts import Modality
from trunkline.errors import BaseModelError, UsageError

if TYPE_CHECKING:
    from trunkline.adapters.artifact import Artifact
    from trunkline.inference.engine import Engine
    from trunkline.inference.image_engine import AnyEngine, ImageEngine
    from trunkline.inference.request import Answer, ResolvedRequest
    from trunkline.inference.settings import EngineSettings


@dataclass(frozen=True)
class Engines:
    """The engines of a platform; each is created, and its base loaded, when it is first used.

    Attributes:
        base_name: the chosen base, of either modality; the other modality has its default base.
        image_base_name: the chosen base for pictures.
        device, dtype: of the bases; an image base is not quantized.
        settings: of each engine.
    """

    base_name: str | None
    image_base_name: str | None
    device: str
    dtype: str
    settings: EngineSettings | None

    @cached_property
    def names(self) -> Mapping[Modality, str]:
        """The base of each modality.

        Raises:
            UsageError: ``image_base_name`` names a base for text.
            NotFoundError: there is no such base.
        """
        from trunkline.bases import DEFAULT_BASE, DEFAULT_IMAGE_BASE, modality_of

        names: dict[Modality, str] = {"text": DEFAULT_BASE, "image": DEFAULT_IMAGE_BASE}
        if self.base_name is not None:
            names[modality_of(self.base_name)] = self.base_name
        if self.image_base_name is not None:
            if modality_of(self.image_base_name) != "image":
                raise UsageError(
                    f"The base {self.image_base_name!r} does not read pictures.",
                    "Name it with --base, or a vision model with --image-base.",
                )
            names["image"] = self.image_base_name
        return names

    @cached_property
    def serves_images_only(self) -> bool:
        """Whether a server needs no base for text: only one was chosen, and it is for pictures."""
        return (
            self.base_name is not None
            and self.image_base_name is None
            and self.names["image"] == self.base_name
        )

    @cached_property
    def text(self) -> Engine:
        """The engine of the text base."""
        from trunkline.bases import load
        from trunkline.inference.engine import Engine

        return Engine(load(self.names["text"], device=self.device, dtype=self.dtype), self.settings)

    @cached_property
    def image(self) -> ImageEngine:
        """The engine of the image base."""
        from trunkline.bases import load_image
        from trunkline.bases.load import QUANTIZED
        from trunkline.inference.image_engine import ImageEngine

        dtype = "auto" if self.dtype in QUANTIZED else self.dtype
        base = load_image(self.names["image"], device=self.device, dtype=dtype)
        return ImageEngine(base, self.settings)

    def of(self, modality: Modality) -> AnyEngine:
        """The engine whose base reads texts or pictures."""
        return self.image if modality == "image" else self.text

    def loaded(self) -> list[AnyEngine]:
        """The engines that were used so far."""
        return [self.__dict__[name] for name in ("text", "image") if name in self.__dict__]

    @cached_property
    def text_digest(self) -> str:
        """Digest of the text base; does not load it."""
        if "text" in self.__dict__:
            return self.text.base.digest
        from trunkline.bases import describe

        return describe(self.names["text"]).digest

    @cached_property
    def image_digest(self) -> str | None:
        """Digest of the image base, without loading it; None if it is not on this machine."""
        from trunkline.bases import describe_image

        try:
            return describe_image(self.names["image"]).digest
        except BaseModelError:
            return None

    @cached_property
    def pair_digest(self) -> str | None:
        """Digest of the pair of bases that a fusion needs; None if one is not on this machine."""
        from trunkline.adapters.fusion import pair_digest

        try:
            text, image = self.text_digest, self.image_digest
        except BaseModelError:
            return None
        return None if image is None else pair_digest(text, image)

    def for_request(self, request: ResolvedRequest) -> AnyEngine:
        """The engine that answers a request."""
        return self.of(modality_of_request(request))

    def run(
        self, requests: Sequence[ResolvedRequest], on_done: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """Answer requests, in their order; see :meth:`Engine.run`.

        Those of both modalities are computed at the same time.
        """
        modalities = [modality_of_request(request) for request in requests]
        engines = {modality: self.of(modality) for modality in dict.fromkeys(modalities)}
        if len(engines) == 1:
            return engines[modalities[0]].run(requests, on_done=on_done)
        answers: dict[int, Answer] = {}
        with ThreadPoolExecutor(max(1, len(engines)), "engines") as threads:
            running = []
            for modality, engine in engines.items():
                own = [index for index, one in enumerate(modalities) if one == modality]
                batch = [requests[index] for index in own]
                running.append((own, threads.submit(engine.run, batch, on_done=on_done)))
            for own, results in running:
                answers |= zip(own, results.result(), strict=True)
        return [answers[index] for index in range(len(requests))]

    def resident_artifact(self, digest: str) -> Artifact | None:
        """The artifact with this digest, if an adapter pool holds it."""
        for engine in self.loaded():
            if (resident := engine.pool.get(digest)) is not None:
                return resident.artifact
        return None


def modality_of_request(request: ResolvedRequest) -> Modality:
    """What the adapter of a request reads; the bare base reads text."""
    reads_images = request.artifact is not None and request.artifact.manifest.reads_images
    return "image" if reads_images else "text"
