"""Table and pictures of ``docs/generation.md`` from what ``generation_quality.py`` has left.

    python benchmarks/generation_report.py RESULTS --machine "2 shared x86-64 cores, 1 thread"
    python benchmarks/generation_report.py --tuning RESULTS --machine "..."

Keeps the numbers in ``benchmarks/results/generation_quality.json``, writes the table between the
markers of ``docs/generation.md`` and the pictures into ``docs/figures``; with ``--tuning``, which
takes results of ``--vary``, ``generation_tuning.json`` and the other table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from generation_quality import BASE, CURVES, REAL, comparison, curves, file_name
from matplotlib.figure import Figure
from pages import fill
from PIL import Image

from der_tf.files import write_text
from der_tf.generation import pictures

ROOT = Path(__file__).parents[1]
STORE = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "generation.md"
FIGURES = ROOT / "docs" / "figures"
SHOWN = "local, guided, adaptive"


def measured_on(one: dict[str, Any], machine: str) -> str:
    return (
        f"{one['num_samples']:,} images a setting, seeds from {one['seed']:,}; reference: "
        f"{one['num_reference']:,} {one['reference']} images of {one['dataset']}; FID, IS, "
        f"precision and recall by {one['extractor']}; {machine}."
    )


def cells(one: dict[str, Any]) -> list[str]:
    """The columns :data:`COLUMNS` of a result."""
    scores = one["scores"]
    agreement = f"{one['agreement']:.1%}"
    if "judge_agreement" in one:
        agreement += f" / {one['judge_agreement']:.1%}"
    return [
        f"{scores['FID']:.1f}",
        f"{scores['IS']:.2f}",
        f"{scores['precision']:.3f}",
        f"{scores['recall']:.3f}",
        f"{one['mean_joint_energy']:.2f}",
        agreement,
        f"{one['nearest_median']:.2f} ({one['nearest_lowest']:.2f})",
        f"{one['mean_steps_taken']:.1f}" if "mean_steps_taken" in one else "–",
    ]


COLUMNS = ["FID", "IS", "precision", "recall", "mean energy", "agreement / judge"]
COLUMNS += ["nearest training image", "mean steps"]


def markdown(rows: list[list[str]]) -> list[str]:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return [head, "|---" * len(rows[0]) + "|", *body]


def table(results: list[dict[str, Any]], machine: str) -> str:
    """Markdown: how it was measured, and a row a setting of the comparison."""
    shown = [one for one in results if not one["name"].startswith("k = ")]
    rows = [["starts, guidance, stopping", *COLUMNS]]
    rows += [[one["name"], *cells(one)] for one in shown]
    return "\n".join([measured_on(shown[0], machine), "", *markdown(rows)])


def tuning_table(results: list[dict[str, Any]], machine: str) -> str:
    """Markdown: how it was measured, and a row a setting, the settings in columns."""
    named = ["mode", "neighbors", "sigma", "candidates", "step_size"]
    rows = [[*(name.replace("_", " ") for name in named), "stopping", *COLUMNS]]
    for one in results:
        setting = one["setting"]
        adaptive = f"at quantile {setting['quantile']:g}"
        stopping = adaptive if setting["adaptive"] else f"after {setting['steps']}"
        shown = setting if setting["mode"] == "local" else setting | {"neighbors": "–"}
        rows.append([*(str(shown[name]) for name in named), stopping, *cells(one)])
    return "\n".join([measured_on(results[0], machine), "", *markdown(rows)])


def keep(name: str, machine: str, results: list[dict[str, Any]]) -> None:
    STORE.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine, "runs": results}, indent=1) + "\n"
    write_text(STORE / name, text)


def save_curves(results: dict[str, dict[str, Any]]) -> None:
    """Quality against variability: precision against recall, and FID against steps."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    trade, fid = figure.subplots(1, 2)
    for place, k in enumerate(CURVES["neighbors"]):
        fixed = {steps: results.get(f"k = {k}, {steps} steps") for steps in CURVES["steps"]}
        fixed = {steps: one["scores"] for steps, one in fixed.items() if one}
        if not fixed:
            continue
        color = f"C{place}"
        recall = [scores["recall"] for scores in fixed.values()]
        precision = [scores["precision"] for scores in fixed.values()]
        trade.plot(recall, precision, "o-", color=color, label=f"k = {k}")
        for steps, x, y in zip(fixed, recall, precision, strict=True):
            trade.annotate(str(steps), (x, y), textcoords="offset points", xytext=(4, 4))
        fid.plot(list(fixed), [s["FID"] for s in fixed.values()], "o-", color=color)
        adaptive = results.get(f"k = {k}, adaptive")
        if adaptive:
            scores = adaptive["scores"]
            trade.plot(scores["recall"], scores["precision"], "*", color=color, ms=14)
            fid.plot(adaptive["mean_steps_taken"], scores["FID"], "*", color=color, ms=14)
    trade.set(xlabel="recall (variability)", ylabel="precision (quality)")
    trade.set_title("fixed steps at the points; star: adaptive", fontsize="medium")
    trade.legend()
    extractor = next(iter(results.values()))["extractor"]
    fid.set(xlabel="steps (star: mean steps of adaptive stopping)", ylabel=f"FID by {extractor}")
    figure.savefig(FIGURES / "generation-curves.png", dpi=80)


def first_of_classes(path: Path, count: int) -> np.ndarray:
    """``[K, count, H, W, C]`` in [0, 1]: the first images of each class."""
    with np.load(path) as file:
        images, labels = file["images"] / np.float32(255), file["labels"]
    return np.stack([images[labels == y][:count] for y in range(labels.max() + 1)])


def save_grid(path: Path, images: np.ndarray, names: list[str]) -> None:
    """As :func:`der_tf.generation.pictures.save_grid`, at half the size, for a page."""
    pictures.save_grid(path, images, names)
    with Image.open(path) as picture:
        small = picture.convert("RGB").reduce(2)
    small.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="the --out of generation_quality.py")
    parser.add_argument("--machine", required=True, help="what it ran on, in words")
    parser.add_argument("--tuning", action="store_true", help="they are of --vary")
    options = parser.parse_args()
    # A killed generation_quality.py leaves a part of a file, whose name begins with a dot.
    kept = sorted(options.results.glob("[!.]*.json"))
    results = [json.loads(path.read_text()) for path in kept]
    if options.tuning:
        keys = ["mode", "neighbors", "sigma", "candidates", "adaptive", "quantile", "step_size"]
        results.sort(key=lambda one: [one["setting"][key] for key in [*keys, "steps"]])
        keep("generation_tuning.json", options.machine, results)
        text = tuning_table(results, options.machine)
        fill(PAGE, "benchmarks/generation_report.py --tuning", text)
        print(text)
        return
    order = [REAL, *comparison(BASE), *curves(BASE)]
    results = [one for one in results if one["name"] in order]  # what was varied stays out
    results.sort(key=lambda one: order.index(one["name"]))
    keep("generation_quality.json", options.machine, results)
    text = table(results, options.machine)
    by_name = {one["name"]: one for one in results}
    fill(PAGE, "benchmarks/generation_report.py", text)
    FIGURES.mkdir(exist_ok=True)
    if any(name in by_name for name in curves(BASE)):
        save_curves(by_name)
    names = by_name[SHOWN]["class_names"]
    save_grid(
        FIGURES / "generation-samples.png",
        first_of_classes(options.results / f"{file_name(SHOWN)}.npz", 10),
        names,
    )
    shown = [name for name in by_name if name in {REAL, *comparison(BASE)}]
    rows = [first_of_classes(options.results / f"{file_name(name)}.npz", 1)[:, 0] for name in shown]
    save_grid(FIGURES / "generation-settings.png", np.stack(rows), shown)
    print(text)


if __name__ == "__main__":
    main()
