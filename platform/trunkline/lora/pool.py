"""The adapter pool: the adapters of one base on the device, in host memory and on disk.

*Device*: in pages of the :class:`LoraSlots`, ready to compute. *Host*: checked tensors in memory,
within a budget of bytes. *Disk*: everything else. The least recently used adapter is evicted first;
pinned adapters and those of running requests are never evicted. The host also keeps adapters that
are on the device, so evicting from the device copies nothing.

The pool computes PEFT's ``scaling · B (A x)`` (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large
Language Models", section 4.1), and the magnitudes of DoRA (:meth:`LoraSlots.gains`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trunkline.adapters.artifact import Artifact
from trunkline.errors import (
    BusyError,
    NotFoundError,
    PinnedError,
    RefusedError,
)
from trunkline.lora.routing import PAGE_RANK, Pages, Routing, Span
from trunkline.lora.slots import Gains, LoraSlots, Matrices
from trunkline.lora.weights import Head, read_magnitudes, read_weights

if TYPE_CHECKING:
    from trunkline.bases.linear import FusedLayers

MIB = 1 << 20

Observer = Callable[[str, str, bool], None]
"""Called with digest, name, and whether the adapter was loaded into memory (True) or dropped from
it (False); under a lock and in order, so it must not block."""


@dataclass(slots=True, eq=False)
class Resident:
    """One adapter in memory.

    Attributes:
        head: on the device; None if the task has none.
        bytes: size on the host.
        pages_needed: on the device.
        gains: of DoRA; empty for plain LoRA.
        uploading: whether it is being written into pages.
        unloading: whether it is dropped when its last request ends.
        users: running sequences.
        requests: so far; counted by the engine, which may acquire several times for one request.
        last_used: on the clock of the pool, in seconds.
    """

    artifact: Artifact
    name: str
    head: Head | None
    bytes: int
    pages_needed: int
    matrices: Matrices
    gains: Gains = field(default_factory=dict)
    pages: Pages = ()
    uploading: bool = False
    pinned: bool = False
    unloading: bool = False
    users: int = 0
    requests: int = 0
    last_used: float = 0.0

    @property
    def tier(self) -> str:
        """``device`` or ``host``."""
        return "device" if self.pages else "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentInfo:
    """A snapshot of one adapter in memory, for operators."""

    digest: str
    name: str
    tier: str
    bytes: int
    rank: int
    pinned: bool
    in_use: int
    requests: int
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class Counters:
    """How often an adapter was loaded from disk, and evicted from memory."""

    loads: int = 0
    evictions: int = 0


class AdapterPool:
    """The adapters of one base, by digest. Safe from any thread.

    Args:
        model: the base: a causal LM, or an image model.
        base_digest: of its weights.
        fused_layers: its linear layers.
        hidden: width of what heads read; by default the hidden size of the causal LM.
        slots: pages on the device at most; they take half of the memory at most.
        adapter_mib: memory for adapters on device and host together, in MiB.
        host_bytes: memory for adapters on the host; by default what the pages leave.
        clock: gives seconds.
    """

    def __init__(
        self,
        model: Any,
        base_digest: str,
        fused_layers: FusedLayers,
        *,
        hidden: int | None = None,
        slots: int = 64,
        adapter_mib: int = 4096,
        host_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        import torch

        parameter = next(model.parameters())
        self._device, self._base_dtype = parameter.device, parameter.dtype
        dtype = torch.float32 if self._device.type == "cpu" else parameter.dtype
        self._linear = {
            name: (fused.inputs, fused.outputs[index])
            for name, fused, index in fused_layers.members()
        }
        self._hidden = hidden or int(model.config.get_text_config().hidden_size)
        self._base_digest = base_digest
        self._page_bytes = LoraSlots.page_bytes(
            fused_layers, torch.empty(0, dtype=dtype).element_size()
        )
        if host_bytes is None:
            budget = adapter_mib * MIB
            pages = max(1, min(slots, budget // (2 * self._page_bytes)))
            host_bytes = max(0, budget - pages * self._page_bytes)
        else:
            pages = slots
            budget = pages * self._page_bytes + host_bytes
        self.budget_bytes = budget
        self._host_budget = host_bytes
        self._clock = clock
        self.lora_slots = LoraSlots(fused_layers, pages, dtype=dtype, device=self._device)
        self._free = list(range(pages, 0, -1))
        self._residents: dict[str, Resident] = {}
        self._counters: dict[str, Counters] = {}
        self._names: dict[str, str] = {}
        self._lock = threading.RLock()
        self._loading: dict[str, threading.Event] = {}
        self._observers: list[Observer] = []

    def __contains__(self, digest: str) -> bool:
        return digest in self._residents

    def __len__(self) -> int:
        return len(self._residents)

    # ------------------------------------------------------------------------------- loading

    def load(self, artifact: Artifact, name: str = "") -> Resident:
        """Load an adapter into memory, and onto the device if pages are available.

        The file is read while steps run. Threads that load the same adapter wait for the first one.

        Raises:
            BaseMismatchError: the adapter was trained on other weights.
            IntegrityError: its tensors don't fit the base, are not finite, or changed since the
                artifact was checked.
            RefusedError: it needs more pages or memory than the pool has.
            PinnedError: pinned adapters leave too few pages, or too little memory.
            BusyError: the memory is full of adapters that are in use or pinned.
        """
        digest = artifact.digest
        while True:
            with self._lock:
                resident = self._residents.get(digest)
                if resident is not None:
                    resident.last_used = self._clock()
                    resident.unloading = False
                    if resident.pages:
                        return resident
                    if not resident.uploading and not self._can_upload(resident):
                        self.check_pins(resident)
                        return resident
                if (other := self._loading.get(digest)) is None:
                    self._loading[digest] = threading.Event()
                    break
            other.wait()
        try:
            # In a thread of its own: a caller's thread would keep OpenMP workers, which slow down
            # the engine's steps (bases/load.py explains why).
            with ThreadPoolExecutor(1) as loader:
                return loader.submit(self._load, artifact, name, resident).result()
        finally:
            with self._lock:
                self._loading.pop(digest).set()

    def _load(self, artifact: Artifact, name: str, resident: Resident | None) -> Resident:
        """Read an adapter that is not in memory, and upload it if pages are available."""
        fresh = resident is None
        one = self._read(artifact, name) if resident is None else resident
        with self._lock:
            self.check_pins(one)
            if fresh:
                self._evict_for(one.bytes)
                self._residents[artifact.digest] = one
                self._count(one, loads=1)
                self._notify(one, True)
            elif self._residents.get(artifact.digest) is not one:
                return one
            pages = self._take_pages(one)
            one.uploading = bool(pages)
        if not pages:
            return one
        try:
            self.lora_slots.write(pages, one.matrices, artifact.lora.scaling, one.gains)
        except BaseException:
            with self._lock:
                one.uploading = False
                self._free.extend(pages)
                self._drop(one)
            raise
        with self._lock:
            one.pages, one.uploading = pages, False
            self._drop_if_unloading(one)
        return one

    def needs_load(self, digest: str) -> bool:
        """Whether :meth:`load` has work to do: read the adapter, or upload it into pages."""
        with self._lock:
            resident = self._residents.get(digest)
            return resident is None or (not resident.pages and self._can_upload(resident))

    def get(self, digest: str) -> Resident | None:
        """The adapter with this digest, if it is in memory."""
        return self._residents.get(digest)

    def unload(self, digest: str) -> bool:
        """Drop an adapter from memory; one that is in use is dropped when its last request ends.

        Returns:
            Whether it was dropped at once.

        Raises:
            NotFoundError: it is not in memory.
        """
        with self._lock:
            resident = self._require(digest)
            resident.unloading = True
            self._drop_if_unloading(resident)
            return digest not in self._residents

    def pin(self, digest: str, pinned: bool = True) -> None:
        """Pin an adapter, so that it is never evicted, or unpin it.

        Raises:
            NotFoundError: it is not in memory.
        """
        with self._lock:
            self._require(digest).pinned = pinned

    # ------------------------------------------------------------------------------- in a step

    def acquire(self, digest: str) -> Resident | None:
        """Take an adapter for a running request; it stays on the device until released.

        Returns:
            None if it is not on the device; :meth:`load` uploads it.
        """
        with self._lock:
            resident = self._residents.get(digest)
            if resident is None or not resident.pages:
                return None
            resident.users += 1
            resident.last_used = self._clock()
            return resident

    def release(self, resident: Resident) -> None:
        """Release an adapter after a running request has ended."""
        with self._lock:
            resident.users -= 1
            resident.last_used = self._clock()
            self._drop_if_unloading(resident)

    def route(self, routing: Routing) -> AbstractContextManager[None]:
        """Add adapters to what the base computes; see :meth:`LoraSlots.route`."""
        return self.lora_slots.route(routing)

    @contextmanager
    def activate(self, digest: str | None) -> Iterator[Resident | None]:
        """Run the base with one adapter for all tokens, or bare (None), inside the block."""
        if digest is None:
            with self.route(Routing()):
                yield None
            return
        resident = self.acquire(digest)
        if resident is None:
            raise RefusedError(f"{digest} is not on the device.", "Load the adapter first.")
        try:
            with self.route(Routing(spans=[Span(0, None, resident.pages)])):
                yield resident
        finally:
            self.release(resident)

    # ------------------------------------------------------------------------------ observing

    def residents(self) -> list[ResidentInfo]:
        """List the adapters in memory, the most recently used first."""
        now = self._clock()
        with self._lock:
            residents = sorted(self._residents.values(), key=lambda one: -one.last_used)
            return [
                ResidentInfo(
                    digest=one.artifact.digest,
                    name=one.name,
                    tier=one.tier,
                    bytes=self._size(one),
                    rank=one.artifact.lora.rank,
                    pinned=one.pinned,
                    in_use=one.users,
                    requests=one.requests,
                    idle_seconds=0.0 if one.users else now - one.last_used,
                )
                for one in residents
            ]

    def counters(self, digest: str) -> Counters:
        """Loads and evictions of an adapter so far."""
        return self._counters.get(digest, Counters())

    def all_counters(self) -> list[tuple[str, Counters]]:
        """Name and counters of every adapter that was ever in memory."""
        with self._lock:
            return [(self._names[digest], counted) for digest, counted in self._counters.items()]

    @property
    def total_bytes(self) -> int:
        """Size of all adapters in memory, on device and host."""
        with self._lock:
            return sum(self._size(one) for one in self._residents.values())

    @property
    def pages(self) -> int:
        """Pages of rank :data:`PAGE_RANK` on the device."""
        return self.lora_slots.pages

    @property
    def free_pages(self) -> int:
        """Pages that no adapter has."""
        return len(self._free)

    def observe(self, observer: Observer) -> None:
        """Call an observer for each adapter in memory, and for each change from now on."""
        with self._lock:
            for resident in self._residents.values():
                observer(resident.artifact.digest, resident.name, True)
            self._observers.append(observer)

    def unobserve(self, observer: Observer) -> None:
        """Stop calling an observer."""
        with self._lock:
            if observer in self._observers:
                self._observers.remove(observer)

    # --------------------------------------------------------------------------------- tiers

    def _require(self, digest: str) -> Resident:
        if (resident := self._residents.get(digest)) is None:
            raise NotFoundError(
                f"The adapter {digest[:19]}… is not in memory.", "`trunkline ps` lists what is."
            )
        return resident

    def _size(self, resident: Resident) -> int:
        return resident.bytes + len(resident.pages) * self._page_bytes

    def _take_pages(self, resident: Resident) -> Pages:
        """Take pages, from the least recently used adapters if needed; none if too few exist."""
        if not self._can_upload(resident):
            return ()
        idle = sorted(
            (one for one in self._residents.values() if one.pages and self._is_evictable(one)),
            key=lambda one: -one.last_used,
        )
        while len(self._free) < resident.pages_needed:
            oldest = idle.pop()
            self._free.extend(oldest.pages)
            oldest.pages = ()
        return tuple(self._free.pop() for _ in range(resident.pages_needed))

    def _can_upload(self, resident: Resident) -> bool:
        """Whether enough pages are free, or held by adapters that may be evicted."""
        if resident.uploading:
            return False
        evictable = sum(
            len(one.pages) for one in self._residents.values() if self._is_evictable(one)
        )
        return len(self._free) + evictable >= resident.pages_needed

    def _count(self, resident: Resident, *, loads: int = 0, evictions: int = 0) -> None:
        digest = resident.artifact.digest
        before = self._counters.get(digest, Counters())
        self._counters[digest] = Counters(before.loads + loads, before.evictions + evictions)
        self._names[digest] = resident.name

    @staticmethod
    def _is_evictable(resident: Resident) -> bool:
        return not (resident.users or resident.pinned or resident.uploading)

    def _drop_if_unloading(self, resident: Resident) -> None:
        if resident.unloading and not resident.users and not resident.uploading:
            self._drop(resident)

    def _drop(self, resident: Resident) -> None:
        digest = resident.artifact.digest
        self._free.extend(resident.pages)
        resident.pages = ()
        del self._residents[digest]
        self._notify(resident, False)

    def _notify(self, resident: Resident, loaded: bool) -> None:
        for observer in self._observers:
            observer(resident.artifact.digest, resident.name, loaded)

    def check_pins(self, resident: Resident) -> None:
        """Raise :class:`PinnedError` if pinned adapters leave too few pages for this one."""
        with self._lock:
            others = [one for one in self._residents.values() if one is not resident]
            pinned = sum(len(one.pages) for one in others if one.pinned)
        if pinned + resident.pages_needed > self.lora_slots.pages:
            raise PinnedError(
                f"There is no slot for an adapter of rank {resident.artifact.lora.rank}: "
                f"{pinned} of {self.lora_slots.pages} slots are held by pinned adapters.",
                "Unpin one, or give the server more --slots.",
            )

    def _evict_for(self, size: int) -> None:
        """Evict the least recently used adapters until ``size`` more bytes fit the budget, or none
        if that is not enough."""
        held = sum(one.bytes for one in self._residents.values())
        idle = sorted(
            (one for one in self._residents.values() if self._is_evictable(one)),
            key=lambda one: -one.last_used,
        )
        staying = held - sum(one.bytes for one in idle)
        if staying + size > self._host_budget:
            pinned = sum(one.bytes for one in self._residents.values() if one.pinned)
            permanent = pinned + size > self._host_budget
            raise (PinnedError if permanent else BusyError)(
                f"There is no memory for an adapter of {size / MIB:.1f} MiB: "
                f"{staying / MIB:.1f} of {self._host_budget / MIB:.1f} MiB are held by adapters "
                "that are in use or pinned.",
                "Unpin one, or give the server more with --adapter-mib.",
            )
        while held + size > self._host_budget:
            oldest = idle.pop()
            held -= oldest.bytes
            self._drop(oldest)
            self._count(oldest, evictions=1)

    def _read(self, artifact: Artifact, name: str) -> Resident:
        matrices, head = read_weights(artifact, self._base_digest, self._linear, self._hidden)
        rank = max(down.shape[0] for down, _ in matrices.values())
        pages = -(-rank // PAGE_RANK)
        if pages > self.lora_slots.pages:
            raise RefusedError(
                f"{name or artifact.folder} has rank {rank} and needs {pages} slots of rank "
                f"{PAGE_RANK}; there are {self.lora_slots.pages}.",
                "Give the engine more slots or memory.",
            )
        magnitudes = read_magnitudes(artifact)
        head = None if head is None else head.to(self._device)
        size = sum(magnitude.nbytes for magnitude in magnitudes.values())
        size += sum(down.nbytes + up.nbytes for down, up in matrices.values())
        size += 0 if head is None else head.nbytes
        if size > self._host_budget:
            raise RefusedError(
                f"{name or artifact.folder} takes {size / MIB:.1f} MiB; all adapters on the host "
                f"together may take {self._host_budget / MIB:.1f} MiB.",
                "Give the server more with --adapter-mib.",
            )
        gains = self.lora_slots.gains(matrices, artifact.lora.scaling, magnitudes, self._base_dtype)
        return Resident(artifact, name, head, size, pages, matrices, gains, last_used=self._clock())
