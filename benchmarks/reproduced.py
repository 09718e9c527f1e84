"""The sections of ``docs/results.md`` from the results of ``der-tf reproduce``.

    python benchmarks/reproduced.py OUT/results.json [...] --machine "one thread of 2 busy cores"

Keeps each in ``benchmarks/results/EXPERIMENT-SCALE.json`` (one line a run) and writes its table
between the markers of the experiment, and beside them what the full scale takes by the measured
training steps. Without files, writes all again from what is kept.

    python benchmarks/reproduced.py --restore benchmarks/results/EXPERIMENT-SCALE.json OUT

lays what is kept out as runs, so that ``der-tf reproduce EXPERIMENT --out OUT`` on another machine
trains only what is missing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pages import fill

from der_tf.files import write_text
from der_tf.reproduce.experiments import EXPERIMENTS
from der_tf.reproduce.results import planned
from der_tf.reproduce.summary import markdown

ROOT = Path(__file__).parents[1]
STORE = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"


def compact(report: dict) -> str:
    """JSON in which a run takes one line."""
    rows = [
        json.dumps({name: value for name, value in row.items() if name != "runs"})[:-1]
        + ', "runs": [\n  '
        + ",\n  ".join(json.dumps(run) for run in row["runs"])
        + "\n ]}"
        for row in report["rows"]
    ]
    head = json.dumps({name: value for name, value in report.items() if name != "rows"})
    text = head[:-1] + ', "rows": [\n ' + ",\n ".join(rows) + "\n]}\n"
    assert json.loads(text) == report
    return text


def section(report: dict) -> str:
    """Markdown: the table, then, folded, the command, what each row trains, what was left out."""
    measured = report["measured"]
    images = f"the first {measured['test_images']:,}" if measured["test_images"] else "all"
    names = ",".join(f"{row['cure']}-{row['level']}" for row in report["rows"])
    seeds = max(len(row["runs"]) for row in report["rows"])
    default = EXPERIMENTS[report["experiment"]].scales[report["scale"]].measured
    asked = "".join(
        f" --{name.replace('_', '-')} {measured[name]}"
        for name in ("test_images", "auto_attack_images")
        if measured[name] != default[name]
    )
    left_out = ", ".join(f"`{name}`" for name in report["not_run"]) or "none"
    commands = "\n".join(f"    {row['command']} --seed=0" for row in report["rows"])
    return (
        f"`--scale {report['scale']}` on {report['machine']}; {images} test images.\n\n"
        f"{markdown(report)}\n"
        "<details><summary>The command, what each row trains, and the rows not run</summary>\n\n"
        f"    der-tf reproduce {report['experiment']} --scale {report['scale']} --seeds {seeds}"
        f"{asked} --only {names}\n\n"
        f"{commands}\n\n"
        f"Rows not run: {left_out}.\n\n</details>\n"
    )


# Rows of the full scale whose training step was timed: experiment, row, name in the benchmark.
# Multi-step attacks share no pass with the start: it costs what the natural image does.
MEASURED_STEPS = (
    ("catastrophic-overfitting", "none-8", "rs_fgsm"),
    ("catastrophic-overfitting", "der-paper-8", "rs_fgsm + DER, natural"),
    ("catastrophic-overfitting", "der-8", "rs_fgsm + DER, start on one tape"),
    ("robust-overfitting", "none-8", "pgd-10"),
    ("robust-overfitting", "der-30-8", "pgd-10 + DER, natural"),
)
TRAINING_IMAGES = 49_000  # of CIFAR-10, beside 1,000 to validate on


def full_scale() -> str:
    """Markdown: hours and memory of a run at full scale.

    From ``benchmarks/training_step.py`` and ``benchmarks/training_memory.py``.
    """
    measured = json.loads((STORE / "training_step.json").read_text())
    peaks = json.loads((STORE / "training_memory.json").read_text())["gigabytes"]
    runs = [run for run in measured["runs"] if run["width"] == 64]
    threads = [f"hours a run, {run['threads']} thread(s)" for run in runs]
    heads = ["experiment", "row", "epochs", "steps", *threads, "peak memory, GB"]
    lines = [heads, ["---"] * len(heads)]
    for name, row_name, variant in MEASURED_STEPS:
        experiment = EXPERIMENTS[name]
        (row,) = experiment.rows(experiment.scales["full"], [row_name])
        config = row.configuration(0)
        # An epoch is a whole number of executions.
        rows = config.batch_size * config.steps_per_execution
        steps, epochs = -(-TRAINING_IMAGES // rows) * config.steps_per_execution, config.epochs
        hours = [run["steps"][variant]["seconds"] * steps * epochs / 3600 for run in runs]
        cells = [name, f"`{row_name}`", str(epochs), f"{steps * epochs:,}"]
        lines.append([*cells, *(f"{value:,.0f}" for value in hours), f"{peaks[variant]:.1f}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def restore(report: dict, out: Path) -> None:
    """Lay the results of a report out as the runs that they came from."""
    experiment = EXPERIMENTS[report["experiment"]]
    rows = {row.name: row for row in experiment.rows(experiment.scales[report["scale"]])}
    for kept in report["rows"]:
        for result in kept["runs"]:
            run = planned(rows[f"{kept['cure']}-{kept['level']}"], result["seed"], out)
            run.path.parent.mkdir(parents=True)
            write_text(run.path, json.dumps(result) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--machine", default="", help="what the runs ran on, in words")
    parser.add_argument(
        "--restore", type=Path, nargs=2, metavar=("KEPT", "OUT"), help="lay KEPT out as runs in OUT"
    )
    options = parser.parse_args()
    if options.restore:
        kept, out = options.restore
        restore(json.loads(kept.read_text()), out)
        return
    for path in options.results:
        report = {**json.loads(path.read_text()), "machine": options.machine}
        write_text(STORE / f"{report['experiment']}-{report['scale']}.json", compact(report))
    fill(PAGE, "reproduced.py full-scale", full_scale())
    for name in EXPERIMENTS:
        kept = [json.loads(path.read_text()) for path in sorted(STORE.glob(f"{name}-*.json"))]
        text = "\n".join(section(report) for report in kept) or "Not run yet.\n"
        fill(PAGE, f"reproduced.py {name}", text)


if __name__ == "__main__":
    main()
