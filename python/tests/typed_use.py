"""What a type checker makes of the package's use: `test.sh` has mypy read this; nothing runs it."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import smq_format
import torch
from numpy.typing import NDArray
from smq_format import open_smq
from typing_extensions import assert_type


def use(path: str, model: torch.nn.Module, framework: str) -> None:
    with open_smq(path) as file:
        assert_type(file, smq_format.SmqFile)
        assert_type(file.keys(), List[str])
        assert_type(file.get_tensor("a"), NDArray[Any])
        assert_type(file.get_tensor("a", "np", np.float16), NDArray[Any])
        assert_type(file.get_tensor("a", "torch"), torch.Tensor)
        assert_type(file.get_tensor("a", framework="pt", dtype="bf16"), torch.Tensor)
        assert isinstance(file.get_tensor("a", framework), np.ndarray)
        packed = file.get_packed("a")
        assert_type(packed.nibbles, Optional[NDArray[np.uint8]])
        assert_type(packed.codes(), NDArray[np.uint8])
        assert_type(file.info("a")["shape"], Tuple[int, ...])
        assert_type(file.info()["bits_per_quantized_weight"], Optional[float])
        assert_type(file.metadata()["config"], Optional[Dict[str, Any]])
        statistics = file.statistics("a")
        if statistics is not None:
            assert_type(statistics["stored"]["mean_rel_mse"], float)
        assert_type(file.load_into(model).missing_keys, List[str])
    try:
        open_smq(path).verify()
    except smq_format.DamagedError as error:
        assert_type(error.defects, Tuple[str, ...])
