"""Which epochs are drawn."""

import dataclasses

import pytest

from der_tf.analysis import distributions, read_run
from tests.analysis.run_files import make_run


@pytest.mark.parametrize(
    ("there", "wanted", "drawn"),
    [
        ((1, 2, 3, 4), None, [1, 2, 3, 4]),
        ((1, 2, 4), None, [1, 2, 4]),
        ((4,), None, [4]),
        ((), None, []),
        ((1, 2, 3, 4), [4, 1, 30], [4, 1]),
    ],
)
def test_epochs_are_first_middle_best_and_last_or_those_wanted(there, wanted, drawn, tmp_path):
    make_run(tmp_path / "run")  # its best epoch is the third
    samples = {epoch: {} for epoch in there}
    run = dataclasses.replace(read_run(tmp_path / "run"), samples=samples)
    assert distributions.chosen_epochs(run, wanted) == drawn
