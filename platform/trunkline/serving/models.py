"""What a server's clients may name as ``model``: the base, adapters, versions, aliases.

Owns: finding and listing them for a key. Must not know: HTTP, the engine. Everything here asks the
registry and blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trunkline.errors import BaseMismatchError, NotFoundError, UsageError
from trunkline.refs import BASE, Ref
from trunkline.registry.lookup import CHAMPION
from trunkline.registry.records import AdapterRecord, KeyRecord, VersionRecord
from trunkline.registry.registry import Registry
from trunkline.serving.errors import ApiError, unknown_model

MOST_LISTED = 10_000
_PAGE = 500

_TOGETHER = 1000
"""So many versions are asked for at once, or those of one adapter that has more."""


@dataclass(frozen=True, slots=True)
class ServedBase:
    """The base behind a server; ``since`` is the Unix time from which it serves."""

    name: str
    digest: str
    since: int


@dataclass(frozen=True, slots=True)
class Model:
    """A name that answers, and the one version that it means now.

    Attributes:
        id: as it may be asked for.
        root: the immutable ref, or ``base``.
        created: Unix time.
    """

    id: str
    root: str
    task: str
    digest: str
    created: int
    parent: str | None

    def to_json(self) -> dict[str, Any]:
        """OpenAI's model object, with what only adapters have."""
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "trunkline",
            "parent": self.parent,
            "root": self.root,
            "task": self.task,
            "digest": self.digest,
        }


def find_model(registry: Registry, base: ServedBase, key: KeyRecord | None, asked: str) -> Model:
    """The one version that ``asked`` means now.

    Raises:
        ApiError: 404, there is none, or the key may not use it: the same words for both.
        BaseMismatchError: it was made on another base.
    """
    if asked == BASE:
        if not _may_use(key, BASE):
            raise unknown_model(asked)
        return _of_base(base)
    try:
        ref = Ref.parse(asked)
        if not _may_use(key, ref.adapter):
            raise unknown_model(asked)
        version = registry.versions.resolve(ref, suggest=False)[0]
    except NotFoundError:
        raise unknown_model(asked) from None
    except UsageError:
        raise unknown_model(asked) from None
    if version.base_digest != base.digest:
        raise BaseMismatchError(
            f"{version.ref} was made on {version.base_name}, and this server has {base.name}.",
            "GET /v1/models lists what it serves.",
        )
    return _of_version(asked, version, base)


def list_models(
    registry: Registry, base: ServedBase, key: KeyRecord | None, limit: int, after: str | None
) -> tuple[list[Model], bool]:
    """Up to ``limit`` models that come behind the id ``after``, and whether there are more.

    The base comes first, then adapter by adapter: its name, its aliases, its versions from the
    newest. Versions of other bases are left out.

    Raises:
        ApiError: 400, ``after`` is not in the list.
    """
    found: list[Model] = []
    for model in _behind(registry, base, key, limit, after):
        if len(found) == limit:
            return found, True
        found.append(model)
    return found, False


def _behind(
    registry: Registry, base: ServedBase, key: KeyRecord | None, limit: int, after: str | None
) -> Iterator[Model]:
    """The models behind ``after``, asked for as they are taken; ``limit`` of them are expected."""
    reached = after is None
    if _may_use(key, BASE):
        if reached:
            yield _of_base(base)
        reached = reached or after == BASE
    for page in _pages(registry, None if reached else after):
        usable = [adapter for adapter in page if _may_use(key, str(adapter.ref))]
        for adapter, versions in _with_versions(registry, base, usable, limit):
            for model in _models_of(base, adapter, versions):
                if reached:
                    yield model
                reached = reached or model.id == after
        if not reached:
            break
    if not reached:
        raise ApiError("after is no model's id.", "Give the last id of a page.", param="after")


def _pages(registry: Registry, after: str | None) -> Iterator[Sequence[AdapterRecord]]:
    """All adapters, or the one that ``after`` is of, by itself, and those behind it."""
    last: Ref | None = None
    if after is not None:
        try:
            last = Ref.parse(after)
            yield [registry.adapters.get(last.domain, last.name)]
        except (UsageError, NotFoundError):
            return
    while page := registry.adapters.list(limit=_PAGE, after=last):
        yield page
        last = page[-1].ref


def _with_versions(
    registry: Registry, base: ServedBase, adapters: Sequence[AdapterRecord], expected: int
) -> Iterator[tuple[AdapterRecord, Sequence[VersionRecord]]]:
    """Each adapter with its newest versions, ``MOST_LISTED`` at most; in few queries."""
    for batch in _batches(adapters, expected):
        first = batch[0]
        if first.versions > _TOGETHER:
            yield first, registry.versions.list(first.domain, first.name, limit=MOST_LISTED)
            continue
        refs = [adapter.ref for adapter in batch]
        # What is published meanwhile has room up to the limit, so that nothing is cut off.
        found = registry.versions.list_for_base(refs, base_digest=base.digest, limit=MOST_LISTED)
        for adapter, ref in zip(batch, refs, strict=True):
            yield adapter, found.get(ref, ())


def _batches(adapters: Sequence[AdapterRecord], expected: int) -> Iterator[Sequence[AdapterRecord]]:
    """Neighbours with as many versions together as are expected, then with twice as many each time,
    but never more than ``_TOGETHER``; an adapter that has more stands alone."""
    room = min(expected, _TOGETHER)
    batch: list[AdapterRecord] = []
    together = 0
    for adapter in adapters:
        together += adapter.versions
        if batch and together > room:
            yield batch
            room = min(2 * room, _TOGETHER)
            batch, together = [], adapter.versions
        batch.append(adapter)
    if batch:
        yield batch


def _models_of(
    base: ServedBase, adapter: AdapterRecord, listed: Sequence[VersionRecord]
) -> list[Model]:
    versions = {version.number: version for version in listed}
    name = str(adapter.ref)
    numbers = {name: adapter.aliases.get(CHAMPION, adapter.newest)}
    numbers |= {f"{name}@{alias}": number for alias, number in sorted(adapter.aliases.items())}
    numbers |= {f"{name}@{number}": number for number in sorted(versions, reverse=True)}
    return [
        _of_version(id, versions[number], base)
        for id, number in numbers.items()
        if number in versions and versions[number].base_digest == base.digest
    ]


def _of_base(base: ServedBase) -> Model:
    return Model(BASE, BASE, "generation", base.digest, base.since, None)


def _of_version(id: str, version: VersionRecord, base: ServedBase) -> Model:
    created = int(version.created.timestamp())
    return Model(id, str(version.ref), version.task, version.digest, created, base.name)


def _may_use(key: KeyRecord | None, name: str) -> bool:
    return key is None or key.may_use(name)
