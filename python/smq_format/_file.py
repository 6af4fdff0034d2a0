"""An open file."""

from __future__ import annotations

import difflib
import json
import os
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Iterator,
    List,
    Literal,
    Optional,
    Type,
    Union,
    overload,
)

import numpy as np

from ._elements import element_of, framework_of, numpy_array, torch_tensor
from ._errors import DamagedError, SmqError, UnknownTensorError
from ._load import load_into
from ._native import NativeFile
from ._packed import Packed, packed
from ._types import (
    FileInfo,
    Loaded,
    Metadata,
    Receipt,
    SchemeInfo,
    TensorInfo,
    TensorStatistics,
)

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


def open_smq(path: Union[str, os.PathLike[str]]) -> SmqFile:
    """Opens a .smq file for reading.

    The file is mapped, not read: what this takes does not grow with the weights. Header, index and
    layout are checked here; the weights' hashes are not until :meth:`SmqFile.verify` is called.
    Do not truncate a file in place while it is open, here or in another process: that ends any
    program which has it mapped. Replacing it by renaming another file over it is harmless, and is
    how ``smq-convert`` writes.

    Args:
        path: the file.

    Returns:
        The open file, which is a context manager. It may be used from several threads at once, and
        in a child process after a fork.

    Raises:
        FileNotFoundError, PermissionError, OSError: the system does not open it.
        DamagedError: it is no .smq file, or a damaged one.
        SmqError: the path is not a regular file.

    Example:
        >>> from smq_format import open_smq
        >>> with open_smq("model.smq") as f:
        ...     f.verify()                                          # every hash
        ...     print(f.info()["bits_per_quantized_weight"])
        ...     for name in f.keys():
        ...         array = f.get_tensor(name)                      # numpy
        ...         tensor = f.get_tensor(name, "torch", dtype="bfloat16")
        ...     packed = f.get_packed("model.layers.0.mlp.down_proj.weight")
        ...     packed.nibbles.shape, packed.scales.shape           # as stored, not copied
    """
    return SmqFile(path)


class SmqFile:
    """An open .smq file; :func:`open_smq` makes one.

    ``len(f)``, ``name in f`` and ``for name in f`` are about its tensors' names, as with a dict.
    """

    def __init__(self, path: Union[str, os.PathLike[str]]) -> None:
        self._path = os.fspath(path)
        self._native = NativeFile(path)

    def __enter__(self) -> SmqFile:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; closing it again does nothing. Arrays and tensors that it gave out stay
        valid, those of :meth:`get_packed` included, which keep the map."""
        self._native.close()

    @property
    def path(self) -> str:
        """The path that the file was opened by."""
        return self._path

    def keys(self) -> List[str]:
        """The tensors' names, in the order in which the file holds them."""
        return self._native.names()

    def __len__(self) -> int:
        return len(self._native.names())

    def __iter__(self) -> Iterator[str]:
        return iter(self._native.names())

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and bool(self._native.tensor(name))
        except KeyError:
            return False

    def __repr__(self) -> str:
        if self._native.closed():
            return f"<SmqFile {self._path!r}: closed>"
        info = self.info()
        megabytes = info["file_bytes"] / 1e6
        kinds = sorted(
            {
                f"{scheme['scheme']} with {scheme['scale_format']} scales"
                for scheme in info["schemes"]
                if scheme["scheme"] != "raw"
            }
        )
        stored = f", {info['quantized_tensors']} of them {' and '.join(kinds)}" if kinds else ""
        return f"<SmqFile {self._path!r}: {info['tensors']} tensors{stored}, {megabytes:.2f} MB>"

    @overload
    def info(self) -> FileInfo: ...
    @overload
    def info(self, name: str) -> TensorInfo: ...
    def info(self, name: Optional[str] = None) -> Union[FileInfo, TensorInfo]:
        """How the file, or one tensor of it, is stored; no weight is read.

        Args:
            name: the tensor; the whole file where it is left out.

        Returns:
            A :class:`FileInfo` with the file's sizes and schemes, or a :class:`TensorInfo` with the
            tensor's shape, scheme and parameters.

        Raises:
            UnknownTensorError: the file has no such tensor.
        """
        return self._file_info() if name is None else self._tensor_info(name)

    def metadata(self) -> Metadata:
        """What the file says of itself.

        Returns:
            The model's ``config`` (config.json), who made the file (``producer``) with which
            ``parameters``, from which ``sources``, and which ``files`` of the checkpoint it embeds.

        Raises:
            SmqError: the embedded config.json is no JSON.
        """
        described = self._native.describe()
        contents = self._native.embedded("config.json")
        config: Optional[Dict[str, Any]] = None
        if contents is not None:
            try:
                config = json.loads(contents)
            # Nesting without end is a RecursionError.
            except (ValueError, RecursionError) as error:
                message = f"{self._path}: the embedded config.json is not valid JSON: {error}"
                raise SmqError(message) from None
        return {
            "format_version": described["format_version"],
            "producer": described["producer"],
            "parameters": described["parameters"],
            "sources": described["sources"],
            "files": described["files"],
            "config": config,
        }

    def embedded(self, name: str) -> bytes:
        """A file of the checkpoint that the .smq file embeds, byte for byte.

        Args:
            name: such as ``"tokenizer.json"``; ``metadata()["files"]`` lists them.

        Raises:
            SmqError: the file embeds no such file.
        """
        contents = self._native.embedded(name)
        if contents is None:
            names = [file["name"] for file in self._native.describe()["files"]]
            listed = ", ".join(names) or "none at all"
            raise SmqError(f"{self._path}: no file {name!r} is embedded; there is {listed}")
        return contents

    def statistics(self, name: str) -> Optional[TensorStatistics]:
        """What quantization did to a tensor, measured when the file was made.

        Returns:
            The tensor's errors, those with exact scales beside them, and how its scales are
            distributed; ``None`` where the tensor is not quantized or the file has no statistics.

        Raises:
            UnknownTensorError: the file has no such tensor.
            DamagedError: the statistics are damaged, which the weights need not be.
        """
        self._tensor_info(name)
        return self._native.statistics(name)

    def receipts(self) -> List[Receipt]:
        """How far the file's model is from the unquantized one, a text each, where
        ``smq-convert --measure-kl`` has measured it; otherwise empty.

        Raises:
            DamagedError: the statistics are damaged, which the weights need not be.
        """
        return self._native.receipts()

    @overload
    def get_tensor(
        self, name: str, framework: Literal["numpy", "np"] = ..., dtype: object = ...
    ) -> NDArray[Any]: ...
    @overload
    def get_tensor(
        self, name: str, framework: Literal["torch", "pt"], dtype: object = ...
    ) -> torch.Tensor: ...
    @overload
    def get_tensor(
        self, name: str, framework: str, dtype: object = ...
    ) -> Union[NDArray[Any], torch.Tensor]: ...
    def get_tensor(
        self, name: str, framework: str = "numpy", dtype: object = None
    ) -> Union[NDArray[Any], torch.Tensor]:
        """A tensor's weights, dequantized, as ``smq-convert --to safetensors`` writes them.

        The elements are written once, by all cores and without the GIL, straight into the memory of
        what is returned. Hashes are not checked: see :meth:`verify`.

        Args:
            name: the tensor.
            framework: ``"numpy"`` (or ``"np"``) or ``"torch"`` (or ``"pt"``; on the CPU).
            dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``, or what numpy or torch have for
                these. float32 is exact; the others are rounded to, half to even. Where it is left
                out, quantized tensors are float32, and others are of the type that they are stored
                in, except that numpy, which has no bfloat16, gets float32. With the package
                ``ml_dtypes``, ``dtype="bfloat16"`` works for numpy too.

        Returns:
            A C-contiguous array or tensor of the shape ``info(name)["shape"]``, which is the
            caller's own.

        Raises:
            UnknownTensorError: the file has no such tensor.
            DamagedError: a scale or code has no meaning.
            ValueError: ``framework`` or ``dtype`` is none of the above.
        """
        info = self._tensor_info(name)
        element = element_of(dtype)
        if framework_of(framework) == "torch":
            return torch_tensor(self._native, info, element)
        return numpy_array(self._native, info, element)

    def get_packed(self, name: str) -> Packed:
        """A tensor as it is stored: nibbles, scales and levels.

        Returns:
            A :class:`Packed`. Its nibbles, data and blobs are read-only views of the mapped file;
            its scales are decoded to float32.

        Raises:
            UnknownTensorError: the file has no such tensor.
            DamagedError: a scale has no meaning.
        """
        return packed(self._native, self._tensor_info(name))

    def verify(self, name: Optional[str] = None) -> None:
        """Recomputes every hash, and checks every scale, code and unused bit.

        Args:
            name: a tensor to verify alone; where it is left out, everything: tensors, embedded
                files and statistics.

        Raises:
            DamagedError: something is wrong. Its message has the first defect, with the name of the
                tensor, and its ``defects`` have all.
            UnknownTensorError: the file has no such tensor.
        """
        if name is not None:
            self._tensor_info(name)
        defects = self._native.verify(name)
        if defects:
            raise DamagedError(self._path, defects)

    def load_into(
        self, model: torch.nn.Module, *, strict: bool = True, verify: bool = True
    ) -> Loaded:
        """Copies the dequantized weights into a model by name, as ``load_state_dict`` would.

        Each parameter keeps its device and its element type: float32 gets the weights exactly,
        bfloat16 and float16 rounded. On the CPU they are dequantized straight into the parameter's
        memory. Everything is checked before the first parameter is written. Names are those of the
        checkpoint that the file was made from, which for most models of transformers are those of
        the model class that config.json names.

        Args:
            model: a ``torch.nn.Module``, such as one of transformers made by
                ``AutoModelForCausalLM.from_config``.
            strict: refuse a model which has a parameter that the file does not hold, or a file
                which holds a tensor that the model does not have. Parameters that are tied to a
                loaded one are not missing, and neither counts what the model itself names in
                ``_keys_to_ignore_on_load_missing`` and ``_keys_to_ignore_on_load_unexpected``.
            verify: check the tensors' hashes first.

        Returns:
            A :class:`Loaded`, which names what was passed over.

        Raises:
            LoadError: names, shapes or element types do not fit; nothing was loaded.
            DamagedError: a tensor is damaged; nothing was loaded if ``verify`` is set.
        """
        return load_into(self, self._native, model, strict=strict, verify=verify)

    def _tensor_info(self, name: str) -> TensorInfo:
        try:
            info = self._native.tensor(name)
        except KeyError:
            close = difflib.get_close_matches(name, self._native.names(), n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            message = f"{self._path}: no tensor is called {name!r}; {hint}keys() lists every tensor"
            raise UnknownTensorError(message) from None
        info["shape"] = tuple(info["shape"])
        info["blobs"] = tuple(info["blobs"])
        return info

    def _file_info(self) -> FileInfo:
        described = self._native.describe()
        tensors = [self._native.tensor(name) for name in self._native.names()]
        schemes: Dict[Any, SchemeInfo] = {}
        for tensor in tensors:
            group = tensor["group_elems"] if tensor["scheme"] != "fp8-e4m3" else None
            key = (tensor["scheme"], tensor["dtype"], tensor["scale_format"], group)
            scheme = schemes.setdefault(
                key,
                {
                    "scheme": tensor["scheme"],
                    "dtype": tensor["dtype"],
                    "scale_format": tensor["scale_format"],
                    "group_elems": group,
                    "tensors": 0,
                    "elems": 0,
                    "stored_bytes": 0,
                },
            )
            scheme["tensors"] += 1
            scheme["elems"] += tensor["elems"]
            scheme["stored_bytes"] += tensor["stored_bytes"]
        quantized = [scheme for scheme in schemes.values() if scheme["scheme"] != "raw"]
        elems = sum(tensor["elems"] for tensor in tensors)
        quantized_elems = sum(scheme["elems"] for scheme in quantized)
        quantized_bytes = sum(scheme["stored_bytes"] for scheme in quantized)
        return {
            "path": self._path,
            "file_bytes": described["file_bytes"],
            "tensors": len(tensors),
            "quantized_tensors": sum(scheme["tensors"] for scheme in quantized),
            "elems": elems,
            "quantized_elems": quantized_elems,
            "bits_per_quantized_weight": (
                8 * quantized_bytes / quantized_elems if quantized_elems else None
            ),
            "bits_per_weight_in_file": 8 * described["file_bytes"] / elems if elems else None,
            "has_statistics": described["has_statistics"],
            "schemes": list(schemes.values()),
        }
