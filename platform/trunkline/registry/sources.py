"""What adapters are made from: plugins, bases and datasets, each recorded once.

Owns: their rows.
Must not know: runs and versions, which refer to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from trunkline.errors import NotFoundError
from trunkline.registry.records import BaseRecord, DatasetRecord
from trunkline.registry.session import Aggregate, find_or_add, utc_now
from trunkline.registry.tables import Base, Dataset, Plugin


class Sources(Aggregate):
    """Records plugins, bases and datasets; recording the same again gives the same id."""

    def record_plugin(self, *, distribution: str, version: str, api: int, domain: str) -> int:
        """Remember a release of a plugin; gives its id."""
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
    ) -> int:
        """Remember a base by its digest; gives its id. The first name it came under stays."""
        row = Base(
            digest=digest,
            name=name,
            source=source,
            architecture=architecture,
            parameters=parameters,
            dtype=dtype,
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
        """Remember a dataset as it was used; gives its id."""
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
        """The bases that were used, newest first."""
        query = select(Base).order_by(Base.id.desc()).limit(limit).offset(offset)
        with self._sessions.read() as session:
            return [base_record(row) for row in session.scalars(query)]

    def list_datasets(
        self, *, name: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[DatasetRecord]:
        """The datasets that were used, newest first; ``name`` gives the states of one."""
        query = select(Dataset).order_by(Dataset.id.desc()).limit(limit).offset(offset)
        if name is not None:
            query = query.where(Dataset.name == name)
        with self._sessions.read() as session:
            return [dataset_record(row) for row in session.scalars(query)]


def base_record(row: Base) -> BaseRecord:
    """A row of the bases as a record."""
    return BaseRecord(
        id=row.id,
        digest=row.digest,
        name=row.name,
        source=row.source,
        architecture=row.architecture,
        parameters=row.parameters,
        dtype=row.dtype,
        first_seen=row.first_seen,
    )


def dataset_record(row: Dataset) -> DatasetRecord:
    """A row of the datasets as a record."""
    return DatasetRecord(
        id=row.id,
        name=row.name,
        fingerprint=row.fingerprint,
        split_fingerprint=row.split_fingerprint,
        rows=row.rows,
        license=row.license,
        source=row.source,
        counts=row.counts,
        first_seen=row.first_seen,
    )


def base_id(session: Session, digest: str) -> int:
    """The id of a recorded base."""
    found = session.scalar(select(Base.id).where(Base.digest == digest))
    if found is None:
        raise NotFoundError(
            f"The registry knows no base with the digest {digest!r}.",
            "Record the base before what was made on it.",
        )
    return found
