"""Blocks are shared only between sequences with the same tokens and adapter version."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trunkline.errors import BaseModelError
from trunkline.inference.kv_cache import BLOCK_SIZE, BlockPool, Lease, block_hashes, kv_shape

SALTS = ("one", "other", "base")


def tokens_of(*blocks: int, rest: int = 0) -> list[int]:
    """Tokens of full blocks, each determined by one number."""
    return [block * 100 + index for block in blocks for index in range(BLOCK_SIZE)] + [7] * rest


def allocate(blocks: BlockPool, tokens: list[int], capacity: int = 0, salt: str = "one") -> Lease:
    """A lease whose prompt is completely computed."""
    lease = blocks.allocate(salt, tokens, max(capacity, len(tokens)))
    assert lease is not None
    blocks.cache_blocks(lease, tokens)
    return lease


def count_cached(blocks: BlockPool, tokens: list[int], salt: str = "one") -> int:
    """How many tokens of a prompt are in the cache."""
    lease = blocks.allocate(salt, tokens, len(tokens))
    assert lease is not None
    count = lease.cached
    blocks.free(lease)
    return count


class BlockPoolMachine(RuleBasedStateMachine):
    """Leases are allocated, computed token by token, and freed, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.leases: list[tuple[Lease, list[int], int]] = []

    @initialize(total=st.integers(1, 12), share=st.booleans())
    def begin(self, total: int, share: bool) -> None:
        self.blocks = BlockPool(total, share=share)
        self.content: dict[int, tuple[str, tuple[int, ...]]] = {}

    @rule(
        salt=st.sampled_from(SALTS),
        kinds=st.lists(st.integers(0, 1), max_size=3),
        rest=st.integers(1, BLOCK_SIZE),
        more=st.integers(0, 40),
    )
    def lease(self, salt: str, kinds: list[int], rest: int, more: int) -> None:
        tokens = tokens_of(*kinds, rest=rest)
        capacity = len(tokens) + more
        before = (self.blocks.available, self.blocks.cached, self.blocks.reference_counts)
        lease = self.blocks.allocate(salt, tokens, capacity)
        if lease is None:
            after = (self.blocks.available, self.blocks.cached, self.blocks.reference_counts)
            assert after == before
            assert -(-capacity // BLOCK_SIZE) > 0
            return
        assert len(lease.blocks) == -(-capacity // BLOCK_SIZE)
        assert lease.cached < len(tokens)
        assert lease.cached % BLOCK_SIZE == 0
        for index in range(lease.cached // BLOCK_SIZE):
            content = (salt, tuple(tokens[: (index + 1) * BLOCK_SIZE]))
            assert self.content[lease.blocks[index]] == content
        for block in lease.blocks[lease.cached // BLOCK_SIZE :]:
            self.content.pop(block, None)
        self.leases.append((lease, tokens + [9] * more, lease.cached))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), step=st.integers(1, 50))
    def fill(self, data: Any, step: int) -> None:
        index = data.draw(st.integers(0, len(self.leases) - 1))
        lease, tokens, computed = self.leases[index]
        computed = min(len(tokens), computed + step)
        self.blocks.cache_blocks(lease, tokens[:computed])
        for end in range(BLOCK_SIZE, computed + 1, BLOCK_SIZE):
            self.content[lease.blocks[end // BLOCK_SIZE - 1]] = (lease.salt, tuple(tokens[:end]))
        self.leases[index] = (lease, tokens, computed)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def free(self, data: Any) -> None:
        index = data.draw(st.integers(0, len(self.leases) - 1))
        self.blocks.free(self.leases.pop(index)[0])

    @rule()
    def reset(self) -> None:
        self.blocks.reset()
        assert self.blocks.cached == 0

    @invariant()
    def available_and_held_are_all(self) -> None:
        held = {block for lease, _, _ in self.leases for block in lease.blocks}
        assert self.blocks.available + len(held) == self.blocks.total
        assert self.blocks.cached <= self.blocks.available

    @invariant()
    def shared_blocks_have_the_same_tokens(self) -> None:
        seen: dict[int, tuple[str, list[int]]] = {}
        for lease, tokens, _ in self.leases:
            for index, block in enumerate(lease.blocks):
                mine = (lease.salt, tokens[: (index + 1) * BLOCK_SIZE])
                assert seen.setdefault(block, mine) == mine

    @invariant()
    def references_are_counted(self) -> None:
        counts = [0] * self.blocks.total
        for lease, _, _ in self.leases:
            for block in lease.blocks:
                counts[block] += 1
        assert counts == self.blocks.reference_counts


TestBlockPool = BlockPoolMachine.TestCase
TestBlockPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=40))
def test_keys_are_equal_for_equal_beginnings_alone(one: list[int], other: list[int]) -> None:
    for index, (first, second) in enumerate(
        zip(block_hashes("s", one), block_hashes("s", other), strict=False)
    ):
        end = (index + 1) * BLOCK_SIZE
        assert (first == second) == (one[:end] == other[:end])


@given(st.lists(st.integers(0, 2**40), min_size=2 * BLOCK_SIZE, max_size=80), st.integers(0, 2))
def test_keys_go_on_where_others_ended(tokens: list[int], count: int) -> None:
    keys = list(block_hashes("s", tokens))
    assert list(block_hashes("s", tokens, after=keys[:count])) == keys[count:]


def test_same_tokens_under_another_digest_are_other_blocks() -> None:
    blocks = BlockPool(20)
    tokens = tokens_of(1, 2, rest=1)
    blocks.free(allocate(blocks, tokens, salt="one"))
    assert count_cached(blocks, tokens, "other") == 0
    assert count_cached(blocks, tokens, "one") == 2 * BLOCK_SIZE


def test_the_key_of_a_block_includes_all_tokens_before_it() -> None:
    blocks = BlockPool(20)
    blocks.free(allocate(blocks, tokens_of(1, 2, rest=1)))
    assert count_cached(blocks, tokens_of(3, 2, rest=1)) == 0
    assert count_cached(blocks, tokens_of(1, 3, rest=1)) == BLOCK_SIZE


def test_last_token_is_never_taken_from_the_cache() -> None:
    blocks = BlockPool(20)
    blocks.free(allocate(blocks, tokens_of(1, 2)))
    assert count_cached(blocks, tokens_of(1, 2)) == BLOCK_SIZE
    assert count_cached(blocks, tokens_of(1, 2, rest=1)) == 2 * BLOCK_SIZE


def test_running_sequences_share_blocks() -> None:
    blocks = BlockPool(5)
    tokens = tokens_of(1, 2, rest=1)
    one, other = allocate(blocks, tokens), allocate(blocks, tokens)
    assert one.blocks[:2] == other.blocks[:2]
    assert one.blocks[2] != other.blocks[2]
    assert blocks.available == 1


def test_blocks_that_are_not_computed_yet_are_not_shared() -> None:
    blocks = BlockPool(20)
    tokens = tokens_of(1, 2, rest=1)
    lease = blocks.allocate("one", tokens, len(tokens))
    assert lease is not None
    blocks.cache_blocks(lease, tokens[: BLOCK_SIZE + 5])
    assert count_cached(blocks, tokens) == BLOCK_SIZE


def test_two_that_compute_the_same_at_once_don_t_mix_their_blocks() -> None:
    blocks = BlockPool(20)
    tokens = tokens_of(1, 2, rest=1)
    leases = [blocks.allocate("one", tokens, len(tokens)) for _ in range(2)]
    for lease in leases:
        assert lease is not None
        blocks.cache_blocks(lease, tokens)
        blocks.free(lease)
    assert blocks.available == blocks.total
    assert count_cached(blocks, tokens) == 2 * BLOCK_SIZE
    blocks.free(allocate(blocks, tokens_of(3), capacity=20 * BLOCK_SIZE))
    assert count_cached(blocks, tokens) == 0


def test_a_full_pool_allocates_nothing_and_changes_nothing() -> None:
    blocks = BlockPool(4)
    tokens = tokens_of(1, 2, rest=1)
    blocks.free(allocate(blocks, tokens))
    held = allocate(blocks, tokens_of(5))
    before = (
        blocks.available,
        blocks.cached,
        blocks.reference_counts,
        count_cached(blocks, tokens),
    )
    assert blocks.allocate("one", tokens, 4 * BLOCK_SIZE) is None
    assert (
        blocks.available,
        blocks.cached,
        blocks.reference_counts,
        count_cached(blocks, tokens),
    ) == before
    blocks.free(held)
    assert blocks.allocate("one", tokens, 4 * BLOCK_SIZE) is not None


def test_least_recently_used_is_evicted_first() -> None:
    blocks = BlockPool(6)
    first, second = tokens_of(1, 2, rest=1), tokens_of(3, 4, rest=1)
    blocks.free(allocate(blocks, first))
    blocks.free(allocate(blocks, second))
    blocks.free(allocate(blocks, first))
    blocks.free(allocate(blocks, tokens_of(7, 8, 9, 10)))
    assert count_cached(blocks, first) == 2 * BLOCK_SIZE
    assert count_cached(blocks, second) == 0


def test_end_of_a_prompt_is_evicted_before_its_beginning() -> None:
    blocks = BlockPool(4)
    tokens = tokens_of(1, 2, 3, rest=1)
    blocks.free(allocate(blocks, tokens))
    blocks.free(allocate(blocks, tokens_of(8, rest=1)))
    assert count_cached(blocks, tokens) == 2 * BLOCK_SIZE


def test_block_in_use_is_never_allocated_again() -> None:
    blocks = BlockPool(3)
    held = allocate(blocks, tokens_of(1, 2))
    assert blocks.allocate("one", tokens_of(5, 6), 2 * BLOCK_SIZE) is None
    mine = blocks.allocate("one", tokens_of(5), BLOCK_SIZE)
    assert mine is not None
    assert set(mine.blocks).isdisjoint(held.blocks)


def test_reset_keeps_blocks_in_use() -> None:
    blocks = BlockPool(8)
    running, past = tokens_of(1, 2, rest=1), tokens_of(3, 4, rest=1)
    blocks.free(allocate(blocks, past))
    lease = allocate(blocks, running)
    blocks.reset()
    assert (blocks.cached, blocks.available) == (0, 5)
    assert count_cached(blocks, past) == count_cached(blocks, running) == 0
    blocks.free(lease)
    assert (blocks.cached, blocks.available) == (0, 8)


def test_without_sharing_nothing_is_cached() -> None:
    blocks = BlockPool(8, share=False)
    blocks.free(allocate(blocks, tokens_of(1, 2, rest=1)))
    assert (blocks.cached, count_cached(blocks, tokens_of(1, 2, rest=1))) == (0, 0)


def test_model_without_attention_is_refused() -> None:
    class Recurrent:
        model_type = "mamba"

    with pytest.raises(BaseModelError, match="'mamba'") as caught:
        kv_shape(Recurrent())
    assert caught.value.hint
