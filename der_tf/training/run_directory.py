"""The folder of a run: what lies where, and whose it is. Needs no TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from der_tf.files import locked, partial, write_text
from der_tf.training.denoiser_configuration import DenoiserConfiguration
from der_tf.training.recipes import Configuration, option, resolve

C = TypeVar("C", Configuration, DenoiserConfiguration)

_PACKAGES = ("der-tf", "tensorflow", "keras", "numpy", "tensorflow-datasets", "cleverhans")


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """Paths of a run; nothing is made until it is written to."""

    path: Path

    @property
    def config(self) -> Path:
        """Everything needed to repeat the run."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """A row an epoch; the columns are the metrics' names."""
        return self.path / "metrics.csv"

    @property
    def energies_table(self) -> Path:
        """Energies of fixed samples over the training: means, deviations, quantiles."""
        return self.path / "energies.csv"

    @property
    def energies(self) -> Path:
        """The same of every sample, a file an epoch."""
        return self.path / "energies"

    @property
    def alarms(self) -> Path:
        """A row for each time that overfitting was noticed; it exists once there was one."""
        return self.path / "alarms.csv"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """States to go on from."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """The network of the epoch with the highest validation robust accuracy."""
        return self.path / "best.keras"

    @property
    def last(self) -> Path:
        """The network of the last epoch; it exists when training is finished."""
        return self.path / "last.keras"

    @property
    def swa(self) -> Path:
        """The network with the mean weights of epoch ends, for a run with ``--swa-start``."""
        return self.path / "swa.keras"

    @property
    def denoiser(self) -> Path:
        """The network of ``der-tf train-denoiser``, with averaged weights, of the last epoch."""
        return self.path / "denoiser.keras"

    @property
    def evaluation(self) -> Path:
        """Test accuracies of the best network, and of that of SWA."""
        return self.path / "evaluation.json"

    @property
    def figures(self) -> Path:
        """Pictures."""
        return self.path / "figures"

    def configuration(self) -> Configuration | None:
        """The configuration of the run that lies here; None when none does.

        Raises:
            ValueError: when config.json cannot be understood, or is missing where states lie.
        """
        record = self.record()
        if record is None:
            self.require_config()
            return None
        try:
            return Configuration.from_dict(record["configuration"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{self.config} is not a configuration of this version: {error}"
            ) from None

    def record(self) -> dict[str, Any] | None:
        """The content of config.json; None when there is none."""
        try:
            return json.loads(self.config.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.config} cannot be read: {error}") from None

    def require_config(self) -> None:
        """ValueError when there are states to go on from, and no config.json says what of."""
        if self._has_states() and not self.config.exists():
            raise ValueError(
                f"{self.checkpoints} holds states of a run, but {self.config}, which says of what "
                "run, is missing; put it back, or begin another run elsewhere or with --no-resume"
            )

    def _has_states(self) -> bool:
        return any(self.checkpoints.glob("*"))

    def tested(self) -> dict[str, Any] | None:
        """The content of evaluation.json; None when there is none.

        Raises:
            ValueError: when it cannot be read, or has not what every run's has.
        """
        try:
            report = json.loads(self.evaluation.read_text(encoding="utf-8"))
            for name in ("images", "natural", "attacks"):
                report[name]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except KeyError as error:
            raise ValueError(f"{self.evaluation} cannot be read: it has no {error}") from None
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{self.evaluation} cannot be read: {error}") from None
        return report

    def write_record(
        self,
        configuration: Configuration | DenoiserConfiguration,
        arguments: list[str],
        class_names: Sequence[str],
    ) -> None:
        """Write config.json."""
        record = {
            "schema": 1,
            "arguments": arguments,
            "configuration": dataclasses.asdict(configuration),
            "seed": configuration.seed,
            "class_names": list(class_names),
            "versions": versions(),
            "processor": processor(),
            "git_commit": git_commit(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        write_text(self.config, json.dumps(record, indent=2) + "\n")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and keep other processes from training in it meanwhile.

        What a killed process left half written is removed, and at the end the folder itself if
        it is still empty.

        Raises:
            ValueError: when it cannot be made or written to, or another process holds it.
        """
        with contextlib.ExitStack() as lock:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                if not os.access(self.path, os.W_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                lock.enter_context(locked(self.path))
            except BlockingIOError:
                raise ValueError(f"another process is training in {self.path}") from None
            except OSError as error:
                raise ValueError(
                    f"--run-dir is a folder to write to; received {self.path}: {error.strerror}"
                ) from error
            try:
                for leftover in self.path.glob(partial("*")):
                    leftover.unlink()
                yield
            finally:
                with contextlib.suppress(OSError):
                    self.path.rmdir()

    def set_aside(self) -> Path | None:
        """Rename the folder, if it holds a run, so that another can take its name.

        The caller holds the folder, for a process that trains in it would go on writing to this
        path, and then the new one: the lock goes along with the old one.
        """
        if not (self.config.exists() or self._has_states()):
            return None
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        old = self.path.with_name(f"{self.path.name}-before-{stamp}")
        self.path.rename(old)
        return old


def default_path(configuration: Configuration | DenoiserConfiguration) -> Path:
    """``runs/DATASET-ATTACK-TIME``, of a denoiser ``runs/DATASET-denoiser-TIME``."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{configuration.name}-{stamp}"


def configure(given: Mapping[str, Any], directory: RunDirectory | None) -> Configuration:
    """The configuration of a new run, or that of the run to go on with.

    Args:
        given: options set by hand; None: not set. For a run to go on with, these must agree with
            its own but for the place of the data, and the others are taken from it.
        directory: where a run may lie already.

    Raises:
        ValueError: when an option disagrees with the run, or does not go with the others.
    """
    stored = directory.configuration() if directory else None
    if stored is None:
        return resolve(given)
    return agreed(given, stored, directory.path)  # type: ignore[union-attr]


def agreed(given: Mapping[str, Any], stored: C, path: Path) -> C:
    """The configuration of the run in a folder, with the data where they are said to lie now.

    Raises:
        ValueError: when an option set by hand disagrees with those of the run.
    """
    for name, value in given.items():
        # The same data may have moved; only of a folder is the place all that says what they are.
        is_free = name == "data_dir" and stored.dataset != "folder"
        if value is not None and value != getattr(stored, name) and not is_free:
            raise ValueError(
                f"{path} holds a run with {option(name)} {getattr(stored, name)}, received "
                f"{option(name)} {value}; name another --run-dir, or --no-resume to set that run "
                "aside"
            )
    return dataclasses.replace(stored, data_dir=given.get("data_dir") or stored.data_dir)


def versions() -> dict[str, str]:
    """Of Python and the packages that decide a result, and the processors that share the sums."""
    found = {"python": platform.python_version(), "cpus": str(len(os.sched_getaffinity(0)))}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def git_commit() -> str | None:
    """Commit of this package's checkout, with ``-dirty`` for uncommitted changes; None outside."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    command += ["--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
