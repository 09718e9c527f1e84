"""The recipes' published numbers, and how options, data sets and recipes fill in a run."""

import dataclasses
import subprocess
import sys

import pytest

from der_tf import objectives
from der_tf.regularizers import AbnormalExamples, DeltaEnergy, GradAlign
from der_tf.training import run
from der_tf.training.recipes import DER, RECIPES, SINGLE_STEP, Configuration, resolve


def cifar(**given):
    return resolve({"dataset": "cifar10", **given})


PUBLISHED = [
    ("rs_fgsm", 30, "cyclic", 0.2, 5e-4, 10 / 255, 1, True, objectives.Madry),
    ("n_fgsm", 30, "cyclic", 0.2, 5e-4, 8 / 255, 1, True, objectives.Madry),
    ("fgsm", 30, "cyclic", 0.2, 5e-4, 8 / 255, 1, True, objectives.Madry),
    ("grad_align", 30, "cyclic", 0.3, 5e-4, 8 / 255, 1, True, objectives.Madry),
    ("aaer", 30, "cyclic", 0.2, 5e-4, 8 / 255, 1, True, objectives.Madry),
    ("pgd", 200, "piecewise", 0.1, 5e-4, 2 / 255, 10, True, objectives.Madry),
    ("trades", 100, "piecewise", 0.1, 2e-4, 0.007, 10, False, objectives.TRADES),
    ("weat", 100, "one_cycle", 0.1, 5e-4, 0.007, 10, False, objectives.WEAT),
]


@pytest.mark.parametrize(
    ("recipe", "epochs", "schedule", "rate", "decay", "step", "steps", "train_mode", "objective"),
    PUBLISHED,
)
def test_recipes_are_the_published_ones(
    recipe, epochs, schedule, rate, decay, step, steps, train_mode, objective
):
    config = cifar(recipe=recipe)
    assert (config.epochs, config.schedule, config.learning_rate) == (epochs, schedule, rate)
    assert (config.batch_size, config.momentum, config.weight_decay) == (128, 0.9, decay)
    attack = run.training_attack(config)
    assert attack.epsilon == 8 / 255
    assert attack._step_size == pytest.approx(step)
    assert attack.gradients == steps
    assert attack.training is train_mode
    assert type(run.outer_objective(config)) is objective


def test_the_numbers_of_every_recipe_are_checked():
    assert {recipe for recipe, *_ in PUBLISHED} == set(RECIPES)


def test_weat_weights_trades():
    objective = run.outer_objective(cifar(recipe="weat", beta=3.0, label_smoothing=0.1))
    assert (objective.objective.beta, objective.objective.label_smoothing) == (3.0, 0.1)


def test_another_objective_has_the_beta_of_its_paper():
    assert run.outer_objective(cifar(recipe="trades")).beta == 6.0
    assert run.outer_objective(cifar(recipe="trades", objective="mart")).beta == 5.0
    assert run.outer_objective(cifar(recipe="trades", objective="mart", beta=7.0)).beta == 7.0


def test_der_is_on_for_single_step_attacks_alone():
    assert set(DER) == {*SINGLE_STEP, "other"}
    for attack in SINGLE_STEP:
        assert cifar(attack=attack).der_weight > 0
    assert cifar(attack="pgd").der_weight == 0
    assert cifar(der_weight=0.0).der_weight == 0
    assert run.regularizers(cifar(der_weight=0.0), 10) == []


def test_der_is_heavier_at_the_large_radii_of_cifar_alone():
    def weight(**given):
        return resolve({"dataset": "cifar10", "attack": "rs_fgsm", **given}).der_weight

    usual = weight()
    assert weight(epsilon=16 / 255) > usual == weight(epsilon=10 / 255)
    assert weight(epsilon=16 / 255, attack="fgsm") == weight(epsilon=24 / 255)
    assert weight(epsilon=16 / 255, attack="n_fgsm") == usual
    assert weight(norm="l2", epsilon=1.0) == usual  # another ball
    assert weight(dataset="digits", epsilon=0.2) == usual
    assert weight(epsilon=16 / 255, attack="pgd") == 0
    assert weight(epsilon=16 / 255, attack="n_fgsm", recipe="aaer") == 0
    assert weight(epsilon=16 / 255, der_weight=1.0) == 1


@pytest.mark.parametrize(
    ("given", "epochs"),
    [
        ({}, 0.8),
        ({"limit_train": 10_000}, 4),
        ({"limit_train": 1_000, "epochs": 8}, 4),  # half of the training
        ({"der_weight": 100.0}, 0),
        ({"der_warmup_epochs": 2.0}, 2),
        ({"epsilon": 8 / 255}, 0),
        ({"der_weight": 0.0}, 0),
        ({"grad_align_weight": 0.2}, 0),
    ],
)
def test_the_heavier_weight_is_warmed_up_over_so_many_images(given, epochs):
    given = {"dataset": "cifar10", "attack": "rs_fgsm", "epsilon": 16 / 255, **given}
    assert resolve(given).der_warmup_epochs == epochs


def test_der_of_a_run_is_what_its_options_say():
    given = {"der_weight": 2.0, "der_penalty": "huber", "der_warmup_epochs": 1.5}
    config = cifar(attack="pgd", der_reference="start", der_interval=3, **given)
    (regularizer,) = run.regularizers(config, steps_per_epoch=10)
    expected = {"penalty": "huber", "reference": "start", "warmup_steps": 15, "interval": 3}
    assert regularizer == DeltaEnergy(2.0, **expected)


def test_der_turned_on_by_its_weight_alone_has_the_form_that_suits_the_attack():
    forms = {
        attack: run.regularizers(cifar(attack=attack, der_weight=3.0), 10)[0]
        for attack in ("n_fgsm", "pgd")
    }
    assert forms["n_fgsm"] == DeltaEnergy(3.0, penalty="hinge", reference="start")
    assert forms["pgd"] == DeltaEnergy(3.0, penalty="squared", reference="natural")


def test_the_baselines_have_their_own_regularizer_and_no_der():
    assert run.regularizers(cifar(recipe="grad_align"), 10) == [GradAlign(0.2)]
    (aaer,) = run.regularizers(cifar(recipe="aaer"), 10)
    assert aaer == AbnormalExamples(1.0, loss=1.5, logits=0.15)
    assert cifar(recipe="grad_align").attack == "fgsm"
    assert cifar(recipe="aaer").attack == "n_fgsm"
    given = {"aaer_weight": 2.0, "aaer_loss": 3.0, "aaer_logits": 0.5, "aaer_full_gradient": True}
    given["aaer_warmup_epochs"] = 5
    (aaer,) = run.regularizers(cifar(attack="rs_fgsm", **given), 10)
    weights = {"loss": 3.0, "logits": 0.5}
    assert aaer == AbnormalExamples(2.0, **weights, full_gradient=True, warmup_steps=50)
    (full,) = run.regularizers(cifar(recipe="grad_align", grad_align_full_gradient=True), 10)
    assert full == GradAlign(0.2, full_gradient=True)
    both = cifar(attack="pgd", der_weight=1.0, grad_align_weight=0.1)
    assert len(run.regularizers(both, 10)) == 2


@pytest.mark.parametrize(
    ("given", "grad_align", "aaer"),
    [
        ({}, 0.2, (1.5, 0.15)),
        ({"epsilon": 4 / 255}, 0.063, (1.5, 0.15)),
        ({"epsilon": 12 / 255}, 0.632, (5.0, 0.55)),
        ({"epsilon": 16 / 255}, 2.0, (8.5, 1.5)),
        ({"epsilon": 24 / 255}, 2.0, (8.5, 1.5)),
        ({"epsilon": 32 / 255}, 2.0, (3.5, 0.7)),
        ({"norm": "l2"}, 0.2, (1.5, 0.15)),
        ({"dataset": "digits"}, 0.2, (1.5, 0.15)),
    ],
)
def test_the_baselines_have_their_authors_weights_at_each_radius(given, grad_align, aaer):
    assert cifar(recipe="grad_align", **given).grad_align_weight == grad_align
    config = cifar(recipe="aaer", **given)
    assert (config.aaer_loss, config.aaer_logits) == aaer


def test_the_weights_of_aaer_follow_the_attack():
    config = cifar(attack="rs_fgsm", aaer_weight=1.0, epsilon=16 / 255)
    assert (config.aaer_loss, config.aaer_logits) == (7.0, 3.25)
    assert cifar(attack="pgd", aaer_weight=1.0).aaer_loss == AbnormalExamples().loss
    assert cifar(recipe="aaer", aaer_loss=3.0).aaer_loss == 3


def test_what_is_given_wins_over_data_set_over_recipe():
    assert resolve({}).epochs == 30
    assert resolve({"attack": "pgd"}).epochs == resolve({}).epochs < RECIPES["pgd"]["epochs"]
    assert resolve({"attack": "pgd", "epochs": 7}).epochs == 7
    assert cifar(attack="mim").recipe == "pgd"
    assert cifar(attack="mim", recipe="trades").weight_decay == 2e-4
    assert resolve({"dataset": "svhn_cropped"}).model == "preact_resnet18"


def test_the_l2_ball_has_its_own_default_radius():
    assert cifar(norm="l2").epsilon == 128 / 255
    assert cifar(norm="l2", epsilon=0.25).epsilon == 0.25


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 3}, "--steps belongs to multi-step attacks"),
        ({"attack": "fgsm", "step_size": 0.1}, "--step-size belongs to other attacks"),
        ({"beta": 6.0}, "--beta belongs to the objectives trades, mart and weat"),
        ({"milestones": (0.5,)}, "--milestones belongs to --schedule piecewise"),
        ({"attack": "pgd", "der_penalty": "huber"}, "--der-penalty belongs to DER, which is off"),
        ({"grad_align_full_gradient": True}, "--grad-align-full-gradient belongs to GradAlign"),
        ({"aaer_loss": 1.0}, "--aaer-loss belongs to AAER, which is off"),
        ({"awp_warmup_epochs": 1.0}, "--awp-warmup-epochs belongs to AWP, which is off"),
        ({"epochs": 3, "swa_start": 4}, "--swa-start is an epoch of the run, 1 to 3; received 4"),
        ({"epsilon": 8.0}, r"received 8 \(did you mean 8/255"),
        ({"recipe": "fast"}, "a recipe is one of rs_fgsm, .*; received 'fast'"),
    ],
)
def test_refuses_options_that_the_run_would_not_read(given, message):
    with pytest.raises(ValueError, match=message):
        resolve(given)


def test_a_configuration_survives_json():
    config = cifar(attack="trades")
    stored = dataclasses.asdict(config) | {"milestones": list(config.milestones)}
    assert Configuration.from_dict(stored) == config


def test_needs_no_tensorflow():
    code = "import der_tf.training.recipes, der_tf.training.run_directory, sys; "
    code += "sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_run_from_before_there_were_monitors_goes_on_without():
    config = resolve({"epochs": 3})
    stored = dataclasses.asdict(config)
    for name in ("energy_images", "energy_every", "overfitting_guard"):
        del stored[name]
    without = dataclasses.replace(config, energy_images=0, overfitting_guard="off")
    assert Configuration.from_dict(stored) == without
    with pytest.raises(ValueError, match=r"--energy-every belongs to the energies.*received 5"):
        resolve({"energy_images": 0, "energy_every": 5})


@pytest.mark.parametrize(("recipe", "full"), [("grad_align", True), ("rs_fgsm", False)])
def test_runs_of_grad_align_before_the_option_go_on_with_both_gradients(recipe, full):
    stored = dataclasses.asdict(cifar(recipe=recipe))
    del stored["grad_align_full_gradient"]
    assert Configuration.from_dict(stored).grad_align_full_gradient is full
