"""A tensor as it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, Optional

import numpy as np

from ._native import NativeFile
from ._types import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DTYPES = {"bf16": np.uint16, "f16": np.float16, "f32": np.float32}


@dataclass(frozen=True, repr=False)
class Packed:
    """A tensor as it is stored: codes and what they mean.

    For every quantized tensor, in float32 arithmetic and bit for bit,

        weight = levels[codes()] * scale of the weight's group

    where the weights that share a scale are those of one ``group_elems`` long run of a row (int4,
    lut4; the last run of a row may be shorter), of the flattened tensor (``nf4-dq``), or of a row
    (``fp8-e4m3``).

    ``nibbles``, ``data`` and ``blobs`` are read-only views of the mapped file: nothing is copied,
    and they stay valid after the file is closed. ``numpy.array(view)`` is a copy of one's own.

    Attributes:
        info: name, shape, scheme and parameters.
        nibbles: two 4-bit codes a byte. int4, lut4: uint8 ``[out, ceil(in / 2)]``, the even column
            in the low half. ``nf4-dq``: uint8 ``[ceil(out * in / 2)]``, the even element of the
            flattened tensor in the high half. ``None`` otherwise.
        data: ``fp8-e4m3``: codes, uint8 ``[out, in]``. ``raw``: the elements, float32 or float16
            of the tensor's shape, or the bits of bf16 as uint16. ``None`` otherwise.
        scales: float32, decoded. int4, lut4: ``[out, ceil(in / group_elems)]``. ``nf4-dq``: each
            block's absmax, ``[ceil(out * in / 64)]``. ``fp8-e4m3``: ``[out]``. ``None`` for
            ``raw``.
        levels: what a code stands for, float32. int4: the integers 0 to 7 and -8 to -1, ``[16]``,
            since nibbles are two's complement. lut4: the tensor's own integers, ``[16]``.
            ``nf4-dq``: NF4's values, ``[16]``. ``fp8-e4m3``: E4M3's values, ``[256]``. ``None``
            for ``raw``.
        blobs: every blob's bytes by its role, uint8 ``[length]``, as spec/format.md describes them.
            ``blobs["scales"]`` of int4 and lut4 has the scales in their own few bits.
    """

    info: TensorInfo
    nibbles: Optional[NDArray[np.uint8]]
    data: Optional[NDArray[Any]]
    scales: Optional[NDArray[np.float32]]
    levels: Optional[NDArray[np.float32]]
    blobs: Dict[str, NDArray[np.uint8]]

    def codes(self) -> NDArray[np.uint8]:
        """Unpacks the codes, one a byte: uint8 ``[out, in]``, indices into :attr:`levels`.

        Raises:
            ValueError: the tensor is ``raw``, which has no codes.
        """
        rows_and_columns = self.info["shape"]
        if self.info["scheme"] == "fp8-e4m3" and self.data is not None:
            return np.array(self.data)
        if self.nibbles is None:
            name, dtype = self.info["name"], self.info["dtype"]
            raise ValueError(f"tensor {name!r} is stored as {dtype} elements, which have no codes")
        halves = (self.nibbles & 15, self.nibbles >> 4)
        if self.info["scheme"] == "nf4-dq":
            flat = np.stack(halves[::-1], axis=-1).reshape(-1)
            return flat[: self.info["elems"]].reshape(rows_and_columns)
        rows, columns = rows_and_columns
        return np.stack(halves, axis=-1).reshape(rows, -1)[:, :columns]

    def __repr__(self) -> str:
        arrays = {
            "nibbles": self.nibbles,
            "data": self.data,
            "scales": self.scales,
            "levels": self.levels,
        }
        shown = ", ".join(
            f"{name} {array.dtype}{list(array.shape)}"
            for name, array in arrays.items()
            if array is not None
        )
        return f"<Packed {self.info['name']!r}: {self.info['scheme']}, {shown}>"


def packed(native: NativeFile, info: TensorInfo) -> Packed:
    """Views of the blobs of a tensor, and its scales decoded."""
    name, scheme, shape = info["name"], info["scheme"], info["shape"]
    blobs = {role: native.blob(name, role) for role in info["blobs"]}
    nibbles = blobs.get("nibbles")
    data: Optional[NDArray[Any]] = blobs.get("data")
    scales: Optional[NDArray[np.float32]] = None
    levels: Optional[NDArray[np.float32]] = None
    if data is not None:
        data = data.view(_DTYPES[info["dtype"]] if info["dtype"] else np.uint8).reshape(shape)
    if scheme != "raw":
        scales, levels = native.scales(name), native.levels(name)
    if nibbles is not None and scales is not None and scheme != "nf4-dq":
        nibbles, scales = nibbles.reshape(shape[0], -1), scales.reshape(shape[0], -1)
    return Packed(info, nibbles, data, scales, levels, blobs)
