"""Peak memory of training steps, as the full scale of ``der-tf reproduce`` takes them.

    python benchmarks/training_memory.py [--width 64] [--batch-size 128] [--steps 1]

Each variant of ``training_step.py`` that the full scale trains takes its steps in a process of its
own, whose peak resident memory is read: TensorFlow itself is in it, the data set is not (CIFAR-10
takes 0.2 GB more). Writes ``benchmarks/results/training_memory.json``, from which
``reproduced.py`` completes the table of ``docs/results.md``.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from pathlib import Path

from own_process import measured_by
from reproduced import MEASURED_STEPS
from training_step import build, random_batches

from der_tf.files import write_text
from der_tf.training.recipes import option

RESULTS = Path(__file__).parent / "results" / "training_memory.json"


def peak_gigabytes(variant: str, width: int, batch_size: int, steps: int) -> float:
    build(variant, width).fit(random_batches(batch_size, steps), verbose=0, shuffle=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("width", "batch_size", "steps")}
    if options.variant:  # in a process of its own: a peak never comes down again
        print(json.dumps({"gigabytes": peak_gigabytes(options.variant, **settings)}))
        return
    given = [part for name in settings for part in (option(name), str(settings[name]))]
    peaks = {}
    for variant in dict.fromkeys(variant for _, _, variant in MEASURED_STEPS):
        command = [sys.executable, __file__, "--variant", variant, *given]
        peaks[variant] = measured_by(command)["gigabytes"]
        print(f"{variant}: {peaks[variant]:.2f} GB", flush=True)
    write_text(RESULTS, json.dumps({**settings, "gigabytes": peaks}, indent=1) + "\n")


if __name__ == "__main__":
    main()
