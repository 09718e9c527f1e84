"""The smallest real runs as processes of their own."""

import os
import subprocess
import sys

# As in a user's shell: the tests' own settings would let TensorFlow's messages through.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TF_CPP")}

TINY = [
    "--limit-train=96",
    "--width=4",
    "--batch-size=32",
    "--validation-steps=1",
    "--evaluation-steps=2",
    "--evaluation-restarts=1",
    "--energy-images=16",  # so few training images afford no record of each epoch
]


def command(run_dir, *options):
    """A process that trains; checkpoints after every batch."""
    program = [sys.executable, "-c", "import sys; from der_tf.cli import main; sys.exit(main())"]
    options = ["--no-export", "--checkpoint-minutes=1e-9", *TINY, *options]
    return [*program, "train", "--run-dir", str(run_dir), *options]


def start(run_dir, *options):
    return subprocess.Popen(
        command(run_dir, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
