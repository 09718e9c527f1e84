"""An evaluation's report as a card: who measured what on which images, and how far to trust it."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import quote

import tensorflow as tf

from der_tf.evaluation.report import (
    DEFENSE_HEADER,
    defense_rows,
    defense_summary,
    fraction,
    table,
    to_markdown,
)
from der_tf.training.run_directory import git_commit, processor, versions


def provenance() -> dict[str, Any]:
    """Date, versions, commit and machine of this process, for a report."""
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "git_commit": git_commit(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": processor(),
            "processors": len(os.sched_getaffinity(0)),
            "gpus": gpus,
        },
    }


def title(report: dict[str, Any]) -> str:
    """Model and images in a line; loud where they are not the whole test set."""
    return f"{report['model']} on {_which(report)}"


def _which(report: dict[str, Any]) -> str:
    if report["images"] == report["of"]:
        return f"{report['dataset']}, all {report['of']:,} test images"
    return (
        f"ONLY {report['images']:,} OF {report['of']:,} test images of {report['dataset']}: "
        "an estimate, not the benchmark"
    )


def to_card(report: dict[str, Any]) -> str:
    """The Markdown card of a report that ``der-tf evaluate`` makes."""
    sections = [f"# {title(report)}\n"]
    if report["images"] < report["of"]:
        sections.append(
            f"> **Only {report['images']:,} of {report['of']:,} test images** were attacked, drawn "
            f"by seed {report['seed']}. The 95 % intervals say how far such a sample is from the "
            "whole set; do not compare these numbers with a benchmark's.\n"
        )
    sections.append(table(("", ""), _facts(report)))
    sections.append("## Accuracy\n\n" + to_markdown(report) + "\n" + _HOW_TO_READ)
    if "defense" in report:
        rows = table(DEFENSE_HEADER, defense_rows(report))
        sections.append(f"## Defence\n\n{defense_summary(report)}.\n\n{rows}\n{_ATTACKERS}")
    for name, result in report["attacks"].items():
        if "log" in result:
            sections.append(f"## {name}, attack by attack\n\n{_log(result['log'])}")
    if "cw" in report["attacks"]:
        sections.append(_distances(report))
    if "sanity" in report:
        sections.append(_sanity(report))
        sections.append(_figures(report))
    sections.append("## Warnings\n\n" + _bullets(report["warnings"], "None."))
    if report["notes"]:
        sections.append("## Notes\n\n" + _bullets(report["notes"], ""))
    return "\n".join(sections)


_HOW_TO_READ = (
    "Accuracy is the share of all images that are classified rightly after the attack; intervals "
    "are Wilson's. dE(x) = E(x) - E(x\\*) and dE(x, y) = E(x, y) - E(x\\*, y) are means in nats; "
    "abnormal are images whose cross-entropy the attack has lowered.\n"
)

_ATTACKERS = (
    "Plain attacks are made against the undefended model and know nothing of the defence: they say "
    "little of its worth. Adaptive ones differentiate through the transformation; BPDA (Athalye et "
    "al., 2018) takes its backward pass as the identity.\n"
)


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    machine, found = report["machine"], report["versions"]
    ball = report["threat_model"]
    devices = ", ".join(machine["gpus"]) or "no GPU"
    seconds = sum(report["seconds"].values())
    facts = {
        "model": f"`{report['model']}`",
        "threat model": f"{ball['norm']} ball of radius {fraction(ball['epsilon'])} in pixels of "
        "[0, 1]; the attacks know the model and run on it in inference mode",
        "data set": _which(report),
        "suite": report["suite"] or "attacks by name",
        "seed": f"{report['seed']}, batch size {report['batch_size']}",
        "date": report["created"],
        "command": f"`der-tf {shlex.join(report['arguments'])}`",
        "versions": ", ".join(f"{name} {version}" for name, version in found.items()),
        "commit": report["git_commit"] or "unknown",
        "machine": f"{machine['system']}, {machine['processor']}, {machine['processors']} "
        f"processors, {devices}",
        "time in attacks": f"{seconds:,.0f} s",
        "per-sample results": f"`{report['samples']}`",
    }
    return list(facts.items())


def _log(entries: list[dict[str, Any]]) -> str:
    lines = [
        (
            entry["attack"],
            f"{entry['attacked']:,}",
            f"{entry['broken']:,}",
            f"{100 * entry['robust_accuracy']:.2f} %",
            f"{entry['seconds']:,.1f}",
        )
        for entry in entries
    ]
    return table(("attack", "attacked", "broken", "robust accuracy after it", "seconds"), lines)


def _distances(report: dict[str, Any]) -> str:
    result = report["attacks"]["cw"]
    return (
        "## The smallest l2 perturbations\n\nCarlini & Wagner's attack is not bound to the ball: "
        "the median l2 norm of the smallest perturbation it found is "
        f"{result['median_l2_distance']:.4g} (images that are wrong already count as 0). It breaks "
        "an image in the table above only where that perturbation lies in the ball.\n"
    )


def check_line(check: dict[str, Any]) -> str:
    """A check of a report in a line."""
    return f"{_VERDICTS[check['passed']]}: {check['check']} ({check['measured']})"


_VERDICTS = {True: "passed", False: "FAILED", None: "not applicable"}


def _sanity(report: dict[str, Any]) -> str:
    lines = [
        (check["check"], check["measured"], check["accepted"], _VERDICTS[check["passed"]])
        for check in report["sanity"]
    ]
    rows = table(("check", "measured", "accepted", ""), lines)
    return (
        f"## Sanity\n\n{rows}\nThe curves and the second and third check are measured on "
        f"{report['curves']['images']:,} of the images above. A check that fails means that these "
        "accuracies are likely too high, or the measurement too small.\n"
    )


def _figures(report: dict[str, Any]) -> str:
    pictures = [f"![{Path(path).stem}]({quote(path)})\n" for path in report["figures"]]
    return "## Figures\n\n" + "\n".join(pictures)


def _bullets(lines: list[str], otherwise: str) -> str:
    return "".join(f"* {line}\n" for line in lines) or f"{otherwise}\n"
