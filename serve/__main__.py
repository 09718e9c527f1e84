"""``python -m serve``: the embedded server."""

import sys

from serve.flags import parse


def main() -> int:
    flags = parse()
    from serve.server import run  # imports TensorFlow: not for --help

    return run(flags)


if __name__ == "__main__":
    sys.exit(main())
