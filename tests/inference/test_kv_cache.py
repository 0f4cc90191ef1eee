"""No block has two owners that did not ask for the same tokens of the same version."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trunkline.errors import BaseModelError
from trunkline.inference.kv_cache import BLOCK, Blocks, Lease, block_keys, kv_measures

SALTS = ("one", "other", "base")


def tokens_of(*blocks: int, rest: int = 0) -> list[int]:
    """Tokens whose every block is told by one number."""
    return [block * 100 + place for block in blocks for place in range(BLOCK)] + [7] * rest


def taken(blocks: Blocks, tokens: list[int], room: int = 0, salt: str = "one") -> Lease:
    """A lease whose tokens are all computed, as far as the prompt goes."""
    lease = blocks.lease(salt, tokens, max(room, len(tokens)))
    assert lease is not None
    blocks.fill(lease, tokens)
    return lease


def cached(blocks: Blocks, tokens: list[int], salt: str = "one") -> int:
    """How many tokens of a prompt are in the cache; nothing stays taken."""
    lease = blocks.lease(salt, tokens, len(tokens))
    assert lease is not None
    found = lease.cached
    blocks.give_back(lease)
    return found


class Walk(RuleBasedStateMachine):
    """Leases come, are filled token by token, and go, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.leases: list[tuple[Lease, list[int], int]] = []

    @initialize(total=st.integers(1, 12), share=st.booleans())
    def begin(self, total: int, share: bool) -> None:
        self.blocks = Blocks(total, share=share)
        self.content: dict[int, tuple[str, tuple[int, ...]]] = {}

    @rule(
        salt=st.sampled_from(SALTS),
        kinds=st.lists(st.integers(0, 1), max_size=3),
        rest=st.integers(1, BLOCK),
        more=st.integers(0, 40),
    )
    def lease(self, salt: str, kinds: list[int], rest: int, more: int) -> None:
        tokens = tokens_of(*kinds, rest=rest)
        room = len(tokens) + more
        before = (self.blocks.available, self.blocks.kept, list(self.blocks._holders))
        lease = self.blocks.lease(salt, tokens, room)
        if lease is None:
            after = (self.blocks.available, self.blocks.kept, list(self.blocks._holders))
            assert after == before
            assert -(-room // BLOCK) > 0
            return
        assert len(lease.blocks) == -(-room // BLOCK)
        assert lease.cached < len(tokens)
        assert lease.cached % BLOCK == 0
        for place in range(lease.cached // BLOCK):
            whole = (salt, tuple(tokens[: (place + 1) * BLOCK]))
            assert self.content[lease.blocks[place]] == whole
        for block in lease.blocks[lease.cached // BLOCK :]:
            self.content.pop(block, None)
        self.leases.append((lease, tokens + [9] * more, lease.cached))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), step=st.integers(1, 50))
    def fill(self, data: Any, step: int) -> None:
        place = data.draw(st.integers(0, len(self.leases) - 1))
        lease, tokens, computed = self.leases[place]
        computed = min(len(tokens), computed + step)
        self.blocks.fill(lease, tokens[:computed])
        for end in range(BLOCK, computed + 1, BLOCK):
            self.content[lease.blocks[end // BLOCK - 1]] = (lease.salt, tuple(tokens[:end]))
        self.leases[place] = (lease, tokens, computed)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def give_back(self, data: Any) -> None:
        place = data.draw(st.integers(0, len(self.leases) - 1))
        self.blocks.give_back(self.leases.pop(place)[0])

    @rule()
    def forget(self) -> None:
        self.blocks.forget()
        assert self.blocks.kept == 0

    @invariant()
    def available_and_held_are_all(self) -> None:
        held = {block for lease, _, _ in self.leases for block in lease.blocks}
        assert self.blocks.available + len(held) == self.blocks.total
        assert self.blocks.kept <= self.blocks.available

    @invariant()
    def two_holders_hold_the_same_tokens(self) -> None:
        seen: dict[int, tuple[str, list[int]]] = {}
        for lease, tokens, _ in self.leases:
            for place, block in enumerate(lease.blocks):
                mine = (lease.salt, tokens[: (place + 1) * BLOCK])
                assert seen.setdefault(block, mine) == mine

    @invariant()
    def holders_are_counted(self) -> None:
        counts = [0] * self.blocks.total
        for lease, _, _ in self.leases:
            for block in lease.blocks:
                counts[block] += 1
        assert counts == self.blocks._holders


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=40))
def test_keys_are_equal_for_equal_beginnings_alone(one: list[int], other: list[int]) -> None:
    for place, (first, second) in enumerate(
        zip(block_keys("s", one), block_keys("s", other), strict=False)
    ):
        end = (place + 1) * BLOCK
        assert (first == second) == (one[:end] == other[:end])


@given(st.lists(st.integers(0, 2**40), min_size=2 * BLOCK, max_size=80), st.integers(0, 2))
def test_keys_go_on_where_others_ended(tokens: list[int], known: int) -> None:
    keys = list(block_keys("s", tokens))
    assert list(block_keys("s", tokens, after=keys[:known])) == keys[known:]


def test_same_tokens_under_another_digest_are_other_blocks() -> None:
    blocks = Blocks(20)
    tokens = tokens_of(1, 2, rest=1)
    blocks.give_back(taken(blocks, tokens, salt="one"))
    assert cached(blocks, tokens, "other") == 0
    assert cached(blocks, tokens, "one") == 2 * BLOCK


def test_a_block_counts_with_all_that_stands_before_it() -> None:
    blocks = Blocks(20)
    blocks.give_back(taken(blocks, tokens_of(1, 2, rest=1)))
    assert cached(blocks, tokens_of(3, 2, rest=1)) == 0
    assert cached(blocks, tokens_of(1, 3, rest=1)) == BLOCK


def test_last_token_is_never_taken_from_the_cache() -> None:
    blocks = Blocks(20)
    blocks.give_back(taken(blocks, tokens_of(1, 2)))
    assert cached(blocks, tokens_of(1, 2)) == BLOCK
    assert cached(blocks, tokens_of(1, 2, rest=1)) == 2 * BLOCK


def test_running_sequences_share_blocks() -> None:
    blocks = Blocks(5)
    tokens = tokens_of(1, 2, rest=1)
    one, other = taken(blocks, tokens), taken(blocks, tokens)
    assert one.blocks[:2] == other.blocks[:2]
    assert one.blocks[2] != other.blocks[2]
    assert blocks.available == 1


def test_blocks_that_are_not_computed_yet_are_not_shared() -> None:
    blocks = Blocks(20)
    tokens = tokens_of(1, 2, rest=1)
    lease = blocks.lease("one", tokens, len(tokens))
    assert lease is not None
    blocks.fill(lease, tokens[: BLOCK + 5])
    assert cached(blocks, tokens) == BLOCK


def test_two_that_compute_the_same_at_once_don_t_mix_their_blocks() -> None:
    blocks = Blocks(20)
    tokens = tokens_of(1, 2, rest=1)
    leases = [blocks.lease("one", tokens, len(tokens)) for _ in range(2)]
    for lease in leases:
        assert lease is not None
        blocks.fill(lease, tokens)
        blocks.give_back(lease)
    assert blocks.available == blocks.total
    assert cached(blocks, tokens) == 2 * BLOCK
    blocks.give_back(taken(blocks, tokens_of(3), room=20 * BLOCK))
    assert cached(blocks, tokens) == 0


def test_a_pool_that_is_full_gives_nothing_and_changes_nothing() -> None:
    blocks = Blocks(4)
    tokens = tokens_of(1, 2, rest=1)
    blocks.give_back(taken(blocks, tokens))
    held = taken(blocks, tokens_of(5))
    before = (blocks.available, blocks.kept, list(blocks._holders), cached(blocks, tokens))
    assert blocks.lease("one", tokens, 4 * BLOCK) is None
    assert (blocks.available, blocks.kept, list(blocks._holders), cached(blocks, tokens)) == before
    blocks.give_back(held)
    assert blocks.lease("one", tokens, 4 * BLOCK) is not None


def test_least_recently_used_goes_first() -> None:
    blocks = Blocks(6)
    first, second = tokens_of(1, 2, rest=1), tokens_of(3, 4, rest=1)
    blocks.give_back(taken(blocks, first))
    blocks.give_back(taken(blocks, second))
    blocks.give_back(taken(blocks, first))
    blocks.give_back(taken(blocks, tokens_of(7, 8, 9, 10)))
    assert cached(blocks, first) == 2 * BLOCK
    assert cached(blocks, second) == 0


def test_end_of_a_prompt_goes_before_its_beginning() -> None:
    blocks = Blocks(4)
    tokens = tokens_of(1, 2, 3, rest=1)
    blocks.give_back(taken(blocks, tokens))
    blocks.give_back(taken(blocks, tokens_of(8, rest=1)))
    assert cached(blocks, tokens) == 2 * BLOCK


def test_what_is_in_use_is_never_given_to_another() -> None:
    blocks = Blocks(3)
    held = taken(blocks, tokens_of(1, 2))
    assert blocks.lease("one", tokens_of(5, 6), 2 * BLOCK) is None
    mine = blocks.lease("one", tokens_of(5), BLOCK)
    assert mine is not None
    assert set(mine.blocks).isdisjoint(held.blocks)


def test_forgotten_is_forgotten_and_what_is_in_use_stays() -> None:
    blocks = Blocks(8)
    running, past = tokens_of(1, 2, rest=1), tokens_of(3, 4, rest=1)
    blocks.give_back(taken(blocks, past))
    lease = taken(blocks, running)
    blocks.forget()
    assert (blocks.kept, blocks.available) == (0, 5)
    assert cached(blocks, past) == cached(blocks, running) == 0
    blocks.give_back(lease)
    assert (blocks.kept, blocks.available) == (0, 8)


def test_without_sharing_nothing_is_kept() -> None:
    blocks = Blocks(8, share=False)
    blocks.give_back(taken(blocks, tokens_of(1, 2, rest=1)))
    assert (blocks.kept, cached(blocks, tokens_of(1, 2, rest=1))) == (0, 0)


def test_model_without_attention_is_told() -> None:
    class Recurrent:
        model_type = "mamba"

    with pytest.raises(BaseModelError, match="'mamba'") as caught:
        kv_measures(Recurrent())
    assert caught.value.hint
