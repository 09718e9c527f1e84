"""False alarms of CatastrophicOverfittingGuard on trainings that stay robust.

    python benchmarks/false_alarms.py [--seeds 3] [--epochs 6]

Trains the small convnet on the digits with each attack, seed and epsilon, probing every 5 steps;
counts probes and alarms, and takes the accuracy under PGD-10 on the probed images at the end. A
training that ends below half of its best probe has lost its robustness and is left out of the
false alarms. Writes ``benchmarks/results/false_alarms.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from der_tf.files import write_text

RESULTS = Path(__file__).parent / "results" / "false_alarms.json"
PROBE_EVERY = 5


def train(name: str, epsilon: float, seed: int, epochs: int) -> dict:
    """One training under the guard's eyes."""
    import keras
    import numpy as np

    from der_tf import RobustClassifier, attacks, data, models
    from der_tf.monitors import CatastrophicOverfittingGuard
    from der_tf.training.optimizers import CoupledSGD

    digits = data.load("digits", batch_size=64, seed=seed)
    keras.utils.set_random_seed(seed)
    network = models.convnet(digits.input_shape, digits.num_classes, width=8)
    model = RobustClassifier(network, attacks.get(name, epsilon=epsilon, training=True), seed=seed)
    model.compile(CoupledSGD(0.1, 0.9, 5e-4), jit_compile=False)
    alarms: list[str] = []
    probes: list[float] = []

    class Counting(CatastrophicOverfittingGuard):
        def _is_alarm(self, robust: float, *others: float) -> bool:
            probes.append(robust)
            return super()._is_alarm(robust, *others)

    sample = digits.training_sample(64)
    guard = Counting(sample, probe_every=PROBE_EVERY, look_every=5, write=alarms.append)
    model.fit(digits.train, epochs=epochs, callbacks=[guard], verbose=0)
    attack = attacks.get("pgd", epsilon=epsilon, seed=seed)
    moved = network(attack(network, *sample))
    return {
        "attack": name,
        "epsilon": epsilon,
        "seed": seed,
        "steps": epochs * digits.steps_per_epoch,
        "probes": len(probes) + 1,  # the first one sets the reference
        "alarms": alarms,
        "best_probe": max(probes),
        "robust_accuracy": float(np.mean(np.argmax(moved, axis=1) == sample[1])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--attacks", nargs="+", default=["fgsm", "rs_fgsm"])
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    options = parser.parse_args()
    runs = []
    for name in options.attacks:
        for epsilon in options.epsilons:
            for seed in range(options.seeds):
                runs.append(train(name, epsilon, seed, options.epochs))
                RESULTS.parent.mkdir(exist_ok=True)
                write_text(RESULTS, json.dumps({**vars(options), "runs": runs}, indent=1) + "\n")
                print(runs[-1], flush=True)
    robust = [run for run in runs if run["robust_accuracy"] >= run["best_probe"] / 2]
    probes = sum(run["probes"] for run in robust)
    alarms = sum(len(run["alarms"]) for run in robust)
    print(f"{alarms} alarms in {probes} probes of {len(robust)} trainings that stayed robust")


if __name__ == "__main__":
    main()
