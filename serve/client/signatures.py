"""What the server says a model takes and gives, and the check of arrays against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.client import messages, tensors


@dataclass(frozen=True)
class TensorSpec:
    """Element type as TensorFlow prints it (``float32``, ``string``) and shape.

    A dimension of any size is None; a shape of any rank is None as a whole.
    """

    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype} of any shape"
        return f"{self.dtype} [{', '.join('?' if d is None else str(d) for d in self.shape)}]"

    @property
    def batched(self) -> bool:
        """Whether the 0th dimension may have any size."""
        return self.shape is None or (len(self.shape) > 0 and self.shape[0] is None)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as far as the signature tells them; 1 for strings of any length."""
        known = [d for d in (self.shape or ())[1:] if d is not None]
        itemsize = 1 if self.dtype == "string" else np.dtype(self.dtype).itemsize
        return int(np.prod([itemsize, *known]))


@dataclass(frozen=True)
class Signature:
    """One entry point of a model: its inputs and outputs by name."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


@dataclass(frozen=True)
class Metadata:
    """A served model as its server describes it.

    Attributes:
        model: name it is served under.
        version: the version that answered.
        signatures: entry points by name; TensorFlow's internal ``__saved_model_init_op`` is left
            out.
    """

    model: str
    version: int
    signatures: dict[str, Signature]


@dataclass(frozen=True)
class VersionStatus:
    """State of one version of a model.

    Attributes:
        version: its number.
        state: ``START``, ``LOADING``, ``AVAILABLE``, ``UNLOADING`` or ``END``.
        error_code: 0 when all is well, else the number of a gRPC status code.
        error_message: why it failed; empty when all is well.
    """

    version: int
    state: str
    error_code: int = 0
    error_message: str = ""


def parse_metadata(response: Any) -> Metadata:
    """Metadata from a GetModelMetadataResponse."""
    signature_map = messages.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signature_map)
    signatures = {
        name: Signature(_specs(definition.inputs), _specs(definition.outputs))
        for name, definition in sorted(signature_map.signature_def.items())
        if not name.startswith("__")
    }
    return Metadata(response.model_spec.name, response.model_spec.version.value, signatures)


def _specs(infos: Any) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(tensors.dtype_name(info.dtype), _shape(info.tensor_shape))
        for name, info in sorted(infos.items())
    }


def _shape(proto: Any) -> tuple[int | None, ...] | None:
    if proto.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else dim.size for dim in proto.dim)


def parse_status(response: Any) -> list[VersionStatus]:
    """States from a GetModelStatusResponse, newest version first."""
    statuses = [
        VersionStatus(
            entry.version,
            messages.STATES.get(entry.state, str(entry.state)),
            entry.status.error_code,
            entry.status.error_message,
        )
        for entry in response.model_version_status
    ]
    return sorted(statuses, key=lambda status: -status.version)


def check(inputs: dict[str, Any], metadata: Metadata, signature: str) -> dict[str, np.ndarray]:
    """The inputs as arrays of the wanted types, or a ValueError that says what is wrong.

    Python numbers and lists take the wanted type. Arrays are converted where no value can change:
    integers to another integer type that holds them, float16 to float32. Everything else, float64
    to float32 and uint8 pixels to float among it, is for the caller to decide.
    """
    if signature not in metadata.signatures:
        raise ValueError(
            f"model {metadata.model} version {metadata.version} has no signature {signature!r}; "
            f"it has {', '.join(metadata.signatures) or 'none'}"
        )
    wanted = metadata.signatures[signature].inputs
    if inputs.keys() != wanted.keys():
        raise ValueError(
            f"signature {signature!r} takes {', '.join(wanted)}; received {', '.join(inputs)}"
        )
    return {name: _checked(name, value, wanted[name]) for name, value in inputs.items()}


def _checked(name: str, value: Any, wanted: TensorSpec) -> np.ndarray:
    if wanted.dtype == "string":
        array, received = _bytes_array(name, value), "string"
        castable = True
    else:
        try:
            array = np.asarray(value)
        except ValueError:
            raise ValueError(
                f"{name}: received rows of different shapes, the model takes {wanted}"
            ) from None
        received = array.dtype.name
        castable = _castable(array, np.dtype(wanted.dtype), typed=hasattr(value, "dtype"))
    if not castable or not _fits(array.shape, wanted.shape):
        shape = ", ".join(map(str, array.shape))
        raise ValueError(f"{name}: received {received} [{shape}], the model takes {wanted}")
    return array if wanted.dtype == "string" else array.astype(wanted.dtype, copy=False)


def _bytes_array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, bytes | str):
        raise ValueError(f"{name}: received one {type(value).__name__}, wanted a list of bytes")
    array = np.array(value, dtype=np.object_)
    for index, item in enumerate(array.ravel()):
        if not isinstance(item, bytes):
            raise ValueError(f"{name}: item {index} is of type {type(item).__name__}, not bytes")
    return array


def _castable(array: np.ndarray, wanted: np.dtype, *, typed: bool) -> bool:
    if array.dtype == wanted:
        return True
    if array.dtype.kind in "iu" and wanted.kind in "iu":
        limits = np.iinfo(wanted)
        return array.size == 0 or bool(array.min() >= limits.min and array.max() <= limits.max)
    if not typed and array.dtype in (np.int64, np.float64) and wanted.kind == "f":
        return True
    return array.dtype.kind == wanted.kind and np.can_cast(array.dtype, wanted, "safe")


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...] | None) -> bool:
    if wanted is None:
        return True
    return len(shape) == len(wanted) and all(
        size is None or size == have for have, size in zip(shape, wanted, strict=True)
    )
