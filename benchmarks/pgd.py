"""PGD-10 against cleverhans, Foolbox, ART and torchattacks: the same network, weights and images.

    pip install -e '.[benchmarks]' && pip install --no-deps torchattacks
    python benchmarks/pgd.py [--width 32] [--batch-size 16] [--threads 1 2] [--rounds 5]

l-inf, 8/255, 10 steps of 2/255, random start, batch norm in inference mode. All contestants of a
round run one after the other on one batch, and the fastest round of each counts. The floor is ten
forward passes and ten backward passes to the input, in TensorFlow and in PyTorch. Writes
``benchmarks/results/pgd.json`` and the table between the markers of ``docs/benchmarks.md``; with
``--kept``, the table from the file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

from own_process import measured_each
from pages import fill

from der_tf.files import write_text

RESULTS = Path(__file__).parent / "results" / "pgd.json"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
EPSILON, STEP, STEPS = 8 / 255, 2 / 255, 10
OURS = "der_tf"


def tensorflow_contestants(network, x, y) -> dict[str, Callable]:
    """Name -> function that runs the attack on the batch; TensorFlow's side."""
    import foolbox
    import numpy as np
    import tensorflow as tf
    from art.attacks.evasion import ProjectedGradientDescentTensorFlowV2
    from art.estimators.classification import TensorFlowV2Classifier
    from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

    from der_tf import attacks

    images, labels = tf.constant(x), tf.constant(y)
    ours = attacks.get("pgd", epsilon=EPSILON, step_size=STEP, steps=STEPS)

    def model(batch):
        return network(batch, training=False)

    def cleverhans(steps):
        return projected_gradient_descent(
            model, images, EPSILON, STEP, steps, np.inf, clip_min=0.0, clip_max=1.0, y=labels,
            rand_init=True,
        )  # fmt: skip

    compiled = tf.function(lambda: cleverhans(tf.constant(STEPS)), jit_compile=False)

    @tf.function
    def gradient():
        def body(moved):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(moved)
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(moved))
            return (moved + 0 * tape.gradient(loss, moved),)

        return tf.while_loop(lambda _: True, body, (images,), maximum_iterations=STEPS)

    foolbox_model = foolbox.TensorFlowModel(model, bounds=(0, 1), device="/CPU:0")
    foolbox_pgd = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS)
    art_model = TensorFlowV2Classifier(
        model=network,
        nb_classes=10,
        input_shape=x.shape[1:],
        loss_object=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=(0, 1),
    )
    art_pgd = ProjectedGradientDescentTensorFlowV2(
        art_model, eps=EPSILON, eps_step=STEP, max_iter=STEPS, num_random_init=1,
        batch_size=len(x), verbose=False,
    )  # fmt: skip
    return {
        "floor, TensorFlow": gradient,
        OURS: lambda: ours(network, images, labels),
        "cleverhans, in tf.function": compiled,
        "cleverhans, eager": lambda: cleverhans(STEPS),
        "Foolbox on TensorFlow": lambda: foolbox_pgd(
            foolbox_model, images, labels, epsilons=EPSILON
        ),
        "ART on TensorFlow": lambda: art_pgd.generate(x, y),
    }


def torch_contestants(network, x, y) -> dict[str, Callable]:
    """Name -> function that runs the attack on the batch; PyTorch's side."""
    import foolbox
    import torch
    import torchattacks
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier
    from torch_twin import TorchTwin

    twin = TorchTwin(network)
    for parameter in twin.parameters():
        parameter.requires_grad_(False)  # gradients of the input alone
    last = TorchTwin(network).to(memory_format=torch.channels_last)
    for parameter in last.parameters():
        parameter.requires_grad_(False)
    images = torch.tensor(x).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(y, dtype=torch.long)

    def gradient():
        moved = images
        for _ in range(STEPS):
            moved = moved.detach().requires_grad_(True)
            loss = torch.nn.functional.cross_entropy(twin(moved), labels)
            (grad,) = torch.autograd.grad(loss, moved)
            moved = moved + 0 * grad
        return moved

    pgd = torchattacks.PGD(twin, eps=EPSILON, alpha=STEP, steps=STEPS)
    pgd_last = torchattacks.PGD(last, eps=EPSILON, alpha=STEP, steps=STEPS)
    images_last = images.to(memory_format=torch.channels_last)
    foolbox_model = foolbox.PyTorchModel(twin, bounds=(0, 1), device="cpu")
    foolbox_pgd = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS)
    art_model = PyTorchClassifier(
        twin, torch.nn.CrossEntropyLoss(), images.shape[1:], 10, clip_values=(0, 1),
        device_type="cpu",
    )  # fmt: skip
    art_pgd = ProjectedGradientDescentPyTorch(
        art_model, eps=EPSILON, eps_step=STEP, max_iter=STEPS, num_random_init=1,
        batch_size=len(x), verbose=False,
    )  # fmt: skip
    as_numpy = images.numpy()
    return {
        "floor, PyTorch": gradient,
        "torchattacks": lambda: pgd(images, labels),
        "torchattacks, channels last": lambda: pgd_last(images_last, labels),
        "Foolbox on PyTorch": lambda: foolbox_pgd(foolbox_model, images, labels, epsilons=EPSILON),
        "ART on PyTorch": lambda: art_pgd.generate(as_numpy, y),
    }


def measure(width: int, batch_size: int, threads: int, rounds: int) -> dict[str, float]:
    """Seconds of the fastest round of each contestant."""
    import keras
    import numpy as np
    import tensorflow as tf
    import torch

    from der_tf import models

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    torch.set_num_threads(threads)
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.random((batch_size, 32, 32, 3), dtype=np.float32)
    y = rng.integers(0, 10, batch_size)
    network = models.preact_resnet18((32, 32, 3), 10, width=width)
    from torch_twin import TorchTwin

    twin = TorchTwin(network)(torch.tensor(x).permute(0, 3, 1, 2)).detach().numpy()
    np.testing.assert_allclose(network(x, training=False), twin, atol=1e-3)  # the same function
    contestants = tensorflow_contestants(network, x, y) | torch_contestants(network, x, y)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for attack in contestants.values():
        attack()
    for number in range(rounds):
        for name, attack in contestants.items():
            start = time.perf_counter()
            attack()
            seconds[name].append(time.perf_counter() - start)
        print(f"{threads} thread(s): round {number + 1} of {rounds}", flush=True)
    return {name: min(values) for name, values in seconds.items()}


def run(options: argparse.Namespace) -> dict:
    """Each thread count measured, and kept."""
    variants = [{"threads": threads} for threads in options.threads]
    results = measured_each(__file__, options, ("width", "batch_size", "rounds"), variants)
    RESULTS.parent.mkdir(exist_ok=True)
    write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    return results


def table(runs: list[dict]) -> str:
    """Markdown: seconds of each contestant in each run, and its ratio to ours."""
    heads = " | ".join(f"{run['threads']} thread(s)" for run in runs)
    lines = [f"| PGD-10 | {heads} |", f"|---|{'---|' * len(runs)}"]
    for name in runs[0]["seconds"]:
        cells = [
            f"{run['seconds'][name]:.3f} s ({run['seconds'][name] / run['seconds'][OURS]:.2f}x)"
            for run in runs
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kept", action="store_true", help="measure nothing: take the kept file")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.json:  # one thread count, in a process of its own: it is set at start
        threads = options.threads[0]
        seconds = measure(options.width, options.batch_size, threads, options.rounds)
        print(json.dumps({"threads": threads, "seconds": seconds}))
        return
    results = json.loads(RESULTS.read_text()) if options.kept else run(options)
    text = table(results["runs"])
    fill(PAGE, "benchmarks/pgd.py", text)
    print(text)


if __name__ == "__main__":
    main()
