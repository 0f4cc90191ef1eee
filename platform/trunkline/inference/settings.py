"""How large the engine may be: rows, tokens, bytes, and the queue before it.

Owns: the numbers and their ranges. Must not know: how they are used.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from trunkline.errors import UsageError

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The budgets of one engine.

    Attributes:
        rows: requests computed at once at most.
        chunk_tokens: prompt tokens of one step at most; a longer prompt takes several steps, so
            that the answers that are being written don't wait for it.
        kv_tokens: keys and values are kept for so many tokens, all requests and the prefix cache
            together; 0: as many as fit :attr:`kv_mib`.
        kv_mib: memory for keys and values, in MiB.
        queue: requests waiting for a row at most.
        prefix_cache: whether keys and values of a prompt are kept for the next one that begins
            with it, under the same version.
        slots: adapters that stand stacked beside the base at once.
        adapter_mib: memory for adapters, stacked and kept ready together, in MiB.
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
            value = getattr(self, field.name)
            if field.type == "bool":
                continue
            least = 0 if field.name == "kv_tokens" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UsageError(
                    f"The engine's {field.name} can't be {value!r}.",
                    f"Give a whole number, at least {least}.",
                )
