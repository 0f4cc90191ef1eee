"""The result of resolving a ref: one version, or the bare base, with its artifact."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from trunkline.errors import BaseMismatchError, BaseModelError, UsageError
from trunkline.refs import BASE, Ref

if TYPE_CHECKING:
    from trunkline.adapters.artifact import Artifact
    from trunkline.api import Platform
    from trunkline.contracts import Modality
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
    def modality(self) -> Modality:
        """What the version reads.

        Raises:
            BaseMismatchError: it was trained on another base than the platform's.
        """
        if self.record is None:
            return "text"
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
        """
        return self._artifact

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
