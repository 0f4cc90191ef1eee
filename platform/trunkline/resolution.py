"""The result of resolving a ref: one version, or the bare base, with its artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from trunkline.adapters.fusion import FUSED, FusedParent
from trunkline.errors import BaseMismatchError, BaseModelError, IntegrityError, UsageError
from trunkline.refs import BASE, Ref

if TYPE_CHECKING:
    from trunkline.adapters.artifact import Artifact
    from trunkline.api import Platform
    from trunkline.contracts import Modality, Reads
    from trunkline.inference.fusion import FusedModel
    from trunkline.inference.request import Answer, Request, ResolvedRequest
    from trunkline.registry.records import VersionRecord


@dataclass(frozen=True)
class ResolvedModel:
    """The model that a ref selects: one immutable version, or the bare base.

    A ref is resolved once, by :meth:`Platform.resolve`; callers pass this object on.

    Attributes:
        record: the version; None for the bare base.
        selected_by: ``number``, ``alias``, ``digest``, ``champion``, ``newest`` or ``base``.
    """

    platform: Platform = field(repr=False, compare=False)
    record: VersionRecord | None
    selected_by: str

    @property
    def version(self) -> VersionRecord:
        """The version.

        Raises:
            UsageError: this is the bare base.
        """
        if self.record is None:
            raise UsageError(
                "'base' means the bare base, which is not an adapter.", "Name an adapter."
            )
        return self.record

    @property
    def ref(self) -> Ref:
        """``domain/name@number``; raises :class:`UsageError` for the bare base."""
        return self.version.ref

    @property
    def name(self) -> str:
        """The version's ref as text, or ``base``."""
        return BASE if self.record is None else str(self.record.ref)

    @property
    def task(self) -> str:
        """The version's task; the bare base generates text."""
        return "generation" if self.record is None else self.record.task

    @property
    def modality(self) -> Reads:
        """What the version reads; a fusion reads both.

        Raises:
            BaseMismatchError: it was trained on another base than the platform's.
        """
        if self.record is None:
            return "text"
        if self.fused is not None:
            return FUSED
        if self.record.base_digest == self.platform.engines.image_digest:
            return "image"
        self._check_base(self.record)
        return "text"

    @property
    def digest(self) -> str:
        """Digest of the artifact; of the bare base, its own digest."""
        return self.base_digest if self.record is None else self.record.digest

    @property
    def base_digest(self) -> str:
        """Digest of the base that the version was trained on."""
        return self.platform.base_digest if self.record is None else self.record.base_digest

    def artifact(self) -> Artifact | None:
        """The verified artifact, read once; None for the bare base.

        Raises:
            BaseMismatchError: the version was trained on another base than the platform's.
            IntegrityError: the artifact does not match the registry.
            UsageError: it is a fusion, which has no weights of its own.
        """
        return self._artifact

    @cached_property
    def fused(self) -> FusedModel | None:
        """The version with its parents if it is a fusion, read once; else None.

        Raises:
            BaseMismatchError: a parent was trained on another base than the platform's.
            IntegrityError: an artifact does not match the registry, or a parent is missing.
        """
        if self.record is None or self.record.modality != FUSED:
            return None
        from trunkline.inference.fusion import FusedModel
        from trunkline.tasks import ClassificationTask, task_from_json

        artifact = self.platform.store.fetch(self.record)
        fusion, task = artifact.manifest.fusion, task_from_json(artifact.manifest.task)
        if fusion is None or not isinstance(task, ClassificationTask):
            raise IntegrityError(
                f"The registry has {self.name} as a fusion, and its manifest describes none.",
                "Restore the registry, or `trunkline db rebuild` it.",
            )
        text, image = (self._parent(parent, task.labels) for parent in fusion.parents)
        if text[1].manifest.reads != "text" or image[1].manifest.reads != "image":
            raise IntegrityError(
                f"The parents of {self.name} do not read a text and a picture.",
                "Fuse a text adapter and an image adapter again.",
            )
        return FusedModel(self.name, artifact, task, text, image)

    def adapters(self) -> tuple[tuple[Modality, str, Artifact], ...]:
        """What must be in memory to answer: modality, ref and artifact; two of a fusion.

        Raises:
            UsageError: this is the bare base.
            and as :meth:`artifact` and :attr:`fused`.
        """
        if self.fused is not None:
            return ("text", *self.fused.text), ("image", *self.fused.image)
        modality: Modality = "image" if self.modality == "image" else "text"
        return ((modality, self.name, self.platform.store.fetch(self.version)),)

    def split(self, request: Request) -> tuple[ResolvedRequest, ...]:
        """What the engines compute for a request: one request, or two for a fusion.

        Raises:
            UsageError: a fusion lacks a text or a picture.
            and as :meth:`artifact` and :attr:`fused`.
        """
        if self.fused is not None:
            return self.fused.split(request)
        from trunkline.inference.request import ResolvedRequest

        return (ResolvedRequest(request, self.artifact(), self.name),)

    def join(self, request: Request, answers: Sequence[Answer]) -> Answer:
        """The answer to a request from those to :meth:`split`."""
        if self.fused is None:
            return answers[0]
        text, image = answers
        return self.fused.join(request, text, image)

    def _parent(self, parent: FusedParent, labels: tuple[str, ...]) -> tuple[str, Artifact]:
        """The ref and the artifact of a fusion's parent."""
        version = self.platform.registry.versions.of_digest(parent.digest)
        if version is None or version.removed is not None:
            raise IntegrityError(
                f"{self.name} answers with {parent.ref} ({parent.digest[:19]}…), which this "
                "workspace does not have.",
                "Import that version, or fuse others under this name.",
            )
        model = ResolvedModel(self.platform, version, "digest")
        artifact = model.artifact()
        assert artifact is not None
        if tuple(artifact.manifest.task.get("labels", ())) != labels:
            raise IntegrityError(
                f"The labels of {model.name} are not those of {self.name}.", "Fuse them again."
            )
        return model.name, artifact

    def check_task(self, adapter: str, *, generates: bool) -> None:
        """Raise :class:`UsageError` if the model is for the other kind of task.

        Args:
            adapter: the ref as the user wrote it, for the message.
            generates: whether text is requested, rather than labels or numbers.
        """
        if (self.task == "generation") == generates:
            return
        if self.record is None:
            raise UsageError(
                "The bare base predicts no labels.", 'Use `trunkline generate base "…"` instead.'
            )
        verb = "predict" if generates else "generate"
        raise UsageError(
            f"{adapter} is for {self.task}.", f'Use `trunkline {verb} {adapter} "…"` instead.'
        )

    @cached_property
    def _artifact(self) -> Artifact | None:
        if self.record is None:
            return None
        if self.record.modality == FUSED:
            from trunkline.adapters.artifact import no_weights

            raise no_weights(self.name, self.platform.store.fetch(self.record).manifest)
        self._check_base(self.record)
        resident = self.platform.engines.resident_artifact(self.record.digest)
        return resident or self.platform.store.fetch(self.record)

    def _check_base(self, version: VersionRecord) -> None:
        """Refuse a version of another base, with the command that retrains it."""
        image, chosen = self.platform.engines.image_digest, self.platform.base_name
        if version.base_digest == image:
            return
        try:
            digest = self.platform.base_digest
        except BaseModelError:
            if image is None:
                raise
            digest = image  # only the image base is on this machine
        if version.base_digest == digest:
            return
        option = "" if chosen is None else f" --base {chosen}"
        remedy = f"train it again: `trunkline{option} train {version.ref.adapter}`"
        if version.run is None:
            remedy = "import one that was made for this base"
        name = Path(version.base_name).name
        raise BaseMismatchError(
            f"{version.ref} was trained on {name} ({version.base_digest[:12]}…); the current base "
            f"is {digest[:12]}….",
            f"Load the base that it was trained on (`--base {name}`), or {remedy}.",
        )
