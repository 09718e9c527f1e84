"""Do our attacks break the same images as an independent PyTorch implementation (torchattacks)?

    pip install torch && pip install --no-deps torchattacks   # it pins an old `requests`
    python benchmarks/attack_agreement.py                      # digits, a few minutes on 2 cores
    python benchmarks/attack_agreement.py --model best.keras --dataset cifar10 --data-dir ~/tfds \
        --num-examples 500 --epsilon 8/255 --name cifar10-small

Both see the same weights and images: torchattacks runs on the PyTorch twin of the network, whose
logits are compared first. Each attack runs by itself on all correctly classified images, at
AutoAttack's settings. Writes attack_agreement-NAME.json and .md to ``benchmarks/results``: per
attack the robust accuracy of both, the share of images on which they agree, and the seconds; of the
names :data:`SHOWN` also the table between the markers of ``docs/attacks.md``. With ``--kept``, the
tables of NAME from its JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
from pages import fill

from der_tf.files import write_text

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "attacks.md"
SHOWN = ("cifar10-small", "cifar10-resnet56")
ATTACKS = ("apgd_ce", "apgd_t", "fab_t", "square")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help=".keras file; default: a robust digits network, made here")
    parser.add_argument("--dataset", default="digits", help="as in train.py (default: digits)")
    parser.add_argument("--data-dir", help="folder of prepared TFDS data sets")
    parser.add_argument("--num-examples", type=int, default=500, help="test images (default: 500)")
    parser.add_argument("--norm", choices=("linf", "l2"), default="linf")
    parser.add_argument("--epsilon", type=lambda v: float(Fraction(v)), default=0.1)
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--steps", type=int, default=100, help="of APGD and FAB (default: 100)")
    parser.add_argument("--queries", type=int, default=5000, help="of Square (default: 5000)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--name", default="digits", help="in the names of the files written")
    parser.add_argument("--kept", action="store_true", help="measure nothing: take the kept file")
    arguments = parser.parse_args()
    path = RESULTS / f"attack_agreement-{arguments.name}.json"
    if arguments.kept:
        report = json.loads(path.read_text())
    else:
        report = compare(arguments)
        write_text(path, json.dumps(report, indent=2) + "\n")
    write_text(path.with_suffix(".md"), document(report))
    if arguments.name in SHOWN:
        fill(PAGE, f"benchmarks/attack_agreement.py --name {arguments.name}", table(report))
    print(document(report))


def compare(arguments: argparse.Namespace) -> dict:
    model, images, labels = load(arguments)
    correct = np.argmax(model.predict(images, verbose=0), axis=1) == labels
    x, y = images[correct], labels[correct]
    peer = run_peer(model, x, y, arguments)
    difference = np.abs(model.predict(x, verbose=0) - peer["logits"]).max()
    ours = run_ours(model, x, y, arguments)
    return summary(arguments, correct, ours, peer, float(difference))


def load(arguments: argparse.Namespace):
    """The model, and test images and labels as arrays."""
    import keras

    from der_tf import data

    dataset = data.load(arguments.dataset, data_dir=arguments.data_dir)
    batch = next(iter(dataset.test.unbatch().batch(arguments.num_examples)))
    images, labels = (part.numpy() for part in batch[:2])
    if arguments.model:
        return keras.models.load_model(arguments.model, compile=False), images, labels
    return robust_network(dataset, arguments), images, labels


def robust_network(dataset, arguments: argparse.Namespace):
    """A small network trained against PGD of the radius in question: tens of seconds."""
    import keras

    import der_tf
    from der_tf import attacks, models

    keras.utils.set_random_seed(0)
    radius = {"epsilon": arguments.epsilon, "norm": arguments.norm}
    network = models.convnet(dataset.input_shape, dataset.num_classes, width=8)
    attack = attacks.get("pgd", steps=5, step_size=0.4 * arguments.epsilon, **radius)
    classifier = der_tf.RobustClassifier(network, attack=attack)
    classifier.compile(keras.optimizers.Adam(3e-3))
    classifier.fit(dataset.train, epochs=12, verbose=2)
    return network


def run_ours(model, x, y, arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    from der_tf import attacks
    from der_tf.attacks.sweep import sweep

    results = {}
    for name in arguments.attacks:
        budget = {"queries": arguments.queries} if name == "square" else {"steps": arguments.steps}
        attack = attacks.get(name, epsilon=arguments.epsilon, norm=arguments.norm, **budget)
        broken, started = np.zeros(len(x), bool), time.perf_counter()
        rows, seed = np.arange(len(x)), np.array([0, 0], np.int32)
        for finished in sweep(attack, model, x, y, rows, seed, arguments.batch_size):
            broken[finished.rows] = finished.errs
        results |= {name: broken, f"{name}_seconds": np.array(time.perf_counter() - started)}
        print(f"der_tf {name}: {np.mean(~broken):.4f} left", flush=True)
    return results


def run_peer(network, x, y, arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    """torchattacks on the PyTorch twin."""
    import torch
    import torchattacks
    from torch_twin import TorchTwin

    model = TorchTwin(network)
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # gradients of the input alone
    settings = vars(arguments)
    x = torch.tensor(x).permute(0, 3, 1, 2).contiguous()
    y = torch.tensor(y.astype(np.int64))
    norm = {"linf": "Linf", "l2": "L2"}[settings["norm"]]
    ball = {"eps": settings["epsilon"], "norm": norm, "n_restarts": 1, "seed": 0}
    batches = list(
        zip(x.split(settings["batch_size"]), y.split(settings["batch_size"]), strict=True)
    )
    with torch.no_grad():
        logits = torch.cat([model(images) for images, _ in batches])
    results = {"logits": logits.numpy()}
    steps, classes = settings["steps"], logits.shape[1]
    makers = {
        "apgd_ce": lambda: torchattacks.APGD(model, steps=steps, loss="ce", **ball),
        "apgd_t": lambda: torchattacks.APGDT(model, steps=steps, n_classes=classes, **ball),
        "fab_t": lambda: torchattacks.FAB(
            model, steps=steps, multi_targeted=True, n_classes=classes, **ball
        ),
        "square": lambda: torchattacks.Square(
            model, n_queries=settings["queries"], resc_schedule=False, **ball
        ),
    }
    for name in settings["attacks"]:
        attack, broken, started = makers[name](), [], time.perf_counter()
        for images, labels in batches:
            moved = attack(images, labels)
            with torch.no_grad():
                err = model(moved).argmax(1) != labels
            delta = (moved - images).flatten(1)
            length = delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)
            broken.append((err & (length <= settings["epsilon"] * (1 + 1e-5))).numpy())
        broken = np.concatenate(broken)
        results |= {name: broken, f"{name}_seconds": np.array(time.perf_counter() - started)}
        print(f"torchattacks {name}: {np.mean(~broken):.4f} left", flush=True)
    return results


def summary(
    arguments: argparse.Namespace, correct: np.ndarray, ours: dict, peer: dict, difference: float
) -> dict:
    """What is kept; accuracies are shares of all images, agreement is of the correct ones."""
    total = len(correct)
    rows = []
    for name in arguments.attacks:
        rows.append(
            {
                "attack": name,
                "robust_accuracy": float(np.sum(~ours[name]) / total),
                "peer_robust_accuracy": float(np.sum(~peer[name]) / total),
                "agreement": float(np.mean(ours[name] == peer[name])),
                "seconds": round(float(ours[f"{name}_seconds"]), 1),
                "peer_seconds": round(float(peer[f"{name}_seconds"]), 1),
            }
        )
    if len(rows) > 1:
        worst, peer_worst = (
            np.any([side[name] for name in arguments.attacks], axis=0) for side in (ours, peer)
        )
        rows.append(
            {
                "attack": "worst case",
                "robust_accuracy": float(np.sum(~worst) / total),
                "peer_robust_accuracy": float(np.sum(~peer_worst) / total),
                "agreement": float(np.mean(worst == peer_worst)),
            }
        )
    settings = {k: v for k, v in vars(arguments).items() if k not in ("data_dir", "kept")}
    return {
        "settings": {**settings, "model": arguments.model and Path(arguments.model).name},
        "images": total,
        "clean_accuracy": float(np.mean(correct)),
        "largest_difference_of_logits": difference,
        "attacks": rows,
    }


def document(report: dict) -> str:
    """Markdown: what was compared, and the table."""
    settings = report["settings"]
    lines = [
        f"# Agreement with torchattacks: {settings['name']}",
        "",
        f"{report['images']} images of {settings['dataset']}, {settings['norm']}, epsilon "
        f"{settings['epsilon']:.4g}, {settings['steps']} steps, {settings['queries']} queries; "
        f"clean accuracy {100 * report['clean_accuracy']:.2f} %. Each attack by itself; agreement "
        "over the correctly classified images. Largest difference of the logits between the two "
        f"frameworks: {report['largest_difference_of_logits']:.1e}. Written by "
        "`benchmarks/attack_agreement.py`.",
        "",
        table(report),
    ]
    return "\n".join(lines) + "\n"


def table(report: dict) -> str:
    """Markdown: a row an attack."""
    lines = [
        "| attack | robust, der_tf | robust, torchattacks | same answer | seconds | theirs |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["attacks"]:
        seconds = [str(row.get(key, "")) for key in ("seconds", "peer_seconds")]
        shares = [row[key] for key in ("robust_accuracy", "peer_robust_accuracy", "agreement")]
        cells = [row["attack"], *(f"{100 * share:.2f} %" for share in shares), *seconds]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
