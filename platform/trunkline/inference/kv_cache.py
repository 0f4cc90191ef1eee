"""The paged KV cache: its tensors, its blocks, and the prefix cache of past prompts.

The cache is divided into blocks of :data:`BLOCK_SIZE` tokens (Kwon et al. 2023, "Efficient memory
management for large language model serving with PagedAttention"). A full block may be shared. Its
key is a hash over the adapter version's digest and every token up to the block's end, so the same
prompt under another adapter, or another version of it, has other blocks.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trunkline.errors import BaseModelError

BLOCK_SIZE = 16
"""Tokens of one block."""


@dataclass(slots=True)
class Lease:
    """The blocks of one sequence; its first ``cached`` tokens are computed already."""

    salt: str
    blocks: list[int]
    cached: int
    keys: list[bytes] = field(default_factory=list)


class BlockPool:
    """Allocates blocks and keeps those of past prompts; for one thread at a time.

    Args:
        blocks: how many there are.
        share: whether full blocks are shared and kept for later prompts.
    """

    def __init__(self, blocks: int, *, share: bool = True) -> None:
        self.total = blocks
        self._share = share
        self._free = list(range(blocks - 1, -1, -1))
        self._reference_counts = [0] * blocks
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that can be allocated: free ones, and those of past prompts."""
        return len(self._free) + len(self._idle)

    @property
    def cached(self) -> int:
        """Blocks that only the prefix cache holds."""
        return len(self._idle)

    @property
    def reference_counts(self) -> list[int]:
        """How many leases hold each block."""
        return list(self._reference_counts)

    def allocate(
        self, salt: str, tokens: Sequence[int], capacity: int, *, reuse: bool = True
    ) -> Lease | None:
        """Allocate blocks for a sequence that begins with ``tokens`` and has ``capacity`` at most.

        The last token is never taken from the cache, because its hidden state is needed.

        Args:
            salt: digest of the version that computes the sequence.
            reuse: whether blocks of past prompts may be taken.

        Returns:
            None if there are too few blocks now; nothing has changed then.
        """
        shared: list[int] = []
        keys: list[bytes] = []
        if self._share and reuse:
            for key in block_hashes(salt, tokens[: len(tokens) - 1]):
                if (block := self._block_of.get(key)) is None:
                    break
                shared.append(block)
                keys.append(key)
        needed = -(-capacity // BLOCK_SIZE) - len(shared)
        idle = sum(self._reference_counts[block] == 0 for block in shared)
        if needed > self.available - idle:
            return None
        for block in shared:
            self._hold(block)
        fresh = [self._take() for _ in range(needed)]
        return Lease(salt, shared + fresh, len(shared) * BLOCK_SIZE, keys)

    def cache_blocks(self, lease: Lease, tokens: Sequence[int]) -> None:
        """Let others share the full blocks of ``tokens``, which are all computed."""
        if not self._share or len(tokens) // BLOCK_SIZE <= len(lease.keys):
            return
        for key in block_hashes(lease.salt, tokens, after=lease.keys):
            block = lease.blocks[len(lease.keys)]
            if key not in self._block_of and block not in self._key_of:
                self._block_of[key] = block
                self._key_of[block] = key
            lease.keys.append(key)

    def free(self, lease: Lease) -> None:
        """Free the blocks; full ones stay in the prefix cache until they are needed.

        A prompt's last blocks are evicted before its first ones, without which they are useless.
        """
        for block in reversed(lease.blocks):
            self._reference_counts[block] -= 1
            if self._reference_counts[block] == 0:
                if block in self._key_of:
                    self._idle[block] = None
                else:
                    self._free.append(block)
        lease.blocks = []

    def reset(self) -> None:
        """Empty the prefix cache; blocks in use stay with their leases."""
        for block in list(self._idle):
            self._free.append(block)
        self._idle.clear()
        self._block_of.clear()
        self._key_of.clear()

    def _hold(self, block: int) -> None:
        self._reference_counts[block] += 1
        self._idle.pop(block, None)

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            del self._block_of[self._key_of.pop(block)]
        self._reference_counts[block] = 1
        return block


def block_hashes(salt: str, tokens: Sequence[int], after: Sequence[bytes] = ()) -> Iterable[bytes]:
    """Hash the full blocks of ``tokens``, continuing after the given hashes of the first ones."""
    key = after[-1] if after else salt.encode()
    for start in range(len(after) * BLOCK_SIZE, len(tokens) - BLOCK_SIZE + 1, BLOCK_SIZE):
        piece = array("q", tokens[start : start + BLOCK_SIZE]).tobytes()
        key = hashlib.sha256(key + piece).digest()
        yield key


class KVCache:
    """The tensors: ``[tokens, 2 · KV heads, head width]`` for each layer, keys before values.

    Keys and values of one token are contiguous, so gathering a context copies few long runs. The
    tensors are not cleared: no position is read before it is written, and the system commits
    memory only when it is written. Their size is therefore compared with the free memory first.

    Raises:
        BaseModelError: there is not enough memory.
    """

    def __init__(self, model: Any, tokens: int) -> None:
        import torch

        config = model.config.get_text_config()
        width, heads = kv_shape(config)
        parameter = next(model.parameters())
        size, free = tokens * bytes_per_token(model), free_bytes(parameter.device)
        if free is not None and size > free:
            raise _too_large(tokens, size, f"{free >> 20:,} MiB are free")
        try:
            self.layers = [
                torch.empty(
                    tokens, 2 * heads, width, dtype=parameter.dtype, device=parameter.device
                )
                for _ in range(config.num_hidden_layers)
            ]
        except (MemoryError, RuntimeError):
            raise _too_large(tokens, size, "the system refuses to allocate them") from None


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


def free_bytes(device: Any, read_text: Callable[[str], str] = _read_text) -> int | None:
    """Free memory of a device, in bytes; None if the system does not report it."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    matches = [
        re.search(r"^MemAvailable: *(\d+) kB$", read_text("/proc/meminfo"), re.MULTILINE),
        re.search(r"^(\d+)$", read_text("/sys/fs/cgroup/memory.max"), re.MULTILINE),
    ]
    sizes = [int(one[1]) * unit for one, unit in zip(matches, (1024, 1), strict=True) if one]
    return min(sizes, default=None)


def _too_large(tokens: int, size: int, reason: str) -> BaseModelError:
    return BaseModelError(
        f"Keys and values of {tokens:,} tokens take {size >> 20:,} MiB; {reason}.",
        "Give the engine a smaller kv_mib, or fewer rows.",
    )


def kv_shape(config: Any) -> tuple[int, int]:
    """Read the width of a head and the number of KV heads from a text model's configuration.

    Raises:
        BaseModelError: the model has no attention heads.
    """
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        raise BaseModelError(
            f"The base's model type {config.model_type!r} has no attention heads.",
            "Use a base with attention in every layer, such as a Llama, Qwen or GPT-2.",
        )
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(width), int(getattr(config, "num_key_value_heads", None) or heads)


def bytes_per_token(model: Any) -> int:
    """Size of one token's keys and values in all layers, in bytes."""
    config = model.config.get_text_config()
    width, heads = kv_shape(config)
    size = next(model.parameters()).element_size()
    return 2 * heads * width * int(config.num_hidden_layers) * size
