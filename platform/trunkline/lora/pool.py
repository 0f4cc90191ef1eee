"""The adapters of one base: which stand beside it, which are kept ready, which lie on disk.

Owns: loading and checking weights, the three tiers, and who may be put away. Must not know: refs,
the registry, tasks' decoding, batches.

*Device*: in pages of the :class:`LoraSlots`, ready to answer. *Host*: checked tensors in memory,
under
a budget of bytes. *Disk*: everything else. The least recently used goes first, pinned ones stay,
and one that a running request uses is never put away. The host keeps what is on the device as
well, so putting away from there costs nothing.

What is computed is PEFT's
``scaling · B (A x)`` (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models",
section 4.1).
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
from trunkline.lora.slots import LoraSlots, Matrices
from trunkline.lora.weights import read_weights

if TYPE_CHECKING:
    import torch

    from trunkline.bases.linear import FusedLayers

MIB = 1 << 20

Observer = Callable[[str, str, bool], None]
"""Told of an adapter, by digest and name, that came into memory (True) or left it (False); under a
lock and in the order in which it happens, so it must not wait."""


@dataclass(slots=True, eq=False)
class Resident:
    """One adapter in memory; ``head`` is ``[outputs, hidden]`` float32 or None.

    ``requests`` are counted by whoever answers them: one may :meth:`AdapterPool.acquire` several
    times.
    """

    artifact: Artifact
    name: str
    head: torch.Tensor | None
    bytes: int
    needs: int
    matrices: Matrices
    pages: Pages = ()
    placing: bool = False
    pinned: bool = False
    leaving: bool = False
    users: int = 0
    requests: int = 0
    used: float = field(default_factory=time.monotonic)

    @property
    def tier(self) -> str:
        """``device`` or ``host``."""
        return "device" if self.pages else "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentInfo:
    """What an operator sees of an adapter in memory."""

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
    """How often an adapter was read from disk, and put out of memory."""

    loads: int = 0
    evictions: int = 0


class AdapterPool:
    """The adapters of one base, by digest. Safe from any thread."""

    def __init__(
        self,
        model: Any,
        base_digest: str,
        fused_layers: FusedLayers,
        *,
        slots: int = 64,
        adapter_mib: int = 4096,
    ) -> None:
        import torch

        parameter = next(model.parameters())
        self._device = parameter.device
        dtype = torch.float32 if self._device.type == "cpu" else parameter.dtype
        self._linear = {
            name: (fused.inputs, fused.outputs[index])
            for name, fused, index in fused_layers.places()
        }
        self._hidden = int(model.config.get_text_config().hidden_size)
        self._base_digest = base_digest
        self._page_bytes = LoraSlots.page_bytes(
            fused_layers, torch.empty(0, dtype=dtype).element_size()
        )
        self.budget_bytes = adapter_mib * MIB
        pages = max(1, min(slots, self.budget_bytes // (2 * self._page_bytes)))
        self._host_budget = max(0, self.budget_bytes - pages * self._page_bytes)
        self._lora_slots = LoraSlots(fused_layers, pages, dtype=dtype, device=self._device)
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
        """Make an adapter resident, on the device if there is room; at once if it is already.

        Reads the file in the calling thread, beside whatever is being computed. Threads that want
        the same one wait for the first.

        Raises:
            BaseMismatchError: it was trained on other weights.
            IntegrityError: its tensors don't fit the base, are not finite, or changed since the
                artifact was checked.
            RefusedError: its rank needs more pages than there are, or its bytes more memory.
            PinnedError: pinned adapters leave it no page, or too little memory.
            BusyError: the memory for adapters is full of those in use or pinned.
        """
        digest = artifact.digest
        while True:
            with self._lock:
                resident = self._residents.get(digest)
                if resident is not None:
                    resident.used = time.monotonic()
                    resident.leaving = False
                    if resident.pages:
                        return resident
                    if not resident.placing and not self._may_place(resident):
                        self.check_pins(resident)
                        return resident
                if (other := self._loading.get(digest)) is None:
                    self._loading[digest] = threading.Event()
                    break
            other.wait()
        try:
            # In a thread of its own: OpenMP workers that a caller's thread would keep make the
            # steps of the engine's thread slower (bases/load.py says why).
            with ThreadPoolExecutor(1) as apart:
                return apart.submit(self._load, artifact, name, resident).result()
        finally:
            with self._lock:
                self._loading.pop(digest).set()

    def _load(self, artifact: Artifact, name: str, resident: Resident | None) -> Resident:
        """Read what is not in memory, and put it into pages if some can be had."""
        fresh = resident is None
        one = self._read(artifact, name) if resident is None else resident
        with self._lock:
            self.check_pins(one)
            if fresh:
                self._make_room(one.bytes)
                self._residents[artifact.digest] = one
                self._count(one, loads=1)
                self._tell(one, True)
            elif self._residents.get(artifact.digest) is not one:
                return one
            pages = self._take_pages(one)
            one.placing = bool(pages)
        if not pages:
            return one
        try:
            self._lora_slots.write(pages, one.matrices, artifact.lora.scaling)
        except BaseException:
            with self._lock:
                one.placing = False
                self._free.extend(pages)
                self._drop(one)
            raise
        with self._lock:
            one.pages, one.placing = pages, False
            self._leave(one)
        return one

    def wanted(self, digest: str) -> bool:
        """Whether :meth:`load` would bring the adapter nearer: it is on disk, or on the host while
        pages can be had."""
        with self._lock:
            resident = self._residents.get(digest)
            return resident is None or (not resident.pages and self._may_place(resident))

    def get(self, digest: str) -> Resident | None:
        """The resident of this digest, if there is one."""
        return self._residents.get(digest)

    def unload(self, digest: str) -> bool:
        """Put an adapter out of memory; one that is in use goes when its last request ends.

        Returns:
            Whether it is gone already.

        Raises:
            NotFoundError: it is not in memory.
        """
        with self._lock:
            resident = self._known(digest)
            resident.leaving = True
            self._leave(resident)
            return digest not in self._residents

    def pin(self, digest: str, pinned: bool = True) -> None:
        """Keep an adapter in memory whatever else is wanted, or no longer.

        Raises:
            NotFoundError: it is not in memory.
        """
        with self._lock:
            self._known(digest).pinned = pinned

    # ------------------------------------------------------------------------------- in a step

    def acquire(self, digest: str) -> Resident | None:
        """Take an adapter for a running request; it stays on the device until released.

        Returns:
            None where it does not stand there; :meth:`load` brings it.
        """
        with self._lock:
            resident = self._residents.get(digest)
            if resident is None or not resident.pages:
                return None
            resident.users += 1
            resident.used = time.monotonic()
            return resident

    def release(self, resident: Resident) -> None:
        """A running request has ended."""
        with self._lock:
            resident.users -= 1
            resident.used = time.monotonic()
            self._leave(resident)

    def route(self, routing: Routing) -> AbstractContextManager[None]:
        """Send what the base computes through pages; see :meth:`LoraSlots.routed`."""
        return self._lora_slots.route(routing)

    @contextmanager
    def activate(self, digest: str | None) -> Iterator[Resident | None]:
        """Run the base with one resident for every token, or bare (None), until the block ends."""
        if digest is None:
            with self.route(Routing()):
                yield None
            return
        resident = self.acquire(digest)
        if resident is None:
            raise RefusedError(f"{digest} is not in memory.", "Load it first.")
        try:
            with self.route(Routing(spans=[Span(0, None, resident.pages)])):
                yield resident
        finally:
            self.release(resident)

    # -------------------------------------------------------------------------------- looking

    def residents(self) -> list[ResidentInfo]:
        """What is in memory, the most recently used first."""
        now = time.monotonic()
        with self._lock:
            found = sorted(self._residents.values(), key=lambda one: -one.used)
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
                    idle_seconds=0.0 if one.users else now - one.used,
                )
                for one in found
            ]

    def counters(self, digest: str) -> Counters:
        """Loads and evictions of an adapter so far."""
        return self._counters.get(digest, Counters())

    def all_counters(self) -> list[tuple[str, Counters]]:
        """Name, and counters, of every adapter that was ever in memory."""
        with self._lock:
            return [(self._names[digest], counted) for digest, counted in self._counters.items()]

    @property
    def total_bytes(self) -> int:
        """Of all adapters in memory."""
        with self._lock:
            return sum(self._size(one) for one in self._residents.values())

    @property
    def pages(self) -> int:
        """Places of rank :data:`PAGE_RANK` on the device."""
        return self._lora_slots.pages

    def observe(self, observer: Observer) -> None:
        """Tell an observer of what is in memory, and of all that comes and leaves from now on."""
        with self._lock:
            for resident in self._residents.values():
                observer(resident.artifact.digest, resident.name, True)
            self._observers.append(observer)

    def unobserve(self, observer: Observer) -> None:
        """Tell an observer nothing more."""
        with self._lock:
            if observer in self._observers:
                self._observers.remove(observer)

    # --------------------------------------------------------------------------------- tiers

    def _known(self, digest: str) -> Resident:
        if (resident := self._residents.get(digest)) is None:
            raise NotFoundError(
                f"The adapter {digest[:19]}… is not in memory.", "`trunkline ps` lists what is."
            )
        return resident

    def _size(self, resident: Resident) -> int:
        return resident.bytes + len(resident.pages) * self._page_bytes

    def _take_pages(self, resident: Resident) -> Pages:
        """Free pages, those of the least recently used if need be; none if too few can be had."""
        if not self._may_place(resident):
            return ()
        idle = sorted(
            (one for one in self._residents.values() if one.pages and self._may_go(one)),
            key=lambda one: -one.used,
        )
        while len(self._free) < resident.needs:
            last = idle.pop()
            self._free.extend(last.pages)
            last.pages = ()
        return tuple(self._free.pop() for _ in range(resident.needs))

    def _may_place(self, resident: Resident) -> bool:
        """Whether enough pages are free, or held by adapters that may go."""
        if resident.placing:
            return False
        going = sum(len(one.pages) for one in self._residents.values() if self._may_go(one))
        return len(self._free) + going >= resident.needs

    def _count(self, resident: Resident, *, loads: int = 0, evictions: int = 0) -> None:
        digest = resident.artifact.digest
        known = self._counters.get(digest, Counters())
        self._counters[digest] = Counters(known.loads + loads, known.evictions + evictions)
        self._names[digest] = resident.name

    @staticmethod
    def _may_go(resident: Resident) -> bool:
        return not (resident.users or resident.pinned or resident.placing)

    def _leave(self, resident: Resident) -> None:
        if resident.leaving and not resident.users and not resident.placing:
            self._drop(resident)

    def _drop(self, resident: Resident) -> None:
        digest = resident.artifact.digest
        self._free.extend(resident.pages)
        resident.pages = ()
        del self._residents[digest]
        self._tell(resident, False)

    def _tell(self, resident: Resident, loaded: bool) -> None:
        for observer in self._observers:
            observer(resident.artifact.digest, resident.name, loaded)

    def check_pins(self, resident: Resident) -> None:
        """Raise :class:`PinnedError` where pinned adapters leave this one no place."""
        with self._lock:
            others = [one for one in self._residents.values() if one is not resident]
            pinned = sum(len(one.pages) for one in others if one.pinned)
        if pinned + resident.needs > self._lora_slots.pages:
            raise PinnedError(
                f"There is no place for an adapter of rank {resident.artifact.lora.rank}: "
                f"{pinned} of {self._lora_slots.pages} are held by pinned adapters.",
                "Unpin one, or give the server more --slots.",
            )

    def _make_room(self, wanted: int) -> None:
        """Let the least recently used go until ``wanted`` more bytes fit the budget; none of them
        where that isn't enough."""
        held = sum(one.bytes for one in self._residents.values())
        idle = sorted(
            (one for one in self._residents.values() if self._may_go(one)),
            key=lambda one: -one.used,
        )
        staying = held - sum(one.bytes for one in idle)
        if staying + wanted > self._host_budget:
            pinned = sum(one.bytes for one in self._residents.values() if one.pinned)
            for_ever = pinned + wanted > self._host_budget
            raise (PinnedError if for_ever else BusyError)(
                f"There is no room for an adapter of {wanted / MIB:.1f} MiB: "
                f"{staying / MIB:.1f} of {self._host_budget / MIB:.1f} MiB are held by adapters "
                "that are in use or pinned.",
                "Unpin one, or give the server more with --adapter-mib.",
            )
        while held + wanted > self._host_budget:
            last = idle.pop()
            held -= last.bytes
            self._drop(last)
            self._count(last, evictions=1)

    def _read(self, artifact: Artifact, name: str) -> Resident:
        matrices, head = read_weights(artifact, self._base_digest, self._linear, self._hidden)
        rank = max(down.shape[0] for down, _ in matrices.values())
        needs = -(-rank // PAGE_RANK)
        if needs > self._lora_slots.pages:
            raise RefusedError(
                f"{name or artifact.folder} has rank {rank} and needs {needs} places of rank "
                f"{PAGE_RANK}; there are {self._lora_slots.pages}.",
                "Give the engine more slots or memory.",
            )
        head = None if head is None else head.to(self._device)
        size = sum(down.nbytes + up.nbytes for down, up in matrices.values())
        size += 0 if head is None else head.nbytes
        if size > self._host_budget:
            raise RefusedError(
                f"{name or artifact.folder} takes {size / MIB:.1f} MiB; all adapters together may "
                f"take {self._host_budget / MIB:.1f} MiB beside those that are stacked.",
                "Give the server more with --adapter-mib.",
            )
        return Resident(artifact, name, head, size, needs, matrices)
