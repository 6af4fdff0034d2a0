#!/usr/bin/env python3
"""Records what transformers makes of the rotary embedding in config.json, for smq-model's tests.

    pip install transformers==5.24.0 torch
    python record_rope.py > ../../smq-model/src/config/tests/rope.json

A case is a config.json's keys beside those of `BASE`; the answer is inverse frequencies in f32, those behind the original
context too, what multiplies cos and sin, and the length behind which the long ones count.
"""

import json
import pathlib
import tempfile

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
BASE = {
    "llama": SIZES | {"model_type": "llama", "max_position_embeddings": 1024},
    "phi3": SIZES | {"model_type": "phi3", "max_position_embeddings": 1024, "pad_token_id": 0},
}
AT = "original_max_position_embeddings"
SHORT, LONG = [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0], [1.1, 1.5, 2, 3, 5, 9, 17, 30.0]
LONGROPE = {"type": "longrope", "short_factor": SHORT, "long_factor": LONG}
HALF = {"type": "longrope", "short_factor": SHORT[:4], "long_factor": LONG[:4]}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR = {"rope_type": "linear", "factor": 4.0}
CASES = [
    ("llama", {}),
    ("llama", {"rope_theta": 500000}),
    ("llama", {"rope_scaling": LINEAR, "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}}),
    ("llama", {"rope_scaling": LINEAR, "rope_theta": 7e3, "rope_parameters": {"rope_theta": 5e3}}),
    ("llama", {"rope_scaling": {}, "rope_parameters": {"rope_theta": 5000.0}}),
    ("llama", {"rope_scaling": None, "rope_parameters": LINEAR | {"rope_theta": 5000.0}}),
    ("llama", {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}, "rope_theta": 500.0}),
    ("llama", {"rope_parameters": {"rope_type": "default"}, "rope_theta": 500.0}),
    ("llama", {"rope_scaling": {"factor": 2}}),
    ("llama", {"rope_scaling": {"rope_type": "default", "factor": 2}}),
    ("llama", {"rope_scaling": {"rope_type": "linear", "type": "llama3", "factor": 2}}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 0.5, "attention_factor": 3.0}}),
    ("llama", {"rope_scaling": LLAMA3 | {AT: 128}, AT: 512}),
    ("llama", {"rope_scaling": LLAMA3, AT: 512}),
    ("llama", {"rope_scaling": LLAMA3 | {AT: 128}}),
    ("llama", {"rope_parameters": LLAMA3 | {"low_freq_factor": 1.3, "high_freq_factor": 4.1, "rope_theta": 5e5}}),
    ("llama", {"rope_scaling": LLAMA3 | {AT: 8192, "factor": 32}, "max_position_embeddings": 131072, "head_dim": 128,
               "rope_theta": 5e5}),
    ("llama", {"partial_rotary_factor": 0.5}),
    ("llama", {"head_dim": 32}),
    ("llama", {"head_dim": None}),
    ("phi3", {}),
    ("phi3", {"rope_scaling": LONGROPE, "rope_theta": 5000.0, AT: 64}),
    ("phi3", {"rope_scaling": LONGROPE}),
    ("phi3", {"rope_scaling": LONGROPE, "max_position_embeddings": 131072}),
    ("phi3", {"rope_scaling": LONGROPE | {AT: 64}}),
    ("phi3", {"rope_scaling": LONGROPE | {AT: 32}, AT: 64}),
    ("phi3", {"rope_scaling": LONGROPE | {"type": "su", AT: 32}, AT: 64}),
    ("phi3", {"rope_scaling": LONGROPE | {"type": "yarn"}, AT: 64}),
    ("phi3", {"rope_scaling": LONGROPE | {"attention_factor": 1.7}, AT: 64}),
    ("phi3", {"rope_scaling": LONGROPE | {"attention_factor": None, "factor": None}, AT: 64}),
    ("phi3", {"rope_scaling": LONGROPE | {"factor": 4}, AT: 64}),
    ("phi3", {"rope_scaling": LONGROPE | {"long_mscale": 1.5, "short_mscale": 1.2, "mscale": 3.0}, AT: 64}),
    ("phi3", {"rope_scaling": LONGROPE | {"short_factor": [1] * 8, "rope_theta": 5e3}, "rope_theta": 7.0, AT: 64}),
    ("phi3", {"rope_scaling": LONGROPE, AT: 2048}),
    ("phi3", {"rope_scaling": {"type": "default", "factor": 4.0}}),
    ("phi3", {"partial_rotary_factor": 0.5}),
    ("phi3", {"partial_rotary_factor": 0.75, "rope_parameters": {"rope_theta": 5000.0}}),
    ("phi3", {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 1.0, "rope_theta": 5000.0}}),
    ("phi3", {"rope_scaling": HALF, "partial_rotary_factor": 0.5, AT: 64}),
]


def answer(family, keys):
    with tempfile.TemporaryDirectory() as path:
        (pathlib.Path(path) / "config.json").write_text(json.dumps(BASE[family] | keys))
        config = AutoConfig.from_pretrained(path)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model(torch.arange(8)[None])  # what fails only here is not an answer
    rope = model.model.rotary_emb
    found = {"inv_freq": rope.original_inv_freq.tolist(), "attention_factor": float(rope.attention_scaling)}
    if rope.rope_type == "longrope":
        found["original"] = config.rope_parameters[AT]
        found["long"] = ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=found["original"] + 1)[0].tolist()
    return found


def main():
    transformers.logging.set_verbosity_error()
    cases = [{"config": BASE[family] | keys, **answer(family, keys)} for family, keys in CASES]
    lines = ",\n".join(json.dumps(case) for case in cases)
    print(f'{{"transformers": "{transformers.__version__}", "cases": [\n{lines}\n]}}')


if __name__ == "__main__":
    main()
