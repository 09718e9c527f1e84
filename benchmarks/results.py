"""The table of ``docs/results.md`` from finished run directories.

    python benchmarks/results.py RUN [RUN ...] --machine "2 cores, 1 thread a run"

Keeps what the table needs of each run in ``benchmarks/results/runs.json`` (paths of the machine
left out) and writes the table between the markers of ``docs/results.md``. Without runs, writes the
table again from the file.

    python benchmarks/results.py --restore NAME OUT

lays the epochs of one of them out as a run directory, for ``der-tf analyze``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pages import fill

from der_tf.files import write_table, write_text
from der_tf.training.records import read_metrics
from der_tf.training.run_directory import RunDirectory

ROOT = Path(__file__).parents[1]
STORE = ROOT / "benchmarks" / "results" / "runs.json"
PAGE = ROOT / "docs" / "results.md"
LOCAL = ("--data-dir", "--run-dir", "--export-dir")


def collect(run: Path, machine: str) -> dict:
    """What is kept of a run directory."""
    directory = RunDirectory(run)
    record = json.loads(directory.config.read_text())
    evaluation = json.loads(directory.evaluation.read_text())
    arguments = record["arguments"]
    kept = [
        argument
        for before, argument in zip(["", *arguments], arguments, strict=False)
        if argument not in LOCAL and before not in LOCAL
    ]
    return {
        "command": " ".join(["python train.py", *kept]),
        "configuration": {k: v for k, v in record["configuration"].items() if k != "data_dir"},
        "class_names": record["class_names"],
        "versions": record["versions"],
        "git_commit": record["git_commit"],
        "created": record["created"],
        "machine": machine,
        "epochs": read_metrics(directory.metrics),
        "evaluation": {
            name: evaluation[name]
            for name in ("images", "seed", "natural", "attacks", "worst_case")
        },
    }


def restore(kept: dict, out: Path) -> None:
    """Lay what is kept of a run out as a run directory, without its networks."""
    out.mkdir(parents=True)
    run = RunDirectory(out)
    names = ("configuration", "class_names", "versions", "git_commit", "created")
    record = {
        "schema": 1,
        "arguments": kept["command"].split()[2:],
        **{name: kept[name] for name in names if name in kept},
    }
    write_text(run.config, json.dumps(record, indent=2) + "\n")
    write_table(run.metrics, kept["epochs"])


def percent(measured: dict) -> str:
    low, high = measured["interval"]
    return f"{measured['accuracy']:.2%} ({low:.1%} – {high:.1%})".replace("%", " %")


def table(runs: dict[str, dict]) -> str:
    """Markdown: a row a run."""
    lines = [
        "| command | machine | seconds an epoch | test images | natural accuracy (95 %) | "
        "PGD accuracy (95 %) | dE(x) / dE(x, y) under PGD |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs.values():
        evaluation, pgd = run["evaluation"], run["evaluation"]["attacks"]["pgd"]
        config = pgd["config"]
        attack = f"PGD-{config['steps']}-{config['restarts']} at {config['epsilon'] * 255:.3g}/255"
        deltas = f"{pgd['delta_marginal_energy']:+.3f} / {pgd['delta_joint_energy']:+.3f}"
        seconds = min(epoch["seconds"] for epoch in run["epochs"])
        lines.append(
            f"| `{run['command']}` | {run['machine']} | {seconds:.0f} | {evaluation['images']:,} | "
            f"{percent(evaluation['natural'])} | {percent(pgd)} {attack} | {deltas} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--machine", default="", help="what the runs ran on, in words")
    parser.add_argument(
        "--restore", nargs=2, metavar=("NAME", "OUT"), help="lay the run NAME out in OUT"
    )
    options = parser.parse_args()
    runs = json.loads(STORE.read_text()) if STORE.exists() else {}
    if options.restore:
        name, out = options.restore
        if name not in runs:
            parser.error(f"--restore names one of {', '.join(runs)}; received {name}")
        restore(runs[name], Path(out))
        return
    runs |= {run.name: collect(run, options.machine) for run in options.runs}
    write_text(STORE, json.dumps(runs, indent=1) + "\n")
    fill(PAGE, "benchmarks/results.py", table(runs))
    print(table(runs))


if __name__ == "__main__":
    main()
