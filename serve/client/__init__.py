"""Client of TensorFlow Serving and of the embedded server; imports no TensorFlow.

    from serve.client import Client

    with Client("127.0.0.1:8500", "digits") as client:
        answer = client.predict(images)

On the command line: ``python -m serve.client --help``.
"""

from serve.client.aio import AsyncClient
from serve.client.client import Client
from serve.client.core import TLS, ServingError
from serve.client.signatures import Metadata, Signature, TensorSpec, VersionStatus

__all__ = [
    "TLS",
    "AsyncClient",
    "Client",
    "Metadata",
    "ServingError",
    "Signature",
    "TensorSpec",
    "VersionStatus",
]
