"""Arguments: help at once, clear refusals, no TensorFlow before there is work."""

import dataclasses
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import cyclopts
import pytest

from der_tf import attacks, objectives
from der_tf.cli import app, console, main, next_steps
from der_tf.cli.defense_options import DefenseOptions
from der_tf.cli.train_options import TrainOptions
from der_tf.defenses import EnergyDescent
from der_tf.training.recipes import RECIPES, Configuration

COMMANDS = (
    "train",
    "train-denoiser",
    "evaluate",
    "analyze",
    "generate",
    "export",
    "reproduce",
)


def parsed(*arguments):
    _, bound, _ = app.parse_args(["train", *arguments], print_error=False, exit_on_error=False)
    return bound.arguments.get("options", TrainOptions())


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_comes_at_once_and_without_tensorflow(command):
    code = (
        "import sys; from der_tf.cli import main; status = main([*sys.argv[1:], '--help']); "
        "sys.exit(status or 'tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert b"Usage: der-tf" in done.stdout
    # Processor time, which does not depend on what else the machine does.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_its_default(command):
    arguments = app[command].assemble_argument_collection()
    shown = [argument for argument in arguments if argument.show]
    assert len(shown) > 5
    for argument in shown:
        if argument.name.startswith("--"):
            assert "Default:" in argument.parameter.help, argument.name


def test_every_field_of_a_configuration_is_an_option():
    options = {field.name for field in dataclasses.fields(TrainOptions)}
    assert {field.name for field in dataclasses.fields(Configuration)} <= options


def test_options_of_the_defence_say_its_defaults():
    shown = {a.name: a.parameter.help for a in app["export"].assemble_argument_collection()}
    for field in dataclasses.fields(EnergyDescent):
        assert shown[f"--defense-{field.name.replace('_', '-')}"].endswith(
            f"Default: {field.default}."
        )
    assert DefenseOptions(defense_steps=3, defense_radius=0.2).build() == EnergyDescent(
        steps=3, radius=0.2
    )


def test_help_names_the_recipes_and_what_the_library_knows():
    helps = {a.name: a for a in app["train"].assemble_argument_collection()}
    recipes = helps["--recipe"]
    assert recipes.hint.__args__[0].__args__ == tuple(RECIPES)
    for name in ("fgsm", "rs_fgsm", "n_fgsm", "pgd", "mim", "trades"):
        assert name in attacks.names()
        assert name in helps["--attack"].parameter.help
    for name in objectives.names():
        assert name in helps["--objective"].parameter.help


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), ("0.031", 0.031), ("1e-3", 1e-3), ("0", 0.0)]
)
def test_radii_are_fractions_or_decimals(text, value):
    assert parsed("--epsilon", text).epsilon == value


def test_the_cures_are_options():
    options = parsed(
        *["--grad-align-weight", "0.2", "--grad-align-full-gradient"],
        *["--aaer-weight", "1", "--aaer-loss", "2"],
        *["--aaer-logits", "3", "--aaer-full-gradient", "--aaer-warmup-epochs", "4"],
        *["--awp-gamma", "0.005", "--awp-warmup-epochs", "10"],
        *["--swa-start", "5", "--early-stopping", "6"],
    )
    assert (options.grad_align_weight, options.aaer_weight) == (0.2, 1)
    assert (options.aaer_loss, options.aaer_logits, options.aaer_warmup_epochs) == (2, 3, 4)
    assert options.aaer_full_gradient is options.grad_align_full_gradient is True
    assert (options.awp_gamma, options.awp_warmup_epochs) == (0.005, 10)
    assert (options.swa_start, options.early_stopping) == (5, 6)


def test_options_reach_the_configuration():
    options = parsed(
        "--milestones", "0.3", "0.6", "--ema", "0.999", "--mixed-precision", "--der-weight", "0"
    )
    assert options.milestones == (0.3, 0.6)
    assert (options.ema, options.mixed_precision, options.der_weight) == (0.999, True, 0.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--epsilon", "x"], ["--epsilon", "'x'", "8/255"]),
        (["train", "--epsilon", "8"], ["received 8", "8/255"]),
        (["train", "--epsilon", "1/0"], ["'1/0'"]),
        (["train", "--epochs", "0"], ["--epochs", "0", ">= 1"]),
        (["train", "--der-penalty", "cubic"], ["cubic", "squared", "huber"]),
        (["train", "--steps", "5"], ["--steps", "rs_fgsm takes one step", "received 5"]),
        (["train", "--speed", "9"], ["--speed"]),
        (["train", "--seed", "2147483648"], ["--seed", "2147483648", "< 2147483648"]),
        (["train", "--model-name", "../there"], ["--model-name", "'../there'", "one folder"]),
        (["train", "--model-name", ""], ["--model-name", "''", "one folder"]),
        (["export", "run", "--model-name", ".."], ["--model-name", "'..'", "one folder"]),
        (["train", "stray"], ["received 'stray'", "--help"]),
        (["export", "run", "x", "y"], ["received 'x', 'y'"]),
        (["train", "--seed", "1.7"], ["--seed", "received '1.7'", "whole numbers"]),
        (["train", "--width", "3.9"], ["--width", "received '3.9'", "whole numbers"]),
        (["train", "--epochs", "0.5"], ["--epochs", "received '0.5'", "whole numbers"]),
        (["fit"], ["fit", "train"]),
        (["evaluate"], ["RUN_OR_MODEL"]),
    ],
)
def test_unusable_arguments_are_one_line_and_status_2(arguments, words, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("der-tf: ")
    for word in words:
        assert word.lower() in err.lower()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nothing"])
def test_a_run_directory_that_cannot_be_made_is_named(place, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["train", "--run-dir", str(tmp_path / place)]) == 2
    assert "--run-dir is a folder to write to; received" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unexpected_failure_is_one_line_and_status_1(capsys):
    assert console.show_error(TypeError("two\nlines"), debug=False, status=1) == 1
    err = capsys.readouterr().err
    assert err == "der-tf: TypeError: two lines (--debug shows where)\n"


def test_debug_shows_the_traceback(capsys):
    try:
        raise cyclopts.CycloptsError(msg="here")
    except cyclopts.CycloptsError as error:
        console.show_error(error, debug=True, status=2)
    assert "Traceback" in capsys.readouterr().err


def test_commands_to_type_next_exist():
    lines = next_steps.after_training(Path("runs/my run"), "saved_models/m/3")
    assert lines[1].endswith("evaluate 'runs/my run' --attacks fgsm,pgd,mim")
    assert "-m serve --model_name=m --model_base_path=" in lines[2]
    options = ["--no-export", "--export-dir=my models"]
    line = next_steps.go_on(Path("runs/my run"), options=options)
    assert shlex.split(line)[1:] == ["train", "--run-dir", "runs/my run", *options]
    program = lines[1].split()[0]
    assert program == "der-tf" or Path(program).exists()
