"""Time of a training step under ``fit`` against a standard step, beside the count of passes.

    python benchmarks/training_step.py [--widths 16 64] [--threads 1 2] [--rounds 5] [--steps 2]

One forward pass, one backward pass to the input and one to the weights count 1 each, so that a
standard step costs 3. All variants of a round are run one after the other, and the fastest round
of each counts. Attacks run in training mode, as the recipes have it, but for the row that says
otherwise; metrics of natural images are off where the loss needs no natural pass (by default they
add one pass in ten steps). Writes ``benchmarks/results/training_step.json`` and the table between
the markers of ``docs/benchmarks.md``; with ``--kept``, the table from the file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from own_process import measured_each
from pages import fill

from der_tf.files import write_text

RESULTS = Path(__file__).parent / "results" / "training_step.json"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
PASSES = {
    "standard": 3,
    "rs_fgsm": 5,
    "rs_fgsm + DER, natural": 8,
    "rs_fgsm + DER, start on one tape": 7,
    "rs_fgsm + DER, start detached": 5,
    "pgd-10": 23,
    "pgd-10, attack in inference mode": 23,
    "pgd-10 + DER, natural": 26,
}


def build(variant: str, width: int):
    """The compiled model of a variant, on the same PreActResNet-18."""
    import keras

    from der_tf import RobustClassifier, attacks, models
    from der_tf.regularizers import DeltaEnergy
    from der_tf.training.optimizers import CoupledSGD

    keras.utils.set_random_seed(0)
    network = models.preact_resnet18((32, 32, 3), 10, width=width)
    optimizer = CoupledSGD(0.01, momentum=0.9, weight_decay=5e-4)
    if variant == "standard":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        network.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
        return network
    name = "pgd" if variant.startswith("pgd") else "rs_fgsm"
    attack = attacks.get(name, training="inference" not in variant)
    regularizers = {
        "natural": [DeltaEnergy(1.0, reference="natural")],
        "start on one tape": [DeltaEnergy(1.0, reference="start")],
        "start detached": [DeltaEnergy(1.0, reference="start", reference_gradient=False)],
    }.get(variant.partition("DER, ")[2], [])
    model = RobustClassifier(network, attack, regularizers=regularizers, natural_metrics_every=0)
    model.compile(optimizer, jit_compile=False)
    return model


def random_batches(batch_size: int, steps: int):
    """A data set of one CIFAR-sized batch, repeated."""
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    images = rng.random((batch_size, 32, 32, 3), dtype=np.float32)
    labels = rng.integers(0, 10, batch_size).astype(np.int32)
    return tf.data.Dataset.from_tensors((images, labels)).repeat(steps)


def measure(width: int, threads: int, rounds: int, steps: int, batch_size: int) -> dict:
    """Seconds a step of each variant: the fastest round of each, rounds interleaved."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    dataset = random_batches(batch_size, steps)
    trained = {variant: build(variant, width) for variant in PASSES}
    wall: dict[str, list[float]] = {variant: [] for variant in PASSES}
    cpu: dict[str, list[float]] = {variant: [] for variant in PASSES}
    for model in trained.values():
        model.fit(dataset.take(1), verbose=0, shuffle=False)
    for number in range(rounds):
        for variant, model in trained.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            model.fit(dataset, verbose=0, shuffle=False)
            wall[variant].append((time.perf_counter() - start) / steps)
            cpu[variant].append((time.process_time() - start_cpu) / steps)
        print(f"width {width}, {threads} thread(s): round {number + 1} of {rounds}", flush=True)
    return {
        variant: {"seconds": min(wall[variant]), "cpu_seconds": min(cpu[variant])}
        for variant in PASSES
    }


def run(options: argparse.Namespace) -> dict:
    """Each width and thread count measured, and kept."""
    variants = [
        {"widths": width, "threads": threads}
        for width in options.widths
        for threads in options.threads
    ]
    results = measured_each(__file__, options, ("rounds", "steps", "batch_size"), variants)
    RESULTS.parent.mkdir(exist_ok=True)
    write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    return results


def table(runs: list[dict]) -> str:
    """Markdown: the floor (passes / 3) and the measured ratio of each variant."""
    heads = [f"width {run['width']}, {run['threads']} thread(s)" for run in runs]
    lines = [
        f"| step | passes | floor | {' | '.join(heads)} |",
        f"|---|---|---|{'---|' * len(heads)}",
    ]
    for variant, passes in PASSES.items():
        floor = passes / 3
        cells = []
        for run in runs:
            standard, own = (run["steps"][name]["seconds"] for name in ("standard", variant))
            cells.append(f"{own / standard:.2f}x ({own / standard / floor - 1:+.0%})")
        lines.append(f"| {variant} | {passes} | {floor:.2f}x | {' | '.join(cells)} |")
    seconds = " | ".join(f"{run['steps']['standard']['seconds']:.3f} s" for run in runs)
    lines.append(f"| a standard step takes | | | {seconds} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--kept", action="store_true", help="measure nothing: take the kept file")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.json:  # one setting, in a process of its own: thread counts are set at start
        width, threads = options.widths[0], options.threads[0]
        steps = measure(width, threads, options.rounds, options.steps, options.batch_size)
        print(json.dumps({"width": width, "threads": threads, "steps": steps}))
        return
    results = json.loads(RESULTS.read_text()) if options.kept else run(options)
    text = table(results["runs"])
    fill(PAGE, "benchmarks/training_step.py", text)
    print(text)


if __name__ == "__main__":
    main()
