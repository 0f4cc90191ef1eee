"""The models that clients may name, and ``GET /v1/models``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query

from trunkline.contracts import Reads
from trunkline.errors import BaseMismatchError, ForbiddenError, UsageError
from trunkline.refs import BASE, Ref, shown
from trunkline.registry.lookup import CHAMPION
from trunkline.registry.records import AdapterRecord, KeyRecord, VersionRecord
from trunkline.serving.bodies import JsonRoute
from trunkline.serving.engines import ServerBase
from trunkline.serving.errors import ApiError, unknown_model
from trunkline.serving.service import Context, RequestContext

if TYPE_CHECKING:
    from trunkline.api import Platform
    from trunkline.resolution import ResolvedModel

MAX_LISTED = 10_000

MAX_SIMILAR = 3
"""How many similar names an error suggests."""

MAX_COMPARED = 1000
"""Adapters whose names are compared with an unknown one."""

MAX_REF_CHARS = 256

ROUTES = {
    "generation": "/v1/chat/completions",
    "classification": "/v1/classify",
    "multilabel": "/v1/classify",
    "regression": "/v1/regress",
    "tagging": "/v1/tag",
    "ranking": "/v1/rank",
}
"""Task of a model → the route that answers it."""

router = APIRouter(route_class=JsonRoute)


@router.get("/v1/models")
async def models(
    context: Context,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = MAX_LISTED,
    after: Annotated[str | None, Query(max_length=256)] = None,
) -> dict[str, Any]:
    """List the base, and all adapters, aliases and versions that the key may use."""
    listed = served_models(context)
    entries, has_more = await context.service.query(listed.page, context.key, limit, after)
    return {
        "object": "list",
        "data": [entry.to_json() for entry in entries],
        "first_id": entries[0].id if entries else None,
        "last_id": entries[-1].id if entries else None,
        "has_more": has_more,
    }


@router.get("/v1/models/{ref:path}")
async def model(ref: str, context: Context) -> dict[str, Any]:
    """Show the version that a ref selects now."""
    listed = served_models(context)
    entry = await context.service.query(listed.get, context.key, ref)
    return entry.to_json()


def served_models(context: RequestContext) -> ServedModels:
    """The models of the request's server.

    Raises:
        UnavailableError: the base is not loaded.
    """
    return ServedModels(context.service.platform, context.service.base)


async def resolve(context: RequestContext, ref: str, *tasks: str) -> ResolvedModel:
    """Resolve the model of a request, once; the request keeps this version.

    Args:
        tasks: of which the model must have one; none: any.

    Raises:
        ForbiddenError: the key is a viewer's.
        ApiError: 404, the model is unknown or the key may not use it; 400, it has another task.
        BaseMismatchError: it was trained on another base.
    """
    key = context.key
    if key is not None and not key.has_role("tester"):
        raise ForbiddenError(
            f"The key {key.id} has the role {key.role}, which may not send requests to a model.",
            "Create one with: trunkline keys create OWNER --role tester.",
        )
    models = served_models(context)
    model = context.model = await context.service.query(models.resolve, context.key, ref)
    if tasks and model.task not in tasks:
        raise ApiError(
            f"{model.name} is a {model.task} model.",
            f"Use POST {ROUTES[model.task]}.",
            param="model",
            code="wrong_task",
        )
    return model


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One entry of the list of models.

    Attributes:
        id: the name that a client may send as ``model``.
        root: the immutable ref that it selects now, or ``base``.
        created: Unix time.
        parent: name of the base; None for the base itself.
        modality: what the model reads.
    """

    id: str
    root: str
    task: str
    digest: str
    created: int
    parent: str | None
    modality: Reads = "text"

    def to_json(self) -> dict[str, Any]:
        """OpenAI's model object, with fields of our own."""
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "trunkline",
            "parent": self.parent,
            "root": self.root,
            "task": self.task,
            "digest": self.digest,
            "modality": self.modality,
        }


class ServedModels:
    """The models of one server, as far as a key may use them. Reads the registry and blocks.

    Args:
        base: versions of other bases are not served.
        page_size: how many adapters one query lists.
        batch_size: how many versions one query lists; an adapter that has more is listed alone.
    """

    def __init__(
        self,
        platform: Platform,
        base: ServerBase,
        *,
        page_size: int = 500,
        batch_size: int = 1000,
    ) -> None:
        self._platform = platform
        self._registry = platform.registry
        self._base = base
        self._page_size = page_size
        self._batch_size = batch_size

    def resolve(self, key: KeyRecord | None, ref: str, *, field: str = "model") -> ResolvedModel:
        """The version that a ref selects now.

        Args:
            field: in which the client sent the ref, for errors.

        Raises:
            ApiError: 404, the model is unknown or the key may not use it; the error is the same. It
                names models with similar names, only such as the key may use.
            BaseMismatchError: it was trained on another base.
        """
        try:
            lacks = ref == BASE and not self._base.reads_text
            if lacks or not _may_use(key, ref if ref == BASE else Ref.parse(ref).adapter):
                raise unknown_model(ref, field, self._near_misses(key, ref))
            model = self._platform.resolve(ref, suggest=False)
        except UsageError:  # malformed, or not found
            raise unknown_model(ref, field, self._near_misses(key, ref)) from None
        record = model.record
        if record is not None and record.base_digest not in self._digests:
            error = BaseMismatchError(
                f"{record.ref} was trained on the base {record.base_name}; this server's base is "
                f"{self._base.name}.",
                "GET /v1/models lists the models of this server.",
            )
            error.param = field
            raise error
        return model

    def _near_misses(self, key: KeyRecord | None, ref: str) -> list[str]:
        """Up to three models with names similar to ``ref`` that the key may use."""
        adapters = dict(self._usable_adapters(key, ref))
        names = [BASE, *adapters] if self._lists_base(key) else list(adapters)
        similar: list[str] = []
        for name, selector in similar_names(ref, names):
            aliases = adapters[name].aliases if name in adapters else {}
            selectors = [selector, *difflib.get_close_matches(selector, aliases, n=1), ""]
            refs = [f"{name}@{one}" if one else name for one in selectors]
            served = (one for one in refs if one != ref and self._is_served(one))
            similar += [one for one in served if one not in similar][:1]
        return similar[:MAX_SIMILAR]

    def _usable_adapters(
        self, key: KeyRecord | None, ref: str
    ) -> Iterator[tuple[str, AdapterRecord]]:
        """The first adapters that the key may use, and the one whose name is written like ``ref``.

        Their number is limited, so that a wrong name costs little in a large registry.
        """
        for domain, name in _as_written(ref):
            with suppress(UsageError):
                exact = self._registry.adapters.get(domain, name)
                if _may_use(key, str(exact.ref)):
                    yield str(exact.ref), exact
        for adapter in self._registry.adapters.list(limit=MAX_COMPARED):
            if _may_use(key, str(adapter.ref)):
                yield str(adapter.ref), adapter

    def _is_served(self, ref: str) -> bool:
        """Whether a ref selects a version of this server's base."""
        try:
            record = self._platform.resolve(ref, suggest=False).record
        except UsageError:
            return False
        return record is None or record.base_digest in self._digests

    @property
    def _image_digest(self) -> str | None:
        """Digest of the image base, if it is on this machine."""
        return self._platform.engines.image_digest

    @property
    def _digests(self) -> list[str]:
        """Digests of the bases that this server has, and of the pair of them for fusions."""
        pair = self._platform.engines.pair_digest if self._base.reads_text else None
        return list(dict.fromkeys(filter(None, (self._base.digest, self._image_digest, pair))))

    def get(self, key: KeyRecord | None, ref: str) -> ModelEntry:
        """The entry of one model; raises as :meth:`resolve`."""
        record = self.resolve(key, ref).record
        return self._base_entry() if record is None else self._entry(ref, record)

    def page(
        self, key: KeyRecord | None, limit: int, after: str | None
    ) -> tuple[list[ModelEntry], bool]:
        """Up to ``limit`` entries after the id ``after``; also whether there are more.

        The base comes first. Each adapter is listed by name, then by its aliases, then by its
        versions, newest first.

        Raises:
            ApiError: 400, ``after`` is not in the list.
        """
        entries: list[ModelEntry] = []
        for entry in self._entries_after(key, limit, after):
            if len(entries) == limit:
                return entries, True
            entries.append(entry)
        return entries, False

    def _entries_after(
        self, key: KeyRecord | None, limit: int, after: str | None
    ) -> Iterator[ModelEntry]:
        """Query entries as they are consumed; the caller expects about ``limit`` of them."""
        reached = after is None
        if self._lists_base(key):
            if reached:
                yield self._base_entry()
            reached = reached or after == BASE
        for page in self._pages(None if reached else after):
            usable = [adapter for adapter in page if _may_use(key, str(adapter.ref))]
            for adapter, versions in self._with_versions(usable, limit):
                for entry in self._entries(adapter, versions):
                    if reached:
                        yield entry
                    reached = reached or entry.id == after
            if not reached:
                break
        if after is not None and not reached:
            raise ApiError(
                f"after: {shown(after)} is not the id of a model.",
                "Send the last_id of the previous page.",
                param="after",
            )

    def _pages(self, after: str | None) -> Iterator[Sequence[AdapterRecord]]:
        """Pages of adapters; with ``after``, its adapter alone, then those that follow."""
        last: Ref | None = None
        if after is not None:
            try:
                last = Ref.parse(after)
                yield [self._registry.adapters.get(last.domain, last.name)]
            except UsageError:  # malformed, or not found
                return
        while page := self._registry.adapters.list(limit=self._page_size, after=last):
            yield page
            last = page[-1].ref

    def _with_versions(
        self, adapters: Sequence[AdapterRecord], expected: int
    ) -> Iterator[tuple[AdapterRecord, Sequence[VersionRecord]]]:
        """Each adapter with its newest versions, at most ``MAX_LISTED``, in few queries."""
        versions = self._registry.versions
        for batch in self._batches(adapters, expected):
            first = batch[0]
            if first.versions > self._batch_size:
                yield first, versions.list(first.domain, first.name, limit=MAX_LISTED)
                continue
            refs = [adapter.ref for adapter in batch]
            # The limit leaves room for versions that are published meanwhile.
            listed = [
                versions.list_for_base(refs, base_digest=digest, limit=MAX_LISTED)
                for digest in self._digests
            ]
            for adapter, ref in zip(batch, refs, strict=True):
                own = [version for one in listed for version in one.get(ref, ())]
                yield adapter, sorted(own, key=lambda version: -version.number)

    def _batches(
        self, adapters: Sequence[AdapterRecord], expected: int
    ) -> Iterator[Sequence[AdapterRecord]]:
        """Group adapters so that each group has about ``expected`` versions in total.

        Each group may have twice as many as the one before, up to the batch size. An adapter with
        more versions than that is a group of its own.
        """
        limit = min(expected, self._batch_size)
        batch: list[AdapterRecord] = []
        total = 0
        for adapter in adapters:
            total += adapter.versions
            if batch and total > limit:
                yield batch
                limit = min(2 * limit, self._batch_size)
                batch, total = [], adapter.versions
            batch.append(adapter)
        if batch:
            yield batch

    def _entries(self, adapter: AdapterRecord, listed: Sequence[VersionRecord]) -> list[ModelEntry]:
        versions = {version.number: version for version in listed}
        name = str(adapter.ref)
        numbers = {name: adapter.aliases.get(CHAMPION, adapter.newest)}
        numbers |= {f"{name}@{alias}": number for alias, number in sorted(adapter.aliases.items())}
        numbers |= {f"{name}@{number}": number for number in sorted(versions, reverse=True)}
        return [
            self._entry(id, versions[number])
            for id, number in numbers.items()
            if number in versions and versions[number].base_digest in self._digests
        ]

    def _lists_base(self, key: KeyRecord | None) -> bool:
        """Whether the bare base answers, and the key may use it; one for pictures doesn't."""
        return self._base.reads_text and _may_use(key, BASE)

    def _base_entry(self) -> ModelEntry:
        base = self._base
        return ModelEntry(BASE, BASE, "generation", base.digest, base.loaded_at, None)

    def _entry(self, id: str, version: VersionRecord) -> ModelEntry:
        created = int(version.created.timestamp())
        bases = {"text": self._base.name, "image": self._platform.engines.names["image"]}
        return ModelEntry(
            id,
            str(version.ref),
            version.task,
            version.digest,
            created,
            bases.get(version.modality, version.base_name),
            version.modality,
        )


def similar_names(ref: str, names: Iterable[str]) -> list[tuple[str, str]]:
    """The names that a wrong ref probably means, best first, each with the wrong ref's selector.

    It knows how other servers and clients write models: ``Domain/Name``, ``name:latest``,
    ``openai/domain/name``, ``domain_name``, or the name without its domain.
    """
    text, selector = _split_selector(ref)
    if not text:
        return []
    known = list(dict.fromkeys(names))
    ends = [name for name in known if text in (name, name.partition("/")[2])]
    ends += [name for name in known if text.endswith("/" + name)]
    flat = {re.sub("[/-]", "", name): name for name in known}
    close = difflib.get_close_matches(re.sub("[/-]", "", text), flat, n=MAX_SIMILAR, cutoff=0.7)
    return [(name, selector) for name in dict.fromkeys([*ends, *(flat[one] for one in close)])]


def _split_selector(ref: str) -> tuple[str, str]:
    """A wrong ref in the spelling of names, and what follows its ``@`` or ``:``."""
    text = re.sub(r"[\s_]+", "-", ref[:MAX_REF_CHARS].strip().casefold())
    name, _, selector = text.replace(":", "@").partition("@")
    return name.strip("/"), "" if selector == "latest" else selector


def _as_written(ref: str) -> Iterator[tuple[str, str]]:
    """Domain and name of a wrong ref, if it has both."""
    parts = _split_selector(ref)[0].split("/")
    if len(parts) >= 2:
        yield parts[-2], parts[-1]


def _may_use(key: KeyRecord | None, name: str) -> bool:
    return key is None or key.may_use(name)
