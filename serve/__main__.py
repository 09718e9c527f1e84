"""``python -m serve``: the embedded server."""

import socket
import sys

from serve.flags import Flags, parse


def main() -> int:
    flags = parse()
    taken = None if flags.version else _taken_port(flags)
    if taken is not None:
        print(f"Failed to start server. Error: {taken}", file=sys.stderr)
        return 1
    from serve.server import run  # imports TensorFlow: not for --help, nor for a taken port

    return run(flags)


def _taken_port(flags: Flags) -> str | None:
    """Why a port cannot be listened on; told at once, before any model is loaded."""
    family = socket.AF_INET6 if ":" in flags.host else socket.AF_INET
    for port in filter(None, (flags.port, flags.rest_api_port)):
        try:
            socket.create_server((flags.host, port), family=family).close()
        except OSError as error:
            return f"cannot listen at {flags.host}:{port}: {error.strerror}"
    return None


if __name__ == "__main__":
    sys.exit(main())
