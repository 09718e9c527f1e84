"""Several workers under ``TF_CONFIG``; needs no TensorFlow."""

from __future__ import annotations

import json
import os


def several() -> bool:
    """Whether this process is one of the workers that TF_CONFIG names."""
    return "TF_CONFIG" in os.environ


def is_chief() -> bool:
    """Whether this process writes the run directory: the chief, or worker 0 where there is none.

    Raises:
        ValueError: when TF_CONFIG is no cluster with a task.
    """
    if not several():
        return True
    try:
        config = json.loads(os.environ["TF_CONFIG"])
        task, cluster = config["task"], config["cluster"]
        return task["type"] == "chief" or (
            "chief" not in cluster and task["type"] == "worker" and int(task["index"]) == 0
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            'TF_CONFIG is JSON with "cluster" and "task"; received '
            f"{os.environ['TF_CONFIG']!r} ({error})"
        ) from None
