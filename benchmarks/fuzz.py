"""Forged and damaged artifacts by the thousand: only clear refusals may come out, quickly and in little memory.

usage: python benchmarks/fuzz.py [--inputs 100000 | --seconds 60] [--seed 0] [--corpus FILE ...] [--keep FOLDER]

Each input is read, reported on (as JSON, as text, now and then as a page), rebuilt at the mean and at a sample, and
saved as dense weights. Whatever escapes that is not a GbnnError is kept in FOLDER and ends the run with exit code 1.
"""

import argparse
import collections
import contextlib
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "trust"))

import mutations
import reader

from gbnn_compress.errors import GbnnError

SLOW_SECONDS, LARGE_BYTES = 1.0, 200_000_000


def main() -> int:
    arguments = parsed()
    warnings.simplefilter("ignore")
    corpus = [path.read_bytes() for path in arguments.corpus] or reader.corpus()
    with tempfile.TemporaryDirectory() as folder:
        for data in corpus:
            reader.read_fully(data, Path(folder), page=True)  # imports and loops take time once
        outcomes, failures = run(arguments, corpus, Path(folder))
    print("; ".join(f"{count:,} {what}" for what, count in outcomes.most_common()))
    return 1 if failures else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, nargs="*", default=[])
    parser.add_argument("--keep", type=Path, default=Path("fuzz"))
    return parser.parse_args()


def run(arguments: argparse.Namespace, corpus: list[bytes], folder: Path) -> tuple[collections.Counter[str], int]:
    outcomes: collections.Counter[str] = collections.Counter()
    start, seen, failures = time.perf_counter(), set(), 0
    for number in range(arguments.inputs):
        if time.perf_counter() - start > arguments.seconds:
            break
        chance = random.Random(f"{arguments.seed}/{number}")
        data = mutations.mutated(chance, chance.choice(corpus))
        memory, page = peak_bytes(), number % 50 == 0
        began = time.process_time()
        try:
            reader.read_fully(data, folder, page=page)
            outcome = "accepted"
        except GbnnError as error:
            outcome = f"refused ({type(error).__name__})"
        except Exception as error:
            outcome, where = f"failed ({type(error).__name__})", traceback.extract_tb(error.__traceback__)[-1]
            failures += 1
            if (place := (type(error), where.filename, where.lineno)) not in seen:
                seen.add(place)
                keep(arguments.keep, number, data, traceback.format_exc())
        seconds, grown = time.process_time() - began, peak_bytes() - memory
        if seconds > SLOW_SECONDS:  # loops are loaded when they are first used
            began = time.process_time()
            with contextlib.suppress(Exception):
                reader.read_fully(data, folder, page=page)
            seconds = time.process_time() - began
        if seconds > SLOW_SECONDS or grown > LARGE_BYTES:
            outcomes["slow or large"] += 1
            keep(arguments.keep, number, data, f"{outcome}: {seconds:.1f} s, {grown / 1e6:.0f} MB more")
        outcomes[outcome] += 1
        if number % 5000 == 4999:
            print(f"{number + 1:,} inputs, {failures} failed", file=sys.stderr, flush=True)
    took = time.perf_counter() - start
    print(f"{sum(outcomes.values()):,} inputs in {took:.0f} s, peak {peak_bytes() / 1e6:.0f} MB")
    return outcomes, failures + outcomes["slow or large"]


def keep(folder: Path, number: int, data: bytes, what: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number}.gbnn.safetensors"
    path.write_bytes(data)
    print(f"{path}: {what}", file=sys.stderr, flush=True)


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main())
