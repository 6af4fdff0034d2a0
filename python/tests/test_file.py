"""What a file says of itself, and what is said of one that is damaged."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest
from conftest import PHI3_TINY, SAMPLE_TEXT, VARIANTS, Converted, inspect, run, write_at
from smq_format import DamagedError, LoadError, SmqError, UnknownTensorError, open_smq


def test_info_is_what_the_command_line_says(variant: Converted) -> None:
    said = inspect(variant.path)
    with open_smq(variant.path) as file:
        info = file.info()
        assert info["path"] == str(variant.path)
        assert info["file_bytes"] == said["header"]["file_bytes"]
        assert info["elems"] == said["sizes"]["total_elems"]
        for key in ("quantized_elems", "bits_per_quantized_weight", "bits_per_weight_in_file"):
            assert info[key] == said["sizes"][key], key
        assert info["tensors"] == len(said["tensors"])
        assert info["has_statistics"]
        of_inspect = [
            {key: value for key, value in scheme.items() if key != "scale_bits"}
            for scheme in said["schemes"]
        ]
        assert info["schemes"] == of_inspect
        for tensor in said["tensors"]:
            mine = file.info(tensor["name"])
            for key in ("name", "scheme", "source_dtype", "scale_format", "scale_bias"):
                assert mine[key] == tensor[key], key
            assert mine["shape"] == tuple(tensor["shape"])
            for key in ("group_elems", "elems", "stored_bytes"):
                assert mine[key] == tensor[key], key
            assert mine["blobs"] == tuple(blob["role"] for blob in tensor["blobs"])


def leaves(value: Any, path: str = "") -> Iterator[Any]:
    """Every number of a nested dictionary, with where it is."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}[{i}]")
    else:
        yield path, value


def test_statistics_are_what_the_command_line_says(variant: Converted) -> None:
    compared = 0
    with open_smq(variant.path) as file:
        for tensor in inspect(variant.path)["tensors"]:
            mine = file.statistics(tensor["name"])
            if tensor["errors"] is None:
                assert mine is None
                continue
            assert mine is not None
            assert mine["groups"] == tensor["groups"]
            assert mine["output_error"] is None
            mine_at = dict(leaves(mine))
            for path, value in leaves(tensor["errors"]):
                if path != ".scale_format_cost_percent":
                    # An f32 is printed with the digits that tell it from its neighbours.
                    assert math.isclose(mine_at[path], value, rel_tol=1e-7), path
                    compared += 1
    assert compared > 0


def test_metadata(int4: Converted) -> None:
    said = inspect(int4.path)
    with open_smq(int4.path) as file:
        metadata = file.metadata()
        assert metadata["producer"] == said["provenance"]["producer"]
        # The file has them as text, which JSON of the command line has as numbers where it can.
        parameters = {name: str(value) for name, value in said["provenance"]["parameters"].items()}
        assert metadata["parameters"] == parameters
        assert metadata["sources"] == said["provenance"]["sources"]
        assert metadata["format_version"] == said["header"]["version"]
        assert metadata["config"] == json.loads((PHI3_TINY / "config.json").read_text())
        names = [entry["name"] for entry in metadata["files"]]
        assert names == [entry["name"] for entry in said["embedded_files"]]
        for name in names:
            assert file.embedded(name) == (PHI3_TINY / name).read_bytes()
        with pytest.raises(SmqError, match="no file 'vocab.txt' is embedded; there is config.json"):
            file.embedded("vocab.txt")


def test_a_file_without_a_config(convert: Any, tmp_path: Path) -> None:
    shard = tmp_path / "model.safetensors"
    shard.write_bytes((PHI3_TINY / "model-00001-of-00003.safetensors").read_bytes())
    with open_smq(convert(shard, "--target", "mlp").path) as file:
        assert file.metadata()["config"] is None


def test_representation(int4: Converted) -> None:
    with open_smq(int4.path) as file:
        megabytes = int4.path.stat().st_size / 1e6
        assert repr(file) == (
            f"<SmqFile {str(int4.path)!r}: 27 tensors, 16 of them int4-e5mx with e5m5 scales, "
            f"{megabytes:.2f} MB>"
        )
        packed = file.get_packed("model.layers.0.mlp.down_proj.weight")
        assert repr(packed) == (
            "<Packed 'model.layers.0.mlp.down_proj.weight': int4-e5mx, nibbles uint8[256, 384], "
            "scales float32[256, 6], levels float32[16]>"
        )


def test_receipts_and_output_errors(tmp_path: Path) -> None:
    path = tmp_path / "measured.smq"
    text = tmp_path / "other.txt"
    text.write_text(SAMPLE_TEXT.read_text()[:6000])
    calibrate = ["--calibrate", SAMPLE_TEXT, "--calibrate-tokens", 256, "--calibrate-window", 128]
    measure = ["--measure-kl", text, "--measure-kl-tokens", 512, "--device", "cpu"]
    scheme = ["--mbits", "5", "--target", "mlp"]
    run("smq-convert", *scheme, *calibrate, *measure, "--", PHI3_TINY, path)
    said = inspect(path)
    with open_smq(path) as file:
        (mine,), (receipt,) = file.receipts(), said["receipts"]
        assert mine == receipt
        assert mine["mean_kl_nats"] > 0
        name = "model.layers.1.mlp.down_proj.weight"
        statistics = file.statistics(name)
        tensor = next(tensor for tensor in said["tensors"] if tensor["name"] == name)
        assert statistics is not None and statistics["output_error"] is not None
        assert statistics["output_error"] == tensor["output_error"]
    # Neither is in a file whose statistics were removed.
    run("smq-inspect", "--strip-statistics", path)
    with open_smq(path) as file:
        assert file.receipts() == []
        assert file.statistics(name) is None
        assert not file.info()["has_statistics"]
        file.verify()


@pytest.fixture
def damaged(int4: Converted, tmp_path: Path) -> Any:
    """A copy of a file with other bytes at an offset."""

    def damage(offset: int, contents: bytes = b"\xa5\x5a\xa5\x5a") -> Path:
        path = tmp_path / "damaged.smq"
        path.write_bytes(int4.path.read_bytes())
        write_at(path, offset, contents)
        return path

    return damage


def test_a_sound_file_verifies(variant: Converted) -> None:
    with open_smq(variant.path) as file:
        file.verify()
        for name in file:
            file.verify(name)


def test_damage_to_a_tensor_is_told_by_its_name(int4: Converted, damaged: Any) -> None:
    name = "model.layers.2.self_attn.qkv_proj.weight"
    tensor = next(t for t in inspect(int4.path)["tensors"] if t["name"] == name)
    for blob in tensor["blobs"]:
        with open_smq(damaged(blob["offset_bytes"] + 8)) as file:
            sentence = f'tensor "{name}" {blob["role"]}: hash does not match: the blob is damaged'
            for verify in (file.verify, lambda: file.verify(name)):
                with pytest.raises(DamagedError) as raised:
                    verify()
                assert raised.value.defects[0] == sentence
                assert str(raised.value).startswith(f"{file.path}: {sentence}")
            file.verify("lm_head.weight")


def test_every_part_is_verified(int4: Converted, damaged: Any) -> None:
    said = inspect(int4.path)
    header, config = said["header"], said["embedded_files"][0]
    end = config["offset_bytes"] + config["length_bytes"]
    # Found when the file is opened.
    for offset, sentence in (
        (0, "not an .smq file: the first 8 bytes are"),
        (16, "header checksum does not match"),
        (header["index"]["offset_bytes"] + 20, "index hash does not match"),
        (end, f"padding byte at offset {end} is not zero"),
    ):
        with pytest.raises(DamagedError, match=sentence) as raised:
            open_smq(damaged(offset, b"\xa5"))
        assert len(raised.value.defects) == 1
    # Found by verifying.
    with open_smq(damaged(256)) as file:
        with pytest.raises(DamagedError, match='file "config.json": hash does not match'):
            file.verify()
        with pytest.raises(SmqError, match="the embedded config.json is not valid JSON"):
            file.metadata()
    with open_smq(damaged(header["statistics"]["offset_bytes"] + 20)) as file:
        for use in (file.verify, file.receipts, lambda: file.statistics("lm_head.weight")):
            with pytest.raises(DamagedError, match="statistics hash does not match"):
                use()
        # The weights are not affected.
        for name in file:
            file.verify(name)


def test_a_file_that_is_none(int4: Converted, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.smq: cannot open it: No such file"):
        open_smq(tmp_path / "nothing.smq")
    with pytest.raises(SmqError, match="is a directory, not a regular file"):
        open_smq(tmp_path)
    with pytest.raises(DamagedError, match="not an .smq file"):
        open_smq(PHI3_TINY / "model-00001-of-00003.safetensors")
    short = tmp_path / "short.smq"
    short.write_bytes(int4.path.read_bytes()[:-100])
    with pytest.raises(DamagedError, match="it is truncated, copy it again"):
        open_smq(short)


def test_exceptions_survive_a_process_boundary() -> None:
    errors: Dict[str, SmqError] = {
        "a.smq: one (and 1 more, in .defects)": DamagedError("a.smq", ["one", "two"]),
        "no tensor": UnknownTensorError("no tensor"),
        "a.smq does not fit this model: the model has 'a', which the file does not hold; "
        "strict=False loads the rest": LoadError("a.smq", ["a"], [], []),
    }
    for sentence, error in errors.items():
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error) == sentence
        assert type(error).__module__ == "smq_format"


def test_every_variant_has_its_scheme(convert: Any) -> None:
    """What the other tests are about is really there."""
    schemes = set()
    for arguments in VARIANTS.values():
        with open_smq(convert(PHI3_TINY, *arguments).path) as file:
            schemes |= {(s["scheme"], s["scale_format"]) for s in file.info()["schemes"]}
    assert schemes == {
        ("raw", None),
        ("int4-e5mx", "e5m5"),
        ("int4-e5mx", "e5m0"),
        ("int4-e5mx", "e5m3"),
        ("int4-e5mx", "e4m3"),
        ("int4-e5mx", "e8m0"),
        ("int4-f32", "f32"),
        ("int4-f16", "f16"),
        ("lut4-e5mx", "e5m5"),
        ("lut4-f32", "f32"),
        ("nf4-dq", "dq8"),
        ("fp8-e4m3", "f32"),
    }
