"""Element types, and the arrays and tensors that are filled with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from ._native import NativeFile
from ._types import TensorInfo

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

# The names of numpy and torch, and those of the command line.
_ELEMENTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_ELEMENTS.update({short: short for short in _ELEMENTS.values()})
_FRAMEWORKS = {"numpy": "numpy", "np": "numpy", "torch": "torch", "pt": "torch"}


def element_of(dtype: object) -> Optional[str]:
    """``"f32"``, ``"f16"`` or ``"bf16"``, whatever the caller calls it; ``None`` for ``None``."""
    if dtype is None:
        return None
    name = dtype if isinstance(dtype, str) else str(dtype)
    if name.startswith("torch."):
        name = name[len("torch.") :]
    elif not isinstance(dtype, str):
        try:
            name = np.dtype(dtype).name  # type: ignore[call-overload]
        except TypeError:
            pass  # the message below names it
    if name not in _ELEMENTS:
        raise ValueError(f"dtype {dtype!r} is unknown; expected float32, float16 or bfloat16")
    return _ELEMENTS[name]


def framework_of(name: str) -> str:
    """``"numpy"`` or ``"torch"``."""
    if name not in _FRAMEWORKS:
        raise ValueError(f"framework {name!r} is unknown; expected 'numpy' or 'torch'")
    return _FRAMEWORKS[name]


def numpy_array(native: NativeFile, info: TensorInfo, element: Optional[str]) -> NDArray[Any]:
    """The tensor as an array; bf16 that nobody asked for is widened, since numpy has none."""
    if element is None:
        element = "f16" if info["dtype"] == "f16" else "f32"
    dtype: Any = {"f32": np.float32, "f16": np.float16}.get(element)
    if element == "bf16":
        dtype = _ml_dtypes().bfloat16
    array = np.empty(info["shape"], dtype)
    native.dequantize(info["name"], element, array if element == "f32" else array.view(np.uint16))
    return array


def torch_tensor(native: NativeFile, info: TensorInfo, element: Optional[str]) -> torch.Tensor:
    """The tensor as torch has it, on the CPU."""
    pt = _torch()
    element = element or info["dtype"] or "f32"
    dtype = {"f32": pt.float32, "f16": pt.float16, "bf16": pt.bfloat16}[element]
    tensor: torch.Tensor = pt.empty(info["shape"], dtype=dtype, device="cpu")
    fill_torch(native, info["name"], tensor)
    return tensor


def fill_torch(native: NativeFile, name: str, tensor: torch.Tensor) -> None:
    """Writes the elements into a contiguous tensor on the CPU, in the tensor's own type."""
    pt = _torch()
    element = element_of(tensor.dtype)
    if element == "f32":
        native.dequantize(name, "f32", tensor.numpy())
    elif element is not None:
        # Through int16, since numpy has no bfloat16, and older torch no uint16.
        native.dequantize(name, element, tensor.view(pt.int16).numpy().view(np.uint16))


def _ml_dtypes() -> Any:
    try:
        import ml_dtypes
    except ImportError:
        raise ValueError(
            "numpy has no bfloat16; install ml_dtypes, or ask for dtype='float32', which is exact, "
            "or for framework='torch'"
        ) from None
    return ml_dtypes


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"framework 'torch' needs torch, which cannot be imported ({error}); install it, or "
            "ask for framework='numpy'"
        ) from None
    return torch
