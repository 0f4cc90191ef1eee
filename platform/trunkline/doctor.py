"""Check a deployment from inside: registry, store, base, clock, memory, threads, keys, plugins.

Nothing is migrated, trained or loaded. The store gets a small file, which is deleted again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trunkline.errors import RegistryError, TrunklineError, one_line
from trunkline.machine import compute_threads, disk_space, memory_limit, usable_cores
from trunkline.threads import SPIN_COUNT
from trunkline.workspace import cache_folder

if TYPE_CHECKING:
    from trunkline.api import Platform
    from trunkline.bases import AnyInfo
    from trunkline.contracts import Modality
    from trunkline.registry.session import DatabaseProbe

State = Literal["ok", "warning", "error"]

MIB = 1 << 20
GIB = 1 << 30
PROGRAM_BYTES = GIB
"""Memory of Python, torch and transformers, without a base."""

_WEIGHT_BYTES = {"bf16": 2.0, "fp16": 2.0, "int8": 1.0, "nf4": 0.5}
"""Data type → bytes of a weight; others take four."""

_CLOCK_WARNING, _CLOCK_ERROR = 5.0, 60.0
_DISK_WARNING, _DISK_ERROR = 2 * GIB, 256 * MIB
_MOST_SPINS = 10 * SPIN_COUNT


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a deployment.

    Attributes:
        name: of the check.
        state: ``error`` if a server can't do its work, ``warning`` if it may get into trouble.
        detail: what was measured or read.
        hint: what to do; None where nothing needs to be done.
    """

    name: str
    state: State
    detail: str
    hint: str | None = None


def diagnose(
    platform: Platform, *, public: bool = False, problem: TrunklineError | None = None
) -> Iterator[Check]:
    """Run all checks; a check that fails does not stop the others.

    Args:
        platform: with the bases, plugins and engine settings that are to be served.
        public: whether the server will listen on an address that other machines reach.
        problem: why the server's settings can't be read, if they can't.
    """
    probes: list[DatabaseProbe] = []
    for name, check in (
        ("configuration", lambda: _configuration(platform, problem)),
        ("registry", lambda: _registry(platform, probes)),
        ("migrations", lambda: _migrations(probes)),
        ("clock", lambda: _clock(probes)),
        ("store", lambda: _store(platform)),
        ("base", lambda: _base(platform, "text")),
        ("image base", lambda: _base(platform, "image")),
        ("memory", lambda: _memory(platform)),
        ("disk", lambda: _disk(platform)),
        ("threads", _threads),
        ("keys", lambda: _keys(platform, probes, public=public)),
        ("plugins", lambda: _plugins(platform)),
    ):
        yield _guarded(name, check)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except TrunklineError as error:
        return Check(name, "error", error.message, error.hint)
    except Exception as error:
        hint = "`trunkline --debug` before the command that needs it shows the traceback."
        return Check(name, "error", f"unexpected {one_line(error, with_type=True)}", hint)


def _configuration(platform: Platform, problem: TrunklineError | None) -> Check:
    if problem is not None:
        raise problem
    configuration = platform.workspace.configuration
    url = configuration.store.url
    signed = ", signatures required" if configuration.signatures.required else ""
    where = "the folder adapters/" if url is None else "an own store"
    return Check("configuration", "ok", f"workspace {platform.workspace.root}, {where}{signed}")


# ------------------------------------------------------------------------------------- registry


def _registry(platform: Platform, probes: list[DatabaseProbe]) -> Check:
    from trunkline.registry.session import probe_database

    probe = probe_database(platform.workspace.registry_url)
    probes.append(probe)
    if probe.write_error is not None:
        error = probe.write_error
        return Check("registry", "error", error.message, error.hint or "Grant write permission.")
    return Check("registry", "ok", f"{probe.where} can be read and written")


def _migrations(probes: list[DatabaseProbe]) -> Check:
    from trunkline.registry.session import head_revision, revisions

    revision, head = _probed(probes).revision, head_revision()
    deploy = "A newer release upgraded the registry: deploy that release."
    if revision is None:
        return Check("migrations", "warning", "the database is empty", "Run: trunkline db upgrade.")
    if revision == head:
        return Check("migrations", "ok", f"schema {revision}, the newest")
    if revision in revisions():
        hint = "docs/upgrading.md says when to run: trunkline db upgrade."
        return Check("migrations", "warning", f"schema {revision}; {head} is the newest", hint)
    if _probed(probes).usable:
        detail = f"schema {revision}, newer than this release, which may use it"
        return Check("migrations", "warning", detail, deploy)
    detail = f"schema {revision}, newer than this release, which supports up to {head}"
    return Check("migrations", "error", detail, deploy)


def _clock(probes: list[DatabaseProbe]) -> Check:
    ahead = _probed(probes).ahead_seconds
    off = abs(ahead) - 1  # SQLite has full seconds only
    side = "ahead of" if ahead > 0 else "behind"
    if off <= _CLOCK_WARNING:
        return Check("clock", "ok", "the database's clock agrees with this machine's")
    return Check(
        "clock",
        "error" if off > _CLOCK_ERROR else "warning",
        f"the database's clock is {abs(ahead):.0f} s {side} this machine's",
        "Synchronize both with NTP; keys expire by this machine's clock.",
    )


def _probed(probes: list[DatabaseProbe]) -> DatabaseProbe:
    if not probes:
        raise RegistryError("It was not checked, because the registry can't be read.")
    return probes[0]


def _keys(platform: Platform, probes: list[DatabaseProbe], *, public: bool) -> Check:
    create = "Create one with: trunkline keys create OWNER."
    if not _probed(probes).usable:  # opening the registry would upgrade it, or fail
        return Check("keys", "warning", "not checked, because the schema is another one")
    keys = [key for key in platform.registry.keys.list() if key.removed is None]
    valid = [key for key in keys if platform.registry.keys.get_valid(key.id) is not None]
    if valid:
        return Check("keys", "ok", f"{len(valid)} of {len(keys)} valid")
    if keys:
        return Check("keys", "error", f"none of {len(keys)} is valid now: all expired", create)
    if public:
        return Check("keys", "error", "no key, so the server does not start", create)
    return Check("keys", "warning", "no key, so the server answers this machine only", create)


# ----------------------------------------------------------------------------- store and bases


def _store(platform: Platform) -> Check:
    from trunkline.adapters.store import open_storage

    storage = open_storage(platform.workspace)
    location = storage.location("").rstrip("/")
    try:
        storage.probe()
    except OSError as error:
        hint = "Free disk space or grant write permission."
        return Check("store", "error", f"{location} can't be written: {one_line(error)}", hint)
    return Check("store", "ok", f"wrote, read and deleted a file in {location}")


def _base(platform: Platform, modality: Modality) -> Check:
    label = "base" if modality == "text" else "image base"
    engines = platform.engines
    if modality == "text" and engines.serves_images_only:
        return Check(label, "ok", "not needed: the server answers pictures only")
    try:
        info = _describe(platform, modality)
    except TrunklineError as error:
        chosen = engines.serves_images_only or engines.image_base_name is not None
        if modality == "image" and not chosen:
            detail = f"{engines.names['image']} is not on this machine; pictures need it"
            return Check(label, "ok", detail, error.hint)
        raise
    return Check(label, "ok", f"{info.name}, digest {info.digest[:12]}")


def _describe(platform: Platform, modality: Modality) -> AnyInfo:
    from trunkline.bases import describe_any

    return describe_any(platform.engines.names[modality])


# -------------------------------------------------------------------------------------- machine


def _memory(platform: Platform) -> Check:
    from trunkline.inference.settings import EngineSettings

    limit = memory_limit()
    if limit is None:
        return Check("memory", "warning", "the system does not report it", "Check it by hand.")
    modality: Modality = "image" if platform.engines.serves_images_only else "text"
    weights = _describe(platform, modality).parameters * _WEIGHT_BYTES.get(platform.dtype, 4.0)
    settings = platform.engine_settings or EngineSettings()
    kv_mib = 0 if modality == "image" else settings.kv_mib
    least = PROGRAM_BYTES + int(weights)
    most = least + (kv_mib + settings.adapter_mib) * MIB
    detail = f"{_gib(limit)} of memory; {_gib(least)} to start, {_gib(most)} with full caches"
    if limit < least:
        return Check("memory", "error", detail, "Give more memory, or choose --base-dtype int8.")
    if limit < most:
        hint = "Give more memory, or set smaller --kv-mib and --adapter-mib."
        return Check("memory", "warning", detail, hint)
    return Check("memory", "ok", detail)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _disk(platform: Platform) -> Check:
    places = {"workspace": platform.workspace.root, "cache": cache_folder()}
    free = {name: disk_space(path).free for name, path in places.items()}
    detail = ", ".join(f"{_gib(size)} free for the {name}" for name, size in free.items())
    least = min(free.values())
    state: State = "ok"
    if least < _DISK_WARNING:
        state = "error" if least < _DISK_ERROR else "warning"
    hint = None if state == "ok" else "Free space: `trunkline gc` shows what can be deleted."
    return Check("disk", state, detail, hint)


def _threads() -> Check:
    cores = usable_cores()
    threads = compute_threads(cores)
    spins = os.environ.get("GOMP_SPINCOUNT", "")
    policy = os.environ.get("OMP_WAIT_POLICY", "").upper()
    waiting = f"OMP_WAIT_POLICY={policy}" if policy else f"GOMP_SPINCOUNT={spins or 'not set'}"
    noun = "thread" if threads == 1 else "threads"
    detail = f"{threads} {noun} on {cores} {'core' if cores == 1 else 'cores'}, {waiting}"
    if threads > cores:
        return Check("threads", "warning", detail, f"Set OMP_NUM_THREADS={cores}.")
    spinning = policy == "ACTIVE" or (not policy and not spins.isdecimal())
    if spinning or (spins.isdecimal() and int(spins) > _MOST_SPINS):
        return Check("threads", "warning", detail, f"Set GOMP_SPINCOUNT={SPIN_COUNT}.")
    return Check("threads", "ok", detail)


def _plugins(platform: Platform) -> Check:
    plugins = platform.catalog.plugins
    loaded = [one.domain for one in plugins if one.status == "loaded"]
    failed = [one for one in plugins if one.status == "failed"]
    if failed:
        reasons = "; ".join(f"{one.domain}: {one.reason}" for one in failed)
        hint = f"Show the error with: trunkline plugins show {failed[0].domain}."
        return Check("plugins", "error", reasons, hint)
    return Check("plugins", "ok", f"loaded: {', '.join(loaded) or 'none'}")
