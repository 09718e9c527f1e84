"""The commands of ``der-tf``, one file each.

Nothing here imports TensorFlow before a command has its arguments: ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import cyclopts

from der_tf import __version__
from der_tf.cli.console import UsageError, show_error
from der_tf.training.faults import Interrupted

app = cyclopts.App(
    name="der-tf",
    help="Adversarial training for Keras and TensorFlow seen through energies.",
    version=__version__,
    result_action="return_value",
)
app.command("der_tf.cli.train:train", name="train", help="Train a robust classifier.")
app.command(
    "der_tf.cli.train_denoiser:train_denoiser",
    name="train-denoiser",
    help="Train the diffusion prior of the attack diff_pgd.",
)
app.command("der_tf.cli.evaluate:evaluate", name="evaluate", help="Attack a trained classifier.")
app.command("der_tf.cli.analyze:analyze", name="analyze", help="Figures and a report of runs.")
app.command("der_tf.cli.generate:generate", name="generate", help="Draw images of classes.")
app.command("der_tf.cli.export:export", name="export", help="Write a SavedModel to serve.")
app.command("der_tf.cli.reproduce:reproduce", name="reproduce", help="Repeat an experiment.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0 done, 1 failed at work, 2 unusable arguments, 128 + n stopped by signal
        n (143 for SIGTERM) with the state saved. An error is one line on stderr; ``--debug`` adds
        the traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        app(arguments, print_error=False, exit_on_error=False, verbose=False)
        return 0
    except cyclopts.UnusedCliTokensError as error:
        extra = ", ".join(map(repr, error.unused_tokens or []))
        refused = UsageError(f"received {extra}, which no option takes; --help lists what is taken")
        return show_error(refused.with_traceback(error.__traceback__), debug, status=2)
    except (cyclopts.CycloptsError, UsageError) as error:
        return show_error(error, debug, status=2)
    except Interrupted as error:
        return show_error(error, debug, status=128 + error.signal_number)
    except KeyboardInterrupt as error:
        return show_error(error, debug, status=130)
    except Exception as error:  # whatever went wrong at work, it is one line
        return show_error(error, debug, status=1)
