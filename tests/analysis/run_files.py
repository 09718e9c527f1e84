"""Runs made of files alone, without a training."""

from der_tf.files import write_table
from der_tf.training.recipes import resolve
from der_tf.training.run_directory import RunDirectory

ROBUST = [0.3, 0.35, 0.4, 0.02]  # under PGD, on validation images
TRAINED = [0.3, 0.35, 0.4, 0.7]  # under the training attack, on training images


def make_run(path, energies=(), **options):
    """The files of a run of four epochs; its best network is an empty file."""
    path.mkdir()
    run = RunDirectory(path)
    run.write_record(resolve(options), [], [str(digit) for digit in range(10)])
    rows = [
        {
            "epoch": epoch,
            "robust_accuracy": trained,
            "val_robust_accuracy": robust,
            "val_clean_accuracy": 0.9,
            "val_abnormal_fraction": 0.0,
            "abnormal_fraction": 0.01,
            "delta_marginal_energy": 0.1,
            "learning_rate": 0.1,
        }
        for epoch, (robust, trained) in enumerate(zip(ROBUST, TRAINED, strict=True), start=1)
    ]
    write_table(run.metrics, rows)
    run.best.touch()
    write_table(run.energies_table, list(energies))
    return run


def energy_row(epoch, step, abnormal, attack="training", split="train"):
    return {
        "epoch": epoch,
        "step": step,
        "split": split,
        "attack": attack,
        "images": 16,
        "abnormal_fraction": abnormal,
        "gradient_alignment": 0.9,
        "delta_marginal_energy_mean": 0.0,
        "delta_marginal_energy_q25": -0.1,
        "delta_marginal_energy_q75": 0.1,
    }
