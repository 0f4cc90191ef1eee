"""Pictures: a batch with 16 adapters over the base alone and beside PEFT; training beside Trainer.

Inference: 16 prepared pictures through EfficientNet-Lite0 at its own size, rank 8 on all linear
layers and 1×1 convolutions, in one thread of one process, interleaved: ours, the plain network, and
PEFT, adapter by adapter and by ``adapter_names``; ours also with each choice of its kernels undone.
Decoding is measured apart. Training: pictures of 128 px, rank 16, ours (also without fused
convolutions) and transformers' Trainer with PEFT on the same network, each in a process of its own
and in turn. Prints medians and ratios; asserts nothing.
"""

from __future__ import annotations

import io
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timing
from bench_training import LORA, StepClock
from children import Child
from timing import interleaved, line, timed, title

from trunkline.bases import DEFAULT_IMAGE_BASE, describe_image, load_image

PICTURES = 16
RANK = 8
EDGE = 128
LABELS = ("dark", "light")
NAME = "own/pictures"


def main() -> None:
    options = timing.options(__doc__).parse_args()
    timing.say_where(DEFAULT_IMAGE_BASE)
    with tempfile.TemporaryDirectory() as folder:
        inference(Path(folder, "adapters"), 1 if options.quick else 15)
        training(Path(folder), *((1, 4) if options.quick else (3, 12)))


# ------------------------------------------------------------------------------------ inference


def inference(folder: Path, rounds: int) -> None:
    """Batches of prepared pictures with no adapter, one, and one for each picture."""
    import torch

    from trunkline.adapters.artifact import read_artifact
    from trunkline.data.pictures import decode, prepare, to_tensor
    from trunkline.inference.image_engine import passes
    from trunkline.lora import kernels
    from trunkline.lora.pool import AdapterPool
    from trunkline.lora.routing import ImageRouting

    base = load_image(DEFAULT_IMAGE_BASE)
    steps = base.info.preprocessing
    peft = _adapted(folder)
    pool = AdapterPool(base.model, base.digest, base.fused_layers, hidden=base.model.features)
    residents = [pool.load(read_artifact(folder / str(one))) for one in range(PICTURES)]
    plain = peft.get_base_model()
    files = [_picture(seed, (500, 375)) for seed in range(PICTURES)]
    pixels = to_tensor(_stacked([prepare(decode(file), steps) for file in files]), steps)

    parts = [*passes(PICTURES, steps, base.device.type)]

    def ours(chosen: Sequence[Any], parts: Sequence[slice] = parts) -> Any:
        rows = []
        with torch.inference_mode():
            for part in parts:
                with pool.route(ImageRouting([one.pages for one in chosen[part]])):
                    features = base.model.pooled(pixels[part])
                rows += [one.head(row) for one, row in zip(chosen[part], features, strict=True)]
        return rows

    def added() -> Any:
        with patch.object(kernels, "MERGED_FROM", math.inf):
            return ours(residents)

    def bare() -> Any:
        with torch.inference_mode():
            return [base.model.pooled(pixels[part]) for part in parts]

    def plain_bare() -> Any:
        with torch.inference_mode(), peft.disable_adapter():
            return plain.pooled(pixels)

    def one_by_one() -> Any:
        rows = []
        with torch.inference_mode():
            for number in range(PICTURES):
                peft.set_adapter(str(number), inference_mode=True)
                rows.append(peft(pixel_values=pixels[number : number + 1]).logits[0])
        return rows

    def by_names() -> Any:
        with torch.inference_mode():
            names = [str(number) for number in range(PICTURES)]
            return peft(pixel_values=pixels, adapter_names=names).logits

    def switched() -> Any:
        with torch.inference_mode():
            peft.set_adapter("0", inference_mode=True)
            return peft(pixel_values=pixels).logits

    work: dict[str, Callable[[], Any]] = {
        "ours, no adapter": bare,
        "the network as it is, no adapter": plain_bare,
        "ours, 1 adapter": lambda: ours(residents[:1] * PICTURES),
        "ours, 16 adapters": lambda: ours(residents),
        "ours, 16, no weight merged": added,
        "ours, 16, all pictures in one pass": lambda: ours(residents, [slice(PICTURES)]),
        "PEFT, 1 adapter": switched,
        "PEFT, 16 adapters, one after another": one_by_one,
    }
    try:
        by_names()
        work["PEFT, 16 adapters, adapter_names"] = by_names
    except Exception as error:  # PEFT has no mixed batches for some heads
        print(f"  PEFT's adapter_names can't compute this: {type(error).__name__}")
    difference = max(
        float((mine - other).abs().max())
        for mine, other in zip(ours(residents), one_by_one(), strict=True)
    )
    taken = interleaved({name: timed(one) for name, one in work.items()}, rounds)
    alone = ("ours, no adapter", "the network as it is, no adapter")
    faster = min(alone, key=lambda name: taken[name].median)
    theirs = "PEFT, 16 adapters, one after another"
    title(f"{PICTURES} pictures of {steps.width} px, rank {RANK} (targets: 1.25x the faster base, "
          "3x as fast as PEFT)")  # fmt: skip
    for name, times in taken.items():
        over, faster_by = times.median / taken[faster].median, taken[theirs].median / times.median
        least = times.least / taken[faster].least
        line(
            name,
            times.median,
            f"{PICTURES / times.median:6.1f} images/s; {over:5.2f}x the faster base (least "
            f"{least:5.2f}x); {faster_by:5.2f}x as fast as PEFT one after another",
        )
    print(f"  largest difference of ours to PEFT's outputs: {difference:.1e}")
    preparing = interleaved(
        {"decode": timed(lambda: [prepare(decode(file), steps) for file in files])}, rounds
    )["decode"]
    line(f"decode and resize {PICTURES} JPEGs of 500 x 375, one thread", preparing.median)


def _adapted(folder: Path) -> Any:
    """PEFT's model with 16 adapters of random weights, which are written as artifacts."""
    import torch

    from trunkline.adapters.artifact import seal
    from trunkline.contracts import Settings, Template
    from trunkline.tasks import ClassificationTask
    from trunkline.training.image_model import image_lora_model

    task, info = ClassificationTask(LABELS), describe_image(DEFAULT_IMAGE_BASE)
    model = image_lora_model(DEFAULT_IMAGE_BASE, task, Settings(r=RANK), "cpu")
    from peft import PeftModel

    for seed in range(PICTURES):
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.05)
        model.save_pretrained(folder / str(seed), save_embedding_layers=False)
        (folder / str(seed) / "README.md").unlink(missing_ok=True)
        seal(
            folder / str(seed),
            base={"name": DEFAULT_IMAGE_BASE, "digest": info.digest},
            task=task.to_json(),
            template=Template(),
            data={},
            preprocessing=info.preprocessing,
        )
    plain = model.unload()
    adapted = PeftModel.from_pretrained(plain, folder / "0", adapter_name="0")
    for seed in range(1, PICTURES):
        adapted.load_adapter(folder / str(seed), adapter_name=str(seed))
    return adapted.eval()


def _picture(seed: int, size: tuple[int, int]) -> bytes:
    """A JPEG of smooth random colors; odd seeds are lighter."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    coarse = rng.integers(100 * (seed % 2), 156 + 100 * (seed % 2), (12, 16, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG")
    return stream.getvalue()


def _stacked(pictures: Sequence[Any]) -> Any:
    import numpy as np

    return np.stack(pictures)


# ------------------------------------------------------------------------------------- training


class Ours:
    """Trainings on a folder of pictures."""

    def __init__(self, rows: Path) -> None:
        import trunkline
        from trunkline.cli.file_options import make_own_recipe

        self._platform = trunkline.open(
            tempfile.mkdtemp(), base=DEFAULT_IMAGE_BASE, no_plugins=True
        )
        self._recipe = make_own_recipe(NAME, rows, {})
        self._rows = rows

    def steps(self, batch: int, steps: int) -> list[float]:
        """Seconds of each step."""
        from trunkline.data.prepare import prepare
        from trunkline.training.trainer import train_adapter

        settings = {
            **LORA, "max_steps": steps, "per_device_train_batch_size": batch, "precision": "fp32",
            "evals_per_epoch": 1, "learning_rate": 5e-4, "image_size": EDGE,
        }  # fmt: skip
        job = self._platform.training_job(self._recipe, settings)
        clock = StepClock()
        with tempfile.TemporaryDirectory() as folder:
            train_adapter(
                job,
                prepare(job.dataset, job.recipe, job.transforms),
                self._platform.engines.image,
                Path(folder),
                listener=clock,
                log=lambda step, values: None,
                should_stop=lambda: False,
            )
        return clock.steps


class Unfused(Ours):
    """The same trainings without fused convolutions."""

    def steps(self, batch: int, steps: int) -> list[float]:
        """Seconds of each step."""
        with patch("trunkline.training.trainer.fused_convolutions", lambda *_, **__: nullcontext()):
            return super().steps(batch, steps)


class Peer(Ours):
    """transformers' Trainer and PEFT on the same rows, which are decoded before the first step."""

    def steps(self, batch: int, steps: int) -> list[float]:
        """Seconds of each step."""
        import torch
        from peft import LoraConfig, get_peft_model
        from torch import nn
        from transformers import Trainer, TrainerCallback, TrainingArguments
        from transformers.trainer_callback import PrinterCallback

        from trunkline.bases import load_fresh_image
        from trunkline.data.pictures import decode, prepare, to_tensor
        from trunkline.training.image_model import image_targets

        source = load_fresh_image(DEFAULT_IMAGE_BASE, len(LABELS), device="cpu", dtype="fp32")
        targets = image_targets(source, self._platform.training_job(self._recipe, {}).settings)
        backbone = getattr(source, source.base_model_prefix).to(
            memory_format=torch.contiguous_format
        )
        preprocessing = describe_image(DEFAULT_IMAGE_BASE).preprocessing.resized(EDGE)
        examples = [
            {
                "pixel_values": to_tensor(
                    prepare(decode(file.read_bytes()), preprocessing), preprocessing
                ),
                "labels": LABELS.index(file.parent.name),
            }
            for file in sorted(self._rows.rglob("*.jpg"))
        ]

        class Classifier(nn.Module):
            """The network with a head; batch normalization uses the base's statistics, as ours."""

            def __init__(self) -> None:
                super().__init__()
                self.backbone, self.classifier = backbone, source.classifier
                self.config = backbone.config

            def train(self, mode: bool = True) -> Any:
                super().train(mode)
                for module in self.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        module.eval()
                return self

            def forward(self, pixel_values: Any, labels: Any = None, **_: Any) -> Any:
                logits = self.classifier(self.backbone(pixel_values=pixel_values).pooler_output)
                return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

        clock = StepClock()

        class Record(TrainerCallback):  # type: ignore[misc]  # untyped package
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                clock.stage("training")

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                clock.progress(state.global_step, state.max_steps, {})

        config = LoraConfig(target_modules=targets, modules_to_save=["classifier"], **LORA)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model=get_peft_model(Classifier(), config),
                args=TrainingArguments(
                    output_dir=folder,
                    per_device_train_batch_size=batch,
                    max_steps=steps,
                    learning_rate=5e-4,
                    use_cpu=True,
                    remove_unused_columns=False,
                    report_to="none",
                    disable_tqdm=True,
                    logging_strategy="no",
                    save_strategy="no",
                ),
                train_dataset=examples,
                callbacks=[Record()],
            )
            trainer.remove_callback(PrinterCallback)  # prints the last log entry
            trainer.train()
        return clock.steps


def training(folder: Path, rounds: int, steps: int) -> None:
    """Rows a second of each, in turn."""
    rows = _rows(folder / "rows", PICTURES * steps)
    systems = {
        "ours": Ours,
        "ours, without fused convolutions": Unfused,
        "transformers' Trainer + PEFT": Peer,
    }
    speeds: dict[str, list[float]] = {name: [] for name in systems}
    with ExitStack() as stack:
        children = [stack.enter_context(Child(one, rows)) for one in systems.values()]
        for _ in range(rounds):
            for name, child in zip(speeds, children, strict=True):
                taken = child.ask("steps", PICTURES, steps)
                speeds[name].append(PICTURES / statistics.median(taken[2:]))
    medians: Mapping[str, float] = {one: statistics.median(two) for one, two in speeds.items()}
    *_, peer = medians.values()
    title(
        f"Training, pictures of {EDGE} px, batches of {PICTURES}, rank {LORA['r']} (target: 1.3x)"
    )
    for name, value in medians.items():
        print(f"  {name:<40} {value:6.1f} rows/s, {value / peer:4.2f}x")


def _rows(folder: Path, count: int) -> Path:
    """A folder of pictures for each label."""
    for label in LABELS:
        (folder / label).mkdir(parents=True)
    for seed in range(count):
        (folder / LABELS[seed % 2] / f"{seed}.jpg").write_bytes(_picture(seed, (160, 160)))
    return folder


if __name__ == "__main__":
    main()
