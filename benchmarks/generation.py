"""Langevin chains against the same chain in PyTorch and in eager TensorFlow; what stopping saves.

    pip install -e '.[benchmarks,generation]'
    python benchmarks/generation.py RUN [--data-dir D] [--batch-size 64] [--threads 1] [--rounds 5]

One network and one set of weights, fixed steps, no guidance. The others get their starts as a gift
and draw noise from one stream a batch; ``LangevinSampler`` draws its starts, and noise from a
stream a sample. All contestants of a round run one after the other on the same starts, and the
fastest round of each counts. That they run the same chain is checked without noise. The floor is
as many forward passes and backward passes to the input, and one more forward pass, in TensorFlow.

The second half compares chains that stop at their class's reference energy with the fixed number of
steps that brings the mean energy as low. Writes ``benchmarks/results/generation.json`` and the
tables between the markers of ``docs/benchmarks.md``; without a classifier, the tables from the
file.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pages import fill

from der_tf.files import write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "generation.json"
PAGE = ROOT / "docs" / "benchmarks.md"
OURS = "der_tf"
CHAIN = {"step_size": 0.5, "momentum": 0.5, "noise": 0.001}


def eager_chain(network, x, labels, steps: int, noise: float):
    """The chain in eager TensorFlow: images and their energies."""
    import tensorflow as tf

    scale = noise * (2 * CHAIN["step_size"]) ** 0.5
    velocity = tf.zeros_like(x)
    for _ in range(steps):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            energy = -tf.gather(network(x, training=False), labels, axis=1, batch_dims=1)
        velocity = CHAIN["momentum"] * velocity - CHAIN["step_size"] / 2 * tape.gradient(energy, x)
        x = tf.clip_by_value(x + velocity + scale * tf.random.normal(x.shape), 0.0, 1.0)
    return x, -tf.gather(network(x, training=False), labels, axis=1, batch_dims=1)


def torch_chain(twin, x, labels, steps: int, noise: float):
    """The chain in PyTorch, with gradients of the input alone: images and their energies."""
    import torch

    scale = noise * (2 * CHAIN["step_size"]) ** 0.5
    velocity = torch.zeros_like(x)
    for _ in range(steps):
        x = x.detach().requires_grad_(True)
        energy = -twin(x).gather(1, labels[:, None]).sum()
        (gradient,) = torch.autograd.grad(energy, x)
        with torch.no_grad():
            velocity = CHAIN["momentum"] * velocity - CHAIN["step_size"] / 2 * gradient
            x = (x + velocity + scale * torch.randn_like(x)).clamp(0.0, 1.0)
    with torch.no_grad():
        return x, -twin(x).gather(1, labels[:, None])[:, 0]


def floor(network, x, labels, steps: int):
    """Compiled TensorFlow that takes every gradient and does nothing with it."""
    import tensorflow as tf

    @tf.function(jit_compile=False)
    def run(images):
        def body(moved):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(moved)
                energy = -tf.gather(network(moved, training=False), labels, axis=1, batch_dims=1)
            return (moved + 0 * tape.gradient(energy, moved),)

        (end,) = tf.while_loop(lambda _: True, body, (images,), maximum_iterations=steps)
        return network(end, training=False)

    return lambda: run(x)


def contestants(network, starts, options: argparse.Namespace) -> dict[str, Callable]:
    """Name -> function that runs the chains of one batch."""
    import numpy as np
    import tensorflow as tf
    import torch
    from torch_twin import TorchTwin

    from der_tf.generation import LangevinSampler

    count, steps, noise = options.batch_size, options.steps, CHAIN["noise"]
    labels, seeds = np.arange(count) % starts.num_classes, np.arange(count)
    x = starts.sample(labels, seeds)
    targets = tf.constant(labels)
    twins = {}
    for name, layout in (("", torch.contiguous_format), (", channels last", torch.channels_last)):
        twin = TorchTwin(network).to(memory_format=layout)
        for parameter in twin.parameters():
            parameter.requires_grad_(False)
        images = torch.tensor(x.numpy()).permute(0, 3, 1, 2).contiguous(memory_format=layout)
        twins[f"PyTorch{name}"] = (twin, images)
    torch_labels = torch.tensor(labels, dtype=torch.long)

    def sampler(level: float) -> LangevinSampler:
        return LangevinSampler(
            network, starts, adaptive=False, batch_size=count, **CHAIN | {"noise": level}
        )

    expected = sampler(0.0).sample(labels, seeds, 3)
    eager, _ = eager_chain(network, x, targets, 3, 0.0)
    np.testing.assert_allclose(eager, expected, atol=1e-3)
    for twin, images in twins.values():
        end, _ = torch_chain(twin, images, torch_labels, 3, 0.0)
        np.testing.assert_allclose(end.permute(0, 2, 3, 1), expected, atol=1e-3)
    ours = sampler(noise)
    return {
        "floor, TensorFlow": floor(network, x, targets, steps),
        OURS: lambda: ours.run(labels, seeds, steps),
        "TensorFlow, eager": lambda: eager_chain(network, x, targets, steps, noise),
        **{
            name: lambda twin=twin, images=images: torch_chain(
                twin, images, torch_labels, steps, noise
            )
            for name, (twin, images) in twins.items()
        },
    }


def timed(functions: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Seconds of the fastest round of each; all of a round run one after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for number in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
        print(f"round {number + 1} of {rounds}", flush=True)
    return {name: min(values) for name, values in seconds.items()}


def stopping(network, starts, options: argparse.Namespace) -> dict[str, Any]:
    """Adaptive stopping against the fixed number of steps of equal mean energy."""
    import numpy as np

    from der_tf.generation import LangevinSampler

    labels = np.arange(options.chains) % starts.num_classes
    seeds = 1000 + np.arange(options.chains)
    common = {"batch_size": options.batch_size, **CHAIN}
    adaptive = LangevinSampler(network, starts, **common)
    fixed = LangevinSampler(network, starts, adaptive=False, **common)
    stopped = adaptive.run(labels, seeds, options.most)
    energy = float(stopped.joint_energy.mean())
    ways = []
    for at in range(0, len(labels), options.batch_size):
        batch = slice(at, at + options.batch_size)
        ways.append(fixed.trace(labels[batch], seeds[batch], options.most).joint_energy)
    energies = np.concatenate(ways, axis=1)  # [steps + 1, chains]
    low = np.flatnonzero(energies.mean(axis=1) <= energy)
    needed = int(low[0]) if low.size else None
    there = energies[-1 if needed is None else needed]
    references = starts.reference_energies[labels]
    found = {
        "chains": options.chains,
        "most_steps": options.most,
        "mean_energy": energy,
        "mean_steps": float(stopped.steps_taken.mean()),
        "reached": float((stopped.joint_energy <= references).mean()),
        "fixed_steps": needed,
        "fixed_mean_energy": float(there.mean()),
        "fixed_reached": float((there <= references).mean()),
    }
    if needed:
        found["seconds"] = timed(
            {
                "adaptive": lambda: adaptive.run(labels, seeds, options.most),
                "fixed": lambda: fixed.run(labels, seeds, needed),
            },
            options.rounds,
        )
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The race and the stopping measured, and kept."""
    from der_tf.cli.console import load_tensorflow

    load_tensorflow()
    import numpy as np
    import tensorflow as tf
    import torch

    from der_tf import data
    from der_tf.evaluation.loading import load_classifier
    from der_tf.generation import LocalClasswisePCA

    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    torch.set_num_threads(options.threads)
    classifier = load_classifier(options.classifier)
    trained = classifier.trained
    images = data.load(
        options.dataset or (trained.dataset if trained else "cifar10"),
        data_dir=options.data_dir or (trained.data_dir if trained else None),
        limit_train=options.limit_train,
        augment=False,
    )
    pixels, labels = (
        np.concatenate(p) for p in zip(*images.train.as_numpy_iterator(), strict=True)
    )
    starts = LocalClasswisePCA().fit(pixels, labels)
    starts.set_reference_energies(classifier.model, pixels, labels)
    network = classifier.model
    results = {
        "machine": {"cores": os.cpu_count(), "threads": options.threads},
        **{name: getattr(options, name) for name in ("batch_size", "steps", "rounds")},
        "dataset": images.name,
        "parameters": network.count_params(),
        "seconds": timed(contestants(network, starts, options), options.rounds),
        "stopping": stopping(network, starts, options),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    return results


def tables(results: dict[str, Any]) -> str:
    """Markdown: the race, and what stopping saves."""
    seconds, count = results["seconds"], results["batch_size"]
    lines = ["| chains | images/s | time over der_tf's |", "|---|---|---|"]
    for name, value in seconds.items():
        lines.append(f"| {name} | {count / value:.1f} | {value / seconds[OURS]:.2f}x |")
    one = results["stopping"]
    lines += [
        "",
        "| stopping | mean steps | mean energy | chains at their reference | time |",
        "|---|---|---|---|---|",
    ]
    times = one.get("seconds", {})
    rows = (
        ("adaptive", one["mean_steps"], one["mean_energy"], one["reached"], "adaptive"),
        ("fixed", one["fixed_steps"], one["fixed_mean_energy"], one["fixed_reached"], "fixed"),
    )
    for name, steps, energy, reached, key in rows:
        took = f"{times[key]:.1f} s" if times else "–"
        count = f"more than {one['most_steps']}" if steps is None else f"{steps:.1f}"
        lines.append(f"| {name} | {count} | {energy:.2f} | {reached:.0%} | {took} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("classifier", nargs="?", type=Path, help="run directory or .keras file")
    parser.add_argument("--dataset", help="default: that of training")
    parser.add_argument("--data-dir", help="default: that of training")
    parser.add_argument("--limit-train", type=int, default=5000, help="fit starts to so many")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--chains", type=int, default=256, help="to compare stopping on")
    parser.add_argument("--most", type=int, default=100, help="steps of a chain that never stops")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    results = run(options) if options.classifier else json.loads(RESULTS.read_text())
    text = tables(results)
    fill(PAGE, "benchmarks/generation.py", text)
    print(text)


if __name__ == "__main__":
    main()
