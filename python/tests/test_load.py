"""Models of transformers with a file's weights: their logits are those of the export's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from conftest import PHI3_TINY, Converted, inspect, write_at
from smq_format import DamagedError, LoadError, open_smq
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

TOKENS = torch.tensor([[1, 17, 230, 1999, 4000, 5, 5, 77, 1234, 9]])


def fresh(path: Path, dtype: torch.dtype) -> Any:
    """The model that a file's config.json describes, with random weights."""
    with open_smq(path) as file:
        config = file.metadata()["config"]
    assert config is not None
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(TOKENS).logits
    return result


def state(model: Any) -> Dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_logits_are_those_of_the_export(variant: Converted, dtype: str) -> None:
    as_type = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    exported = AutoModelForCausalLM.from_pretrained(variant.exports[dtype], dtype=as_type).eval()
    model = fresh(variant.path, as_type)
    expected = logits(exported)
    assert not logits(model).equal(expected)
    with open_smq(variant.path) as file:
        assert file.load_into(model) == ([], [])
    assert logits(model).equal(expected)
    assert {p.dtype for p in model.parameters()} == {as_type}
    for name, tensor in exported.state_dict().items():
        assert model.state_dict()[name].equal(tensor), name


def test_parameters_that_are_not_plain_memory(int4: Converted) -> None:
    """A transposed parameter is copied to."""
    model = fresh(int4.path, torch.float32)
    name = "model.layers.0.mlp.down_proj.weight"
    module = model.get_submodule(name.rpartition(".")[0])
    module.weight = torch.nn.Parameter(module.weight.detach().t().contiguous().t())
    assert not module.weight.is_contiguous()
    with open_smq(int4.path) as file:
        file.load_into(model)
        assert module.weight.equal(file.get_tensor(name, "torch"))


def refused(file_path: Path, model: Any, **options: Any) -> LoadError:
    """The error of loading, after which the model is what it was."""
    before = state(model)
    with open_smq(file_path) as file, pytest.raises(LoadError) as raised:
        file.load_into(model, **options)
    for name, tensor in model.state_dict().items():
        assert tensor.device.type == "meta" or tensor.equal(before[name])
    return raised.value


def test_what_is_missing_or_left_over(int4: Converted) -> None:
    model = fresh(int4.path, torch.float32)
    mlp: Any = model.model.layers[1].mlp
    mlp.extra = torch.nn.Linear(2, 2)
    mlp.down_proj = None
    error = refused(int4.path, model)
    missing = ["model.layers.1.mlp.extra.weight", "model.layers.1.mlp.extra.bias"]
    assert error.missing_keys == tuple(missing)
    assert error.unexpected_keys == ("model.layers.1.mlp.down_proj.weight",)
    assert str(error) == (
        f"{int4.path} does not fit this model: the model has 'model.layers.1.mlp.extra.weight', "
        "'model.layers.1.mlp.extra.bias', which the file does not hold; the file holds "
        "'model.layers.1.mlp.down_proj.weight', which the model does not have; strict=False loads "
        "the rest"
    )
    # The rest is loaded where that is asked for.
    extra = mlp.extra.weight.clone()
    with open_smq(int4.path) as file:
        loaded = file.load_into(model, strict=False)
        assert loaded.missing_keys == missing
        assert loaded.unexpected_keys == ["model.layers.1.mlp.down_proj.weight"]
        assert model.lm_head.weight.equal(file.get_tensor("lm_head.weight", "torch").float())
    assert mlp.extra.weight.equal(extra)
    # A model may say itself what does not matter.
    model._keys_to_ignore_on_load_missing = [r"mlp\.extra"]
    model._keys_to_ignore_on_load_unexpected = [r"layers\.1\.mlp\.down_proj"]
    with open_smq(int4.path) as file:
        assert file.load_into(model) == loaded


def test_long_lists_are_cut() -> None:
    error = LoadError("a.smq", [f"w{i}" for i in range(10)], [], [])
    assert "'w7' and 2 more, which the file does not hold" in str(error)


def test_what_does_not_fit(int4: Converted) -> None:
    model = fresh(int4.path, torch.float32)
    model.lm_head = torch.nn.Linear(256, 4097, bias=False)
    model.model.norm.weight = torch.nn.Parameter(torch.zeros(256, dtype=torch.float64))
    error = refused(int4.path, model, strict=False)
    assert error.unfit == (
        "tensor 'lm_head.weight' is [4096, 256] in the file and [4097, 256] in the model",
        "parameter 'model.norm.weight' is torch.float64, and only float32, float16 and bfloat16 "
        "can be loaded into",
    )
    with torch.device("meta"):
        model = fresh(int4.path, torch.float32)
    assert "is on the meta device and has no memory" in str(refused(int4.path, model))
    with open_smq(int4.path) as file, pytest.raises(TypeError, match="a list is no model"):
        file.load_into([])


def test_a_damaged_tensor_is_not_loaded(int4: Converted, tmp_path: Path) -> None:
    path = tmp_path / "damaged.smq"
    path.write_bytes(int4.path.read_bytes())
    name = "model.layers.3.mlp.down_proj.weight"
    tensor = next(t for t in inspect(path)["tensors"] if t["name"] == name)
    write_at(path, tensor["blobs"][0]["offset_bytes"], b"\x11\x22\x33\x44")
    model = fresh(path, torch.float32)
    before = state(model)
    with open_smq(path) as file:
        with pytest.raises(DamagedError, match=f'tensor "{name}" nibbles: hash does not match'):
            file.load_into(model)
        for key, weights in model.state_dict().items():
            assert weights.equal(before[key])
        # Hashes are looked at only where that is asked for.
        file.load_into(model, verify=False)


def llama(tied: bool) -> Any:
    torch.manual_seed(5)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=5000,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


def saved(model: Any, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


def test_a_tied_head_is_not_missing(tmp_path: Path, convert: Any) -> None:
    path = convert(saved(llama(tied=True), tmp_path / "tied"), "--target", "all").path
    model = fresh(path, torch.float32)
    with open_smq(path) as file:
        assert "lm_head.weight" not in file
        assert file.load_into(model) == ([], [])
        embedding = file.get_tensor("model.embed_tokens.weight", "torch")
    assert model.lm_head.weight.equal(embedding)
    # An untied head is.
    untied = llama(tied=False)
    assert refused(path, untied).missing_keys == ("lm_head.weight",)


def test_a_head_of_its_own_is_not_lost_to_a_tie(tmp_path: Path, convert: Any) -> None:
    path = convert(saved(llama(tied=False), tmp_path / "untied"), "--target", "all").path
    error = refused(path, llama(tied=True))
    (sentence,) = error.unfit
    names: List[str] = ["lm_head.weight", "model.embed_tokens.weight"]
    assert all(repr(name) in sentence for name in names)
    assert "the file has different weights for them" in sentence
    assert "tie_word_embeddings=False" in sentence
    # The same weights twice are no contradiction.
    twin = llama(tied=False)
    twin.lm_head.weight = torch.nn.Parameter(twin.model.embed_tokens.weight.detach().clone())
    path = convert(saved(twin, tmp_path / "twin"), "--target", "all").path
    tied = llama(tied=True)
    with open_smq(path) as file:
        assert "lm_head.weight" in file
        assert file.load_into(tied) == ([], [])
    assert tied.lm_head.weight.equal(twin.lm_head.weight)


def test_the_fixture_is_what_its_config_says() -> None:
    """Otherwise the logits above would be those of another model."""
    model = AutoModelForCausalLM.from_pretrained(PHI3_TINY, dtype=torch.float32)
    assert type(model).__name__ == "Phi3ForCausalLM"
