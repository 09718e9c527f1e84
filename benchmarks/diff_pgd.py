r"""Diff-PGD beside PGD: cost, accuracies, what SDEdit leaves of either, and a picture.

    der-tf train-denoiser --dataset cifar10 --data-dir DATA --run-dir PRIOR \
        --width 16 --epochs 3 --limit-train 20000
    python benchmarks/diff_pgd.py PRIOR/denoiser.keras MODEL [MODEL ...] --data-dir DATA

A MODEL is what ``der-tf evaluate`` takes; the picture shows the first. l-inf, 8/255, 10 steps of
2/255 from x, the default noise level and DDIM steps; images are drawn from the test set by the
seed. Costs are seconds of processor time on one thread, the lower of two rounds over a batch.
Writes ``benchmarks/results/diff_pgd.json``, ``docs/figures/diff_pgd.png`` and the table between the
markers of ``docs/attacks.md``; without arguments, the table from the file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from pages import fill

from der_tf.files import write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "diff_pgd.json"
PAGE = ROOT / "docs" / "attacks.md"
FIGURE = ROOT / "docs" / "figures" / "diff_pgd.png"
COMMON: dict[str, Any] = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 10, "seed": 0}
BATCH, ROWS, AMPLIFIED = 32, 5, 10
SHOWN = ("PGD", "Diff-PGD")


def contestants(denoiser: Path) -> dict[str, Any]:
    """The attacks by the name that they have in the tables."""
    from der_tf import attacks

    return {
        "PGD": attacks.get("pgd", random_start=False, **COMMON),
        "Diff-PGD": attacks.get("diff_pgd", denoiser=denoiser, **COMMON),
        "Diff-PGD, accelerated": attacks.get(
            "diff_pgd", denoiser=denoiser, accelerated=True, **COMMON
        ),
    }


def batched(function: Any, *arrays: np.ndarray) -> np.ndarray:
    """``function`` over batches."""
    parts = range(0, len(arrays[0]), BATCH)
    return np.concatenate([function(*(a[at : at + BATCH] for a in arrays)) for at in parts])


def cost(attack: Any, model: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Seconds of processor time an image."""
    attack(model, x[:BATCH], y[:BATCH])
    rounds = []
    for _ in range(2):
        began = time.process_time()
        attack(model, x[:BATCH], y[:BATCH])
        rounds.append(time.process_time() - began)
    return min(rounds) / len(x[:BATCH])


def noise_errors(denoiser: Path, x: np.ndarray) -> dict[int, float]:
    """Mean squared error of the predicted noise at the levels of the DDIM steps; 1 is nothing."""
    import tensorflow as tf

    from der_tf import diffusion

    predict = diffusion.as_function(diffusion.load_denoiser(denoiser))
    noise = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)

    def error(level: int) -> float:
        def predicted(images, true):
            t = tf.fill([len(images)], level)
            return predict(diffusion.add_noise(2 * tf.constant(images) - 1, true, t), t).numpy()

        return float(np.mean(np.square(noise - batched(predicted, x, noise))))

    return {level: error(level) for level in (40, 80, 120, 300, 600)}


def measure(model: Any, chosen: dict[str, Any], x: np.ndarray, y: np.ndarray) -> tuple[dict, dict]:
    """Numbers of each attack and of no attack, and the images of each."""
    import tensorflow as tf

    purify = tf.function(
        lambda images: chosen["Diff-PGD"].purified(images, tf.constant([1, 1])),
        reduce_retracing=True,
    )

    def correct(images: np.ndarray) -> float:
        return float(np.mean(batched(lambda b: np.argmax(model(b), axis=1), images) == y))

    images, rows = {"none": x}, {}
    for name, attack in chosen.items():
        print(f"{name} ...", flush=True)
        images[name] = batched(lambda a, b, attack=attack: attack(model, a, b).numpy(), x, y)
        rows[name] = {"seconds_an_image": cost(attack, model, x, y)}
    for name, moved in images.items():
        rows.setdefault(name, {})["accuracy"] = correct(moved)
        rows[name]["accuracy_after_sdedit"] = correct(batched(lambda b: purify(b).numpy(), moved))
        rows[name]["mean_distance"] = float(np.mean(np.abs(moved - x)))
    return rows, images


def draw(images: dict, predictions: dict, y: np.ndarray, class_names: tuple[str, ...]) -> None:
    """Images, both attacks' results, and both differences amplified around grey."""
    from matplotlib.figure import Figure

    rows = np.flatnonzero(predictions["none"] == y)[:ROWS]
    columns = [("image", images["none"], predictions["none"])]
    columns += [(name, images[name], predictions[name]) for name in SHOWN]
    for name in SHOWN:
        shift = AMPLIFIED * (images[name] - images["none"])
        columns.append((f"{AMPLIFIED} x ({name} - image)", np.clip(0.5 + shift, 0, 1), None))
    figure = Figure(figsize=(1.6 * len(columns), 1.75 * ROWS), layout="constrained")
    for place, axes in zip(
        [(r, c) for r in rows for c in columns],
        figure.subplots(ROWS, len(columns)).flat,
        strict=True,
    ):
        row, (title, pixels, classes) = place
        axes.imshow(pixels[row], interpolation="nearest")
        axes.set_axis_off()
        told = f"\n{class_names[classes[row]]}" if classes is not None else ""
        axes.set_title((title if row == rows[0] else "") + told, fontsize=8)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=90, pil_kwargs={"optimize": True})


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Each classifier measured, and kept; the picture drawn."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from der_tf import data
    from der_tf.evaluation.loading import load_classifier

    dataset = data.load("cifar10", data_dir=options.data_dir, augment=False)
    x, y = (np.concatenate(parts) for parts in zip(*dataset.test.as_numpy_iterator(), strict=True))
    picked = np.random.default_rng(options.seed).choice(len(x), options.num, replace=False)
    x, y = x[picked], y[picked]
    chosen = contestants(options.denoiser)
    results: dict[str, Any] = {
        "dataset": "cifar10",
        "images": options.num,
        "seed": options.seed,
        "attack": COMMON,
        "noise_level": chosen["Diff-PGD"].noise_level,
        "denoising_steps": chosen["Diff-PGD"].denoising_steps,
        "noise_error": noise_errors(options.denoiser, x),
        "classifiers": {},
    }
    for number, path in enumerate(options.models):
        model = load_classifier(path).model
        predict = tf.function(lambda b, m=model: m(b), reduce_retracing=True)
        name = getattr(model, "name", path.stem)
        print(f"{name}: {options.num} images", flush=True)
        results["classifiers"][name], images = measure(model, chosen, x, y)
        if number == 0:
            predictions = {
                key: batched(lambda b, p=predict: np.argmax(p(b), axis=1), images[key])
                for key in ("none", *SHOWN)
            }
            draw(images, predictions, y, dataset.class_names)
    write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    print(json.dumps(results["noise_error"]))
    return results


def table(results: dict[str, Any]) -> str:
    """Markdown: a row a classifier and attack."""
    lines = [
        "| classifier | attack | accuracy | after SDEdit | ms an image |",
        "|---|---|---|---|---|",
    ]
    for name, rows in results["classifiers"].items():
        base = rows["PGD"]["seconds_an_image"]
        for attack in ("none", *(a for a in rows if a != "none")):
            row = rows[attack]
            seconds = row.get("seconds_an_image")
            told = f"{1000 * seconds:.0f} ({seconds / base:.1f}x)" if seconds else ""
            lines.append(
                f"| {name} | {attack} | {row['accuracy']:.1%} | {row['accuracy_after_sdedit']:.1%} "
                f"| {told} |".replace("%", " %")
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("denoiser", nargs="?", type=Path)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--num", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.denoiser and not options.models:
        parser.error("name a MODEL beside the denoiser")
    results = run(options) if options.denoiser else json.loads(RESULTS.read_text())
    text = table(results)
    fill(PAGE, "benchmarks/diff_pgd.py", text)
    print(text)


if __name__ == "__main__":
    main()
