"""What adapters are trained from: plugins, bases and datasets, each recorded once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from trunkline.contracts import Reads
from trunkline.registry.lookup import clamp
from trunkline.registry.mapping import to_record
from trunkline.registry.records import BaseRecord, DatasetRecord
from trunkline.registry.scope import Scope, covered_names
from trunkline.registry.session import Aggregate, find_or_add
from trunkline.registry.tables import Base, Dataset, Plugin, utc_now


class Sources(Aggregate):
    """Records plugins, bases and datasets; recording one again returns the same id."""

    def record_plugin(self, *, distribution: str, version: str, api: int, domain: str) -> int:
        """Record a release of a plugin and return its id."""
        row = Plugin(
            distribution=distribution, version=version, api=api, domain=domain, first_seen=utc_now()
        )
        with self._sessions.write() as session:
            return find_or_add(
                session,
                row,
                Plugin.distribution == distribution,
                Plugin.version == version,
                Plugin.domain == domain,
            ).id

    def record_base(
        self,
        *,
        digest: str,
        name: str,
        source: str,
        architecture: str,
        parameters: int,
        dtype: str,
        modality: Reads = "text",
    ) -> int:
        """Record a base by its digest and return its id; its first name stays."""
        row = Base(
            digest=digest,
            name=name,
            source=source,
            architecture=architecture,
            parameters=parameters,
            dtype=dtype,
            modality=modality,
            first_seen=utc_now(),
        )
        with self._sessions.write() as session:
            return find_or_add(session, row, Base.digest == digest).id

    def record_dataset(
        self,
        *,
        name: str,
        fingerprint: str,
        split_fingerprint: str,
        rows: int,
        license: str,
        source: str,
        counts: Mapping[str, Any],
    ) -> int:
        """Record a dataset as it is used and return its id."""
        row = Dataset(
            name=name,
            fingerprint=fingerprint,
            split_fingerprint=split_fingerprint,
            rows=rows,
            license=license,
            source=source,
            counts=dict(counts),
            first_seen=utc_now(),
        )
        with self._sessions.write() as session:
            return find_or_add(
                session,
                row,
                Dataset.name == name,
                Dataset.fingerprint == fingerprint,
                Dataset.split_fingerprint == split_fingerprint,
            ).id

    def list_bases(self, *, limit: int = 100, offset: int = 0) -> list[BaseRecord]:
        """The recorded bases, newest first."""
        query = select(Base).order_by(Base.id.desc()).limit(limit).offset(offset)
        with self._sessions.read() as session:
            return [to_record(BaseRecord, row) for row in session.scalars(query)]

    def list_datasets(
        self,
        *,
        name: str | None = None,
        limit: int = 100,
        offset: int = 0,
        before: int | None = None,
        scope: Scope = None,
    ) -> list[DatasetRecord]:
        """The recorded datasets, newest first; with ``name``, the states of one.

        Args:
            before: only datasets with a lower id, for the next page.
            scope: only datasets that these patterns cover.
        """
        query = select(Dataset).order_by(Dataset.id.desc()).limit(limit).offset(offset)
        query = query.where(*covered_names(Dataset.name, scope))
        if before is not None:
            query = query.where(Dataset.id < clamp(before))
        if name is not None:
            query = query.where(Dataset.name == name)
        with self._sessions.read() as session:
            return [to_record(DatasetRecord, row) for row in session.scalars(query)]
