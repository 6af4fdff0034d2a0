#!/usr/bin/env python3
"""Compares nf4-dq tensors of .smq files with bitsandbytes 0.50.2 on the CPU.

    check_nf4.py --make DIR              a checkpoint of test tensors, DIR/model.safetensors
    check_nf4.py --check DIR FILE.smq    what smq-convert --scheme nf4 --target . made of it
    check_nf4.py --golden OUT            the vectors of tests/fixtures/nf4

Needs bitsandbytes 0.50.2, torch and safetensors. Exact: nibbles; second-level codes, nested absmax
and weights, in f32 and bf16, given the file's offset. Within 1e-6 relative: the offset, whose sum
torch takes in another order.
"""
import argparse, json, os, pathlib, struct, sys

import bitsandbytes
import torch
from bitsandbytes.functional import (dequantize_4bit, dequantize_blockwise, quantize_4bit,
                                     quantize_blockwise)
from safetensors.torch import load_file, save_file

VERSION = "0.50.2"


def tensors():
    """Name -> tensor: sizes that 64 and 64 * 256 divide and do not, outliers, zeros, ties, tiny
    values, three types."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape):
        return torch.randn(*shape, generator=generator) * 0.02

    made = {f"normal_{rows}x{columns}": normal(rows, columns)
            for rows, columns in [(1, 1), (1, 63), (1, 64), (1, 65), (3, 43), (7, 129), (5, 100),
                                  (64, 256), (127, 129), (128, 128), (129, 128), (96, 576),
                                  (300, 192), (33, 1001)]}
    outliers = normal(64, 512)
    outliers[torch.rand(64, 512, generator=generator) < 0.002] *= 80
    made["outliers"] = outliers
    zeros = normal(40, 128)
    zeros[3:9] = 0
    made["zero_blocks"] = zeros
    made["all_zero"] = torch.zeros(8, 96)
    made["all_zero_short"] = torch.zeros(1, 5)
    made["constant"] = torch.full((16, 64), -0.37)
    made["negative_zero"] = torch.full((2, 64), -0.0)
    made["tiny"] = normal(16, 128) * 1e-37
    made["subnormal"] = normal(4, 96) * 1e-38
    made["wide"] = normal(128, 256) * torch.logspace(-12, 6, 128)[:, None]
    # Every value of the code and every midpoint, times powers of two, whose reciprocals are exact.
    code = bitsandbytes.functional.get_4bit_type("nf4", device="cpu")
    middle = (code[1:] + code[:-1]) / 2
    beside = [torch.nextafter(middle, torch.tensor(to)) for to in (9.0, -9.0)]
    ties = torch.cat([code, middle, *beside])
    ties = torch.cat([ties, torch.ones(3)])
    made["ties"] = torch.stack([ties * 2.0 ** e for e in (-9, -3, 0, 5)])
    made["bf16"] = normal(96, 200).bfloat16()
    made["bf16_large"] = normal(256, 1024).bfloat16()
    made["f16"] = normal(50, 77).half()
    return {name: tensor.contiguous() for name, tensor in made.items()}


def theirs(tensor):
    packed, state = quantize_4bit(tensor, blocksize=64, quant_type="nf4", compress_statistics=True)
    return packed.flatten(), state


class Smq:
    """As much of a reader as this needs; tests/second_reader checks files."""

    def __init__(self, path):
        self.bytes = pathlib.Path(path).read_bytes()
        offset, length = struct.unpack_from("<QQ", self.bytes, 24)
        header = json.loads(self.bytes[offset:offset + length])
        self.tensors = {tensor["name"]: tensor for tensor in header["tensors"]}

    def blob(self, name, i):
        blob = self.tensors[name]["blobs"][i]
        return bytearray(self.bytes[blob["offset"]:blob["offset"] + blob["length"]])

    def nf4(self, name):
        nibbles, absmax = (torch.frombuffer(self.blob(name, i), dtype=torch.uint8) for i in (0, 1))
        nested = torch.frombuffer(self.blob(name, 2), dtype=torch.float32)
        bits = self.tensors[name]["parameters"]["offset_bits"]
        offset, = struct.unpack("<f", struct.pack("<I", bits))
        return nibbles, absmax, nested, torch.tensor(offset)


def plain_absmax(tensor):
    """Each block's scale before it is quantized itself."""
    return quantize_4bit(tensor, blocksize=64, quant_type="nf4",
                         compress_statistics=False)[1].absmax


def same(a, b):
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def compare(tensor, ours):
    """What differs."""
    nibbles, codes, nested, offset = ours
    packed, state = theirs(tensor)
    absmax = plain_absmax(tensor)
    if not same(nibbles, packed):
        yield f"{int((nibbles != packed).sum())} of {len(packed)} bytes of nibbles"
    if not torch.isclose(offset, state.offset, rtol=1e-6, atol=0):
        yield f"the offset: {offset.item()!r}, theirs {state.offset.item()!r}"
    again, state2 = quantize_blockwise(absmax - offset, blocksize=256)
    if not same(codes, again):
        yield f"{int((codes != again).sum())} of {len(again)} absmax codes"
    if not same(nested, state2.absmax):
        yield "nested absmax"
    # Their dequantization of our numbers.
    state.absmax, state.offset, state.state2, state.dtype = codes, offset, state2, torch.float32
    code = bitsandbytes.functional.get_4bit_type("nf4", device="cpu")
    values = torch.stack([code[(nibbles >> 4).long()], code[(nibbles & 15).long()]], 1)
    values = values.flatten()[:tensor.numel()]
    scales = (dequantize_blockwise(codes, state2) + offset).repeat_interleave(64)[:tensor.numel()]
    whole = dequantize_4bit(nibbles.unsqueeze(1), state).flatten()
    # Subnormal products may be flushed to zero there.
    if not torch.allclose(whole, values * scales, rtol=0, atol=2.0 ** -126):
        yield "weights, dequantized by bitsandbytes to f32"
    state.dtype = torch.bfloat16
    whole = dequantize_4bit(nibbles.unsqueeze(1), state).flatten()
    if not torch.allclose(whole, (values * scales).bfloat16(), rtol=0, atol=2.0 ** -126):
        yield "weights, dequantized by bitsandbytes to bf16"


def check(directory, path):
    source, smq, bad = load_file(os.path.join(directory, "model.safetensors")), Smq(path), 0
    compared = [name for name in source if smq.tensors[name]["scheme"] == "nf4-dq"]
    for name in compared:
        for difference in compare(source[name], smq.nf4(name)):
            print(f"{name}: {difference}")
            bad += 1
    exact = sum(smq.nf4(name)[3] == theirs(source[name])[1].offset for name in compared)
    print(f"{len(compared)} of {len(source)} tensors compared, {bad} differences; "
          f"{int(exact)} offsets equal to the bit")
    return bad or not compared


def golden(directory):
    """Small tensors and what bitsandbytes makes of them: safetensors with NAME.weight, .nibbles,
    .absmax, ..."""
    chosen = ["normal_1x1", "normal_1x65", "normal_3x43", "normal_7x129", "outliers", "zero_blocks",
              "all_zero_short", "constant", "tiny", "subnormal", "ties", "bf16", "f16"]
    out = {}
    for name, tensor in tensors().items():
        if name not in chosen:
            continue
        tensor = tensor if name == "bf16" else tensor[:6]
        packed, state = theirs(tensor)
        parts = {"weight": tensor, "nibbles": packed, "codes": state.absmax,
                 "nested_absmax": state.state2.absmax,
                 "offset": state.offset.reshape(1),
                 "absmax": plain_absmax(tensor)}
        out |= {f"{name}.{part}": value.contiguous().clone() for part, value in parts.items()}
    out["map"] = bitsandbytes.functional.create_dynamic_map()
    out["code"] = bitsandbytes.functional.get_4bit_type("nf4", device="cpu")
    os.makedirs(directory, exist_ok=True)
    save_file(out, os.path.join(directory, "bitsandbytes-0.50.2.safetensors"),
              metadata={"made_by": f"bitsandbytes {bitsandbytes.__version__}, torch "
                                   f"{torch.__version__}, CPU"})


def main():
    parser = argparse.ArgumentParser(description="Compares nf4-dq with bitsandbytes.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--make", metavar="DIR")
    what.add_argument("--check", nargs=2, metavar=("DIR", "FILE"))
    what.add_argument("--golden", metavar="OUT")
    args = parser.parse_args()
    if bitsandbytes.__version__ != VERSION:
        sys.exit(f"bitsandbytes is {bitsandbytes.__version__}; the format follows {VERSION}")
    if args.make:
        os.makedirs(args.make, exist_ok=True)
        # Under names that smq-convert takes for linear layers: "normal" alone is a norm's.
        named = {f"{name}.matrix.weight": tensor for name, tensor in tensors().items()}
        save_file(named, os.path.join(args.make, "model.safetensors"))
    elif args.golden:
        golden(args.golden)
    else:
        sys.exit(check(*args.check))


if __name__ == "__main__":
    main()
