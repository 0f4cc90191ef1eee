"""Two processes that compute on the same cores: a server of 16 rows and a LoRA training.

For each way in which idle OpenMP workers may wait, both are measured alone and side by side, in
turn. Prints medians, what the setting costs alone over OpenMP's default, and the share of its speed
alone that each keeps side by side (half is what sharing the cores fairly would leave). The program
sets `GOMP_SPINCOUNT` to the value in `trunkline/threads.py`; asserts nothing.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import timing
from children import Child
from made import TARGETS, load_plain, load_tokenizer, make_prompts
from ours import EngineProcess
from timing import title

from trunkline.threads import SPIN_COUNT

ROWS, PROMPT, NEW = 16, 32, 24
TRAIN_ROWS = 16
DEFAULT = "OpenMP's default"


def policies(spin_counts: Sequence[int]) -> dict[str, dict[str, str]]:
    """Name → environment variables of each way in which idle workers may wait."""
    counted = {
        f"GOMP_SPINCOUNT={count}" + (" (ours)" if count == SPIN_COUNT else ""): {
            "GOMP_SPINCOUNT": str(count)
        }
        for count in spin_counts
    }
    return {DEFAULT: {}, **counted, "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"}}


class Serving(EngineProcess):
    """The engine with a batch of requests running."""

    def speed(self, seconds: float) -> float:
        """Tokens a second over at least ``seconds``."""
        prompts = make_prompts(load_tokenizer(), ROWS, PROMPT, seed=3)
        start, tokens = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            self.batch(prompts, None, NEW)
            tokens += ROWS * NEW
        return tokens / (time.perf_counter() - start)


class Training:
    """LoRA steps of plain PEFT on the same base."""

    def __init__(self, shape: str | None) -> None:
        import torch
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=8, target_modules=list(TARGETS), task_type="CAUSAL_LM")
        self._model = get_peft_model(load_plain(shape), config)
        parameters = [one for one in self._model.parameters() if one.requires_grad]
        self._optimizer = torch.optim.AdamW(parameters, lr=1e-4)
        self._ids = torch.randint(100, 1000, (TRAIN_ROWS, PROMPT))

    def speed(self, seconds: float) -> float:
        """Steps a second over at least ``seconds``."""
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            hidden = self._model.base_model.model.model(self._ids).last_hidden_state
            hidden.square().mean().backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            steps += 1
        return steps / (time.perf_counter() - start)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Child processes that start inside read these values, and no other OpenMP policy."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def both(serving: Child, training: Child, seconds: float) -> tuple[float, float]:
    """The speed of each while the other computes too."""
    speeds: dict[str, float] = {}

    def train() -> None:
        speeds["training"] = training.ask("speed", seconds)

    thread = threading.Thread(target=train)
    thread.start()
    speeds["serving"] = serving.ask("speed", seconds)
    thread.join()
    return speeds["serving"], speeds["training"]


def main() -> None:
    parser = timing.options(__doc__)
    parser.add_argument(
        "--spin-counts", type=int, nargs="+", default=[SPIN_COUNT], metavar="N",
        help="values of GOMP_SPINCOUNT to compare; by default the one that the program sets",
    )  # fmt: skip
    options = parser.parse_args()
    timing.say_where(options.shape)
    rounds, seconds = (1, 1.0) if options.quick else (3, 6.0)
    measured: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        pairs = {}
        for name, values in policies(options.spin_counts).items():
            with environment(values):
                serving = stack.enter_context(Child(Serving, options.shape))
                training = stack.enter_context(Child(Training, options.shape))
                serving.wait()
                training.wait()
            pairs[name] = (serving, training)
            measured[name] = {key: [] for key in ("serving", "training", "beside", "trained")}
        for _ in range(rounds):
            for name, (serving, training) in pairs.items():
                speeds = measured[name]
                speeds["serving"].append(serving.ask("speed", seconds))
                speeds["training"].append(training.ask("speed", seconds))
                beside, trained = both(serving, training, seconds)
                speeds["beside"].append(beside)
                speeds["trained"].append(trained)

    medians = {
        name: {key: statistics.median(values) for key, values in speeds.items()}
        for name, speeds in measured.items()
    }
    default = medians[DEFAULT]
    title("Place (targets for ours: at least 0.95 of the default)")
    for name, speeds in medians.items():
        print(
            f"  {name:<28} serving {speeds['serving']:6.0f} tok/s, "
            f"{speeds['serving'] / default['serving']:4.2f}x; training "
            f"{speeds['training']:5.2f} steps/s, {speeds['training'] / default['training']:4.2f}x"
        )
    title("Side by side, over the same alone (targets for ours: at least 0.4)")
    for name, speeds in medians.items():
        print(
            f"  {name:<28} serving {speeds['beside']:6.0f} tok/s, "
            f"{speeds['beside'] / speeds['serving']:4.2f}x; training "
            f"{speeds['trained']:5.2f} steps/s, {speeds['trained'] / speeds['training']:4.2f}x"
        )


if __name__ == "__main__":
    main()
