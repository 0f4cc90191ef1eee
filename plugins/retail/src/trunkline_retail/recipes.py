"""The LoRA adapters that the domain can train."""

from __future__ import annotations

from trunkline.contracts import Gate, RecipeSpec, Settings, Template
from trunkline_retail.datasets import DEPARTMENT, NEXT_PRODUCT, UNIT_PRICE
from trunkline_retail.garments import GARMENT
from trunkline_retail.losses import HUBER
from trunkline_retail.metrics import WITHIN_25_PERCENT

_TEMPLATE = Template(prompt="Product: {text}", clean=("strip", "squeeze", "lowercase"))

DEPARTMENT_RECIPE = RecipeSpec(
    name="retail/department",
    description="department of a grocer's product type",
    dataset=DEPARTMENT.name,
    task="classification",
    template=_TEMPLATE,
    settings=Settings(num_train_epochs=4, learning_rate=3e-4, lora_dropout=0.1),
    metrics=("accuracy", "macro_f1"),
    gate=Gate(metric="accuracy"),
)

UNIT_PRICE_RECIPE = RecipeSpec(
    name="retail/unit-price",
    description="price of one unit of a product in USD",
    dataset=UNIT_PRICE.name,
    task="regression",
    template=_TEMPLATE,
    settings=Settings(num_train_epochs=2),
    loss=HUBER.name,
    metrics=("median_ape", "mae", WITHIN_25_PERCENT.name),
    gate=Gate(metric="median_ape"),
    scale="log",
)

NEXT_PRODUCT_RECIPE = RecipeSpec(
    name="retail/next-product",
    description="which product types belong to a basket",
    dataset=NEXT_PRODUCT.name,
    task="ranking",
    template=Template(prompt="Basket: {text}\nAlso bought: {candidate}"),
    settings=Settings(num_train_epochs=1, learning_rate=3e-4, per_device_train_batch_size=8),
    metrics=("mrr", "recall_at_1"),
    gate=Gate(metric="mrr"),
)

GARMENT_RECIPE = RecipeSpec(
    name="retail/garment",
    description="kind of a garment in a small picture",
    dataset=GARMENT.name,
    task="classification",
    settings=Settings(num_train_epochs=1, image_size=64, per_device_train_batch_size=64),
    metrics=("accuracy", "macro_f1"),
    gate=Gate(metric="accuracy"),
)
