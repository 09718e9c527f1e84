"""Cost of the monitors beside the training steps: measured, and counted in network passes.

    python benchmarks/monitors.py [--width 16] [--train-size 49000] [--threads 1] [--rounds 3]

Takes the processor time of training steps, a record of EnergyMonitor and a probe of
CatastrophicOverfittingGuard on CIFAR-sized random images, one after the other, the fastest round of
each, and scales them to an epoch with the defaults of ``der-tf train``. Writes
``benchmarks/results/monitors.json`` and the table between the markers of ``docs/benchmarks.md``;
with ``--kept``, the table from the file.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from pages import fill

from der_tf.files import write_text

RESULTS = Path(__file__).parent / "results" / "monitors.json"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
VARIANTS = {"rs_fgsm": 0.0, "rs_fgsm + DER, natural": 10.0, "pgd": 0.0}


def measure(variant: str, width: int, train_size: int, batch_size: int, rounds: int) -> dict:
    """Processor seconds of a step, a record and a probe, and the default sizes."""
    import keras
    import numpy as np
    import tensorflow as tf

    from der_tf import RobustClassifier, attacks, models
    from der_tf.monitors import CatastrophicOverfittingGuard, EnergyMonitor
    from der_tf.regularizers import DeltaEnergy
    from der_tf.training.catastrophic_overfitting import affordable_steps
    from der_tf.training.monitors import affordable_records
    from der_tf.training.optimizers import CoupledSGD
    from der_tf.training.run import GUARD_IMAGES

    keras.utils.set_random_seed(0)
    attack = attacks.get(variant.split()[0], training=True)
    weight = VARIANTS[variant]
    model = RobustClassifier(
        models.preact_resnet18((32, 32, 3), 10, width=width),
        attack,
        regularizers=[DeltaEnergy(weight, reference="natural")] if weight else [],
    )
    model.compile(CoupledSGD(0.01, 0.9, 5e-4), jit_compile=False)
    rng = np.random.default_rng(0)
    images, epochs = affordable_records(model, train_size)
    every = affordable_steps(model, batch_size, GUARD_IMAGES)

    def sample(count: int):
        labels = rng.integers(0, 10, count).astype(np.int32)
        return rng.random((count, 32, 32, 3), dtype=np.float32), labels

    steps = 2
    dataset = tf.data.Dataset.from_tensors(sample(batch_size)).repeat(steps)
    seconds: dict[str, list[float]] = {"step": [], "record": [], "probe": []}
    with tempfile.TemporaryDirectory() as folder:
        monitor = EnergyMonitor(folder, sample(images), sample(images))
        guard = CatastrophicOverfittingGuard(sample(GUARD_IMAGES), write=lambda line: None)
        callbacks = keras.callbacks.CallbackList([monitor, guard], model=model)
        model.fit(dataset, verbose=0, shuffle=False)
        callbacks.on_train_begin()
        for number in range(rounds + 1):  # the first one traces
            start = time.process_time()
            model.fit(dataset, verbose=0, shuffle=False)
            step = (time.process_time() - start) / steps
            start = time.process_time()
            monitor.on_epoch_end(number)
            record = time.process_time() - start
            start = time.process_time()
            guard._probe(0.0, is_sign=False)
            probe = time.process_time() - start
            if number:
                for name, value in (("step", step), ("record", record), ("probe", probe)):
                    seconds[name].append(value)
            print(f"{variant}: round {number} of {rounds}", flush=True)
    steps_per_epoch = -(-train_size // batch_size)
    fastest = {name: min(values) for name, values in seconds.items()}
    training = fastest["step"] * steps_per_epoch
    gradients = 2 * attack.gradients
    of_training = train_size * (gradients + 3 + (3 if weight else 0))
    of_record = 2 * images * (gradients + 20 + 6) / epochs
    of_probes = steps_per_epoch / every * GUARD_IMAGES * (gradients + 13)
    return {
        "variant": variant,
        "images": images,
        "epochs": epochs,
        "probe_every": every,
        "seconds": fastest,
        "share": {
            "energies": fastest["record"] / epochs / training,
            "guard": fastest["probe"] * steps_per_epoch / every / training,
        },
        "share_of_passes": {
            "energies": of_record / of_training,
            "guard": of_probes / of_training,
        },
    }


def run(options: argparse.Namespace) -> dict:
    """Each variant measured, and kept."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    runs = [
        measure(variant, options.width, options.train_size, options.batch_size, options.rounds)
        for variant in options.variants
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    names = ("width", "train_size", "batch_size", "threads", "rounds", "variants")
    settings = {name: getattr(options, name) for name in names}
    results = {**settings, "machine": {"cores": os.cpu_count()}, "runs": runs}
    write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    return results


def table(runs: list[dict]) -> str:
    """Markdown: a row a variant."""
    lines = [
        "| training | images a split | steps between probes | energies: passes / time | "
        "guard: passes / time | together: passes / time |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        passes, measured = run["share_of_passes"], run["share"]
        cells = [f"{passes[n]:.1%} / {measured[n]:.1%}" for n in ("energies", "guard")]
        cells.append(f"{sum(passes.values()):.1%} / {sum(measured.values()):.1%}")
        counts = f"{run['images']} | {run['probe_every']}"
        lines.append(f"| {run['variant']} | {counts} | {' | '.join(cells)} |".replace("%", " %"))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--train-size", type=int, default=49_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--kept", action="store_true", help="measure nothing: take the kept file")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if options.kept else run(options)
    text = table(results["runs"])
    fill(PAGE, "benchmarks/monitors.py", text)
    print(text)


if __name__ == "__main__":
    main()
