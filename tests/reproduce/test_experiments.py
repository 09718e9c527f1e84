"""The tables of settings: every row is a run that reads all its options."""

import pytest

from der_tf.cli import app
from der_tf.cli.train_options import TrainOptions
from der_tf.reproduce.experiments import EXPERIMENTS
from der_tf.reproduce.results import planned
from der_tf.training import run
from der_tf.training.recipes import DER, arguments

SCALES = [
    pytest.param(experiment, scale, id=f"{experiment.name}-{name}")
    for experiment in EXPERIMENTS.values()
    for name, scale in experiment.scales.items()
]


@pytest.mark.parametrize(("experiment", "scale"), SCALES)
def test_every_row_is_the_run_that_its_command_trains(experiment, scale):
    for row in experiment.rows(scale):
        config = row.configuration(seed=2)
        typed = ["train", *arguments(row.options), "--seed=2"]
        _, bound, _ = app.parse_args(typed, print_error=False, exit_on_error=False)
        options: TrainOptions = bound.arguments["options"]
        for name, value in row.options.items():
            assert getattr(options, name) == pytest.approx(value)
            assert getattr(config, name) == pytest.approx(value)
        assert (config.seed, config.epsilon) == (2, pytest.approx(row.level / 255))


@pytest.mark.parametrize(("experiment", "scale"), SCALES)
def test_rows_differ_from_each_other_and_can_be_built(experiment, scale):
    rows = experiment.rows(scale)
    assert len({row.name for row in rows}) == len(rows)
    configurations = [row.configuration(0) for row in rows]
    assert all(a != b for i, a in enumerate(configurations) for b in configurations[:i])
    for config in configurations:
        # Names and values that attacks, objectives and regularizers refuse raise here.
        run.training_attack(config)
        run.outer_objective(config)
        run.regularizers(config, steps_per_epoch=10)


def test_the_cures_of_catastrophic_overfitting_are_what_they_are_called():
    experiment = EXPERIMENTS["catastrophic-overfitting"]
    rows = experiment.rows(experiment.scales["full"])
    configs = {row.name: row.configuration(0) for row in rows}
    assert run.regularizers(configs["none-16"], 1) == []
    assert configs["der-8"].der_weight == DER["rs_fgsm"]["der_weight"]
    assert configs["der-16"].der_weight > configs["der-8"].der_weight
    assert configs["n-fgsm-der-30-8"].der_weight == DER["n_fgsm"]["der_weight"]
    assert configs["grad-align-8"].grad_align_weight == 0.2
    assert configs["grad-align-16"].grad_align_weight == 2.0
    assert configs["pgd-5-16"].schedule == configs["none-16"].schedule == "cyclic"


def test_only_selects_rows_by_name_and_pattern():
    experiment = EXPERIMENTS["catastrophic-overfitting"]
    small = experiment.scales["small"]
    names = [row.name for row in experiment.rows(small, ["none-*", "der-squared-16"])]
    assert names == ["none-8", "none-16", "der-squared-16", "none-24"]
    with pytest.raises(ValueError, match=r"--only names rows .* none-8, .*; received wrong"):
        experiment.rows(small, ["none-8", "wrong"])


def test_a_folder_with_a_run_of_other_settings_is_refused(tmp_path):
    experiment = EXPERIMENTS["der-ablation"]
    before, now = experiment.rows(experiment.scales["small"], ["weight-3-8", "weight-10-8"])
    run_ = planned(before, 0, tmp_path)
    run_.directory.path.mkdir(parents=True)
    run_.directory.write_record(run_.config, [], ["a", "b"])
    assert planned(before, 0, tmp_path, data_dir="elsewhere").config.data_dir == "elsewhere"
    run_.directory.path.parent.rename(tmp_path / now.name)
    with pytest.raises(ValueError, match=r"holds a run with der_weight 3.0, the table says 10.0"):
        planned(now, 0, tmp_path)
