"""The native module. `_file.py` is the only one that calls it; names are checked here."""

import os
from typing import Any, List, Optional, TypedDict, final

import numpy as np
from numpy.typing import NDArray

from ._types import Receipt, SourceFile, TensorInfo, TensorStatistics

__all__ = ["NativeFile"]

class _Description(TypedDict):
    format_version: str
    file_bytes: int
    has_statistics: bool
    producer: str
    parameters: dict[str, str]
    sources: List[SourceFile]
    files: List[SourceFile]

@final
class NativeFile:
    """An open, memory-mapped .smq file. Work of any length is done without the GIL.

    Each method raises ``ValueError`` after `close`, and ``KeyError`` for a name that no tensor has.
    """

    def __new__(cls, path: str | os.PathLike[str]) -> NativeFile:
        """Opens and checks all but the blobs' contents. Raises OSError, DamagedError, SmqError."""

    def close(self) -> None:
        """Gives the map up, but for the views that `blob` has lent."""

    def closed(self) -> bool:
        """Whether `close` was called."""

    def names(self) -> List[str]:
        """Every tensor's name, in the file's order."""

    def describe(self) -> _Description:
        """Header, provenance and embedded files."""

    def tensor(self, name: str) -> TensorInfo:
        """How a tensor is stored; sequences are lists here."""

    def embedded(self, name: str) -> Optional[bytes]:
        """The contents of an embedded file."""

    def statistics(self, name: str) -> Optional[TensorStatistics]:
        """A tensor's record. Raises DamagedError where the statistics are damaged."""

    def receipts(self) -> List[Receipt]:
        """The file's receipts. Raises DamagedError where the statistics are damaged."""

    def dequantize(self, name: str, dtype: str, out: NDArray[Any]) -> None:
        """Writes the elements into `out`, C-contiguous and of the tensor's shape: float32 for
        ``"f32"``, and bits as uint16 for ``"f16"`` and ``"bf16"``. Raises DamagedError."""

    def blob(self, name: str, role: str) -> NDArray[np.uint8]:
        """A read-only view of a blob, ``[length]``."""

    def scales(self, name: str) -> NDArray[np.float32]:
        """The scales, decoded and flat; empty for ``raw``. Raises DamagedError."""

    def levels(self, name: str) -> NDArray[np.float32]:
        """What each code stands for: ``[16]``, or ``[256]`` for FP8; empty for ``raw``."""

    def verify(self, name: Optional[str] = None) -> List[str]:
        """What is wrong with the file, or with one tensor; a sentence each."""
