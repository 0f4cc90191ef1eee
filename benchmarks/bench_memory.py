"""The memory of steps whose number of tokens never occurred before.

oneDNN, and torch's interface to it, cache primitives for each number of rows of a product; the base
limits how many (``bases/linear.py``). Two processes compute the same prefills, of every number of
tokens up to 300 in one random order: one with these limits, one with torch's defaults. Prints the
memory of both; asserts nothing.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import timing
from children import Child
from made import load_base, make_prompts
from ours import ByHand
from timing import title

from trunkline.bases.linear import CACHE_LIMITS
from trunkline.inference.settings import MIB

MOST = 300
FEW = 20
TORCHS = "1024"
"""What both variables are where nobody sets them."""


class Prefilled(ByHand):
    """A base that computes prompts; the variables are set before its first product."""

    def __init__(self, shape: str | None, most: int, entries: str | None) -> None:
        for variable in CACHE_LIMITS:
            os.environ.pop(variable, None)
            if entries is not None:
                os.environ[variable] = entries
        super().__init__(load_base(shape), [], slots=1)
        [(_, self._ids)] = make_prompts(self.base.tokenizer, 1, most, seed=1)

    def compute(self, counts: Sequence[int]) -> int:
        """Prefill a prompt of each number of tokens; the bytes of this process in memory then."""
        for tokens in counts:
            self.prefill([self._ids[:tokens]], [None])()
        return timing.memory()


def main() -> None:
    import torch

    options = timing.options(__doc__).parse_args()
    timing.say_where(options.shape)
    if torch.cuda.is_available():
        print("On a GPU no product is oneDNN's, so there is nothing to measure.")
        return
    most = FEW if options.quick else MOST
    counts = list(range(1, most + 1))
    random.Random(1).shuffle(counts)
    quarters = [counts[most * part // 4 : most * (part + 1) // 4] for part in range(4)]
    with (
        Child(Prefilled, options.shape, most, None) as bounded,
        Child(Prefilled, options.shape, most, TORCHS) as unbounded,
    ):
        children = {
            f"as Trunkline sets them ({', '.join(CACHE_LIMITS.values())})": bounded,
            f"as torch has them ({TORCHS}, {TORCHS})": unbounded,
        }
        memory = {name: [child.ask("compute", [most, 1])] for name, child in children.items()}
        for quarter in quarters:
            for name, child in children.items():
                memory[name].append(child.ask("compute", quarter))
    print_memory(memory, most)


def print_memory(memory: dict[str, list[int]], most: int) -> None:
    """Print bytes before and after each quarter, and the growth of each beside the other's."""
    title(f"Prefills of every number of tokens up to {most}; {', '.join(CACHE_LIMITS)}")
    for name, (before, *after) in memory.items():
        quarters = " ".join(f"{one / MIB:,.0f}" for one in after)
        grown, last = (after[-1] - one for one in (before, after[-2]))
        print(f"  {name:<36} {before / MIB:,.0f} MiB before; after each quarter {quarters};"
              f" grown by {grown / MIB:,.0f}, by {last / MIB:,.0f} in the last")  # fmt: skip
    bounded, unbounded = (after[-1] - before for before, *after in memory.values())
    if bounded > 0:
        print(f"  torch's own grow {unbounded / bounded:.1f} times as much")


if __name__ == "__main__":
    main()
