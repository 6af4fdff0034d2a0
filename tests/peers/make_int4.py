#!/usr/bin/env python3
"""Packs small int4 tensors with the packages that others quantize with, for tests/fixtures/int4.

    make_int4.py compressed-tensors OUT.safetensors
    make_int4.py auto-round OUT.safetensors

Each tensor NAME of 32 outputs has the parts that the package saves, under the package's names, and
NAME.dequantized, f32 [out, in]: what the package itself makes of these parts, with the scales
widened to f32 first. Needs torch and the package that is named.
"""

import sys

import torch
from safetensors.torch import save_file

OUT, COLUMNS = 32, 64


def weight(seed):
    torch.manual_seed(seed)
    return torch.randn(OUT, COLUMNS) / COLUMNS**0.5


def scales_of(w, group, dtype):
    """`[out, groups]`: the largest magnitude becomes 7.5 steps."""
    return (w.view(OUT, -1, group).abs().amax(-1) / 7.5).to(dtype)


def compressed_tensors():
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    cases = {
        "group_bf16": ("group", 32, torch.bfloat16),
        "group_f16": ("group", 32, torch.float16),
        "channel_bf16": ("channel", None, torch.bfloat16),
    }
    tensors = {}
    for seed, (name, (strategy, group, dtype)) in enumerate(cases.items()):
        args = QuantizationArgs(num_bits=4, symmetric=True, strategy=strategy, group_size=group)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        w = weight(seed).to(dtype)
        whole = {"weight": w, "weight_scale": scales_of(w, group or COLUMNS, dtype)}
        parts = PackedQuantizationCompressor.compress(whole, scheme)
        wide = {**parts, "weight_scale": parts["weight_scale"].float()}
        tensors |= {f"{name}.{part}": value for part, value in parts.items()}
        whole = PackedQuantizationCompressor.decompress(wide, scheme)
        tensors[f"{name}.dequantized"] = whole["weight"]
    return tensors


def auto_round():
    from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp

    cases = {
        "auto_round_auto_gptq": (qlinear_torch_zp, 32),
        "auto_round": (qlinear_torch, 32),
        "row": (qlinear_torch_zp, -1),
    }
    tensors = {}
    for seed, (name, (module, group)) in enumerate(cases.items()):
        linear = torch.nn.Linear(COLUMNS, OUT, bias=False)
        linear.weight.data = weight(seed)
        scales = scales_of(linear.weight.data, COLUMNS if group == -1 else group, torch.float16)
        packed = module.QuantLinear(4, group, COLUMNS, OUT, False)
        packed.device = "cpu"
        # As it packs symmetric weights: a tensor of the zero point 8.
        packed.pack(linear, scales, torch.full_like(scales, 8), None, device="cpu")
        tensors |= {f"{name}.{part}": value.clone() for part, value in packed.state_dict().items()}
        packed.scales = packed.scales.float()
        tensors[f"{name}.dequantized"] = packed(torch.eye(COLUMNS)).t()
    return tensors


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in ("compressed-tensors", "auto-round"):
        sys.exit(__doc__)
    made = compressed_tensors() if sys.argv[1] == "compressed-tensors" else auto_round()
    save_file({name: value.contiguous() for name, value in made.items()}, sys.argv[2])


if __name__ == "__main__":
    main()
