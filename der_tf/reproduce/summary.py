"""From the results of single runs to a table: mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Result = Mapping[str, Any]

COLLAPSED = 0.02  # accuracy under PGD below which single-step training has failed

# What is read of a run that did not diverge; None where it was not measured.
MEASURES: Mapping[str, Callable[[Result], float | None]] = {
    "clean": lambda run: run["test"]["last"]["natural"]["accuracy"],
    "pgd": lambda run: _pgd(run, "last"),
    "best_pgd": lambda run: _pgd(run, "best"),
    "gap": lambda run: _pgd(run, "best") - _pgd(run, "last"),
    "swa_pgd": lambda run: _pgd(run, "swa") if "swa" in run["test"] else None,
    "auto_attack": lambda run: run["auto_attack"]["accuracy"] if run.get("auto_attack") else None,
    "validation_pgd": lambda run: run["epochs"][-1]["val_robust_accuracy"],
    "abnormal": lambda run: run["epochs"][-1]["abnormal_fraction"],
    "delta_marginal": lambda run: run["epochs"][-1]["delta_marginal_energy"],
    "delta_joint": lambda run: run["epochs"][-1]["delta_joint_energy"],
}


def _pgd(run: Result, which: str) -> float:
    return run["test"][which]["attacks"]["pgd"]["accuracy"]


def _speed(run: Result) -> float:
    # The fastest epoch: on a machine that does other things, the others measure those.
    return max(epoch["images_per_second"] for epoch in run["epochs"])


def _speeds(runs: Iterable[Result]) -> dict[str | None, float]:
    """The highest by processor; None stands for that of results from before they told theirs."""
    speeds: dict[str | None, float] = {}
    for run in runs:
        name = run.get("processor")
        speeds[name] = max(_speed(run), speeds.get(name, 0.0))
    return speeds


def mean_and_deviation(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None for a single value) and number of values."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "deviation": deviation, "n": len(values)}


def summarize(runs: Sequence[Result], plain: Sequence[Result] = ()) -> dict[str, Any]:
    """What the runs of a row have in common.

    Args:
        runs: results of one row, one a seed.
        plain: those of the plain setting at the same radius, by whose time theirs is divided.

    Returns:
        Each of :data:`MEASURES` as :func:`mean_and_deviation` over the runs that did not diverge
        (None without any), and ``relative_time``, ``runs``, ``diverged``, ``collapsed``. Times are
        compared between runs that began on processors of one name.
    """
    finished = [run for run in runs if not run.get("diverged")]
    summary: dict[str, Any] = {}
    for name, measure in MEASURES.items():
        values = [value for run in finished if (value := measure(run)) is not None]
        summary[name] = mean_and_deviation(values) if values else None
    here, there = _speeds(finished), _speeds(run for run in plain if not run.get("diverged"))
    ratios = [there[name] / here[name] for name in here if name in there]
    summary["relative_time"] = float(np.mean(ratios)) if ratios else None
    summary["runs"] = len(runs)
    summary["diverged"] = len(runs) - len(finished)
    summary["collapsed"] = sum(_pgd(run, "last") < COLLAPSED for run in finished)
    return summary


def markdown(report: Mapping[str, Any]) -> str:
    """The table of an experiment's report: a row a setting, in the order of the report.

    Accuracies in percent, as mean ± standard deviation over seeds (without one: a single seed).
    """
    measured = report["measured"]
    attack = f"PGD-{measured['steps']}-{measured['restarts']}"
    header = [
        "setting",
        "eps",
        "runs",
        "collapsed",
        "clean",
        f"{attack}, last epoch",
        f"{attack}, best epoch",
        "best - last",
        "validation PGD, last epoch",
        "abnormal",
        "dE(x) / dE(x, y)",
        "time",
    ]
    columns: list[tuple[str, str]] = []
    for name, title in (("auto_attack", "AutoAttack"), ("swa_pgd", f"{attack}, SWA")):
        if any(row["summary"][name] for row in report["rows"]):
            columns.append((name, title))
    header[7:7] = [title for _, title in columns]
    lines = [header, ["---"] * len(header)]
    for row in report["rows"]:
        summary = row["summary"]
        cells = [
            f"`{row['cure']}`",
            f"{row['level']}/255",
            str(summary["runs"]),
            _failures(summary),
            *(_percent(summary[name]) for name in ("clean", "pgd", "best_pgd")),
            *(_percent(summary[name]) for name, _ in columns),
            *(_percent(summary[name]) for name in ("gap", "validation_pgd", "abnormal")),
            f"{_signed(summary['delta_marginal'])} / {_signed(summary['delta_joint'])}",
            f"{summary['relative_time']:.2f}x" if summary["relative_time"] else "-",
        ]
        lines.append(cells)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _failures(summary: Mapping[str, Any]) -> str:
    text = f"{summary['collapsed']} of {summary['runs']}"
    return text + (f", {summary['diverged']} diverged" if summary["diverged"] else "")


def _percent(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    deviation = f" ± {100 * value['deviation']:.1f}" if value["deviation"] is not None else ""
    return f"{100 * value['mean']:.1f}{deviation}"


def _signed(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    deviation = f" ± {value['deviation']:.3f}" if value["deviation"] is not None else ""
    return f"{value['mean']:+.3f}{deviation}"
