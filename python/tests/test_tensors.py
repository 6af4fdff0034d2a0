"""Weights, bit for bit those of the command line's export."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict

import ml_dtypes
import numpy as np
import pytest
import torch
from conftest import PHI3_TINY, Converted, inspect, write_at
from safetensors import safe_open
from safetensors.torch import save_file
from smq_format import DamagedError, UnknownTensorError, open_smq

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def exported(directory: Path) -> Dict[str, torch.Tensor]:
    """Every tensor of a directory of safetensors files."""
    tensors = {}
    for shard in sorted(directory.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})
    assert tensors
    return tensors


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Distinguishes 0 from -0, and one NaN from another."""
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert bits(actual).equal(bits(expected))


def check_against_exports(converted: Converted) -> None:
    with open_smq(converted.path) as file:
        for dtype, directory in converted.exports.items():
            expected = exported(directory)
            assert set(file.keys()) == set(expected)
            for name, tensor in expected.items():
                quantized = file.info(name)["scheme"] != "raw"
                # The export leaves what is not quantized in the type that it is stored in.
                as_type = DTYPES[dtype] if quantized else None
                same(file.get_tensor(name, "torch", dtype=as_type), tensor)
                if dtype == "f32" and quantized:
                    same(file.get_tensor(name, "torch"), tensor)
                    array = file.get_tensor(name)
                    assert array.dtype == np.float32
                    same(torch.from_numpy(array), tensor)


def test_every_scheme_is_the_export_bit_for_bit(variant: Converted) -> None:
    check_against_exports(variant)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory, convert: Any) -> Converted:
    """A checkpoint of odd shapes, of each element type."""
    random = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 1e-40, -65504.0, 65520.0, 1e38])
    nans = torch.tensor([0x7FC0, 0x7F81, -1], dtype=torch.int16).view(torch.bfloat16)
    checkpoint = tmp_path_factory.mktemp("odd") / "odd.safetensors"
    tensors = {
        "mlp.0.weight": normal(5, 7),
        "mlp.1.weight": normal(1, 1).half(),
        "mlp.2.weight": normal(3, 129).bfloat16(),
        "mlp.big.weight": normal(300, 1001),
        "scalar": torch.tensor(3.5),
        "vector": special,
        "vector16": special[:6].half(),
        "nans": nans,
        "cube": normal(2, 3, 5).bfloat16(),
        "long": normal(200_001).bfloat16(),
        "empty": torch.empty(0, 4),
        "hollow": torch.empty(4, 0).half(),
    }
    save_file(tensors, checkpoint)
    return convert(checkpoint, "--target", r"mlp\.")


def test_odd_shapes_and_special_values(odd: Converted) -> None:
    check_against_exports(odd)
    with open_smq(odd.path) as file:
        assert file.get_tensor("scalar").shape == ()
        assert file.get_tensor("scalar") == 3.5
        assert file.info("mlp.0.weight")["scheme"] == "int4-e5mx"


def test_element_types(odd: Converted) -> None:
    """Conversions are those of torch: widening is exact, rounding half to even."""
    with open_smq(odd.path) as file:
        for name in ("vector", "vector16", "cube", "long", "mlp.big.weight"):
            stored = file.get_tensor(name, "torch")
            for dtype in DTYPES.values():
                same(file.get_tensor(name, "torch", dtype=dtype), stored.to(dtype))
            f16, bf16 = file.get_tensor(name, dtype="f16"), file.get_tensor(name, dtype="bfloat16")
            assert (f16.dtype, bf16.dtype) == (np.float16, ml_dtypes.bfloat16)
            same(torch.from_numpy(f16), stored.half())
            same(torch.from_numpy(bf16.view(np.int16)).view(torch.bfloat16), stored.bfloat16())
        # numpy has no bfloat16 of its own.
        assert file.get_tensor("cube").dtype == np.float32
        assert file.get_tensor("vector16").dtype == np.float16
        for dtype in ("float32", "f32", "torch.float32", np.float32, np.dtype("f4"), torch.float32):
            assert file.get_tensor("cube", "np", dtype).dtype == np.float32
        assert file.get_tensor("cube", dtype=ml_dtypes.bfloat16).dtype == ml_dtypes.bfloat16
        for wrong in ("float64", np.int8, torch.int8, 3):
            with pytest.raises(ValueError, match="expected float32, float16 or bfloat16"):
                file.get_tensor("cube", dtype=wrong)
        with pytest.raises(ValueError, match="framework 'jax' is unknown; expected 'numpy' or"):
            file.get_tensor("cube", "jax")


def test_codes_times_scales_are_the_weights(variant: Converted) -> None:
    with open_smq(variant.path) as file:
        seen = 0
        for name in file.keys():
            info, packed = file.info(name), file.get_packed(name)
            if info["scheme"] == "raw":
                continue
            seen += 1
            rows, columns = info["shape"]
            group = info["group_elems"]
            assert packed.levels is not None and packed.scales is not None and group is not None
            codes = packed.codes()
            assert (codes.dtype, codes.shape) == (np.uint8, (rows, columns))
            if info["scheme"] == "nf4-dq":
                assert packed.nibbles is not None
                assert packed.nibbles.shape == (-(-rows * columns // 2),)
                assert packed.scales.shape == (-(-rows * columns // 64),)
                scales = np.repeat(packed.scales, 64)[: rows * columns].reshape(rows, columns)
            elif info["scheme"] == "fp8-e4m3":
                assert packed.data is not None and packed.data.shape == (rows, columns)
                assert packed.scales.shape == (rows,)
                scales = packed.scales[:, None]
            else:
                assert packed.nibbles is not None
                assert packed.nibbles.shape == (rows, -(-columns // 2))
                assert packed.scales.shape == (rows, -(-columns // group))
                scales = np.repeat(packed.scales, group, axis=1)[:, :columns]
            weights = packed.levels[codes] * scales
            expected = file.get_tensor(name)
            assert weights.dtype == np.float32
            assert np.array_equal(weights.view(np.uint32), expected.view(np.uint32))
        assert seen > 0


def test_raw_tensors_are_packed_as_they_are(odd: Converted) -> None:
    with open_smq(odd.path) as file:
        for name, dtype in (("cube", np.uint16), ("vector", np.float32), ("vector16", np.float16)):
            packed = file.get_packed(name)
            assert packed.data is not None and packed.data.dtype == dtype
            assert packed.data.shape == file.info(name)["shape"]
            tensor = bits(file.get_tensor(name, "torch")).numpy()
            assert np.array_equal(packed.data.view(tensor.dtype), tensor)
            assert packed.nibbles is packed.scales is packed.levels is None
            with pytest.raises(ValueError, match=f"tensor {name!r} is stored as .* no codes"):
                packed.codes()


def test_views_are_read_only_and_outlive_the_file(int4: Converted) -> None:
    with open_smq(int4.path) as file:
        name = "model.layers.0.mlp.down_proj.weight"
        packed = file.get_packed(name)
        weights = file.get_tensor(name)
    assert packed.nibbles is not None
    for view in (packed.nibbles, *packed.blobs.values()):
        assert not view.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 0
    # The same memory, not a copy of it.
    assert np.shares_memory(packed.nibbles, packed.blobs["nibbles"])
    with open_smq(int4.path) as file:
        assert np.array_equal(packed.nibbles, np.array(file.get_packed(name).nibbles))
    # What was dequantized is the caller's own.
    assert weights.flags.writeable and weights.flags.c_contiguous and weights.flags.owndata
    weights += 1


def test_a_closed_file_says_so(int4: Converted) -> None:
    file = open_smq(int4.path)
    assert "closed" not in repr(file)
    file.close()
    file.close()
    assert repr(file) == f"<SmqFile {str(int4.path)!r}: closed>"
    for use in (file.keys, file.verify, file.metadata, file.info, lambda: file.get_tensor("a")):
        with pytest.raises(ValueError, match="model.smq was closed; open it again"):
            use()


def test_names(int4: Converted) -> None:
    with open_smq(int4.path) as file:
        assert list(file) == file.keys() == list(dict.fromkeys(file.keys()))
        assert len(file) == len(file.keys()) == 27
        assert "lm_head.weight" in file
        assert "lm_head" not in file and 3 not in file
        sentence = (
            f"{int4.path}: no tensor is called 'model.embed_token.weight'; did you mean "
            "'model.embed_tokens.weight'? keys() lists every tensor"
        )
        for use in (
            file.get_tensor,
            file.get_packed,
            file.statistics,
            file.verify,
            file.info,
        ):
            with pytest.raises(UnknownTensorError) as raised:
                use("model.embed_token.weight")
            assert str(raised.value) == sentence
            assert isinstance(raised.value, KeyError)


def test_a_scale_without_a_meaning_is_refused(odd: Converted, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.smq"
    damaged.write_bytes(odd.path.read_bytes())
    tensor = next(t for t in inspect(odd.path)["tensors"] if t["name"] == "mlp.big.weight")
    scales = next(blob for blob in tensor["blobs"] if blob["role"] == "scales")
    # A code with an exponent field of 0 is valid only if it is 0.
    write_at(damaged, scales["offset_bytes"], b"\x01\x00")
    sentence = 'damaged.smq: tensor "mlp.big.weight": scale 0 has the invalid code'
    with open_smq(damaged) as file:
        for get in (file.get_tensor, file.get_packed):
            with pytest.raises(DamagedError, match=sentence):
                get("mlp.big.weight")
        file.get_tensor("mlp.0.weight")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, convert: Any) -> Path:
    """A tensor that takes long enough to look at another thread meanwhile."""
    checkpoint = tmp_path_factory.mktemp("large") / "large.safetensors"
    weight = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(1)).bfloat16()
    save_file({"mlp.weight": weight}, checkpoint)
    return Path(convert(checkpoint, "--target", r"mlp\.").path)


def test_other_threads_run_meanwhile(large: Path) -> None:
    steps, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            steps[0] += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    # No thread is interrupted, so that another runs only where the interpreter is released.
    sys.setswitchinterval(1000)
    thread = threading.Thread(target=count)
    try:
        with open_smq(large) as file:
            thread.start()
            for work in (
                lambda: file.get_tensor("mlp.weight"),
                lambda: file.get_tensor("mlp.weight", dtype="float16"),
                file.verify,
            ):
                # The other thread may come to nothing in a moment's work on a busy machine.
                before, end = steps[0], time.monotonic() + 20
                while steps[0] == before and time.monotonic() < end:
                    work()
                assert steps[0] > before
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_threads_of_its_own(large: Path) -> None:
    # In a program of its own, since torch's threads do not like to be forked.
    program = f"""
import os, smq_format
file = smq_format.open_smq({str(large)!r})
parent = file.get_tensor("mlp.weight").sum()
child = os.fork()
same = file.get_tensor("mlp.weight").sum() == parent
if child == 0:
    file.verify()
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
assert same and status == 0, status
"""
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    try:
        assert process.wait(timeout=60) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_several_threads_read_one_file(int4: Converted) -> None:
    with open_smq(int4.path) as file, ThreadPoolExecutor(8) as pool:
        expected = {name: file.get_tensor(name).sum() for name in file}
        for _ in range(3):
            for name, array in zip(file, pool.map(file.get_tensor, file)):
                assert array.sum() == expected[name]


def test_the_source_is_what_was_left_alone(int4: Converted) -> None:
    """Raw tensors are the checkpoint's own."""
    source = exported(PHI3_TINY)
    with open_smq(int4.path) as file:
        raw = [name for name in file if file.info(name)["scheme"] == "raw"]
        assert len(raw) == 11
        for name in raw:
            same(file.get_tensor(name, "torch"), source[name])
