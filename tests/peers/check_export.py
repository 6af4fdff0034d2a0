#!/usr/bin/env python3
"""Runs what `smq-convert --to` wrote with the program that it is for, on the CPU, and compares it
with smq-run on the .smq file.

    check_export.py gptq EXPORT FILE.smq                  transformers with GPTQModel
    check_export.py gptqmodel EXPORT FILE.smq             GPTQModel's own loader
    check_export.py mlx EXPORT FILE.smq                   mlx-lm
    check_export.py compressed-tensors EXPORT FILE.smq    transformers with compressed-tensors
    check_export.py vllm EXPORT FILE.smq                  vLLM's CPU build, of compressed-tensors or
                                                          gptq; not run in CI

This must agree, and the script exits with 1 where something does not:

- The weights, which this script dequantizes itself from the description of the format, with those
  of --dense, the directory of `--to safetensors --dtype f32`, bit for bit. Without --dense this is
  left out.
- The losses of the text's windows, to --tolerance nats a token.
- The greedy continuations, token by token.

Where the reader computes in f32 as smq-run does, the losses of each window agree to 1e-4 and every
token is the same. In two cases they cannot:

FP8 rounds activations to E4M3, too, with a scale from each token, in all three programs. They do
not take the same steps: smq-run and transformers divide by the scale, vLLM multiplies by its
reciprocal, and each adds up in an order of its own. So what reaches a rounding differs by some
1e-7 of its size, and one activation in about 10^5 or 10^6 is rounded the other way. It moves by a
sixteenth of itself, which moves one in a hundred of all later ones to another code: from there on
the computations are as far apart as two roundings are. vLLM's CPU build has int4 in bf16 alone,
where each operation rounds by up to 2^-9. There, two other things must hold:

- The products. Each quantized layer's output is compared with the product, in f64, of the very
  inputs that the layer had, rounded to E4M3 where it is FP8. So nothing that came before counts,
  and the bound is that of any order of adding up n products in f32, n 2^-24 of the sum of their
  sizes. To it comes one step of E4M3 for an activation within 2^-22 of where the code changes, and
  in bf16 2^-8 for each of a product's two factors and the output. On the bundled checkpoint
  transformers keeps to 0.04 of it; told not to round activations, or to take one scale for all
  tokens, it is beyond by factors of 890 and 1,700, while its mean loss stays within 0.02.
- Of FP8, windows of two tokens, 128 of them. One that no activation in it separates agrees to
  1e-6 or so. In another arithmetic a difference that is spread about its median m is within 1e-5
  by chance in no more than 1e-5 / m of the windows: as many must agree as by that chance happen
  less than once in 10^6. This is what ties smq-run to the same roundings, from end to end.

The mean of the long windows must then agree to 0.02, which notices what the products do not see,
such as a norm or a rotation, and greedy tokens are counted only. vLLM rounds the activations of
int4 models to int8 on some processors, which is turned off here unless VLLM_CPU_INT4_W4A8 is set.

Needs numpy and transformers (5.24.0 was used), and what the reader is made of: torch, optimum and
gptqmodel; mlx[cpu] and mlx-lm; torch and compressed-tensors; vllm-cpu (0.32.0 with torch 2.13.0 and
transformers 5.19.0 was used). vLLM chooses LongRoPE's factors by the longest context that it is to
take, which is --window and one here: the bundled checkpoint has its short ones up to --window 511.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np

PROMPTS = [
    "Once upon a time there was a king who had three sons, and",
    "The capital of France is",
    "Water boils at a temperature of",
]
STORED = {"F32": np.float32, "F16": np.float16, "I32": np.uint32, "U32": np.uint32,
          "I64": np.int64, "BF16": np.uint16, "F8_E4M3": np.uint8}
NEAR = 1e-5  # nats: windows of two tokens that no rounding separates agree to this


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
        values = np.frombuffer(data[first:end].tobytes(), STORED[entry["dtype"]])
        values = values.reshape(entry["shape"])
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
    """AutoGPTQ's `w = scale (u - zero)`, of `[in, out]`; checkpoint_format gptq stores zero - 1."""
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
        scales, biases = (tensors.stored(f"{module}.{part}").astype(np.float32)
                          for part in ("scales", "biases"))
        numbers = nibbles(tensors.stored(f"{module}.weight"), 1)
        repeat = lambda values: np.repeat(values, group, axis=1)
        yield f"{module}.weight", repeat(scales) * numbers + repeat(biases)


def e4m3(codes):
    """E4M3FN: a sign, 4 bits of exponent with bias 7, 3 of mantissa, no infinities."""
    sign = np.where(codes & 128, -1.0, 1.0)
    exponent, mantissa = (codes >> 3 & 15).astype(np.float64), (codes & 7).astype(np.float64)
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return (sign * np.where(exponent == 0, mantissa / 8 * 2.0 ** -6, normal)).astype(np.float32)


def packed_weights(tensors, _config):
    """compressed-tensors `pack-quantized`: numbers from -8 to 7, stored with 8 added."""
    for name in [name for name in tensors.found if name.endswith(".weight_packed")]:
        module = name.removesuffix(".weight_packed")
        scales = tensors.stored(f"{module}.weight_scale").astype(np.float32)
        numbers = nibbles(tensors.stored(name), 1)[:, :tensors.stored(f"{module}.weight_shape")[1]]
        numbers -= 8
        group = numbers.shape[1] // scales.shape[1]
        yield f"{module}.weight", numbers * np.repeat(scales, group, axis=1)


def fp8_weights(tensors, _config):
    """compressed-tensors `float-quantized` with a scale a row."""
    quantized = [name for name, (_, entry) in tensors.found.items() if entry["dtype"] == "F8_E4M3"]
    for name in quantized:
        yield name, e4m3(tensors.stored(name)) * tensors.stored(f"{name}_scale").astype(np.float32)


WEIGHTS = {"gptq": gptq_weights, "mlx": mlx_weights, "pack-quantized": packed_weights,
           "float-quantized": fp8_weights}


def form_of(config):
    if "quantization_config" not in config:
        return "mlx"
    quantization = config["quantization_config"]
    return quantization.get("format", quantization["quant_method"])


def same_weights(weights, dense):
    dense = Tensors(dense)
    elements = sum(values.size for values in weights.values())
    unequal = sum(int((values != dense.stored(name)).sum()) for name, values in weights.items())
    print(f"weights: {len(weights)} tensors, {elements} elements, {unequal} differ from the dense")
    return bool(weights) and unequal == 0


class Products:
    """Compares what layers make of their inputs with products in f64, where their weights are
    known by name. `dtype_bits` are the bits of mantissa that inputs and outputs have."""

    # vLLM joins these layers' rows to one.
    JOINED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}

    def __init__(self, weights, fp8, dtype_bits):
        self.weights, self.fp8, self.dtype_bits = weights, fp8, dtype_bits
        self.watched, self.seen, self.elements, self.worst, self.handles = set(), set(), 0, 0.0, []

    def watch(self, model):
        for name, module in model.named_modules():
            above, _, last = name.rpartition(".")
            parts = [name] if f"{name}.weight" in self.weights else [
                f"{above}.{part}" for part in self.JOINED.get(last, [])]
            parts = [f"{part}.weight" for part in parts]
            if parts and all(part in self.weights for part in parts):
                self.watched.update(parts)
                hook = lambda _, inputs, output, parts=parts: self.compare(parts, inputs, output)
                self.handles.append(module.register_forward_hook(hook))

    def compare(self, parts, inputs, output):
        output = output[0] if isinstance(output, tuple) else output
        numbers = lambda tensor: tensor.detach().double().numpy().reshape(-1, tensor.shape[-1])
        x, y = numbers(inputs[0]), numbers(output)
        w = np.concatenate([self.weights[part] for part in parts]).astype(np.float64)
        terms = x.shape[1] * 2.0 ** -24 + 2.0 ** -21  # of adding up, and of scaling
        if self.dtype_bits < 24:
            terms += 2 * 2.0 ** -self.dtype_bits
        slack = 0.0
        if self.fp8:
            scale = np.abs(x).max(1, keepdims=True).astype(np.float32) / np.float32(448)
            scale = np.where(scale > 0, scale, 1).astype(np.float64)
            codes, below, above = (to_e4m3(x / scale * (1 + by)) for by in (0, -2.0**-22, 2.0**-22))
            x, slack = codes * scale, np.abs(above - below) * scale @ np.abs(w).T
        exact = x @ w.T
        bound = terms * (np.abs(x) @ np.abs(w).T) + slack + 2.0 ** -self.dtype_bits * np.abs(exact)
        ratio = np.abs(y - exact) / np.maximum(bound, np.finfo(np.float64).tiny)
        self.worst = max(self.worst, float(np.where(np.isnan(ratio), np.inf, ratio).max()))
        self.seen.update(parts)
        self.elements += y.size

    def same(self):
        for handle in self.handles:
            handle.remove()
        print(f"products: {self.elements} outputs of {len(self.seen)} of {len(self.weights)} "
              f"matrices, at most {self.worst:.3f} of what roundings allow")
        return self.seen == set(self.weights) and self.worst <= 1


def to_e4m3(values):
    """The nearest of E4M3's values, half to even, those beyond 448 to 448."""
    _, exponent = np.frexp(values)
    step = np.exp2(np.maximum(exponent - 1, -6) - 3.0)
    return np.clip(np.rint(values / step) * step, -448, 448)


class Reader:
    """A program that has logits to give."""

    def losses(self, windows):
        return [window_loss(self.logits(window), window) for window in windows]

    def greedy(self, ids, count):
        out = []
        while len(out) < count:
            out.append(int(self.logits(ids + out)[-1].argmax()))
        return out


class Torch(Reader):
    def __init__(self, path, _args):
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32,
                                                          device_map="cpu").eval()
        self.kinds = quantized_kinds(self.model)

    def logits(self, ids):
        with self.torch.no_grad():
            return self.model(self.torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


    def watch(self, products):
        products.watch(self.model)


class Gptqmodel(Torch):
    """GPTQModel's own loader, in the type that its kernel for a CPU takes."""

    def __init__(self, path, _args):
        import torch
        from gptqmodel import BACKEND, GPTQModel

        self.torch = torch
        self.model = GPTQModel.load(path, device="cpu", dtype=torch.bfloat16,
                                    backend=BACKEND.GPTQ_TORCH).model.eval()
        self.kinds = quantized_kinds(self.model)


def quantized_kinds(model):
    return {type(module).__name__ for module in model.modules() if hasattr(module, "qweight")
            or getattr(module, "quantization_scheme", None) is not None}


class Mlx(Reader):
    def __init__(self, path, _args):
        import mlx.core as mx
        import mlx_lm

        mx.set_default_device(mx.cpu)
        self.mx = mx
        self.model, _ = mlx_lm.load(path)
        self.model.set_dtype(mx.float32)
        self.kinds = {type(module).__name__ for _, module in self.model.named_modules()
                      if hasattr(module, "scales")}

    def logits(self, ids):
        return np.array(self.model(self.mx.array([ids]))[0].astype(self.mx.float32))


class Vllm:
    def __init__(self, path, args):
        settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_INT4_W4A8": "0",
                    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        for name, value in settings.items():
            os.environ.setdefault(name, value)
        import vllm

        self.params = vllm.SamplingParams
        # Before it serves, vLLM runs as many tokens as a step may have, which of FP8 takes minutes.
        self.llm = vllm.LLM(model=path, dtype="float32" if args.fp8 else "bfloat16",
                            max_model_len=args.window + 1, max_num_seqs=32, enforce_eager=True,
                            max_num_batched_tokens=max(64, args.window + 1), seed=0)
        self.kinds = set(*self.llm.apply_model(vllm_schemes))

    def run(self, prompts, **params):
        prompts = [{"prompt_token_ids": ids} for ids in prompts]
        params = self.params(temperature=0, ignore_eos=True, **params)
        return self.llm.generate(prompts, params, use_tqdm=False)

    def watch(self, products):
        self.llm.apply_model(products.watch)

    def losses(self, windows):
        done = self.run(windows, max_tokens=1, prompt_logprobs=0)
        scored = ([at[token].logprob
                   for at, token in zip(run.prompt_logprobs[1:], window[1:], strict=True)]
                  for run, window in zip(done, windows, strict=True))
        return [-sum(window) / len(window) for window in scored]

    def greedy(self, ids, count):
        return self.run([ids], max_tokens=count)[0].outputs[0].token_ids


def vllm_schemes(model):
    """What its linear layers are, compressed-tensors' by their scheme."""
    methods = (getattr(module, "scheme", getattr(module, "quant_method", None))
               for module in model.modules())
    names = {type(method).__name__ for method in methods}
    return {name for name in names if name.startswith(("CompressedTensorsW", "AutoGPTQ"))}


READERS = {"gptq": Torch, "gptqmodel": Gptqmodel, "mlx": Mlx, "compressed-tensors": Torch,
           "vllm": Vllm}


def smq_run(binary, *arguments):
    command = [binary, *map(str, arguments), "--device", "cpu", "--json"]
    out = subprocess.run(command, check=True, capture_output=True)
    return json.loads(out.stdout)


def window_loss(logits, ids):
    """Mean over all tokens but the first, in nats."""
    logits = logits[:-1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(logits).sum(axis=1))
    return float((log_sums - logits[np.arange(len(ids) - 1), ids[1:]]).mean())


def windows_of(tokenizer, args, window, count):
    """The text's first windows, and smq-run's loss of each."""
    text = pathlib.Path(args.text).read_text(encoding="utf-8")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:count * window]
    ours = smq_run(args.smq_run, "eval", "ppl", args.file, "--text", args.text, "--window", window,
                   "--text-tokens", len(ids))
    windows = [ids[first:first + window] for first in range(0, len(ids) - window + 1, window)]
    return windows, np.array(ours["window_nll"])


def same_losses(model, tokenizer, args):
    windows, ours = windows_of(tokenizer, args, args.window, args.windows)
    theirs = np.array(model.losses(windows))
    worst, mean = np.abs(theirs - ours).max(), theirs.mean()
    difference = abs(mean - ours.mean()) if args.rounds else worst
    print(f"losses: {len(theirs)} windows of {args.window}, {mean:.6f} nats a token for "
          f"{ours.mean():.6f}, largest difference of a window {worst:.2e} (tolerance "
          f"{args.tolerance:g}{', of the mean' * args.rounds})")
    return bool(difference <= args.tolerance)


def same_short_losses(model, tokenizer, args):
    """Of FP8: whether more windows of two tokens agree than another arithmetic could have."""
    windows, ours = windows_of(tokenizer, args, 2, 128)
    differences = np.abs(np.array(model.losses(windows)) - ours)
    apart = differences[differences > NEAR]
    near, total = len(differences) - len(apart), len(differences)
    chance = NEAR / np.median(apart) if len(apart) else 0.0
    needed = next(count for count in range(1, total + 2) if tail(count, total, chance) < 1e-6)
    print(f"losses: {near} of {total} windows of 2 agree to {NEAR:g} nats, {needed} must; the "
          f"median difference of the others is {np.median(apart) if len(apart) else 0:.1e}")
    return near >= needed


def tail(count, total, chance):
    """The chance that `count` or more of `total` happen, each with this chance."""
    return sum(math.comb(total, k) * chance ** k * (1 - chance) ** (total - k)
               for k in range(count, total + 1))


def same_products(model, tokenizer, weights, args):
    """Of one window of up to 64 tokens."""
    text = pathlib.Path(args.text).read_text(encoding="utf-8")
    products = Products(weights, args.fp8, 24 if args.fp8 else 8)
    model.watch(products)
    model.losses([tokenizer(text, add_special_tokens=False)["input_ids"][:min(64, args.window)]])
    return products.same()


def same_tokens(model, tokenizer, args):
    same = total = 0
    for prompt in args.prompt or PROMPTS:
        ours = smq_run(args.smq_run, "generate", args.file, "--raw", "--greedy", "-n", args.tokens,
                       "-p", prompt)
        ids = tokenizer(prompt)["input_ids"]
        if len(ids) != ours["prompt_tokens"]:
            sys.exit(f"{prompt!r} is {len(ids)} tokens here and {ours['prompt_tokens']} in smq-run")
        theirs = model.greedy(ids, len(ours["ids"]))
        equal = [a == b for a, b in zip(theirs, ours["ids"], strict=True)]
        same, total = same + (equal + [False]).index(False), total + len(equal)
    print(f"greedy tokens: {same} of {total} equal")
    return same == total or args.rounds


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    here = pathlib.Path(__file__).resolve().parents[2]
    parser.add_argument("reader", choices=list(READERS))
    parser.add_argument("export", metavar="EXPORT")
    parser.add_argument("file", metavar="FILE.smq")
    parser.add_argument("--dense", metavar="DIR",
                        help="the same file in f32, to compare weights with")
    parser.add_argument("--smq-run", default=here / "target/release/smq-run", metavar="PROGRAM")
    parser.add_argument("--text", default=here / "tests/fixtures/sample.txt", metavar="FILE")
    parser.add_argument("--window", type=int, default=512, help="tokens a window (default: 512)")
    parser.add_argument("--windows", type=int, default=4, help="windows at most (default: 4)")
    parser.add_argument("--tolerance", type=float, metavar="NATS",
                        help="nats a token (default: 1e-4 of each window, or 0.02 of the mean)")
    parser.add_argument("--prompt", action="append",
                        help="instead of the built-in prompts; may be repeated")
    parser.add_argument("--tokens", type=int, default=16,
                        help="greedy tokens a prompt (default: 16)")
    args = parser.parse_args()

    from transformers import AutoTokenizer

    config = json.loads((pathlib.Path(args.export) / "config.json").read_text())
    form = form_of(config)
    args.fp8 = form == "float-quantized"
    args.rounds = args.fp8 or args.reader in ("gptqmodel", "vllm")
    if args.tolerance is None:
        args.tolerance = 0.02 if args.rounds else 1e-4
    weights = dict(WEIGHTS[form](Tensors(args.export), config))
    agreed = [same_weights(weights, args.dense)] if args.dense else []
    model = READERS[args.reader](args.export, args)
    print(f"quantized modules: {', '.join(sorted(model.kinds)) or 'none'}")
    tokenizer = AutoTokenizer.from_pretrained(args.export)
    agreed.append(bool(model.kinds))
    if args.rounds:
        agreed.append(same_products(model, tokenizer, weights, args))
    agreed += [same_losses(model, tokenizer, args), same_tokens(model, tokenizer, args)]
    if args.fp8:
        agreed.append(same_short_losses(model, tokenizer, args))
    print("ok" if all(agreed) else "FAILED")
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    sys.exit(main())
