"""One HTML file about one or several runs, with its pictures inside."""

from __future__ import annotations

import base64
import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path

from der_tf.analysis.runs import Run
from der_tf.evaluation.report import fraction
from der_tf.files import write_text
from der_tf.overfitting import RULES
from der_tf.training.recipes import Configuration

PAPER = (
    "Mirza et al., Understanding Adversarial Training with Energy-based Models, arXiv 2505.22486"
)
# Shown of every run, whether the runs differ in them or not.
ALWAYS = ("dataset", "model", "attack", "epsilon", "objective", "der_weight", "epochs", "seed")

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { border-bottom: 1px solid #ccc; padding: 0.3rem 0.8rem; text-align: left;
         vertical-align: top; }
tr.part th { background: #eee; }
figure { margin: 1rem 0; } img { max-width: 100%; } figcaption { font-size: 0.9rem; }
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, pictures and how to read them.

    Attributes:
        title: text.
        pictures: PNG files with what each shows.
        caption: text.
        notes: sentences about single runs, such as what is missing.
    """

    title: str
    pictures: Sequence[tuple[Path, str]]
    caption: str
    notes: Sequence[str] = ()


def table(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Parts of (title, rows), a row (name, a cell a run): configuration, training, test."""
    return [
        ("configuration", _configuration(runs)),
        ("training", _training(runs)),
        ("test set, evaluation.json", _test(runs)),
    ]


def write_report(path: Path, runs: Sequence[Run], sections: Sequence[Section]) -> None:
    """Write the file, whole or not at all."""
    title = f"Analysis of {', '.join(run.name for run in runs)}"
    body = "\n".join(_section(section) for section in sections)
    write_text(
        path,
        f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style></head>
<body>
<h1>{html.escape(title)}</h1>
<p>Energies of a classifier with logits f(x): E(x) = -log sum exp f(x), E(x, y) = -f(x)[y], both in
nats; dE is the energy of the natural image minus that of its adversarial counterpart x*
({html.escape(PAPER)}). The epoch of best.keras is chosen by robust accuracy on validation images;
the test set is looked at once, with that network.</p>
<div class="wide">{_table(runs)}</div>
<p>{html.escape(RULES)}</p>
{body}
</body>
</html>
""",
    )


def _configuration(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    has_der = any(run.config.der_weight for run in runs)
    names = [field.name for field in dataclasses.fields(Configuration)]
    values = {name: [getattr(run.config, name) for run in runs] for name in names}
    others = [
        name
        for name in names
        if any(value != values[name][0] for value in values[name])
        or (has_der and name.startswith("der_"))
    ]
    return [
        (name.replace("_", " "), [_value(run.config, name) for run in runs])
        for name in dict.fromkeys((*ALWAYS, *others))
    ]


def _training(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    rows: list[tuple[str, list[str]]] = [
        ("epochs done", [str(run.epochs[-1]) for run in runs]),
        ("best epoch", [str(run.epochs[run.best]) for run in runs]),
    ]
    for kind, metric in (("clean", "val_clean_accuracy"), ("PGD", "val_robust_accuracy")):
        rows += [
            (
                f"validation {kind}, best epoch",
                [_percent(run.curve(metric)[run.best]) for run in runs],
            ),
            (f"validation {kind}, last epoch", [_percent(run.curve(metric)[-1]) for run in runs]),
        ]
    gaps = [run.curve("val_robust_accuracy") for run in runs]
    rows.append(("PGD, best minus last", [f"{100 * (g.max() - g[-1]):.2f} points" for g in gaps]))
    rows.append(("verdict", [run.verdict() for run in runs]))
    rows.append(("energies from", [_source(run) for run in runs]))
    return rows


def _source(run: Run) -> str:
    """The file of the run's energies over training."""
    means, samples = "metrics.csv (means over the training batches)", "energies.csv (fixed samples)"
    if not run.energies:
        return means
    if run.every_epoch_recorded:
        return samples
    return f"{samples}, which lacks epochs; for the verdict {means}"


def _test(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    images = [f"{run.tested.images:,}" if run.tested else "not measured" for run in runs]
    found = [run.tested.accuracies if run.tested else {} for run in runs]
    names = dict.fromkeys(["clean", *(name for accuracies in found for name in accuracies)])
    return [
        ("images", images),
        *((name, [_share(*of[name]) if name in of else "" for of in found]) for name in names),
    ]


def _value(config: Configuration, name: str) -> str:
    value = getattr(config, name)
    if name.startswith("der_") and name != "der_weight" and not config.der_weight:
        return ""  # the run has not read it
    if name == "epsilon":
        return fraction(value)
    return "default" if value is None else str(value)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _share(accuracy: float, low: float, high: float) -> str:
    return f"{_percent(accuracy)} ({100 * low:.2f} – {100 * high:.2f} %)"


def _table(runs: Sequence[Run]) -> str:
    head = "".join(f"<th>{html.escape(run.name)}</th>" for run in runs)
    lines = [f"<tr><th></th>{head}</tr>"]
    for title, rows in table(runs):
        lines.append(
            f'<tr class="part"><th colspan="{len(runs) + 1}">{html.escape(title)}</th></tr>'
        )
        for name, cells in rows:
            columns = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            lines.append(f"<tr><th>{html.escape(name)}</th>{columns}</tr>")
    return f"<table>\n{chr(10).join(lines)}\n</table>"


def _section(section: Section) -> str:
    pictures = "\n".join(
        f'<figure><img alt="{html.escape(what)}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}"><figcaption>{html.escape(what)}'
        "</figcaption></figure>"
        for path, what in section.pictures
    )
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in section.notes)
    caption = f"<p>{html.escape(section.caption)}</p>{notes}"
    return f"<h2>{html.escape(section.title)}</h2>\n{pictures}\n{caption}"
