"""What a robust classifier generates: starts, guidance and stopping, scored on held-out images.

    python benchmarks/generation_quality.py RUN --extractor EFFICIENTNET --judge CLASSIFIER
    python benchmarks/generation_quality.py RUN --extractor EFFICIENTNET --curves
    python benchmarks/generation_report.py RESULTS --machine "two CPU cores"

Without ``--curves`` or ``--vary`` every mode of starts with and without guidance, with adaptive and
with fixed stopping, and beside them real images that are not in the reference; with ``--curves``
neighbours against steps. Tuning compares with validation images, on other seeds:

    python benchmarks/generation_quality.py RUN ... --num 500 --reference validation --seed 0 \\
        --vary sigma=0.5,1,1.5 --set mode=class

A setting is done when its JSON is in ``--out``; a command that was stopped goes on. For scores that
can be compared with published ones (the paper: IS 7.92, FID 27.4): ``--num 50000`` and the standard
Inception as ``--extractor``, on a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from der_tf.cli.generate_options import GenerateOptions
from der_tf.files import replacing, write_text

_DEFAULTS = GenerateOptions().sampling()
STARTS, SAMPLER = tuple(_DEFAULTS["starts"]), tuple(_DEFAULTS["sampler"])
# `fixed` are the steps where chains do not stop by themselves.
BASE: dict[str, Any] = {
    **_DEFAULTS["starts"],
    **_DEFAULTS["sampler"],
    **{name: _DEFAULTS[name] for name in ("quantile", "steps")},
    "fixed": 20,
}
MODES = ("noise", "gaussian", "class", "local")
REAL = "real images"
MEASURED = 10_000  # shuffled training images whose energies references are quantiles of
CURVES = {"neighbors": (3, 10, 20), "steps": (0, 2, 5, 20)}


def comparison(base: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Modes of starts x guidance x stopping, by name."""
    found = {}
    for mode, guided, adaptive in itertools.product(MODES, (False, True), (False, True)):
        name = f"{mode}{', guided' if guided else ''}{', adaptive' if adaptive else ''}"
        found[name] = base | {
            "mode": mode,
            "candidates": base["candidates"] if guided else 1,
            "adaptive": adaptive,
            "steps": base["steps"] if adaptive else base["fixed"],
        }
    return found


def curves(base: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Neighbours x fixed steps, and beside them adaptive stopping; all guided."""
    found = {}
    for k in CURVES["neighbors"]:
        found[f"k = {k}, adaptive"] = base | {"neighbors": k}
        for steps in CURVES["steps"]:
            own = {"neighbors": k, "steps": steps, "adaptive": False}
            found[f"k = {k}, {steps} steps"] = base | own
    return found


def varied(base: dict[str, Any], text: str) -> dict[str, dict[str, Any]]:
    """``NAME=V1,V2,...``: the base with each of the values."""
    name, values = assignment(text)
    kept = [f"{key}={value}" for key, value in base.items() if BASE[key] != value and key != name]
    return {", ".join([f"{name}={value}", *kept]): base | {name: value} for value in values}


def assignment(text: str) -> tuple[str, list[Any]]:
    """``NAME=V1,V2,...`` as the name and values of the type that the base has."""
    name, _, values = text.partition("=")
    if name not in BASE or not values:
        sys.exit(f"settings are NAME=VALUE with names among {', '.join(BASE)}; received {text!r}")
    return name, [
        value if isinstance(BASE[name], str) else type(BASE[name])(json.loads(value))
        for value in values.split(",")
    ]


class Laboratory:
    """What all settings share: classifier, images, extractor, and what of them is kept on disk."""

    def __init__(self, options: argparse.Namespace) -> None:
        from der_tf.cli.console import load_tensorflow

        load_tensorflow()
        import keras
        import numpy as np

        from der_tf import data, generation
        from der_tf.evaluation.loading import load_classifier

        self.out, self.num, self.seed = options.out, options.num, options.seed
        self.batch_size, self.split = options.batch_size, options.reference
        self.out.mkdir(parents=True, exist_ok=True)
        self.classifier = load_classifier(options.classifier)
        trained = self.classifier.trained
        name = options.dataset or (trained.dataset if trained else None)
        if name is None:
            sys.exit(f"{options.classifier} does not say its data set; give --dataset")
        images = data.load(
            name,
            data_dir=options.data_dir or (trained.data_dir if trained else None),
            limit_train=options.limit_train,
            augment=False,
        )
        self.dataset = images.name
        self.class_names = images.class_names
        batches = images.training_stream().take(images.steps_per_epoch).as_numpy_iterator()
        self.pixels, self.labels = (np.concatenate(p) for p in zip(*batches, strict=True))
        held = getattr(images, options.reference).as_numpy_iterator()
        self.held, self.held_labels = (np.concatenate(p) for p in zip(*held, strict=True))
        self.extractor = generation.load_extractor(options.extractor)
        self.judge = (
            keras.models.load_model(options.judge, compile=False) if options.judge else None
        )
        self.reference = self._features(self.held[: options.num_reference])
        self.measured = self.labels[:MEASURED]
        self.energies = self._energies()

    def run(self, name: str, setting: dict[str, Any]) -> dict[str, Any]:
        """Draw and score the samples of a setting."""
        import numpy as np

        from der_tf.cli.console import image_progress
        from der_tf.generation import Chains, LangevinSampler

        labels = np.arange(self.num) % len(self.class_names)
        seeds = self.seed + np.arange(self.num) // len(self.class_names)
        starts = self._starts(setting)
        began = time.monotonic()
        sampler = LangevinSampler(
            self.classifier.model,
            starts,
            batch_size=self.batch_size,
            **{key: setting[key] for key in SAMPLER},
        )
        parts = []
        with image_progress(self.num) as progress:
            for at in range(0, self.num, self.batch_size):
                batch = slice(at, at + self.batch_size)
                parts.append(sampler.run(labels[batch], seeds[batch], setting["steps"]))
                progress(min(at + self.batch_size, self.num))
        chains = Chains(*(np.concatenate(values) for values in zip(*parts, strict=True)))
        seconds = time.monotonic() - began
        # What is written to a PNG is what is scored.
        levels = np.rint(chains.images * 255).astype(np.uint8)
        with replacing(self.out / f"{file_name(name)}.npz") as temporary:
            np.savez(temporary, images=levels, labels=labels)
        result = self._scored(levels.astype(np.float32) / 255, labels)
        return result | {
            "mean_steps_taken": float(chains.steps_taken.mean()),
            "stopped_early": float((chains.steps_taken < setting["steps"]).mean()),
            "images_per_second": self.num / seconds,
        }

    def run_real(self) -> dict[str, Any]:
        """Score held-out images that are not in the reference."""
        import numpy as np

        first = len(self.reference)
        images, labels = (part[first : first + self.num] for part in (self.held, self.held_labels))
        if len(images) < self.num:
            sys.exit(
                f"{len(self.held):,} {self.split} images are not enough for {first:,} in the "
                f"reference and {self.num:,} beside them: take a smaller --num-reference"
            )
        levels = np.rint(images * 255).astype(np.uint8)
        with replacing(self.out / f"{file_name(REAL)}.npz") as temporary:
            np.savez(temporary, images=levels, labels=labels)
        return self._scored(images, labels)

    def _scored(self, images: Any, labels: Any) -> dict[str, Any]:
        import numpy as np

        from der_tf import generation
        from der_tf.attacks.base import clean_logits

        samples = generation.extract(images, self.extractor)
        scores, notes = generation.all_scores(samples, self.reference)
        logits = clean_logits(self.classifier.model, images, 128)
        distances = generation.nearest_distances(images, self.pixels)
        result = {
            "scores": {score.name: score.value for score in scores},
            "mean_joint_energy": float(-logits[np.arange(len(labels)), labels].mean()),
            "agreement": float((logits.argmax(axis=1) == labels).mean()),
            "nearest_median": float(np.median(distances)),
            "nearest_lowest": float(distances.min()),
            "num_samples": len(images),
            "num_reference": len(self.reference),
            "reference": self.split,
            "extractor": self.extractor.name,
            "dataset": self.dataset,
            "class_names": self.class_names,
            "notes": notes,
        }
        if self.judge is not None:
            judged = clean_logits(self.judge, images, 128).argmax(axis=1)
            result["judge_agreement"] = float((judged == labels).mean())
        return result

    def _features(self, images: Any) -> Any:
        import numpy as np

        from der_tf.generation import Features, extract

        kept = self.out / f"features-{self.extractor.name}-{self.split}-{len(images)}.npz"
        if not kept.exists():
            print(f"Features of {len(images):,} {self.split} images ...", flush=True)
            found = extract(images, self.extractor)
            with replacing(kept) as temporary:
                np.savez(temporary, features=found.features, logits=found.logits)
        with np.load(kept) as file:
            return Features(self.extractor.name, file["features"], file["logits"])

    def _energies(self) -> Any:
        import numpy as np

        from der_tf.attacks.base import clean_logits

        path = self.classifier.path
        kept = self.out / f"energies-{path.stem}-{int(path.stat().st_mtime)}.npy"
        if not kept.exists():
            print(f"Energies of {len(self.measured):,} training images ...", flush=True)
            logits = clean_logits(self.classifier.model, self.pixels[: len(self.measured)], 128)
            with replacing(kept) as temporary:
                np.save(temporary, -logits[np.arange(len(logits)), self.measured])
        return np.load(kept)

    def _starts(self, setting: dict[str, Any]) -> Any:
        import numpy as np

        from der_tf.generation import LocalClasswisePCA

        own = {key: setting[key] for key in STARTS}
        used = {"local": ("neighbors", "variance"), "class": ("variance",)}.get(own["mode"], ())
        title = "-".join([own["mode"], *(f"{own[key]:g}" for key in used)])
        kept = self.out / f"starts-{title}-{len(self.pixels)}.npz"
        if not kept.exists():
            print(f"Fitting starts ({title}) ...", flush=True)
            LocalClasswisePCA(**own).fit(self.pixels, self.labels).save(kept)
        starts = LocalClasswisePCA.load(kept)
        starts.sigma = own["sigma"]  # a scale of the draw, not of what is fitted
        starts.reference_energies = np.array(
            [
                np.quantile(self.energies[self.measured == y], setting["quantile"])
                for y in range(starts.num_classes)
            ],
            np.float32,
        )
        return starts


def file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "=.+-" else "_" for c in name)


def line(name: str, result: dict[str, Any]) -> str:
    scores = "  ".join(f"{key} {value:.4g}" for key, value in result["scores"].items())
    return (
        f"{name}: {scores}  energy {result['mean_joint_energy']:.3g}  agreement "
        f"{result['agreement']:.3f}/{result.get('judge_agreement', float('nan')):.3f}  nearest "
        f"{result['nearest_median']:.3g}  steps {result.get('mean_steps_taken', 0):.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("classifier", type=Path, help="run directory, .keras file or SavedModel")
    parser.add_argument("--extractor", required=True, help="path or URL; features, logits")
    parser.add_argument("--judge", type=Path, help=".keras file of an independent classifier")
    parser.add_argument("--dataset", help="default: that of training")
    parser.add_argument("--data-dir", help="default: that of training")
    parser.add_argument("--limit-train", type=int, help="fit starts to so many images")
    parser.add_argument("--num", type=int, default=2000, help="images a setting")
    parser.add_argument("--reference", choices=("test", "validation"), default="test")
    parser.add_argument("--num-reference", type=int, default=5000, help="at most; default 5000")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of each class's first image")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--curves", action="store_true", help="neighbours against steps")
    parser.add_argument(
        "--vary", action="append", default=[], help="NAME=V1,V2,...: the base with each value"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--only", nargs="+", help="names of settings, in this order; default all")
    parser.add_argument("--out", type=Path, default=Path("runs/generation_quality"))
    options = parser.parse_args()
    base = BASE | {name: values[0] for name, values in map(assignment, options.set)}
    settings = {name: one for text in options.vary for name, one in varied(base, text).items()}
    if not settings:
        settings = curves(base) if options.curves else {REAL: {}} | comparison(base)
    unknown = set(options.only or ()) - set(settings)
    if unknown:
        sys.exit(f"--only takes names among {'; '.join(settings)}; received {unknown}")
    laboratory = None
    for name in options.only or settings:
        setting = settings[name]
        kept = options.out / f"{file_name(name)}.json"
        wanted = {"name": name, "setting": setting, "num": options.num, "seed": options.seed}
        if kept.exists():
            result = json.loads(kept.read_text())
            if {key: result[key] for key in wanted} != wanted:
                sys.exit(f"{kept} is of other settings: choose another --out")
        else:
            laboratory = laboratory or Laboratory(options)
            result = laboratory.run(name, setting) if setting else laboratory.run_real()
            result = wanted | result | {"cores": os.cpu_count()}
            write_text(kept, json.dumps(result, indent=1) + "\n")
        print(line(name, result), flush=True)


if __name__ == "__main__":
    main()
