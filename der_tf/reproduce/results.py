"""Results of single runs on disk, and the report of an experiment made of them.

Needs no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from der_tf.files import write_text
from der_tf.reproduce.experiments import Experiment, Row, Scale
from der_tf.reproduce.summary import markdown, summarize
from der_tf.training.recipes import Configuration, arguments
from der_tf.training.run_directory import RunDirectory, versions

# The values of an epoch in metrics.csv that a result keeps.
KEPT = (
    "epoch",
    "robust_accuracy",
    "abnormal_fraction",
    "delta_marginal_energy",
    "delta_joint_energy",
    "val_clean_accuracy",
    "val_robust_accuracy",
    "val_delta_marginal_energy",
    "val_delta_joint_energy",
    "images_per_second",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training of an experiment.

    Attributes:
        row: the setting.
        seed: of the run.
        config: both together.
        directory: where it is trained.
    """

    row: Row
    seed: int
    config: Configuration
    directory: RunDirectory

    @property
    def title(self) -> str:
        """For progress and errors."""
        return f"{self.row.name}, seed {self.seed}"

    @property
    def path(self) -> Path:
        """The file with its result."""
        return self.directory.path / "result.json"

    def result(self, scale: Scale) -> dict[str, Any] | None:
        """Its result, if it is there and was measured as this scale says.

        Raises:
            ValueError: when the file is damaged.
        """
        try:
            result = json.loads(self.path.read_text(encoding="utf-8"))
            return result if result["measured"] == scale.measured else None
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"{self.path} is no result ({reason}); remove it, and the run is measured again"
            ) from None

    def described(self, scale: Scale) -> dict[str, Any]:
        """What the result of a trained run begins with."""
        record = self.directory.record()
        assert record is not None
        return {
            "seed": self.seed,
            "processor": record.get("processor"),
            "configuration": {
                name: value
                for name, value in dataclasses.asdict(self.config).items()
                if name != "data_dir"
            },
            "measured": scale.measured,
        }


def planned(row: Row, seed: int, out: Path, data_dir: str | None = None) -> Run:
    """A run of an experiment; what lies in its folder must be of the same settings.

    Args:
        row: the setting.
        seed: of the run.
        out: folder of the experiment.
        data_dir: where the data set lies.

    Raises:
        ValueError: for an option that the run would not read, or a folder with another run.
    """
    directory = RunDirectory(out / row.name / f"seed-{seed}")
    config = row.configuration(seed, data_dir)
    there = directory.configuration()
    if there is not None:
        here, before = dataclasses.asdict(config), dataclasses.asdict(there)
        for name in here:
            if name != "data_dir" and here[name] != before[name]:
                raise ValueError(
                    f"{directory.path} holds a run with {name} {before[name]}, the table says "
                    f"{here[name]}; name another --out, or remove that folder"
                )
    return Run(row=row, seed=seed, config=config, directory=directory)


def write_report(experiment: Experiment, scale: Scale, out: Path) -> dict[str, Any]:
    """Write results.json and results.md of all runs in a folder that are measured.

    Args:
        experiment: whose runs they are.
        scale: likewise.
        out: the folder.

    Returns:
        The content of results.json.
    """
    rows = experiment.rows(scale)
    found = {row.name: _results(row, scale, out) for row in rows}
    report = {
        "schema": 1,
        "experiment": experiment.name,
        "question": experiment.question,
        "scale": scale.name,
        "measured": scale.measured,
        "versions": versions(),
        "rows": [
            {
                "cure": row.cure,
                "level": row.level,
                "command": " ".join(["der-tf train", *arguments(row.options)]),
                "summary": summarize(found[row.name], found.get(f"{rows[0].cure}-{row.level}", [])),
                "runs": found[row.name],
            }
            for row in rows
            if found[row.name]
        ],
        "not_run": [row.name for row in rows if not found[row.name]],
    }
    write_text(out / "results.json", json.dumps(report, indent=1) + "\n")
    write_text(out / "results.md", f"{experiment.question}\n\n{markdown(report)}")
    return report


def _results(row: Row, scale: Scale, out: Path) -> list[dict[str, Any]]:
    names = (path.name.removeprefix("seed-") for path in out.glob(f"{row.name}/seed-*"))
    seeds = sorted(int(name) for name in names if name.isdecimal())  # no seed-0-old
    results = [planned(row, seed, out).result(scale) for seed in seeds]
    return [result for result in results if result is not None]
