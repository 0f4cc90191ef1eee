"""The budgets of an engine: rows, tokens, bytes, and the length of the wait queue."""

from __future__ import annotations

from dataclasses import dataclass, fields

from trunkline.settings import check_value

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The budgets of one engine.

    Attributes:
        rows: maximum number of sequences computed at once.
        chunk_tokens: maximum number of prompt tokens in one step; a longer prompt takes several
            steps, so that running answers don't wait for it.
        kv_tokens: tokens whose keys and values fit in memory, of all requests and the prefix cache
            together; 0: as many as fit :attr:`kv_mib`.
        kv_mib: memory for keys and values, in MiB.
        queue: maximum number of requests that wait for a row.
        prefix_cache: whether keys and values of a prompt are kept for the next prompt with the
            same beginning, under the same adapter version.
        slots: adapters of rank 8 that are on the device at once; one of rank 16 takes two slots.
        adapter_mib: memory for adapters on the device and on the host together, in MiB.

    Raises:
        UsageError: a value is out of range.
    """

    rows: int = 16
    chunk_tokens: int = 256
    kv_tokens: int = 0
    kv_mib: int = 1024
    queue: int = 1024
    prefix_cache: bool = True
    slots: int = 64
    adapter_mib: int = 4096

    def __post_init__(self) -> None:
        for field in fields(self):
            subject, value = f"The engine's {field.name}", getattr(self, field.name)
            if field.type == "bool":
                check_value(subject, value, bool)
            else:
                check_value(subject, value, int, least=0 if field.name == "kv_tokens" else 1)
