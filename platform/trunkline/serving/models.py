"""What a server's clients may name as ``model``: the base, adapters, versions, aliases.

Owns: finding and listing them for a key. Must not know: HTTP, the engine. Everything here asks the
registry and blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trunkline.errors import BaseMismatchError, NotFoundError, UsageError
from trunkline.refs import BASE, Ref
from trunkline.registry.lookup import CHAMPION
from trunkline.registry.records import AdapterRecord, KeyRecord, VersionRecord
from trunkline.registry.store import Registry
from trunkline.serving.errors import ApiError, unknown_model

MOST_LISTED = 10_000
_PAGE = 500


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
        version = registry.resolve(ref, suggest=False)[0]
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
    for model in _behind(registry, base, key, after):
        if len(found) == limit:
            return found, True
        found.append(model)
    return found, False


def _behind(
    registry: Registry, base: ServedBase, key: KeyRecord | None, after: str | None
) -> Iterator[Model]:
    reached = after is None
    if _may_use(key, BASE):
        if reached:
            yield _of_base(base)
        reached = reached or after == BASE
    for adapter in _adapters(registry, None if reached else after):
        if not _may_use(key, str(adapter.ref)):
            continue
        for model in _models_of(registry, base, adapter):
            if reached:
                yield model
            reached = reached or model.id == after
        if not reached:
            break
    if not reached:
        raise ApiError("after is no model's id.", "Give the last id of a page.", param="after")


def _adapters(registry: Registry, after: str | None) -> Iterator[AdapterRecord]:
    """All adapters, or the one that ``after`` is of and those behind it."""
    last: Ref | None = None
    if after is not None:
        try:
            last = Ref.parse(after)
            yield registry.adapter(last.domain, last.name)
        except (UsageError, NotFoundError):
            return
    while page := registry.adapters(limit=_PAGE, after=last):
        yield from page
        last = page[-1].ref


def _models_of(registry: Registry, base: ServedBase, adapter: AdapterRecord) -> list[Model]:
    versions = {
        version.number: version
        for version in registry.versions(adapter.domain, adapter.name, limit=MOST_LISTED)
    }
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
