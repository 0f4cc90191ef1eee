"""Imports, exports, merges and signatures of versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from trunkline.contracts import NoProgress
from trunkline.refs import Ref, check_digest
from trunkline.training.distributed import require_one

if TYPE_CHECKING:
    from trunkline.adapters.archive import ExportResult, ImportResult
    from trunkline.adapters.peft_import import ImportedAdapter
    from trunkline.api import Platform
    from trunkline.contracts import FusionMethod, Modality, ProgressListener
    from trunkline.evaluation.report import EvaluationReport
    from trunkline.registry.records import VersionRecord
    from trunkline.resolution import ResolvedModel
    from trunkline.training.config import RecipeConfig
    from trunkline.training.export import ModelExport, ModelFormat
    from trunkline.training.fusion import FusionResult, Half
    from trunkline.training.merge import MergeResult
    from trunkline.training.run import RunContext, TrainingResult


@dataclass(frozen=True)
class AdapterFiles:
    """The imports, exports and merges of one platform, as ``platform.files``.

    They are refused in a process that a launcher started together with others.
    """

    platform: Platform

    def import_adapter(
        self,
        source: str | Path,
        name: str,
        *,
        base: str | None = None,
        actor: str | None = None,
        **options: Any,
    ) -> ImportedAdapter:
        """Publish an adapter that PEFT saved elsewhere as the next version of ``name``.

        Args:
            source: a plain PEFT folder, or ``hf:<repo>[/subfolder][@revision]``.
            name: ``domain/name``.
            base: the base that it was trained on; by default this platform's.
            actor: recorded as the importer; by default the system's user.
            options: task, labels, template, max_new_tokens, unit; see
                :class:`~trunkline.adapters.peft_import.ImportOptions`.

        Raises:
            UsageError: the options contradict the adapter.
            IntegrityError: it does not fit the base, or can't be computed exactly.
        """
        require_one()
        from trunkline.adapters.hub import SCHEME, fetch_adapter
        from trunkline.adapters.peft_folder import read_peft_folder
        from trunkline.adapters.peft_import import ImportOptions, import_adapter
        from trunkline.bases import DEFAULT_BASE, describe

        ref, is_hub = Ref.parse(name), str(source).startswith(SCHEME)
        if not is_hub:
            read_peft_folder(Path(source)).check_reads_text()  # whatever the base is
        info = describe(base or self.platform.base_name or DEFAULT_BASE)
        fetched = fetch_adapter(str(source)) if is_hub else None
        return import_adapter(
            self.platform.store,
            self.platform.registry,
            info,
            Path(source) if fetched is None else fetched.folder,
            ref,
            ImportOptions(**options),
            source=None if fetched is None else fetched.origin,
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
    ) -> ImportResult:
        """Publish the version in an archive, with its lineage.

        Args:
            file: written by :meth:`export_adapter`, in any workspace.
            name: ``domain/name`` of the new version; by default its old name.
            digest: the required digest of the version, ``sha256:…``.
            base: the required base of the version.
            actor: recorded as the importer; by default the system's user.
        """
        require_one()
        from trunkline.adapters.archive import import_archive
        from trunkline.bases import describe

        return import_archive(
            self.platform.store,
            Path(file),
            None if name is None else Ref.parse(name),
            digest=None if digest is None else check_digest(digest),
            base_digest=None if base is None else describe(base).digest,
            actor=actor,
        )

    def export_adapter(
        self, adapter: str, file: str | Path, *, overwrite: bool = False, actor: str | None = None
    ) -> ExportResult:
        """Write a version into an archive."""
        require_one()
        from trunkline.adapters.archive import export_version

        version = self.platform.resolve(adapter).version
        return export_version(
            self.platform.store, version, Path(file), overwrite=overwrite, actor=actor
        )

    def export_model(
        self,
        adapter: str,
        target: str | Path,
        format: ModelFormat,
        *,
        listener: ProgressListener | None = None,
        actor: str | None = None,
    ) -> ModelExport:
        """Write a version as a model for other programs, after repeating its test predictions.

        Args:
            target: a new folder for ``merged``, a new file for ``gguf-lora``.

        Raises:
            RefusedError: the export answers differently from the version; nothing was written.
        """
        require_one()
        from trunkline.adapters.artifact import no_weights
        from trunkline.training import export
        from trunkline.training.cross_validation import prepare_version

        platform = self.platform
        model, store = platform.resolve(adapter), platform.store
        version = model.version
        if model.fused is not None:
            raise no_weights(model.name, model.fused.artifact.manifest)
        ((modality, _, artifact),) = model.adapters()
        if version.dataset is None:
            engine = platform.engines.of(modality)
            replay = export.probe_predictions(engine, artifact, model.name)
        else:
            _, rows, _ = prepare_version(store, platform.job_of(version), version)
            replay = export.stored_predictions(store, version, rows.split.test)
        return export.export_model(
            store,
            version,
            replay,
            Path(target),
            format,
            base=platform.engines.names[modality],
            device=platform.device,
            listener=listener,
            actor=actor,
        )

    def merge_adapters(
        self,
        adapters: Sequence[str],
        name: str,
        *,
        listener: ProgressListener | None = None,
        actor: str | None = None,
        **options: Any,
    ) -> MergeResult:
        """Merge versions of the same task into the next version of ``name``.

        It is evaluated if all of them were trained on the same rows and split.

        Args:
            adapters: refs, in the order of the weights.
            name: ``domain/name``.
            listener: receives stages and progress.
            actor: recorded as the publisher; by default the system's user.
            options: method, weights, density, rank, seed; see
                :class:`~trunkline.training.merge_weights.MergeOptions`.

        Raises:
            UsageError: an option is out of range.
            RefusedError: the versions can't be merged.
        """
        require_one()
        from trunkline.training.merge import merge_versions
        from trunkline.training.merge_weights import MergeOptions

        platform, ref = self.platform, Ref.parse(name)
        models = [platform.resolve(adapter) for adapter in adapters]
        versions = [model.version for model in models]
        for model in models:
            model.artifact()  # of the platform's bases, and no fusion
        data = {(one.dataset_fingerprint, one.split_fingerprint) for one in versions}
        shared = len(data) == 1 and versions[0].dataset is not None
        modality: Modality = "image" if models[0].modality == "image" else "text"
        context = self._context(modality, listener)
        return merge_versions(
            context,
            versions,
            ref,
            MergeOptions(**options),
            job=platform.job_of(versions[0]) if shared else None,
            actor=actor,
        )

    def fuse_adapters(
        self,
        text: str,
        image: str,
        name: str,
        *,
        method: FusionMethod = "average",
        listener: ProgressListener | None = None,
        actor: str | None = None,
    ) -> FusionResult:
        """Fuse the answers of a text and an image adapter, as the next version of ``name``.

        Args:
            text, image: refs of classifications that were trained on the same rows and split; their
                order does not matter.
            name: ``domain/name``.
            method: ``average`` or ``stacked``.
            listener: receives stages and progress.
            actor: recorded as the publisher; by default the system's user.

        Raises:
            RefusedError: the two can't be fused.
        """
        require_one()
        from trunkline.training.fusion import fuse_versions, ordered

        first, second = ordered(*(self.platform.resolve(one).version for one in (text, image)))
        halves = self._half(first, "text", listener), self._half(second, "image", listener)
        return fuse_versions(*halves, Ref.parse(name), method, actor=actor)

    def train_fused(
        self,
        text: RecipeConfig,
        image: RecipeConfig,
        name: str,
        *,
        method: FusionMethod = "average",
        listener: ProgressListener | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        text_settings: Mapping[str, Any] = MappingProxyType({}),
        image_settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> tuple[TrainingResult, TrainingResult, FusionResult]:
        """Train a text and an image adapter on the same rows, and fuse them as ``name``.

        Args:
            text, image: recipes for the same files, which say what each reads.
            method, listener: as in :meth:`fuse_adapters`.
            should_stop: called after each step; true stops the run as interrupted.
            text_settings, image_settings: overrides of each recipe.

        Raises:
            RefusedError: the two can't be fused; both are published.
            as :meth:`Platform.train`.
        """
        require_one()
        train = self.platform.train
        other = train(image, listener=listener, should_stop=should_stop, **image_settings)
        one = train(text, listener=listener, should_stop=should_stop, **text_settings)
        refs = str(one.version.ref), str(other.version.ref)
        return one, other, self.fuse_adapters(*refs, name, method=method, listener=listener)

    def evaluate_fused(
        self, model: ResolvedModel, listener: ProgressListener | None = None
    ) -> EvaluationReport:
        """Evaluate a fused version on its test rows again, and record it."""
        from trunkline.training.fusion import evaluate_fused

        assert model.fused is not None
        of_digest = self.platform.registry.versions.of_digest
        first, second = (of_digest(one.digest) for one in model.fused.fusion.parents)
        assert first is not None
        assert second is not None
        halves = self._half(first, "text", listener), self._half(second, "image", listener)
        return evaluate_fused(*halves, model.version)

    def _half(
        self, version: VersionRecord, modality: Modality, listener: ProgressListener | None
    ) -> Half:
        from trunkline.resolution import ResolvedModel
        from trunkline.training.fusion import Half

        ResolvedModel(self.platform, version, "digest").artifact()  # of the platform's base
        return Half(self._context(modality, listener), version, self.platform.job_of(version))

    def _context(self, modality: Modality, listener: ProgressListener | None) -> RunContext:
        from trunkline.training.run import RunContext

        platform = self.platform
        return RunContext(
            platform.workspace,
            platform.registry,
            platform.store,
            platform.engines.of(modality),
            listener or NoProgress(),
            lambda: False,
        )

    def sign_adapter(
        self,
        adapter: str,
        key: str | Path,
        *,
        password: str | None = None,
        actor: str | None = None,
    ) -> str:
        """Sign a version with a private key."""
        from trunkline.adapters.signing import sign_version

        version = self.platform.resolve(adapter).version
        return sign_version(self.platform.store, version, Path(key), password, actor=actor)
