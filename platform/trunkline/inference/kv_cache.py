"""Keys and values of everything that is being computed, within one budget, and what is kept of
past prompts.

Owns: the pool, which blocks belong to whom, and the prefix cache. Must not know: requests,
adapters' weights, how attention is computed.

The pool is cut into blocks of :data:`BLOCK` tokens (Kwon et al. 2023, "Efficient memory management
for large language model serving with PagedAttention"). A full block may be shared: it is known by
a hash over the version's digest and every token up to its end, so that the same prompt under
another adapter, or under another version of one, is another block.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trunkline.errors import BaseModelError

BLOCK = 16


@dataclass(slots=True)
class Lease:
    """The blocks of one sequence; ``cached`` tokens at its start were there already."""

    salt: str
    blocks: list[int]
    cached: int
    keys: list[bytes] = field(default_factory=list)


class Blocks:
    """Who holds which block. Pure bookkeeping; one thread."""

    def __init__(self, blocks: int, *, share: bool = True) -> None:
        self.total = blocks
        self._share = share
        self._free = list(range(blocks - 1, -1, -1))
        self._holders = [0] * blocks
        self._known: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that can be had: free ones, and those kept for nobody in particular."""
        return len(self._free) + len(self._idle)

    @property
    def kept(self) -> int:
        """Blocks that only the prefix cache holds."""
        return len(self._idle)

    def lease(self, salt: str, tokens: Sequence[int], room: int) -> Lease | None:
        """Blocks for a sequence of ``room`` tokens at most that begins with ``tokens``.

        The last token is never taken from the cache: its hidden state is wanted.

        Args:
            salt: digest of the version that computes it.

        Returns:
            None where there are not enough blocks now; nothing has changed then.
        """
        shared: list[int] = []
        keys: list[bytes] = []
        if self._share:
            for key in block_keys(salt, tokens[: len(tokens) - 1]):
                if (block := self._known.get(key)) is None:
                    break
                shared.append(block)
                keys.append(key)
        wanted = -(-room // BLOCK) - len(shared)
        idle = sum(self._holders[block] == 0 for block in shared)
        if wanted > self.available - idle:
            return None
        for block in shared:
            self._hold(block)
        fresh = [self._take() for _ in range(wanted)]
        return Lease(salt, shared + fresh, len(shared) * BLOCK, keys)

    def fill(self, lease: Lease, tokens: Sequence[int]) -> None:
        """Make the full blocks of ``tokens``, all computed, known to others."""
        if not self._share or len(tokens) // BLOCK <= len(lease.keys):
            return
        for key in block_keys(lease.salt, tokens, after=lease.keys):
            block = lease.blocks[len(lease.keys)]
            if key not in self._known and block not in self._key_of:
                self._known[key] = block
                self._key_of[block] = key
            lease.keys.append(key)

    def give_back(self, lease: Lease) -> None:
        """Let the blocks go; known ones are kept until their room is needed.

        A prompt's end is given up before its beginning, without which it would be of no use.
        """
        for block in reversed(lease.blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._key_of:
                    self._idle[block] = None
                else:
                    self._free.append(block)
        lease.blocks = []

    def forget(self) -> None:
        """Empty the prefix cache; blocks in use stay with their holders."""
        for block in list(self._idle):
            self._free.append(block)
        self._idle.clear()
        self._known.clear()
        self._key_of.clear()

    def _hold(self, block: int) -> None:
        self._holders[block] += 1
        self._idle.pop(block, None)

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            del self._known[self._key_of.pop(block)]
        self._holders[block] = 1
        return block


def block_keys(salt: str, tokens: Sequence[int], after: Sequence[bytes] = ()) -> Iterable[bytes]:
    """Keys of the full blocks of ``tokens``; of ``after``, those of the first blocks, go on."""
    key = after[-1] if after else salt.encode()
    for start in range(len(after) * BLOCK, len(tokens) - BLOCK + 1, BLOCK):
        piece = array("q", tokens[start : start + BLOCK]).tobytes()
        key = hashlib.sha256(key + piece).digest()
        yield key


class KVCache:
    """The tensors: ``[tokens, 2 · KV heads, width]`` a layer, keys before values.

    What a token left lies together, so that gathering a context copies few long pieces. They are
    not cleared: no place is read that was not written first, and the system gives memory only for
    what is written. Therefore what will be wanted is compared with what is free before anything is
    asked for.

    Raises:
        BaseModelError: there is not that much memory.
    """

    def __init__(self, model: Any, tokens: int) -> None:
        import torch

        config = model.config.get_text_config()
        width, heads = kv_measures(config)
        parameter = next(model.parameters())
        wanted, free = tokens * bytes_per_token(model), free_bytes(parameter.device)
        if free is not None and wanted > free:
            raise _too_large(tokens, wanted, f"{free >> 20:,} MiB are free")
        try:
            self.layers = [
                torch.empty(
                    tokens, 2 * heads, width, dtype=parameter.dtype, device=parameter.device
                )
                for _ in range(config.num_hidden_layers)
            ]
        except (MemoryError, RuntimeError):
            raise _too_large(tokens, wanted, "the system does not give them") from None


def free_bytes(device: Any) -> int | None:
    """Memory that can be had on a device; None where nothing tells."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    told = [
        re.search(r"^MemAvailable: *(\d+) kB$", _text("/proc/meminfo"), re.MULTILINE),
        re.search(r"^(\d+)$", _text("/sys/fs/cgroup/memory.max"), re.MULTILINE),
    ]
    sizes = [int(one[1]) * unit for one, unit in zip(told, (1024, 1), strict=True) if one]
    return min(sizes, default=None)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


def _too_large(tokens: int, wanted: int, but: str) -> BaseModelError:
    return BaseModelError(
        f"Keys and values of {tokens:,} tokens take {wanted >> 20:,} MiB; {but}.",
        "Give the engine a smaller kv_mib, or fewer rows.",
    )


def kv_measures(config: Any) -> tuple[int, int]:
    """Width of a head and number of KV heads, from a text model's configuration.

    Raises:
        BaseModelError: it has no attention heads.
    """
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        raise BaseModelError(
            f"The base is of the kind {config.model_type!r}, which has no attention heads.",
            "Take a base with attention in every layer, such as a Llama, Qwen or GPT-2.",
        )
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(width), int(getattr(config, "num_key_value_heads", None) or heads)


def bytes_per_token(model: Any) -> int:
    """Keys and values of one token in all layers, in bytes."""
    config = model.config.get_text_config()
    width, heads = kv_measures(config)
    size = next(model.parameters()).element_size()
    return 2 * heads * width * int(config.num_hidden_layers) * size
