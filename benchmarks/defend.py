"""Does moving images down their energy help a classifier? Tuned on validation, judged on test.

    python benchmarks/defend.py MODEL.keras --dataset cifar10 --data-dir ~/tfds \
        --machine "1 thread of a 2-core CPU"

MODEL is a robust classifier, undefended. Each setting of :data:`GRID` is attacked on the same
validation images by PGD through the transformation (adaptive) and with its backward pass as the
identity (BPDA); the one with most images right in the worst case is judged once on test images,
under those and under the plain attack on the undefended model.
Writes ``benchmarks/results/defend.json`` (after each setting: the same command goes on where it was
stopped) and the table between the markers of ``docs/defense.md``; without a model, the table from
the file.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from fractions import Fraction
from pathlib import Path

from pages import fill

from der_tf.files import write_text

ROOT = Path(__file__).parents[1]
STORE = ROOT / "benchmarks" / "results" / "defend.json"
PAGE = ROOT / "docs" / "defense.md"
# Step size, radius, steps. Of one step the radius, as published twice the step, is not reached.
GRID = (
    (0.03125, 0.0625, 1),
    (0.0625, 0.125, 1),
    (0.125, 0.25, 1),
    (0.25, 0.5, 1),
    (0.5, 1.0, 1),
    (1.0, 2.0, 1),
    (0.125, 0.25, 4),
    (0.125, 0.5, 4),
    (0.25, 1.0, 4),
)


def measure(model, defense, images, labels, attacks, options) -> dict:
    """Accuracies of the model with and without the defence, natural and under each attack."""
    import numpy as np

    from der_tf.evaluation import evaluate, evaluate_defense, wilson_interval
    from der_tf.evaluation.defended import VIEWS

    def share(right) -> dict:
        right = np.asarray(right)
        return {
            "accuracy": float(right.mean()),
            "interval": wilson_interval(int(right.sum()), len(right)),
        }

    began = time.perf_counter()
    common = {
        "attacks": attacks,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "progress": lambda name, done, total, _: print(
            f"    {name}: {done} of {total}, {time.perf_counter() - began:.0f} s", flush=True
        ),
    }
    if defense is None:
        result = evaluate(model, images, labels, **common)
        found = {name: attack.success for name, attack in result.attacks.items()}
    else:
        result = evaluate_defense(model, defense, images, labels, **common)
        found = {
            f"{name}, {VIEWS[view]}": attack.success
            for view, evaluation in result.views.items()
            for name, attack in evaluation.attacks.items()
        }
    return {
        "natural": share(result.natural.correct),
        **{name: share(~success) for name, success in found.items()},
        "worst case": share(~result.worst_case_success),
    }


def drawn(data, part: str, count: int, seed: int):
    """So many images of a part of the data set, drawn by the seed."""
    import numpy as np

    x, y = (np.concatenate(a) for a in zip(*getattr(data, part).as_numpy_iterator(), strict=True))
    rows = np.sort(np.random.default_rng(seed).choice(len(x), count, replace=False))
    return x[rows], y[rows]


def run(options: argparse.Namespace) -> dict:
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras
    import tensorflow as tf

    from der_tf import attacks, data
    from der_tf.defenses import EnergyDescent
    from der_tf.evaluation.loading import load_classifier

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model = load_classifier(Path(options.model)).model
    loaded = data.load(
        options.dataset, data_dir=options.data_dir, batch_size=options.batch_size, augment=False
    )

    def attack(name, steps):
        return attacks.get(name, epsilon=options.epsilon, steps=steps)

    about = {
        "command": f"python benchmarks/defend.py MODEL.keras --dataset {options.dataset}",
        "model": options.description,
        "machine": options.machine,
        "seed": options.seed,
        "epsilon": options.epsilon,
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
        "tuning": {"images": options.tune_examples, "split": "validation", "steps": 10},
    }
    record = json.loads(STORE.read_text()) if STORE.exists() else {}
    if {name: record.get(name) for name in about} == about:
        known = ("undefended", "settings")
        record = {**about, **{name: record[name] for name in known if name in record}}
    else:
        record = {**about, "settings": []}

    def keep() -> None:
        STORE.parent.mkdir(exist_ok=True)
        write_text(STORE, json.dumps(record, indent=1) + "\n")

    x, y = drawn(loaded, "validation", options.tune_examples, options.seed)
    weak = {"PGD-10": attack("pgd", 10)}
    print("undefended", flush=True)
    if "undefended" not in record:
        record["undefended"] = measure(model, None, x, y, weak, options)
        keep()
    for step_size, radius, steps in GRID[len(record["settings"]) :]:
        setting = {"step_size": step_size, "radius": radius, "steps": steps}
        print(setting, flush=True)
        measured = measure(model, EnergyDescent(**setting), x, y, weak, options)
        record["settings"].append({**setting, **measured})
        keep()
    best = max(record["settings"], key=lambda found: found["worst case"]["accuracy"])
    chosen = {name: best[name] for name in ("step_size", "radius", "steps")}
    print(f"chosen {chosen}", flush=True)
    x, y = drawn(loaded, "test", options.num_examples, options.seed)
    strong = {"PGD-20": attack("pgd", 20)}
    record["judgement"] = {
        "images": options.num_examples,
        "split": "test",
        "steps": 20,
        "setting": chosen,
        "undefended": measure(model, None, x, y, strong, options),
        "defended": measure(model, EnergyDescent(**chosen), x, y, strong, options),
    }
    keep()
    return record


def percent(found: dict) -> str:
    low, high = found["interval"]
    return f"{found['accuracy']:.1%} ({low:.1%} – {high:.1%})".replace("%", " %")


def table(record: dict) -> str:
    """Markdown: the settings on validation images, the chosen one on test images."""
    tuning, judged = record["tuning"], record["judgement"]
    count = judged["images"]
    columns = list(record["settings"][0])[3:]
    lines = [
        f"{record['model']}; l-inf {record['epsilon'] * 255:.3g}/255, seed {record['seed']}; "
        f"{record['machine']}. 95 % intervals in brackets.",
        "",
        f"Settings on {tuning['images']} validation images, under PGD-10:",
        "",
        "| step size | radius | steps | " + " | ".join(columns) + " |",
        "|---" * (3 + len(columns)) + "|",
    ]
    none = record["undefended"]
    natural, attacked, worst = map(percent, none.values())
    lines.append(f"| undefended | | | {natural} | {attacked} | | | {worst} |")
    for found in record["settings"]:
        cells = " | ".join(percent(found[name]) for name in columns)
        lines.append(f"| {found['step_size']} | {found['radius']} | {found['steps']} | {cells} |")
    setting = judged["setting"]
    lines += [
        "",
        f"Step size {setting['step_size']}, radius {setting['radius']}, {setting['steps']} "
        f"step(s), on {count} test images, under PGD-20:",
        "",
        "| attack | undefended | defended |",
        "|---|---|---|",
    ]
    for name, found in judged["defended"].items():
        undefended = judged["undefended"].get(name.split(",")[0])
        lines.append(f"| {name} | {percent(undefended)} | {percent(found)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="a .keras file, such as a run's best.keras")
    parser.add_argument("--dataset", default="cifar10", help="as in train.py (default: cifar10)")
    parser.add_argument("--data-dir", help="folder of prepared TFDS data sets")
    parser.add_argument("--epsilon", type=lambda v: float(Fraction(v)), default=8 / 255)
    parser.add_argument("--tune-examples", type=int, default=256, help="validation images (256)")
    parser.add_argument("--num-examples", type=int, default=500, help="test images (500)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--description", default="", help="what the model is, in words")
    parser.add_argument("--machine", default="", help="what it runs on, in words")
    options = parser.parse_args()
    record = run(options) if options.model else json.loads(STORE.read_text())
    text = table(record)
    fill(PAGE, "benchmarks/defend.py", text)
    print(text)


if __name__ == "__main__":
    main()
