#!/usr/bin/env python3
"""Runs what `smq-convert --to` wrote with the program that it is for, on the CPU, and compares it with smq-run on the .smq file.

    check_export.py gptq EXPORT FILE.smq                  Hugging Face transformers with GPTQModel
    check_export.py mlx EXPORT FILE.smq                   mlx-lm
    check_export.py compressed-tensors EXPORT FILE.smq    Hugging Face transformers with compressed-tensors

Three things must agree. The weights, which this script dequantizes itself from the description of the format, with
those of --dense, the directory of `--to safetensors --dtype f32`, bit for bit (gptq, mlx and FP8 of compressed-tensors;
left out without --dense). The losses of the text's windows, to --tolerance nats a token: reader and smq-run compute in
f32. The greedy continuations, token by token. Exits with 1 on any disagreement.

Needs numpy and transformers (5.24.0 was used), and what the reader is made of: torch, optimum and gptqmodel; mlx[cpu] and mlx-lm;
torch and compressed-tensors.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np

PROMPTS = [
    "Once upon a time there was a king who had three sons, and",
    "The capital of France is",
    "Water boils at a temperature of",
]
STORED = {"F32": np.float32, "F16": np.float16, "I32": np.uint32, "U32": np.uint32, "I64": np.int64, "BF16": np.uint16,
          "F8_E4M3": np.uint8}


class Tensors:
    """The tensors of a directory's safetensors files."""

    def __init__(self, directory):
        self.found = {}
        for path in sorted(pathlib.Path(directory).glob("*.safetensors")):
            data = np.memmap(path, np.uint8, "r")
            length = int(data[:8].view(np.uint64)[0])
            for name, entry in json.loads(bytes(data[8:8 + length])).items():
                if name != "__metadata__":
                    self.found[name] = (data[8 + length:], entry)

    def stored(self, name):
        """As it is stored, bf16 widened."""
        data, entry = self.found[name]
        first, end = entry["data_offsets"]
        values = np.frombuffer(data[first:end].tobytes(), STORED[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values


def nibbles(words, axis):
    """The eight 4-bit numbers of each word, lowest bits first, along an axis."""
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    split = np.stack([(words >> shift) & 15 for shift in shifts], axis=axis + 1)
    shape = list(words.shape)
    shape[axis] *= 8
    return split.reshape(shape).astype(np.float32)


def gptq_weights(tensors, config):
    """AutoGPTQ's `w = scale (u - zero)`, of `[in, out]`; checkpoint_format "gptq" stores zero - 1."""
    later = {"gptq": 1, "gptq_v2": 0}[config["quantization_config"]["checkpoint_format"]]
    for name in [name for name in tensors.found if name.endswith(".qweight")]:
        module = name.removesuffix(".qweight")
        part = lambda suffix: tensors.stored(f"{module}.{suffix}")
        group = part("g_idx").astype(np.int64)
        zeros = nibbles(part("qzeros"), 1) + later
        scales = part("scales").astype(np.float32)
        yield f"{module}.weight", (scales[group] * (nibbles(part("qweight"), 0) - zeros[group])).T


def mlx_weights(tensors, config):
    """MLX's `w = scale u + bias`, of groups along `[out, in]`."""
    group = config["quantization"]["group_size"]
    for name in [name for name in tensors.found if name.endswith(".scales")]:
        module = name.removesuffix(".scales")
        scales, biases = (tensors.stored(f"{module}.{part}").astype(np.float32) for part in ("scales", "biases"))
        numbers = nibbles(tensors.stored(f"{module}.weight"), 1)
        repeat = lambda values: np.repeat(values, group, axis=1)
        yield f"{module}.weight", repeat(scales) * numbers + repeat(biases)


def e4m3(codes):
    """E4M3FN: a sign, 4 bits of exponent with bias 7, 3 of mantissa, no infinities."""
    sign = np.where(codes & 128, -1.0, 1.0)
    exponent, mantissa = (codes >> 3 & 15).astype(np.float64), (codes & 7).astype(np.float64)
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return (sign * np.where(exponent == 0, mantissa / 8 * 2.0 ** -6, normal)).astype(np.float32)


def fp8_weights(tensors, _config):
    """compressed-tensors `float-quantized` with a scale a row."""
    for name in [name for name, (_, entry) in tensors.found.items() if entry["dtype"] == "F8_E4M3"]:
        yield name, e4m3(tensors.stored(name)) * tensors.stored(f"{name}_scale").astype(np.float32)


WEIGHTS = {"gptq": gptq_weights, "mlx": mlx_weights, "compressed-tensors": fp8_weights}


def same_weights(reader, export, dense, config):
    dense = Tensors(dense)
    count = elements = unequal = 0
    for name, weights in WEIGHTS[reader](Tensors(export), config):
        count, elements = count + 1, elements + weights.size
        unequal += int((weights != dense.stored(name)).sum())
    print(f"weights: {count} tensors, {elements} elements, {unequal} differ from the dense ones")
    return count > 0 and unequal == 0


class Torch:
    def __init__(self, path):
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, device_map="cpu").eval()
        kinds = {type(module).__name__ for module in self.model.modules() if hasattr(module, "qweight")
                 or getattr(module, "quantization_scheme", None) is not None}
        print(f"quantized modules: {', '.join(sorted(kinds)) or 'none'}")
        self.found = bool(kinds)

    def logits(self, ids):
        with self.torch.no_grad():
            return self.model(self.torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


class Mlx:
    def __init__(self, path):
        import mlx.core as mx
        import mlx_lm

        mx.set_default_device(mx.cpu)
        self.mx = mx
        self.model, _ = mlx_lm.load(path)
        self.model.set_dtype(mx.float32)
        kinds = {type(module).__name__ for _, module in self.model.named_modules() if hasattr(module, "scales")}
        print(f"quantized modules: {', '.join(sorted(kinds)) or 'none'}")
        self.found = bool(kinds)

    def logits(self, ids):
        return np.array(self.model(self.mx.array([ids]))[0].astype(self.mx.float32))


def smq_run(binary, *arguments):
    out = subprocess.run([binary, *map(str, arguments), "--device", "cpu", "--json"], check=True, capture_output=True)
    return json.loads(out.stdout)


def window_loss(logits, ids):
    """Mean over all tokens but the first, in nats."""
    logits = logits[:-1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(logits).sum(axis=1))
    return float((log_sums - logits[np.arange(len(ids) - 1), ids[1:]]).mean())


def same_losses(model, tokenizer, args):
    text = pathlib.Path(args.text).read_text(encoding="utf-8")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:args.windows * args.window]
    ours = smq_run(args.smq_run, "eval", "ppl", args.file, "--text", args.text, "--window", args.window,
                   "--text-tokens", len(ids))
    windows = [ids[first:first + args.window] for first in range(0, len(ids) - args.window + 1, args.window)]
    theirs = [window_loss(model.logits(window), window) for window in windows]
    worst = max(abs(a - b) for a, b in zip(ours["window_nll"], theirs, strict=True))
    mean = sum(theirs) / len(theirs)
    print(f"losses: {len(theirs)} windows of {args.window}, {mean:.6f} nats a token for {ours['loss_nats_per_token']:.6f}, "
          f"largest difference of a window {worst:.2e} (tolerance {args.tolerance:g})")
    return worst <= args.tolerance


def same_tokens(model, tokenizer, args):
    same = total = 0
    for prompt in args.prompt or PROMPTS:
        ours = smq_run(args.smq_run, "generate", args.file, "--raw", "--greedy", "-n", args.tokens, "-p", prompt)
        ids = tokenizer(prompt)["input_ids"]
        if len(ids) != ours["prompt_tokens"]:
            sys.exit(f"{prompt!r} is {len(ids)} tokens here and {ours['prompt_tokens']} in smq-run")
        theirs = []
        while len(theirs) < len(ours["ids"]):
            theirs.append(int(model.logits(ids + theirs)[-1].argmax()))
        equal = [a == b for a, b in zip(theirs, ours["ids"])]
        same, total = same + (equal + [False]).index(False), total + len(equal)
    print(f"greedy tokens: {same} of {total} equal")
    return same == total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = pathlib.Path(__file__).resolve().parents[2]
    parser.add_argument("reader", choices=list(WEIGHTS))
    parser.add_argument("export", metavar="EXPORT")
    parser.add_argument("file", metavar="FILE.smq")
    parser.add_argument("--dense", metavar="DIR", help="the same file in f32, to compare weights with")
    parser.add_argument("--smq-run", default=here / "target/release/smq-run", metavar="PROGRAM")
    parser.add_argument("--text", default=here / "tests/fixtures/sample.txt", metavar="FILE")
    parser.add_argument("--window", type=int, default=512, help="tokens a window (default: 512)")
    parser.add_argument("--windows", type=int, default=4, help="at most so many windows (default: 4)")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="nats a token of a window (default: 1e-4)")
    parser.add_argument("--prompt", action="append", help="instead of the built-in prompts; may be repeated")
    parser.add_argument("--tokens", type=int, default=16, help="greedy tokens a prompt (default: 16)")
    args = parser.parse_args()

    from transformers import AutoTokenizer

    config = json.loads((pathlib.Path(args.export) / "config.json").read_text())
    agreed = [same_weights(args.reader, args.export, args.dense, config)] if args.dense else []
    model = (Mlx if args.reader == "mlx" else Torch)(args.export)
    tokenizer = AutoTokenizer.from_pretrained(args.export)
    agreed += [model.found, same_losses(model, tokenizer, args), same_tokens(model, tokenizer, args)]
    print("ok" if all(agreed) else "FAILED")
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    sys.exit(main())
