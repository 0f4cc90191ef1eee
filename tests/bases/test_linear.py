"""Fused linear layers compute what the model's own layers did, in float and in int8."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from products import compute_all
from tiny_base import HIDDEN, Family, make_model
from trunkline.bases import quantized
from trunkline.bases.linear import FusedLayers, FusedLinear, Quantized, fuse_linear_layers
from trunkline.errors import BaseModelError

FAMILIES: tuple[Family, ...] = ("llama", "qwen2", "gpt2")
VOCABULARY = 64
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [40, 41, 42, 43, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
LLAMA_LAYER = [
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
]
PRODUCTS = {
    "llama": [tuple(f"model.layers.1.{one}" for one in names) for names in LLAMA_LAYER],
    "qwen2": [tuple(f"model.layers.1.{one}" for one in names) for names in LLAMA_LAYER],
    "gpt2": [
        (f"transformer.h.1.{name}",)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ],
}
INT8_ERROR = 0.02
"""Of a product in int8: its largest error beside its largest output."""


def made(family: Family) -> Any:
    """A random model in which every bias does something."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make_model(family, VOCABULARY, 0, 1).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(0.0, 0.3)
    return model


def model_of(layers: Sequence[torch.nn.Linear]) -> Any:
    """A model whose backbone has one, two or three linear layers with the same input."""
    names = (("o_proj",), ("gate_proj", "up_proj"), ("q_proj", "k_proj", "v_proj"))
    model = torch.nn.Module()
    model.base_model_prefix = "model"  # type: ignore[assignment]
    model.model = torch.nn.Module()
    for name, layer in zip(names[len(layers) - 1], layers, strict=True):
        setattr(model.model, name, layer)
    return model


def logits(model: Any, ids: torch.Tensor = IDS, mask: torch.Tensor = MASK) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def some_rows(fused: FusedLinear, rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, fused.inputs, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_models_own_layers(family: Family) -> None:
    model = made(family)
    before = logits(model)
    fuse_linear_layers(model)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_one_input_are_one_product(family: Family) -> None:
    fused_layers = fuse_linear_layers(made(family))
    layer = [fused.names for fused in fused_layers.fused if ".1." in fused.names[0]]
    assert layer == PRODUCTS[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_product_is_computed_once_a_forward(family: Family) -> None:
    model = made(family)
    fused_layers = fuse_linear_layers(model)
    computed: list[tuple[str, ...]] = []

    def counting(fused: FusedLinear) -> Any:
        product = fused.product

        def count(x: torch.Tensor) -> Sequence[torch.Tensor]:
            computed.append(fused.names)
            return product(x)

        return count

    for fused in fused_layers.fused:
        fused.product = counting(fused)
    logits(model)
    assert computed == [fused.names for fused in fused_layers.fused]


@pytest.mark.parametrize("family", FAMILIES)
def test_places_list_the_features_of_every_layer_but_the_head(family: Family) -> None:
    model = made(family)
    features = {
        name: tuple(module.weight.shape[:: 1 if type(module).__name__ == "Conv1D" else -1])
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and name != "lm_head"
    }
    places = fuse_linear_layers(model).members()
    assert {name: (one.inputs, one.outputs[index]) for name, one, index in places} == features


@pytest.mark.parametrize("family", FAMILIES)
def test_the_models_own_weights_are_let_go(family: Family) -> None:
    model = made(family)
    names = {name for names in PRODUCTS[family] for name in names}
    layers = [weakref.ref(model.get_submodule(name)) for name in names]
    fuse_linear_layers(model)
    gc.collect()
    assert not any(layer() for layer in layers)


@pytest.fixture
def fused_layers() -> FusedLayers:
    """Of a Llama whose layers have no biases."""
    return fuse_linear_layers(made("llama"))


def test_parts_of_another_input_never_stand_for_this_ones(fused_layers: FusedLayers) -> None:
    fused = fused_layers.fused[0]
    one, other = some_rows(fused, 3, 1), some_rows(fused, 3, 2)
    together = compute_all(fused, other)
    fused.part(0, one)
    parts = [fused.part(index, other) for index in range(3)]
    assert torch.equal(torch.cat(parts, -1), together)


def test_nothing_of_a_step_is_held_after_its_last_part(fused_layers: FusedLayers) -> None:
    fused = fused_layers.fused[0]
    x = some_rows(fused, 3)
    gone = weakref.ref(x)
    for index in range(3):
        fused.part(index, x)
    del x
    assert gone() is None


def test_parts_keep_the_inputs_leading_shape(fused_layers: FusedLayers) -> None:
    fused = fused_layers.fused[0]
    x = some_rows(fused, 6).view(2, 3, -1)
    assert [fused.part(index, x).shape for index in range(3)] == [
        (2, 3, outputs) for outputs in fused.outputs
    ]


def test_addition_gets_the_rows_and_the_full_product(fused_layers: FusedLayers) -> None:
    fused = fused_layers.fused[2]
    x = some_rows(fused, 6).view(2, 3, -1)
    bare = torch.cat([fused.part(index, x) for index in range(2)], -1)
    seen: list[tuple[int, ...]] = []

    def addition(rows: torch.Tensor, blocks: Sequence[torch.Tensor]) -> None:
        for y in blocks:
            seen.append((*rows.shape, *y.shape))
            y.add_(1.0)

    fused.addition = addition
    parts = [fused.part(index, x) for index in range(2)]
    assert seen == [(6, HIDDEN, 6, sum(fused.outputs))]
    assert torch.equal(torch.cat(parts, -1), bare + 1)


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("outputs", "blocks"),
    [
        ((512, 512), [(1, 528), (1, 528)]),
        ((520, 520), [(1, 520), (1, 520)]),
        ((1024, 512, 512), [(1, 1024), (1, 512), (1, 512)]),
        ((512, 256, 256), [(3, 1024)]),
        ((512,), [(1, 528)]),
    ],
)
def test_large_layers_have_blocks_of_their_own_unless_they_are_quantized(
    outputs: tuple[int, ...],
    blocks: list[tuple[int, int]],
    bias: bool,
    quantization: Quantized | None,
) -> None:
    layers = [torch.nn.Linear(8, each, bias=bias).requires_grad_(False) for each in outputs]
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    exact = torch.cat([layer(x) for layer in layers], 1)
    if quantization and len(layers) > 1:
        blocks = [(len(outputs), sum(outputs))]

    (fused,) = fuse_linear_layers(model_of(layers), quantized=quantization).fused

    assert list(fused.blocks) == blocks
    assert [y.shape for y in fused.product(x)] == [(5, columns) for _, columns in blocks]
    assert all(y.is_contiguous() for y in fused.product(x))
    error = 0.03 if quantization else 1e-5
    torch.testing.assert_close(compute_all(fused, x), exact, atol=error, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_products_are_close_to_those_in_float(family: Family) -> None:
    plain, small = (
        fuse_linear_layers(made(family)),
        fuse_linear_layers(made(family), quantized="int8"),
    )
    for one, other in zip(plain.fused, small.fused, strict=True):
        x = some_rows(one, 20)
        exact = compute_all(one, x)
        error = (compute_all(other, x) - exact).abs().amax()
        assert 0 < error < INT8_ERROR * exact.abs().amax()


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_model_writes_much_the_same_distribution(family: Family) -> None:
    model = made(family)
    before = logits(model).log_softmax(-1)
    fuse_linear_layers(model, quantized="int8")
    after = logits(model).log_softmax(-1)
    divergence = (before.exp() * (before - after)).sum(-1)
    assert divergence.max() < 0.02


@pytest.mark.parametrize("neighbor", [1e6, 0.0, float("inf"), float("nan")])
def test_int8_row_does_not_depend_on_its_neighbors(neighbor: float) -> None:
    for fused in fuse_linear_layers(made("qwen2"), quantized="int8").fused:
        x = some_rows(fused, 17)
        alone = compute_all(fused, x[4:5])
        x[:4] *= neighbor
        x[5:] *= neighbor
        assert torch.equal(compute_all(fused, x)[4:5], alone)


def test_int8_row_of_nothing_gives_the_bias() -> None:
    fused = fuse_linear_layers(made("qwen2"), quantized="int8").fused[0]
    own = made("qwen2").model.layers[0].self_attn
    bias = torch.cat([own.q_proj.bias, own.k_proj.bias, own.v_proj.bias])
    assert torch.equal(compute_all(fused, torch.zeros(2, fused.inputs)), bias.expand(2, -1))


def test_int8_head_is_close_to_that_in_float() -> None:
    plain, small = made("llama"), made("llama")
    fuse_linear_layers(plain)
    fuse_linear_layers(small, quantized="int8")
    x = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(0))
    exact = plain.get_output_embeddings()(x)
    apart = (small.get_output_embeddings()(x) - exact).abs().max()
    assert 0 < apart < 0.02 * exact.abs().max()


def test_int8_rows_are_the_same_however_many_there_are() -> None:
    model = made("llama")
    fused = fuse_linear_layers(model, quantized="int8").fused[0]
    x = torch.randn(300, fused.inputs, generator=torch.Generator().manual_seed(1))
    assert torch.equal(compute_all(fused, x)[140:150], compute_all(fused, x[140:150]))


def test_int8_input_is_held_in_twice_8_bits_whatever_its_row_holds() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randint(-127, 128, (48, 96), generator=generator).float()
    weight[:, 0] = 127  # so that the weights are what 8 bits hold
    x = torch.randn(40, 96, generator=generator)
    x[::2, 7] *= 300
    (y,) = quantized.in_int8([(weight, None)])(x)
    apart = (y.double() - x.double() @ weight.double().T).abs().amax(1)
    step = x.abs().amax(1) / 127 / 256
    assert (apart <= step * 127 * 96**0.5 * 0.75).all()


@pytest.fixture
def forms() -> Any:
    quantized.integer_form.cache_clear()
    yield
    quantized.integer_form.cache_clear()


@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize("form", [quantized.by_onednn, quantized.by_int_mm])
def test_form_of_the_integer_product_is_accepted_exactly_where_it_is_exact(
    form: quantized.MakeMultiply, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(0, 256, (33, 1536), generator=generator).to(torch.uint8)
    weight = torch.randint(-127, 128, (40, 1536), generator=generator).to(torch.int8)
    scale = 2.0 ** torch.arange(-20, 20)
    right = ((x.double() - 128) @ weight.double().T * scale).float()
    exact = torch.equal(form(weight, scale)(x), right)
    monkeypatch.setattr(quantized, "by_onednn", form)
    monkeypatch.setattr(quantized, "by_int_mm", missing)
    if exact:
        assert quantized.integer_form() is form
    else:  # oneDNN on a CPU without VNNI
        with pytest.raises(BaseModelError, match="8-bit"):
            quantized.integer_form()


def cut_off(weight: torch.Tensor, scale: torch.Tensor) -> quantized.Multiply:
    """What a CPU without VNNI may do: sums of pairs in 16 bits."""

    def multiply(x: torch.Tensor) -> torch.Tensor:
        pairs = (x.float()[:, None] * weight.float()[None]).unflatten(-1, (-1, 2)).sum(-1)
        return (pairs.clamp(-32768, 32767).sum(-1) - 128.0 * weight.float().sum(1)) * scale

    return multiply


def missing(weight: torch.Tensor, scale: torch.Tensor) -> quantized.Multiply:
    raise AttributeError("no such operator")


@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize("first", [cut_off, missing])
def test_form_that_is_wrong_or_missing_gives_way_to_the_next(
    first: quantized.MakeMultiply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "by_onednn", first)
    assert quantized.integer_form() is quantized.by_int_mm


@pytest.mark.usefixtures("forms")
def test_cpu_without_exact_integer_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "by_onednn", cut_off)
    monkeypatch.setattr(quantized, "by_int_mm", missing)
    with pytest.raises(BaseModelError, match="8-bit") as raised:
        fuse_linear_layers(made("llama"), quantized="int8")
    assert "fp32" in (raised.value.hint or "")


def test_onednn_caches_are_bounded_unless_the_user_set_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    fuse_linear_layers(made("llama"))
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "256"
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"


def test_bfloat16_model_stays_in_bfloat16() -> None:
    model = made("qwen2").to(torch.bfloat16)
    before = logits(model)
    fused_layers = fuse_linear_layers(model)
    assert (
        compute_all(fused_layers.fused[0], some_rows(fused_layers.fused[0], 2).bfloat16()).dtype
        == torch.bfloat16
    )
    torch.testing.assert_close(logits(model), before, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_released_weights_come_back(family: Family, quantization: Quantized | None) -> None:
    ids = torch.arange(12).reshape(2, 6)
    model = made(family)
    fused_layers = fuse_linear_layers(model, quantized=quantization)
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        fused_layers.release()
        with pytest.raises(RuntimeError, match="not in memory"):
            model(input_ids=ids)
        fused_layers.restore(made(family))
        assert torch.equal(model(input_ids=ids).logits, before)
