"""What is measured of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from der_tf import attacks
from der_tf.data import ImageData
from der_tf.evaluation import evaluate, to_dict
from der_tf.evaluation.robustness import Progress
from der_tf.reproduce.experiments import Scale
from der_tf.reproduce.results import KEPT, Run
from der_tf.training.faults import reading
from der_tf.training.records import read_metrics


def measure(run: Run, dataset: ImageData, scale: Scale, progress: Progress) -> dict[str, Any]:
    """The networks of the last epoch, of the best on validation and of SWA on test images.

    Args:
        run: trained already.
        dataset: its data.
        scale: says how much is measured.
        progress: as in :func:`~der_tf.evaluation.evaluate`.
    """
    ball: dict[str, Any] = {"epsilon": run.config.epsilon, "norm": run.config.norm}
    pgd = attacks.get("pgd", steps=scale.steps, restarts=scale.restarts, **ball)

    def under(path: Path, name: str, attack: attacks.Attack, images: int | None) -> dict[str, Any]:
        network = keras.models.load_model(path, compile=False)
        chosen = dataset.test
        if images is not None:
            chosen = chosen.unbatch().take(images).batch(dataset.batch_size)
        return to_dict(
            evaluate(network, chosen, attacks={name: attack}, seed=run.seed, progress=progress)
        )

    result = {
        **run.described(scale),
        "epochs": epochs(run),
        "test": {
            path.stem: under(path, "pgd", pgd, scale.test_images)
            for path in (run.directory.last, run.directory.best, run.directory.swa)
            if path.exists()
        },
    }
    if scale.auto_attack_images:
        auto_attack = attacks.get("auto_attack", **ball)
        report = under(run.directory.last, "auto_attack", auto_attack, scale.auto_attack_images)
        result["auto_attack"] = report["attacks"]["auto_attack"]
    return result


def diverged(run: Run, scale: Scale, reason: str) -> dict[str, Any]:
    """The result of a run whose loss became infinite or NaN."""
    return {**run.described(scale), "epochs": epochs(run), "diverged": reason}


def epochs(run: Run) -> list[dict[str, float]]:
    """What is kept of metrics.csv."""
    with reading():
        return [{name: row[name] for name in KEPT} for row in read_metrics(run.directory.metrics)]
