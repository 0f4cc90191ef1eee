"""Near-duplicates of the test part among 100,000 short texts, by all pairs and by MinHash.

Claim: MinHash takes less time than comparing all pairs from some size on, and names the same
planted copies. Each method runs in a process of its own; the memory is that process's peak.
`--rows 10000` compares fewer rows.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import time

from trunkline.contracts import Row, Template
from trunkline.data.near_duplicates import near_duplicates

PLANTED = 100
METHODS = ("tfidf", "minhash")


def made_rows(count: int) -> tuple[list[Row], list[Row]]:
    """Test and training rows of 5 to 14 of 5,000 made-up terms; every hundredth test row a copy."""
    drawn = random.Random(0)
    letters = "etaoinshrdlucmfwygpbvk"
    terms = ["".join(drawn.choices(letters, k=drawn.randint(3, 10))) for _ in range(5000)]
    texts = [" ".join(drawn.choices(terms, k=drawn.randint(5, 14))) for _ in range(count)]
    tested = count // 5
    for number in range(0, tested, PLANTED):
        texts[number] = f"{texts[tested + number]}."
    rows = [
        Row(id=str(number), text=text, target="", group="") for number, text in enumerate(texts)
    ]
    return rows[:tested], rows[tested:]


def measure(method: str, count: int) -> None:
    test, train = made_rows(count)
    before = time.perf_counter()
    close = near_duplicates(test, train, Template(), method)  # type: ignore[arg-type]
    seconds = time.perf_counter() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    planted = sum(int(pair.row.id) % PLANTED == 0 for pair in close)
    print(
        f"{method:8} {count:8,} rows {seconds:8.1f} s {peak:8,.0f} MiB; "
        f"{planted} of {-(-len(test) // PLANTED)} copies, {len(close) - planted} others",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--method", choices=METHODS)
    options = parser.parse_args()
    if options.method:
        measure(options.method, options.rows)
        return
    for method in METHODS:
        command = [sys.executable, __file__, "--rows", str(options.rows), "--method", method]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
