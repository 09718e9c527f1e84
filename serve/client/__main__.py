"""``python -m serve.client``: ask a served model from the command line.

::

    python -m serve.client predict photo.png scan.jpg
    python -m serve.client sample --label cat --out grid.png
    python -m serve.client status --target serving.example:8500 --model cifar10 --json

Exit status 0 done, 1 failed at work, 2 unusable arguments.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from PIL import Image

from serve.client import TLS, Client, ServingError, pictures, render
from serve.client.render import Names

SAVED_MODELS = Path("saved_models")

app = App(
    name="python -m serve.client",
    help="Ask a model served by TensorFlow Serving or by the embedded server.",
    version_flags=[],
    result_action="return_value",
)


def _whole(type_: Any, tokens: Sequence[Any]) -> int:
    """``12`` as a number; cyclopts itself would round ``1.7``."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"received {text!r}, accepted are whole numbers") from None


Whole = Annotated[int, Parameter(converter=_whole)]


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """Where the model is and how to reach it."""

    target: str = "127.0.0.1:8500"
    "host:port of the server's gRPC port"
    model: str | None = None
    """name the model is served under; by default the only one in saved_models/, as python -m serve
    serves it, else "default" """
    version: Whole | None = None
    "version to ask, instead of the one the server chooses"
    version_label: str | None = None
    'version label to ask, such as "stable"'
    timeout: float = 60.0
    "seconds to wait for an answer"
    labels: Path | None = None
    """file with a class name a line; by default assets/labels.txt of the version that answers,
    where saved_models/ holds it, else classes are numbers"""
    tls: Annotated[bool, Parameter(negative="")] = False
    "connect with TLS, trusting the system's authorities (implied by the four options below)"
    ca: Path | None = None
    "PEM file of the authority that signed the server's certificate"
    certificate: Path | None = None
    "PEM file of our own certificate, where the server asks for one"
    key: Path | None = None
    "PEM file of its private key"
    server_name: str | None = None
    "name in the server's certificate, where it is not the target's"
    token_file: Path | None = None
    "file with a token to send as `authorization: Bearer TOKEN`"
    json: Annotated[bool, Parameter(negative="")] = False
    "print JSON instead of a table"
    debug: Annotated[bool, Parameter(negative="")] = False
    "show the traceback of an error"

    def client(self) -> Client:
        tls = TLS(self.ca, self.certificate, self.key, self.server_name)
        wanted = self.tls or tls != TLS()
        headers = {}
        if self.token_file is not None:
            headers["authorization"] = f"Bearer {self.token_file.read_text().strip()}"
        return Client(
            self.target,
            self.model or _default_model(),
            self.version,
            label=self.version_label,
            tls=tls if wanted else None,
            timeout=self.timeout,
            headers=headers,
        )

    def names(self, client: Client) -> Names:
        if self.labels is not None:
            # Some editors begin a file with a byte order mark.
            return Names(self.labels.read_text(encoding="utf-8-sig").splitlines())
        version = client.metadata().version
        path = SAVED_MODELS / client.model / str(version) / "assets" / "labels.txt"
        return Names(path.read_text(encoding="utf-8").splitlines() if path.is_file() else [])


def _default_model() -> str:
    models = sorted({path.parent.parent.name for path in SAVED_MODELS.glob("*/*/saved_model.pb")})
    if len(models) > 1:
        raise ValueError(f"saved_models/ holds {', '.join(models)}: name one with --model")
    return models[0] if models else "default"


@app.command
def predict(images: list[Path], /, *, options: Options = Options()) -> None:
    """Classify image files: class, probability and marginal energy of each.

    Args:
        images: PNG or JPEG files; the server decodes and resizes them.
    """
    contents = [path.read_bytes() for path in images]
    with options.client() as client:
        names = options.names(client)
        answer = client.predict_bytes(contents)
    render.predictions(images, answer, names, options.json)


@app.command
def energy(images: list[Path], /, *, options: Options = Options()) -> None:
    """Marginal energy of image files, and joint energy with each class.

    Args:
        images: image files; resized here to what the model takes.
    """
    with options.client() as client:
        answer = client.energy(pictures.read(images, client.metadata(), "energy"))
        names = options.names(client)
    render.energies(images, answer, names, options.json)


@app.command
def sample(
    *,
    label: Annotated[list[str], Parameter(negative="")],
    count: Whole = 16,
    seed: Whole = 0,
    steps: Whole = 20,
    out: Path = Path("samples.png"),
    options: Options = Options(),
) -> None:
    """Generate images of a class and write them as one picture.

    Args:
        label: class name or number; repeat it for a picture with a row a class.
        count: images of each class.
        seed: seed of the first image; the following ones count up from it.
        steps: Langevin steps at most.
        out: picture to write, PNG or JPEG.
    """
    if count < 1:
        raise ValueError(f"--count is at least 1, received {count}")
    with options.client() as client:
        names = options.names(client)
        classes = [names.number(name) for name in label for _ in range(count)]
        seeds = list(range(seed, seed + count)) * len(label)
        answer = client.sample(classes, seeds, steps)
    pictures.write_grid(out, answer["images"], count if len(label) > 1 else None)
    render.samples(out, classes, seeds, answer, names, options.json)


@app.command
def defend(images: list[Path], /, *, out: Path | None = None, options: Options = Options()) -> None:
    """Classify image files after moving them down their energy.

    Args:
        images: image files; resized here to what the model takes.
        out: folder to write the moved images to, as NAME.png.
    """
    with options.client() as client:
        answer = client.defend(pictures.read(images, client.metadata(), "defend"))
        names = options.names(client)
    written = pictures.write_each(out, images, answer["images"]) if out else None
    render.predictions(images, answer, names, options.json, written)


@app.command
def status(*, options: Options = Options()) -> None:
    """State of the model's versions."""
    with options.client() as client:
        render.status(client.status(), options.json)


@app.command
def metadata(*, options: Options = Options()) -> None:
    """Signatures of the model: names, element types and shapes of inputs and outputs."""
    with options.client() as client:
        render.metadata(client.metadata(), options.json)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except (CycloptsError, ValueError, FileNotFoundError, IsADirectoryError) as error:
        return _fail(error, 2, arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ServingError, OSError, Image.DecompressionBombError) as error:
        return _fail(error, 1, arguments)
    return 0


def _fail(error: Exception, code: int, arguments: list[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exception(error)
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
