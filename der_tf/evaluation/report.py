"""An evaluation as JSON, as Markdown and as rows of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from der_tf.evaluation.defended import VIEWS, DefenseEvaluation
from der_tf.evaluation.results import AttackResult, Evaluation, configuration

HEADER = ("images", "accuracy", "95 % interval", "dE(x)", "dE(x, y)", "abnormal")
DEFENSE_HEADER = ("images", "undefended", *(f"defended, {name}" for name in VIEWS.values()))


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson, 1927), right also near 0 and 1.

    Args:
        correct: successes.
        total: trials, at least 1.
    """
    interval = stats.binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """Accuracies with their intervals, configurations, and means over the images, for JSON."""
    natural = evaluation.natural
    return {
        "images": evaluation.size,
        "natural": {
            **_share(natural.correct),
            "marginal_energy": float(natural.marginal_energy.mean()),
            "joint_energy": float(natural.joint_energy.mean()),
        },
        "attacks": {name: _attack(result) for name, result in evaluation.attacks.items()},
        "worst_case": _share(~evaluation.worst_case_success),
    }


def defense_to_dict(evaluation: DefenseEvaluation) -> dict[str, Any]:
    """The same of a defended model by attacker, and its worst case over all of them."""
    views = {view: to_dict(found) for view, found in evaluation.views.items()}
    return {
        "config": dict(evaluation.defense.get_config()),
        "natural": views["plain"]["natural"],
        "views": {
            view: {name: found[name] for name in ("attacks", "worst_case")}
            for view, found in views.items()
        },
        "worst_case": _share(~evaluation.worst_case_success),
    }


def _attack(result: AttackResult) -> dict[str, Any]:
    return {
        **_share(~result.success),
        "config": configuration(result.attack),
        "marginal_energy": float(result.marginal_energy.mean()),
        "joint_energy": float(result.joint_energy.mean()),
        "delta_marginal_energy": float(result.delta_marginal_energy.mean()),
        "delta_joint_energy": float(result.delta_joint_energy.mean()),
        "abnormal_fraction": float(result.abnormal.mean()),
        "largest_linf_distance": float(result.linf_distance.max()),
        "largest_l2_distance": float(result.l2_distance.max()),
        "median_l2_distance": float(np.median(result.l2_distance)),
        **({"log": list(result.log)} if result.log else {}),
    }


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows under :data:`HEADER` of what :func:`to_dict` gives: natural, each attack, worst case."""
    found: list[tuple[str, ...]] = [("natural", *_accuracy(report["natural"]), "", "", "")]
    for name, result in report["attacks"].items():
        found.append(
            (
                describe(name, result["config"]),
                *_accuracy(result),
                f"{result['delta_marginal_energy']:+.3f}",
                f"{result['delta_joint_energy']:+.3f}",
                f"{100 * result['abnormal_fraction']:.1f} %",
            )
        )
    if len(report["attacks"]) > 1:
        found.append(("worst case", *_accuracy(report["worst_case"]), "", "", ""))
    return found


def defense_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows under :data:`DEFENSE_HEADER` of a report whose ``defense`` is from defense_to_dict."""
    defense = report["defense"]
    views = [report, *defense["views"].values()]
    natural = _accuracy(defense["natural"])[0]
    found = [("natural", _accuracy(report["natural"])[0], *[natural] * len(VIEWS))]
    for name, result in report["attacks"].items():
        cells = [_accuracy(view["attacks"][name])[0] for view in views]
        found.append((describe(name, result["config"]), *cells))
    found.append(("worst case", *(_accuracy(view["worst_case"])[0] for view in views)))
    return found


def defense_summary(report: dict[str, Any]) -> str:
    """What the defence leaves right in the worst case over all attackers, beside none."""
    settings = ", ".join(f"{name}={v}" for name, v in report["defense"]["config"].items())
    accuracy, interval = _accuracy(report["defense"]["worst_case"])
    without, other = _accuracy(report["worst_case"])
    return (
        f"EnergyDescent({settings}): {accuracy} (95 %: {interval}) right under every attacker; "
        f"undefended {without} ({other})"
    )


def to_markdown(report: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    return table(HEADER, rows(report))


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    every = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in every)


def _share(correct: np.ndarray) -> dict[str, Any]:
    count = int(correct.sum())
    low, high = wilson_interval(count, len(correct))
    return {"correct": count, "accuracy": count / len(correct), "interval": [low, high]}


def _accuracy(result: dict[str, Any]) -> tuple[str, str]:
    low, high = result["interval"]
    return f"{100 * result['accuracy']:.2f} %", f"{100 * low:.2f} – {100 * high:.2f} %"


def describe(name: str, config: dict[str, Any]) -> str:
    """The field's short form: pgd-50-10 is PGD of 50 steps and 10 restarts."""
    if "epsilon" not in config:
        return name
    numbers = [config["steps"]] if "steps" in config else []
    if config.get("restarts", 1) > 1:
        numbers.append(config["restarts"])
    title = "-".join([name, *map(str, numbers)])
    return f"{title} ({config['norm']} {fraction(config['epsilon'])})"


def fraction(value: float | str) -> str:
    """8/255 as such, other numbers to four digits, infinity as "any distance"."""
    if isinstance(value, str):
        return "any distance"
    levels = value * 255
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-6 else f"{value:.4g}"
