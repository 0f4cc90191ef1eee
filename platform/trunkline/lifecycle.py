"""What becomes of a version after it was made: live, moved, signed, checked, removed.

Owns: handing each of these to the module that does it, with the workspace's own demands. Must not
know: training, inference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.contracts import Gate, MetricSpec
from trunkline.evaluation.report import EvaluationReport
from trunkline.promotion import (
    AliasChange,
    Promotion,
    evaluation_report_of,
    promote,
    rollback,
    unalias,
)
from trunkline.refs import Ref, check_digest
from trunkline.registry.records import AdapterRecord, VersionRecord
from trunkline.registry.registry import Registry
from trunkline.workspace import Workspace

if TYPE_CHECKING:
    from trunkline.adapters.gc import Found
    from trunkline.adapters.importing import Imported
    from trunkline.adapters.moving import Arrived, Exported
    from trunkline.adapters.store import AdapterStore
    from trunkline.adapters.upkeep import Removed, Verdict


class Lifecycle:
    """The part of :class:`~trunkline.api.Platform` that keeps versions."""

    workspace: Workspace
    base_name: str | None

    if TYPE_CHECKING:

        @property
        def registry(self) -> Registry: ...

        @property
        def store(self) -> AdapterStore: ...

        def resolve(self, adapter: str) -> VersionRecord: ...

        def metric(self, name: str) -> MetricSpec: ...

    def evaluation_report(self, version: VersionRecord) -> tuple[EvaluationReport, Gate] | None:
        """The newest evaluation of a version on its test rows, with the gate it was made under."""
        return evaluation_report_of(self.registry, version)

    def promote(
        self,
        adapter: str,
        alias: str = "champion",
        *,
        force: bool = False,
        reason: str = "",
        actor: str | None = None,
    ) -> Promotion:
        """Move an alias, if the gate allows it; see :func:`trunkline.promotion.promote`.

        Without a selector the newest version is meant, not the present champion.
        """
        return promote(
            self.store,
            Ref.parse(adapter),
            alias,
            metric=self.metric,
            demanded=self.workspace.configuration.gate,
            force=force,
            reason=reason,
            actor=actor,
        )

    def rollback(
        self,
        adapter: str,
        alias: str = "champion",
        *,
        reason: str = "",
        actor: str | None = None,
    ) -> AliasChange:
        """Let an alias go back a version, without a gate; see :func:`trunkline.promotion.rollback`.

        Each call goes one step further.
        """
        return rollback(self.store, Ref.parse(adapter), alias, reason=reason, actor=actor)

    def unalias(
        self, adapter: str, alias: str, *, reason: str = "", actor: str | None = None
    ) -> AliasChange:
        """Take an alias away; see :func:`trunkline.promotion.unalias`."""
        return unalias(self.registry, Ref.parse(adapter), alias, reason=reason, actor=actor)

    def import_adapter(
        self,
        source: str | Path,
        name: str,
        *,
        base: str | None = None,
        actor: str | None = None,
        **wishes: Any,
    ) -> Imported:
        """Publish an adapter that PEFT saved elsewhere as the next version of ``name``.

        Args:
            source: a plain PEFT folder, or ``hf:<repo>[@revision]``.
            name: ``domain/name``.
            base: that it was trained on; by default this platform's.
            actor: who imports; by default the system's user.
            wishes: task, labels, template, max_new_tokens, unit; see
                :class:`~trunkline.adapters.imported_task.Wishes`.

        Raises:
            UsageError: the wishes contradict the adapter.
            IntegrityError: it does not fit the base, or would not be computed exactly.
        """
        from trunkline.adapters.hub import SCHEME, fetch_adapter
        from trunkline.adapters.imported_task import Wishes
        from trunkline.adapters.importing import import_adapter
        from trunkline.bases import DEFAULT_BASE, describe

        ref = Ref.parse(name)
        info = describe(base or self.base_name or DEFAULT_BASE)
        found = fetch_adapter(str(source)) if str(source).startswith(SCHEME) else None
        return import_adapter(
            self.store,
            self.registry,
            info,
            Path(source) if found is None else found.folder,
            ref,
            Wishes(**wishes),
            source=None if found is None else found.origin,
            actor=actor,
        )

    def import_archive(
        self,
        file: str | Path,
        name: str | None = None,
        *,
        digest: str | None = None,
        base: str | None = None,
        actor: str | None = None,
    ) -> Arrived:
        """Publish the version in an archive, with its lineage; see
        :func:`adapters.moving.import_archive`.

        Args:
            file: that :meth:`export_adapter` wrote, here or elsewhere.
            name: ``domain/name`` that it becomes; by default the one that it had.
            digest: that the version must have, ``sha256:…``.
            base: that it must have been trained on.
            actor: who imports; by default the system's user.
        """
        from trunkline.adapters.moving import import_archive
        from trunkline.bases import describe

        return import_archive(
            self.store,
            Path(file),
            None if name is None else Ref.parse(name),
            digest=None if digest is None else check_digest(digest),
            base_digest=None if base is None else describe(base).digest,
            actor=actor,
        )

    def export_adapter(
        self, adapter: str, file: str | Path, *, overwrite: bool = False, actor: str | None = None
    ) -> Exported:
        """Write a version into an archive; see :func:`adapters.moving.export_version`."""
        from trunkline.adapters.moving import export_version

        version = self.resolve(adapter)
        return export_version(self.store, version, Path(file), overwrite=overwrite, actor=actor)

    def sign_adapter(
        self,
        adapter: str,
        key: str | Path,
        *,
        password: str | None = None,
        actor: str | None = None,
    ) -> str:
        """Sign a version; see :func:`adapters.moving.sign_version`."""
        from trunkline.adapters.moving import sign_version

        return sign_version(self.store, self.resolve(adapter), Path(key), password, actor=actor)

    def verify(
        self,
        version: VersionRecord,
        *,
        require_signature: bool = False,
        keys: Sequence[Path] = (),
    ) -> Verdict:
        """Recompute a version's digests in the store; see :func:`adapters.upkeep.verify`.

        What ``trunkline.toml`` demands of signatures is always asked for; its keys count unless
        others are given.
        """
        from trunkline.adapters.upkeep import verify

        demanded = self.workspace.configuration.signatures
        return verify(
            self.store,
            version,
            require_signature=require_signature or demanded.required,
            keys=keys or demanded.keys,
        )

    def remove_version(self, adapter: str, reason: str, *, actor: str | None = None) -> Removed:
        """Take a version's files away and leave its lineage; see :func:`adapters.upkeep.remove`."""
        from trunkline.adapters.upkeep import remove

        return remove(self.store, Ref.parse(adapter), reason=reason, actor=actor)

    def find_garbage(self, *, unknown: bool = False) -> list[Found]:
        """What nobody holds; see :func:`adapters.garbage.find_garbage`."""
        from trunkline.adapters.gc import find_garbage

        return find_garbage(self.store, unknown=unknown)

    def collect_garbage(self, found: Sequence[Found]) -> Iterator[Found]:
        """Take away what :meth:`find_garbage` found, giving each piece that was taken."""
        from trunkline.adapters.gc import collect

        return collect(self.store, [one for one in found if one.taken])

    def adapters(self) -> Sequence[AdapterRecord]:
        """The adapters that have a version."""
        return self.registry.adapters.list()
