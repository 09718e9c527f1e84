"""APGD, FAB, Square, AutoAttack and C&W against their peers: seconds at equal weights and images.

    pip install -e '.[benchmarks]' && pip install --no-deps torchattacks
    python benchmarks/attacks.py --model best.keras --dataset cifar10 --data-dir ~/tfds

l-inf attacks at AutoAttack's settings on correctly classified test images, C&W in l2. The peers
are torchattacks (default and channels-last memory), Foolbox for C&W and ART on TensorFlow for
APGD-CE; all see the same network, the PyTorch ones its twin. The contestants of a round run one
after the other and the fastest round counts. Beside the seconds stands what each has reached: the
share of the images that is left, for C&W the mean l2 distance. The floor is the time that the
network alone takes for the images that der_tf shows it, forward and backward to the input (Square:
forward), in full batches: what is above it are the attack's own operations, tracing apart.
Each attack and thread count is measured in a process of its own and kept at once in
``benchmarks/results/attacks.json`` (an earlier run of other settings is replaced), from which the
table of ``docs/benchmarks.md`` is written; without a model, the table from the file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pages
from own_process import measured_by

from der_tf.files import write_text

RESULTS = Path(__file__).parent / "results" / "attacks.json"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
OURS, FLOOR = "der_tf", "floor"
LINF = ("apgd_ce", "apgd_t", "fab_t", "square", "auto_attack")
CW = "cw"
SETTINGS = (
    "dataset",
    "num_examples",
    "batch_size",
    "epsilon",
    "queries",
    "cw_search_steps",
    "cw_steps",
    "rounds",
)

# Runs the attack on all images and returns their adversarial counterparts, channels last.
Contestant = Callable[[], np.ndarray]


def ours(name: str, network, x: np.ndarray, y: np.ndarray, options) -> Contestant:
    """der_tf's attack over the set, as `der-tf evaluate` runs it."""
    from der_tf import attacks
    from der_tf.attacks.sweep import sweep

    if name == CW:
        config = {"search_steps": options.cw_search_steps, "steps": options.cw_steps}
        attack = attacks.get(CW, seed=0, initial_constant=1.0, **config)
        return lambda: attack(network, x, y).numpy()
    config = {"queries": options.queries} if name in ("square", "auto_attack") else {}
    if name == "auto_attack":
        config["batch_size"] = options.batch_size
    attack = attacks.get(name, epsilon=options.epsilon, seed=0, **config)
    if name == "auto_attack":
        return lambda: attack.run(network, x, y).adversarial

    def run() -> np.ndarray:
        moved, rows = x.copy(), np.arange(len(x))
        for done in sweep(attack, network, x, y, rows, np.zeros(2, np.int32), options.batch_size):
            moved[done.rows] = done.images
        return moved

    return run


def peers(name: str, network, x: np.ndarray, y: np.ndarray, options) -> dict[str, Contestant]:
    import foolbox
    import torch
    import torchattacks
    from torch_twin import ChannelsLast, TorchTwin

    ball = {"eps": options.epsilon, "norm": "Linf", "seed": 0}
    classes = network.output_shape[1]
    makers: dict[str, Callable] = {
        "apgd_ce": lambda model: torchattacks.APGD(model, steps=100, n_restarts=1, **ball),
        "apgd_t": lambda model: torchattacks.APGDT(
            model, steps=100, n_restarts=1, n_classes=classes, **ball
        ),
        "fab_t": lambda model: torchattacks.FAB(
            model, steps=100, n_restarts=1, n_classes=classes, multi_targeted=True, **ball
        ),
        "square": lambda model: torchattacks.Square(
            model, n_queries=options.queries, n_restarts=1, **ball
        ),
        "auto_attack": lambda model: _auto_attack(torchattacks, model, classes, ball, options),
        # One constant, so all its steps at once; it has no search.
        CW: lambda model: torchattacks.CW(
            model, c=1, lr=0.01, steps=options.cw_search_steps * options.cw_steps
        ),
    }
    images = torch.tensor(x).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(y, dtype=torch.long)
    found: dict[str, Contestant] = {}
    batches = list(
        zip(images.split(options.batch_size), labels.split(options.batch_size), strict=True)
    )
    for title, twin in (
        ("torchattacks", TorchTwin(network)),
        ("torchattacks, channels last", ChannelsLast(TorchTwin(network))),
    ):
        for parameter in twin.parameters():
            parameter.requires_grad_(False)  # gradients of the input alone
        attack = makers[name](twin.eval())

        def run(attack=attack) -> np.ndarray:
            moved = torch.cat([attack(a, b) for a, b in batches]).detach()
            return moved.permute(0, 2, 3, 1).numpy()

        found[title] = run
    if name == CW:
        twin = TorchTwin(network)
        model = foolbox.PyTorchModel(twin, bounds=(0, 1), device="cpu")
        attack = foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=options.cw_search_steps, steps=options.cw_steps, initial_const=1.0
        )

        def foolbox_run() -> np.ndarray:
            moved = attack(model, images, labels, epsilons=None)[1]
            return moved.permute(0, 2, 3, 1).detach().numpy()

        found["Foolbox on PyTorch"] = foolbox_run
    if name == "apgd_ce":
        found["ART on TensorFlow"] = _art(network, x, y, options)
    return found


def _auto_attack(torchattacks, model, classes: int, ball: dict, options):
    """Its AutoAttack takes 10 steps in place of the standard's 100: set here."""
    attack = torchattacks.AutoAttack(model, version="standard", n_classes=classes, **ball)
    *gradient_attacks, square = attack._autoattack.attacks
    for part in gradient_attacks:
        part.steps = 100
    square.n_queries = options.queries
    return attack


def _art(network, x: np.ndarray, y: np.ndarray, options) -> Contestant:
    import tensorflow as tf
    from art.attacks.evasion import AutoProjectedGradientDescent
    from art.estimators.classification import TensorFlowV2Classifier

    model = TensorFlowV2Classifier(
        model=network,
        nb_classes=network.output_shape[1],
        input_shape=x.shape[1:],
        loss_object=tf.keras.losses.CategoricalCrossentropy(from_logits=True),
        clip_values=(0, 1),
    )
    attack = AutoProjectedGradientDescent(
        model, eps=options.epsilon, eps_step=2 * options.epsilon, max_iter=100,
        nb_random_init=1, batch_size=options.batch_size, loss_type="cross_entropy", verbose=False,
    )  # fmt: skip
    labels = np.eye(network.output_shape[1], dtype=np.float32)[y]
    return lambda: attack.generate(x, labels)


def floor(name: str, network, x: np.ndarray, y: np.ndarray, options) -> float:
    """Seconds that the network alone needs for the images that our attack shows it."""
    import tensorflow as tf

    def logits(images):
        return network(images, training=False)

    @tf.function
    def forward(images):
        return logits(images)

    @tf.function
    def both(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            total = tf.reduce_sum(logits(images))
        return tape.gradient(total, images)

    batch = tf.constant(np.resize(x, (options.batch_size, *x.shape[1:])))
    seconds = {}
    for passes in (forward, both):
        passes(batch)
        taken = []
        for _ in range(10):
            start = time.perf_counter()
            passes(batch)
            taken.append(time.perf_counter() - start)
        seconds[passes] = min(taken) / options.batch_size
    if name == "auto_attack":  # its parts on what survived the part before
        total = 0.0
        left = np.arange(len(x))
        for part in LINF[:-1]:
            shown, moved = _shown(part, network, x[left], y[left], options)
            total += shown * seconds[forward if part == "square" else both]
            left = left[np.argmax(network.predict(moved, verbose=0), axis=1) == y[left]]
            if not len(left):
                break
        return total
    shown, _ = _shown(name, network, x, y, options)
    return shown * seconds[forward if name == "square" else both]


def _shown(name: str, network, x: np.ndarray, y: np.ndarray, options) -> tuple[int, np.ndarray]:
    """Number of images that our attack shows the network, and its result."""
    import tensorflow as tf

    count = tf.Variable(0, dtype=tf.int64)

    def counted(images):
        count.assign_add(tf.cast(tf.shape(images)[0], tf.int64))
        return network(images, training=False)

    moved = ours(name, counted, x, y, options)()
    return int(count.numpy()), moved


def load(options) -> tuple:
    """The network, and its correctly classified images among the first of the test set."""
    import keras

    from der_tf import data

    network = keras.models.load_model(options.model, compile=False)
    test = data.load(options.dataset, data_dir=options.data_dir).test
    x, y = next(test.unbatch().batch(4 * options.num_examples).as_numpy_iterator())
    correct = np.argmax(network.predict(x, verbose=0), axis=1) == y
    return network, x[correct][: options.num_examples], y[correct][: options.num_examples]


def measure(options, name: str, threads: int) -> dict:
    """One attack with so many threads: seconds of the fastest round, results, and the floor."""
    # PyTorch's Adam, which C&W steps with, imports Triton: a crash once TensorFlow is loaded.
    import torch._dynamo  # isort: skip
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    torch.set_num_threads(threads)
    network, x, y = load(options)
    contestants = {OURS: ours(name, network, x, y, options)}
    contestants |= peers(name, network, x, y, options)
    ours(name, network, x[:8], y[:8], options)()  # traces it: the batch size is left open
    seconds: dict[str, list[float]] = {title: [] for title in contestants}
    reached = {}
    for _ in range(options.rounds):
        for title, attack in contestants.items():
            start = time.perf_counter()
            moved = attack()
            seconds[title].append(time.perf_counter() - start)
            left = np.argmax(network.predict(moved, verbose=0), axis=1) == y
            reached[title] = {"left": float(left.mean())}
            if name == CW and not left.all():
                distances = np.sqrt(np.sum(np.square(moved - x), axis=(1, 2, 3)))
                reached[title]["l2"] = float(distances[~left].mean())
            print(f"{threads} thread(s), {name}, {title}: {seconds[title][-1]:.1f} s", flush=True)
    return {
        "attack": name,
        "threads": threads,
        "images": len(x),
        "seconds": {title: min(taken) for title, taken in seconds.items()},
        "reached": reached,
        "floor_seconds": floor(name, network, x, y, options),
    }


def table(runs: list[dict]) -> str:
    """Markdown: seconds, their ratio to ours, and what was reached."""
    lines = ["| attack | threads | by | seconds | against der_tf | left | mean l2 |"]
    lines.append("|---|---|---|---|---|---|---|")
    for run in runs:
        own = run["seconds"][OURS]
        for title, seconds in {FLOOR: run["floor_seconds"], **run["seconds"]}.items():
            reached = run["reached"].get(title, {})
            cells = (
                run["attack"],
                str(run["threads"]),
                title,
                f"{seconds:.1f}",
                f"{seconds / own:.2f}x",
                f"{100 * reached['left']:.1f} %" if reached else "",
                f"{reached['l2']:.3f}" if "l2" in reached else "",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def keep(options, run: dict) -> list[dict]:
    """Put a run into the file, in the place of an earlier one, and return all that it holds."""
    about = {"machine": {"cores": os.cpu_count()}, "model": Path(options.model).name}
    about |= {name: getattr(options, name) for name in SETTINGS}
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    runs = kept.pop("runs", [])
    if kept != about:
        runs = []

    def place(run: dict) -> tuple[int, int]:
        return (*LINF, CW).index(run["attack"]), run["threads"]

    runs = sorted([run, *(other for other in runs if place(other) != place(run))], key=place)
    write_text(RESULTS, json.dumps({**about, "runs": runs}, indent=1) + "\n")
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help=".keras file")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-dir")
    parser.add_argument("--num-examples", type=int, default=64, help="correctly classified images")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epsilon", type=lambda v: float(Fraction(v)), default=8 / 255)
    parser.add_argument("--attacks", nargs="+", choices=(*LINF, CW), default=[*LINF, CW])
    parser.add_argument("--queries", type=int, default=5000, help="of Square")
    parser.add_argument("--cw-search-steps", type=int, default=5)
    parser.add_argument("--cw-steps", type=int, default=100, help="a constant")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.json:
        print(json.dumps(measure(options, options.attacks[0], options.threads[0])))
        return
    if not options.model:
        pages.fill(PAGE, "benchmarks/attacks.py", table(json.loads(RESULTS.read_text())["runs"]))
        return
    for threads in options.threads:
        for name in options.attacks:
            this = ["--json", "--threads", str(threads), "--attacks", name]
            run = measured_by([sys.executable, __file__, *sys.argv[1:], *this])
            pages.fill(PAGE, "benchmarks/attacks.py", table(keep(options, run)))


if __name__ == "__main__":
    main()
