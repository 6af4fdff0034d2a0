"""Reads .smq files: LLM checkpoints quantized to 4 bits, hashed throughout, memory-mapped.

    >>> from smq_format import open_smq
    >>> with open_smq("model.smq") as f:
    ...     for name in f.keys():
    ...         weight = f.get_tensor(name)

:func:`open_smq` is the way in; ``help(open_smq)`` and ``help(SmqFile)`` say what can be done with
an open file. Whatever is wrong with a file is an :class:`SmqError`, with one sentence that says
what and where; what the system refuses is an ``OSError``, as everywhere in Python.
"""

from importlib.metadata import version as _version

from ._errors import DamagedError, LoadError, SmqError, UnknownTensorError
from ._file import SmqFile, open_smq
from ._packed import Packed
from ._types import (
    ErrorFigures,
    FileInfo,
    Loaded,
    Metadata,
    OutputError,
    Receipt,
    SchemeInfo,
    SourceFile,
    TensorInfo,
    TensorStatistics,
)

__version__ = _version("smq-format")

__all__ = [
    "DamagedError",
    "ErrorFigures",
    "FileInfo",
    "LoadError",
    "Loaded",
    "Metadata",
    "OutputError",
    "Packed",
    "Receipt",
    "SchemeInfo",
    "SmqError",
    "SmqFile",
    "SourceFile",
    "TensorInfo",
    "TensorStatistics",
    "UnknownTensorError",
    "__version__",
    "open_smq",
]

# What a traceback and help() say is what a program imports.
for _name in __all__:
    if callable(globals()[_name]):
        globals()[_name].__module__ = __name__
del _name
