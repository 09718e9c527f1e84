"""The commands to type next, as they work in the shell that this one was typed in."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def after_training(run: Path, exported: str | None) -> list[str]:
    """Two commands: attack the network harder, serve what was exported."""
    lines = [
        "Next:",
        f"  {_here('der-tf')} evaluate {shlex.quote(str(run))} --attacks fgsm,pgd,mim",
    ]
    if exported:
        lines.append(f"  {serve(Path(exported))}")
    return lines


def serve(version: Path) -> str:
    """The command that serves an exported version."""
    model = version.resolve().parent
    return (
        f"{_here('python')} -m serve --model_name={shlex.quote(model.name)} "
        f"--model_base_path={shlex.quote(str(model))}"
    )


def go_on(run: Path, command: str = "train", options: Sequence[str] = ()) -> str:
    """The command that goes on with a run, and the options that the run does not keep."""
    return f"{_here('der-tf')} {shlex.join([command, '--run-dir', str(run), *options])}"


def _here(command: str) -> str:
    """The command's name where the shell finds it, else its path in this environment."""
    own = Path(sys.executable).parent / command
    found = shutil.which(command)
    if found and Path(found).absolute() == own.absolute():
        return command
    cwd = Path.cwd()
    return shlex.quote(str(own.relative_to(cwd) if own.is_relative_to(cwd) else own))
