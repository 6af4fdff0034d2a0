"""Kind 11: tensors that no architecture reads, of any type and with any values; and values that do
matter.
"""

import torch

from checkpoints import Checkpoint, by_layer, shards
from lib import Answer, Case, Losses

CHECKS = (Losses(), Answer())
L0 = "model.layers.0."
NAN, INF = float("nan"), float("inf")

UNUSED = {
    "position_ids, int64": {"model.embeddings.position_ids": torch.arange(8)[None]},
    "a causal mask, bool": {f"{L0}self_attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool)},
    "a masked_bias of minus infinity": {f"{L0}self_attn.masked_bias": torch.tensor(-INF)},
    "a NaN in a buffer": {"model.buffer": torch.tensor([1.0, NAN])},
    "a NaN in bf16": {"model.buffer": torch.tensor([NAN], dtype=torch.bfloat16)},
    "an infinity in f16": {"model.buffer": torch.tensor([INF], dtype=torch.float16)},
    "rotary_emb.inv_freq of each layer": {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.rand(8) for i in range(2)
    },
    "rotary_emb.inv_freq of the model": {"model.rotary_emb.inv_freq": torch.rand(8)},
    "rotary_emb.inv_freq with a NaN": {"model.rotary_emb.inv_freq": torch.tensor([NAN] * 8)},
    "float64": {"model.step": torch.tensor([1.5], dtype=torch.float64)},
    "uint8": {"model.flags": torch.tensor([1, 2], dtype=torch.uint8)},
    "int8, int16, int32": {
        f"model.i{n}": torch.tensor([[1, 2]], dtype=getattr(torch, f"int{n}")) for n in (8, 16, 32)
    },
    "uint16, uint32, uint64": {
        f"model.u{n}": torch.tensor([1], dtype=getattr(torch, f"uint{n}")) for n in (16, 32, 64)
    },
    "FP8": {
        "model.e4m3": torch.ones(4, 4).to(torch.float8_e4m3fn),
        "model.e5m2": torch.ones(4).to(torch.float8_e5m2),
    },
    "FP8 scales, as MX has them": {"model.e8m0": torch.ones(4).to(torch.float8_e8m0fnu)},
    "complex numbers": {"model.freqs_cis": torch.ones(4, dtype=torch.complex64)},
    "a scalar": {"model.scale": torch.tensor(2.0)},
    "an empty tensor": {"model.empty": torch.zeros(0, 4)},
    "a NaN in a layer beyond the last": {
        "model.layers.7.mlp.down_proj.weight": torch.full((64, 128), NAN)
    },
    "an int64 in a layer beyond the last": {
        "model.layers.7.self_attn.q_proj.weight": torch.ones(64, 64, dtype=torch.int64)
    },
    "a head for scores": {"score.weight": torch.ones(2, 64)},
    "heads of other projections": {
        "model.mtp.0.proj.weight": torch.ones(64, 64),
        "v_head.summary.weight": torch.ones(1, 64),
    },
    "a tensor of five dimensions": {"model.conv": torch.ones(2, 2, 2, 2, 2)},
    "a name with spaces and letters of another script": {"model.a b ü": torch.ones(2)},
    "a long name": {"model." + "x" * 300: torch.ones(2)},
}


def with_tensors(extra):
    return Checkpoint().tensors(lambda t: {**t, **extra})


def damaged(name, value, dtype=torch.bfloat16):
    def change(tensors):
        tensor = tensors[name].to(dtype).clone()
        # Row 311 of the embedding is a token that the sample text has.
        tensor.view(-1, tensor.shape[-1])[311 % max(1, tensor.numel() // tensor.shape[-1]), 3] = (
            value
        )
        return {**tensors, name: tensor}

    return Checkpoint().tensors(change)


def cases():
    for name, extra in UNUSED.items():
        yield Case(name, with_tensors(extra), CHECKS)
    sharded = with_tensors(UNUSED["position_ids, int64"]).layout(lambda t: shards(t, by_layer))
    yield Case("position_ids, int64, over shards", sharded, CHECKS)
    yield Case(
        "position_ids, int64, and all linear layers quantized",
        with_tensors(UNUSED["position_ids, int64"]),
        CHECKS[1:],
        target=("--target", "mlp", "--mbits", "7"),
    )
    biases = {f"{L0}self_attn.q_proj.bias": torch.ones(64, dtype=torch.bfloat16)}
    yield Case(
        "a bias that config.json does not announce", with_tensors(biases), CHECKS, ("q_proj.bias",)
    )
    zero = {f"{L0}self_attn.q_proj.bias": torch.zeros(64, dtype=torch.bfloat16)}
    yield Case(
        "a bias of zeros that config.json does not announce",
        with_tensors(zero),
        CHECKS,
        ("q_proj.bias",),
    )
    norms = {f"{L0}self_attn.q_norm.weight": torch.full((16,), 2.0)}
    yield Case(
        "norms of queries, which Llama does not have", with_tensors(norms), CHECKS, ("q_norm",)
    )
    head = {"lm_head.bias": torch.ones(400)}
    yield Case("a bias of the head", with_tensors(head), CHECKS, ("lm_head.bias",))
    # What is used must be numbers. transformers computes with whatever is there; ours may notice
    # while it computes.
    why = "(computes NaN)"
    for name in (
        f"{L0}mlp.down_proj.weight",
        f"{L0}self_attn.q_proj.weight",
        "model.norm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ):
        yield Case(
            f"a NaN in {name}", damaged(name, NAN), (Losses(),), ("damaged",), must_refuse=why
        )
    yield Case(
        "an infinity in a weight",
        damaged(f"{L0}mlp.up_proj.weight", INF),
        (Losses(),),
        ("damaged",),
        must_refuse=why,
    )
    integers = Checkpoint().tensors(
        lambda t: {
            **t,
            f"{L0}mlp.up_proj.weight": (t[f"{L0}mlp.up_proj.weight"] * 16).to(torch.int64),
        }
    )
    yield Case("a used weight in int64", integers, (Losses(),), ("up_proj.weight", "i64"))
    double = Checkpoint().tensors(
        lambda t: {**t, "model.norm.weight": t["model.norm.weight"].double()}
    )
    yield Case("a used weight in f64", double, (Losses(),), ("model.norm.weight", "f64"))
    mixed = Checkpoint().tensors(
        lambda t: {
            k: v.half() if "attn" in k else v.float() if "norm" in k else v for k, v in t.items()
        }
    )
    yield Case("used weights in bf16, f16 and f32", mixed, CHECKS)
