"""Copies a file's weights into a model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Tuple

from ._elements import element_of, fill_torch, torch_tensor
from ._errors import DamagedError, LoadError
from ._native import NativeFile
from ._types import Loaded

if TYPE_CHECKING:
    import torch

    from ._file import SmqFile


def load_into(
    file: SmqFile, native: NativeFile, model: torch.nn.Module, *, strict: bool, verify: bool
) -> Loaded:
    """:meth:`SmqFile.load_into`."""
    if not hasattr(model, "state_dict"):
        kind = type(model).__name__
        raise TypeError(f"a {kind} is no model; load_into takes a torch.nn.Module")
    # Parameters and persistent buffers; what modules add for themselves need not be a tensor.
    targets: Dict[str, torch.Tensor] = {
        name: tensor.detach()
        for name, tensor in model.state_dict().items()
        if hasattr(tensor, "detach")
    }
    names = dict.fromkeys(file.keys())  # a set that keeps the order
    loaded = [name for name in names if name in targets]
    unfit = _unfit(file, targets, loaded)
    shared = {} if unfit else _shared(targets, loaded)
    unfit += _contradictions(file, native, targets, shared)
    reached = {_place(targets[name]) for name in loaded}
    absent = [name for name in targets if name not in names]
    missing = [name for name in absent if _place(targets[name]) not in reached]
    unexpected = [name for name in names if name not in targets]
    refused_missing = _without(missing, model, "_keys_to_ignore_on_load_missing")
    refused_unexpected = _without(unexpected, model, "_keys_to_ignore_on_load_unexpected")
    if unfit or (strict and (refused_missing or refused_unexpected)):
        raise LoadError(file.path, refused_missing, refused_unexpected, unfit)
    if verify:
        defects = [defect for name in loaded for defect in native.verify(name)]
        if defects:
            raise DamagedError(file.path, defects)
    for name in loaded:
        _write(file, native, name, targets[name])
    return Loaded(missing, unexpected)


def _write(file: SmqFile, native: NativeFile, name: str, target: torch.Tensor) -> None:
    """Straight into the memory of the parameter where that is the CPU's."""
    if target.device.type == "cpu" and target.is_contiguous():
        fill_torch(native, name, target)
    else:
        target.copy_(torch_tensor(native, file.info(name), element_of(target.dtype)))


def _unfit(file: SmqFile, targets: Dict[str, torch.Tensor], names: Iterable[str]) -> List[str]:
    """Why parameters cannot take the tensors of their names."""
    sentences = []
    for name in names:
        target, shape = targets[name], file.info(name)["shape"]
        if target.device.type == "meta":
            sentences.append(
                f"parameter {name!r} is on the meta device and has no memory; make the model "
                "without it, as AutoModelForCausalLM.from_config does"
            )
            break
        if tuple(target.shape) != shape:
            sentences.append(
                f"tensor {name!r} is {list(shape)} in the file and {list(target.shape)} in the "
                "model"
            )
        elif str(target.dtype) not in ("torch.float32", "torch.float16", "torch.bfloat16"):
            sentences.append(
                f"parameter {name!r} is {target.dtype}, and only float32, float16 and bfloat16 "
                "can be loaded into"
            )
    return sentences


def _place(tensor: torch.Tensor) -> Tuple[Any, ...]:
    """The same for two tensors that are the same memory."""
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())


def _shared(
    targets: Dict[str, torch.Tensor], names: Iterable[str]
) -> Dict[Tuple[Any, ...], List[str]]:
    """Tensors of the file that go to one memory, as an embedding and a head that are tied do."""
    places: Dict[Tuple[Any, ...], List[str]] = {}
    for name in names:
        if targets[name].numel() > 0:
            places.setdefault(_place(targets[name]), []).append(name)
    return {place: names for place, names in places.items() if len(names) > 1}


def _contradictions(
    file: SmqFile,
    native: NativeFile,
    targets: Dict[str, torch.Tensor],
    shared: Dict[Tuple[Any, ...], List[str]],
) -> List[str]:
    """Tensors that the model ties, though the file has different weights for them."""
    sentences = []
    for first, *others in shared.values():
        element = element_of(targets[first].dtype)
        weights = torch_tensor(native, file.info(first), element)
        for other in others:
            if not weights.equal(torch_tensor(native, file.info(other), element)):
                sentences.append(
                    f"the model ties {other!r} to {first!r}, and the file has different weights "
                    "for them; make the model with tie_word_embeddings=False"
                )
    return sentences


def _without(names: List[str], model: Any, attribute: str) -> List[str]:
    """The names but for those that a model of transformers says do not matter."""
    patterns = [re.compile(pattern) for pattern in getattr(model, attribute, None) or ()]
    return [name for name in names if not any(pattern.search(name) for pattern in patterns)]
