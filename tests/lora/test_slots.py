"""Every form of the LoRA kernels applies to each token its own adapter, and no other."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.adapters.config import LoraShape
from trunkline.bases.linear import Block, FusedLayers, FusedLinear, Product
from trunkline.lora.kernels import LONG, LONGEST_BATCHED
from trunkline.lora.routing import PAGE_RANK, Pages, Routing, Span
from trunkline.lora.slots import LoraSlots, Matrices

PAGES = 14
TOLERANCE = 1e-4
BF16_TOLERANCE = 0.03
"""Relative to the largest output; bfloat16 has a precision of 1 in 256."""

SHAPES = {
    ("q", "k", "v"): (24, (32, 16, 16)),
    ("o",): (32, (24,)),
    ("gate", "up"): (24, (40, 40)),
    ("down",): (40, (24,)),
    ("odd", "prime"): (9, (10, 7)),
}
"""Members of a fused layer → inputs, outputs: with even, uneven and coprime widths."""
BLOCKS = {
    ("gate", "up"): (Block(1, 44), Block(1, 44)),
    ("down",): (Block(1, 32),),
    ("odd", "prime"): (Block(1, 10), Block(1, 7)),
}
"""Fused layers with separate members, some with padding columns."""
MODULES = {
    name: (inputs, outputs[index])
    for names, (inputs, outputs) in SHAPES.items()
    for index, name in enumerate(names)
}


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a test writes into pages; ``scaling`` by the papers' formulas."""

    rank: int
    alpha: float
    use_rslora: bool
    matrices: Matrices

    @property
    def scaling(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    @property
    def needs(self) -> int:
        return -(-self.rank // PAGE_RANK)

    def shape(self) -> LoraShape:
        return LoraShape(self.rank, self.alpha, self.use_rslora, tuple(self.matrices))


def make_adapter(
    rank: int = 8,
    modules: Sequence[str] = tuple(MODULES),
    *,
    seed: int = 0,
    alpha: float = 8.0,
    use_rslora: bool = False,
) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    matrices = {}
    for name in modules:
        inputs, outputs = MODULES[name]
        down = torch.randn(rank, inputs, generator=draw) / math.sqrt(inputs)
        matrices[name] = (down, torch.randn(outputs, rank, generator=draw) / math.sqrt(rank))
    return Adapter(rank, alpha, use_rslora, matrices)


class LoraBench:
    """A base of small fused layers with paged LoRA buffers."""

    def __init__(
        self, dtype: torch.dtype = torch.float32, base: torch.dtype = torch.float32
    ) -> None:
        draw = torch.Generator().manual_seed(1)
        self.base = base
        self.weights: dict[tuple[str, ...], torch.Tensor] = {}
        fused = []
        for names, (inputs, outputs) in SHAPES.items():
            weight = torch.randn(sum(outputs), inputs, generator=draw).to(base)
            self.weights[names] = weight
            blocks = BLOCKS.get(names, (Block(len(names), sum(outputs)),))
            fused.append(FusedLinear(names, inputs, outputs, _by(weight, outputs, blocks), blocks))
        self.fused_layers = FusedLayers(tuple(fused))
        self.slots = LoraSlots(self.fused_layers, PAGES, dtype=dtype, device="cpu")
        self.placed: dict[Pages, Adapter] = {}
        self.free = [7, 3, 14, 1, 12, 5, 9, 2, 13, 4, 11, 6, 10, 8]

    def put(self, adapter: Adapter) -> Pages:
        pages = tuple(self.free.pop() for _ in range(adapter.needs))
        self.put_at(pages, adapter)
        return pages

    def put_at(self, pages: Pages, adapter: Adapter) -> None:
        self.slots.write(pages, adapter.matrices, adapter.shape().scaling)
        self.placed[pages] = adapter

    def inputs(self, fused: FusedLinear, tokens: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(tokens)
        return torch.randn(tokens, fused.inputs, generator=draw).to(self.base)

    def run(self, routing: Routing, tokens: int) -> dict[str, torch.Tensor]:
        """Module → ``[tokens, out]``, as a model computes them."""
        outputs = {}
        with torch.inference_mode(), self.slots.route(routing):
            for fused in self.fused_layers.fused:
                x = self.inputs(fused, tokens)
                for index, name in enumerate(fused.names):
                    outputs[name] = fused.part(index, x)
        return outputs

    def expected(self, pages_of: Sequence[Pages]) -> dict[str, torch.Tensor]:
        """The plain loop over tokens, in float64."""
        outputs = {}
        for fused in self.fused_layers.fused:
            x = self.inputs(fused, len(pages_of)).double()
            base = x @ self.weights[fused.names].double().T
            for name, part in zip(fused.names, base.split(fused.outputs, 1), strict=True):
                for token, pages in enumerate(pages_of):
                    adapter = self.placed.get(pages)
                    if adapter is not None and name in adapter.matrices:
                        down, up = (one.double() for one in adapter.matrices[name])
                        part[token] += adapter.scaling * (up @ (down @ x[token]))
                outputs[name] = part
        return outputs

    def check(self, routing: Routing, pages_of: Sequence[Pages], relative: float = 0.0) -> None:
        """``relative``: to the largest output, instead of :data:`TOLERANCE`."""
        ours, expected = self.run(routing, len(pages_of)), self.expected(pages_of)
        for name, expected_output in expected.items():
            error = (
                float((ours[name].double() - expected_output).abs().max())
                if len(expected_output)
                else 0.0
            )
            allowed = relative * float(expected_output.abs().max()) if relative else TOLERANCE
            assert error <= allowed, (name, error)


def _by(weight: torch.Tensor, outputs: Sequence[int], blocks: Sequence[Block]) -> Product:
    own = weight.split([sum(outputs)] if len(blocks) == 1 else list(outputs))
    padded = [
        torch.cat((one, one.new_zeros(block.columns - len(one), weight.shape[1])))
        for one, block in zip(own, blocks, strict=True)
    ]
    return lambda x: [torch.nn.functional.linear(x, one) for one in padded]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows, then spans as tokens and adapter; -1 is the base, which spans may or may not name."""

    rows: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    names_base: bool

    def routing(self, pages: Sequence[Pages]) -> tuple[Routing, list[Pages]]:
        """Also the pages of every token."""
        pages_by_adapter = [*pages, ()]
        rows = [pages_by_adapter[one] for one in self.rows]
        pages_of = list(rows)
        spans = []
        for tokens, one in self.spans:
            if pages_by_adapter[one] or self.names_base:
                spans.append(Span(len(pages_of), len(pages_of) + tokens, pages_by_adapter[one]))
            pages_of += [pages_by_adapter[one]] * tokens
        return Routing(rows, spans), pages_of


@st.composite
def adapters(draw: st.DrawFn) -> Adapter:
    return make_adapter(
        draw(st.integers(1, 20)),
        draw(st.lists(st.sampled_from(sorted(MODULES)), min_size=1, unique=True)),
        seed=draw(st.integers(0, 1000)),
        alpha=draw(st.floats(0.25, 32)),
        use_rslora=draw(st.booleans()),
    )


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    which = st.integers(-1, 3)
    lengths = st.sampled_from([5]) if draw(st.booleans()) else st.sampled_from([2, 3, 7, LONG + 2])
    return Batch(
        tuple(draw(st.lists(which, max_size=6))),
        tuple(draw(st.lists(st.tuples(lengths, which), max_size=4))),
        draw(st.booleans()),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(adapters(), min_size=4, max_size=4), st.lists(batches(), min_size=3, max_size=3))
def test_any_batch_is_the_plain_loop(resident: list[Adapter], generated: list[Batch]) -> None:
    bench = LoraBench()
    pages = [bench.put(adapter) for adapter in resident]
    for batch in generated:
        routing, pages_of = batch.routing(pages)
        if pages_of:
            bench.check(routing, pages_of)


RANKS = [1, 8, 11, 20]


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("tokens", [1, LONG - 1, LONG, 3 * LONG + 5])
def test_one_span_to_the_end_is_the_plain_loop(rank: int, tokens: int) -> None:
    bench = LoraBench()
    bench.put(make_adapter(5, seed=1))
    pages = bench.put(make_adapter(rank, seed=2))
    bench.check(Routing(spans=[Span(0, None, pages)]), [pages] * tokens)


@pytest.mark.parametrize("rank", RANKS)
def test_long_span_after_rows_and_another_is_the_plain_loop(rank: int) -> None:
    bench = LoraBench()
    one, other = bench.put(make_adapter(5, seed=1)), bench.put(make_adapter(rank, seed=2))
    spans = [Span(2, 9, one), Span(9, 9 + LONG, other)]
    bench.check(Routing([other, one], spans), [other, one] + [one] * 7 + [other] * LONG)


@pytest.mark.parametrize("tokens", [2, 6, LONG])
@pytest.mark.parametrize("modules", [("k",), ("q", "v"), ("up",), ("o", "down"), ("prime",)])
def test_equal_spans_of_partial_adapters_are_the_plain_loop(
    modules: tuple[str, ...], tokens: int
) -> None:
    bench = LoraBench()
    one, other = bench.put(make_adapter(8, seed=1)), bench.put(make_adapter(6, modules, seed=2))
    order = [one, other, one]
    spans = [Span(at * tokens, (at + 1) * tokens, pages) for at, pages in enumerate(order)]
    routing = Routing(spans=spans)
    assert routing.even == tokens
    bench.check(routing, [pages for pages in order for _ in range(tokens)])


@pytest.mark.parametrize(
    "spans",
    [
        [Span(0, 4, (1,))],
        [Span(0, 4, (1,)), Span(4, 9, (2,))],
        [Span(0, 4, (1,)), Span(5, 9, (2,))],
        [Span(0, 4, (1,)), Span(4, 8, ()), Span(8, 12, (2,))],
        [Span(0, 4, (1,)), Span(4, 8, (2, 3))],
        [Span(0, 4, (1,)), Span(4, None, (2,))],
    ],
    ids=["one", "two lengths", "a gap", "the base between", "two pages", "to the end"],
)
def test_only_neighbors_of_one_length_and_page_are_batched(spans: list[Span]) -> None:
    assert Routing(spans=spans).even == 0


@settings(max_examples=25, deadline=None)
@given(
    st.lists(adapters(), min_size=3, max_size=3),
    st.lists(st.integers(-1, 2), min_size=1, max_size=8),
)
def test_both_forms_of_rows_agree(resident: list[Adapter], rows: list[int]) -> None:
    bench = LoraBench()
    pages = [*[bench.put(adapter) for adapter in resident], ()]
    routing = Routing([pages[one] for one in rows])
    if routing.empty:
        return
    for layer in bench.slots.layers:
        x = bench.inputs(layer.fused, len(rows))
        summed, gathered = (
            [torch.zeros(len(rows), block.columns) for block in layer.fused.blocks]
            for _ in range(2)
        )
        layer.add_rows(routing, x, summed)
        layer.add_gathered(routing, x, gathered)
        torch.testing.assert_close(summed, gathered, atol=1e-5, rtol=1e-5)


LAYOUTS = {
    "rows": Batch((0, -1, 1, 0), (), False),
    "equal spans": Batch((), ((6, 0), (6, 2), (6, 0)), False),
    "long equal spans": Batch((), ((LONGEST_BATCHED, 2), (LONGEST_BATCHED, 0)), False),
    "spans": Batch((), ((3, 0), (5, 1), (2, -1)), True),
    "a long span": Batch((), ((LONG + 3, 1),), False),
    "rows and a long span": Batch((2, 1), ((LONG, 0),), False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("tables", "base"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
    ],
    ids=["both", "the tables", "the base"],
)
def test_bfloat16_is_the_plain_loop_but_for_rounding(
    layout: str, tables: torch.dtype, base: torch.dtype
) -> None:
    bench = LoraBench(tables, base)
    pages = [bench.put(make_adapter(rank, seed=rank)) for rank in (8, 13, 3)]
    routing, pages_of = LAYOUTS[layout].routing(pages)
    bench.check(routing, pages_of, BF16_TOLERANCE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reused_page_contains_nothing_of_the_former_adapter(layout: str) -> None:
    bench, fresh = LoraBench(), LoraBench()
    former = [make_adapter(rank, seed=9, alpha=64.0) for rank in (8, 16, 8)]
    later = [
        make_adapter(3, ["k", "up", "down"], seed=5),
        make_adapter(12, ["q", "prime"], seed=6),
        make_adapter(1, ["o"], seed=7),
    ]
    pages = [bench.put(adapter) for adapter in former]
    for place, adapter in zip(pages, later, strict=True):
        bench.put_at(place, adapter)
        fresh.put_at(place, adapter)
    routing, pages_of = LAYOUTS[layout].routing(pages)
    ours, expected = bench.run(routing, len(pages_of)), fresh.run(routing, len(pages_of))
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_empty_page_stays_empty_whatever_is_written() -> None:
    bench = LoraBench()
    bare = bench.run(Routing(), 4)
    one = bench.put(make_adapter(20, seed=1))
    bench.put(make_adapter(8, seed=2))
    ours = bench.run(Routing([one, (), one, ()]), 4)
    for name, expected_output in bare.items():
        assert torch.equal(ours[name][1::2], expected_output[1::2])
        assert not torch.equal(ours[name][0], expected_output[0])


def test_tokens_outside_every_row_and_span_use_the_base() -> None:
    bench = LoraBench()
    pages = bench.put(make_adapter(9, seed=1))
    bare = bench.run(Routing(), 12)
    ours = bench.run(Routing([pages], [Span(4, 8, pages)]), 12)
    for name, expected_output in bare.items():
        assert torch.equal(ours[name][1:4], expected_output[1:4])
        assert torch.equal(ours[name][8:], expected_output[8:])


def test_row_does_not_depend_on_a_neighbor_with_nan() -> None:
    bench = LoraBench()
    one, other = bench.put(make_adapter(9, seed=1)), bench.put(make_adapter(4, seed=2))
    routing = Routing([one, other, ()])
    for layer in bench.slots.layers:
        x = bench.inputs(layer.fused, 3)
        sound, broken = (
            [torch.zeros(3, block.columns) for block in layer.fused.blocks] for _ in range(2)
        )
        layer.add(routing, x, sound)
        x[1] = float("nan")
        layer.add(routing, x, broken)
        for one, other in zip(broken, sound, strict=True):
            assert torch.equal(one[::2], other[::2])


def test_routing_can_be_reused_after_its_pages_are_rewritten() -> None:
    bench = LoraBench()
    pages = bench.put(make_adapter(8, seed=1))
    routing = Routing([pages])
    bench.check(routing, [pages])
    bench.put_at(pages, make_adapter(8, seed=2))
    bench.check(routing, [pages])


def test_page_bytes_are_those_of_the_tensors() -> None:
    bench = LoraBench()
    tables = [
        table
        for layer in bench.slots.layers
        for table in (layer.down, layer.across, layer.table)
        if table is not None
    ]
    taken = sum(table.nbytes for table in tables) / (PAGES + 1)
    assert LoraSlots.page_bytes(bench.fused_layers, 4) == taken


def additions(bench: LoraBench) -> list[bool]:
    return [fused.addition is not None for fused in bench.fused_layers.fused]


def test_additions_are_set_only_inside_a_routed_step() -> None:
    bench = LoraBench()
    pages = bench.put(make_adapter())
    with bench.slots.route(Routing([pages])):
        assert all(additions(bench))
    assert not any(additions(bench))


def test_a_step_of_the_base_alone_sets_no_additions() -> None:
    bench = LoraBench()
    with bench.slots.route(Routing([(), ()], [Span(2, 4, ())])):
        assert not any(additions(bench))


def test_two_lora_slots_of_one_base_take_turns() -> None:
    bench = LoraBench()
    other = LoraBench()
    other.fused_layers = bench.fused_layers
    other.slots = LoraSlots(bench.fused_layers, PAGES, dtype=torch.float32, device="cpu")
    pages = bench.put(make_adapter(8, seed=1))
    other.put_at(pages, make_adapter(8, seed=2))
    routing, pages_of = Routing([pages, ()]), [pages, ()]
    failed: list[AssertionError] = []

    def steps(one: LoraBench) -> None:
        try:
            for _ in range(30):
                one.check(routing if one is bench else Routing([pages, ()]), pages_of)
        except AssertionError as error:
            failed.append(error)

    threads = [threading.Thread(target=steps, args=(one,)) for one in (bench, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert not any(additions(bench))
