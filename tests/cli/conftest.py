"""A finished run for the tests that look at what one leaves."""

from pathlib import Path

import pytest

from der_tf.cli import main
from tests.cli.small_runs import TINY


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of two epochs with its export beside it."""
    place = tmp_path_factory.mktemp("finished")
    options = ["--run-dir", str(place / "run"), "--export-dir", str(place / "models")]
    assert main(["train", *TINY, "--epochs=2", "--ema=0.9", *options]) == 0
    return place
