#!/usr/bin/env python3
"""Runs what `smq-convert --to` wrote with the program that it is for, on the CPU, and compares it with smq-run on the .smq file.

    check_export.py gptq EXPORT FILE.smq                  Hugging Face transformers with GPTQModel
    check_export.py mlx EXPORT FILE.smq                   mlx-lm
    check_export.py compressed-tensors EXPORT FILE.smq    Hugging Face transformers with compressed-tensors
    check_export.py vllm EXPORT FILE.smq                  vLLM's CPU build, for --to compressed-tensors and gptq; not run in CI

Three things must agree. The weights, which this script dequantizes itself from the description of the format, with
those of --dense, the directory of `--to safetensors --dtype f32`, bit for bit (gptq, mlx and FP8 of compressed-tensors;
left out without --dense). The losses of the text's windows, to --tolerance nats a token: reader and smq-run compute in
f32. The greedy continuations, token by token. Exits with 1 on any disagreement.

Two things make the last two looser. FP8's activations are rounded to E4M3 too: what differs by 1e-7 is now and then
rounded the other way, and from there the two computations are as far apart as two roundings. So of windows of two
tokens, some of which are spared that, one in twenty must agree to 1e-5, as none would in another arithmetic; the windows
of --window to a tolerance of 0.02 on their mean; greedy tokens are counted only. vLLM has int4 in bf16 alone, where the mean must agree to 0.02, and rounds the activations
to int8 on some processors, which is turned off here unless VLLM_CPU_INT4_W4A8 is set.

Needs numpy and transformers (5.24.0 was used), and what the reader is made of: torch, optimum and gptqmodel; mlx[cpu] and mlx-lm;
torch and compressed-tensors; vllm-cpu (0.32.0 with torch 2.13.0 and transformers 5.19.0 was used). vLLM chooses
LongRoPE's factors by the longest context that it is to take, which is --window and one here: the bundled checkpoint
has its short ones up to --window 511.
"""

import argparse
import json
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
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, device_map="cpu").eval()
        self.kinds = {type(module).__name__ for module in self.model.modules() if hasattr(module, "qweight")
                      or getattr(module, "quantization_scheme", None) is not None}

    def logits(self, ids):
        with self.torch.no_grad():
            return self.model(self.torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


class Mlx(Reader):
    def __init__(self, path, _args):
        import mlx.core as mx
        import mlx_lm

        mx.set_default_device(mx.cpu)
        self.mx = mx
        self.model, _ = mlx_lm.load(path)
        self.model.set_dtype(mx.float32)
        self.kinds = {type(module).__name__ for _, module in self.model.named_modules() if hasattr(module, "scales")}

    def logits(self, ids):
        return np.array(self.model(self.mx.array([ids]))[0].astype(self.mx.float32))


class Vllm:
    def __init__(self, path, args):
        settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_INT4_W4A8": "0", "VLLM_CPU_KVCACHE_SPACE": "1",
                    "VLLM_LOGGING_LEVEL": "WARNING"}
        for name, value in settings.items():
            os.environ.setdefault(name, value)
        import vllm

        self.params = vllm.SamplingParams
        self.llm = vllm.LLM(model=path, dtype="float32" if args.fp8 else "bfloat16", max_model_len=args.window + 1,
                            max_num_seqs=32, enforce_eager=True, seed=0)
        self.kinds = set(*self.llm.apply_model(vllm_schemes))

    def run(self, prompts, **params):
        prompts = [{"prompt_token_ids": ids} for ids in prompts]
        return self.llm.generate(prompts, self.params(temperature=0, ignore_eos=True, **params), use_tqdm=False)

    def losses(self, windows):
        done = self.run(windows, max_tokens=1, prompt_logprobs=0)
        scored = ([at[token].logprob for at, token in zip(run.prompt_logprobs[1:], window[1:], strict=True)]
                  for run, window in zip(done, windows, strict=True))
        return [-sum(window) / len(window) for window in scored]

    def greedy(self, ids, count):
        return self.run([ids], max_tokens=count)[0].outputs[0].token_ids


def vllm_schemes(model):
    """What its linear layers are, compressed-tensors' by their scheme."""
    methods = (getattr(module, "scheme", getattr(module, "quant_method", None)) for module in model.modules())
    names = {type(method).__name__ for method in methods}
    return {name for name in names if name.startswith("CompressedTensorsW") or name == "AutoGPTQLinearMethod"}


READERS = {"gptq": Torch, "mlx": Mlx, "compressed-tensors": Torch, "vllm": Vllm}


def smq_run(binary, *arguments):
    out = subprocess.run([binary, *map(str, arguments), "--device", "cpu", "--json"], check=True, capture_output=True)
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
    print(f"losses: {len(theirs)} windows of {args.window}, {mean:.6f} nats a token for {ours.mean():.6f}, largest "
          f"difference of a window {worst:.2e} (tolerance {args.tolerance:g}{', of the mean' * args.rounds})")
    return bool(difference <= args.tolerance)


def same_short_losses(model, tokenizer, args):
    """Of FP8, where some windows of two tokens are spared rounding the other way: one in twenty."""
    windows, ours = windows_of(tokenizer, args, 2, 32 * args.windows)
    differences = np.sort(np.abs(np.array(model.losses(windows)) - ours))
    near = int((differences <= 1e-5).sum())
    print(f"losses: {near} of {len(differences)} windows of 2 differ by 1e-5 nats at most, half of them by "
          f"{differences[len(differences) // 2]:.1e}")
    return near >= 0.05 * len(differences)


def same_tokens(model, tokenizer, args):
    same = total = 0
    for prompt in args.prompt or PROMPTS:
        ours = smq_run(args.smq_run, "generate", args.file, "--raw", "--greedy", "-n", args.tokens, "-p", prompt)
        ids = tokenizer(prompt)["input_ids"]
        if len(ids) != ours["prompt_tokens"]:
            sys.exit(f"{prompt!r} is {len(ids)} tokens here and {ours['prompt_tokens']} in smq-run")
        theirs = model.greedy(ids, len(ours["ids"]))
        equal = [a == b for a, b in zip(theirs, ours["ids"], strict=True)]
        same, total = same + (equal + [False]).index(False), total + len(equal)
    print(f"greedy tokens: {same} of {total} equal")
    return same == total or args.rounds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = pathlib.Path(__file__).resolve().parents[2]
    parser.add_argument("reader", choices=list(READERS))
    parser.add_argument("export", metavar="EXPORT")
    parser.add_argument("file", metavar="FILE.smq")
    parser.add_argument("--dense", metavar="DIR", help="the same file in f32, to compare weights with")
    parser.add_argument("--smq-run", default=here / "target/release/smq-run", metavar="PROGRAM")
    parser.add_argument("--text", default=here / "tests/fixtures/sample.txt", metavar="FILE")
    parser.add_argument("--window", type=int, default=512, help="tokens a window (default: 512)")
    parser.add_argument("--windows", type=int, default=4, help="at most so many windows (default: 4)")
    parser.add_argument("--tolerance", type=float, help="nats a token (default: 1e-4 of each window; FP8 and vLLM: 0.02)")
    parser.add_argument("--prompt", action="append", help="instead of the built-in prompts; may be repeated")
    parser.add_argument("--tokens", type=int, default=16, help="greedy tokens a prompt (default: 16)")
    args = parser.parse_args()

    from transformers import AutoTokenizer

    config = json.loads((pathlib.Path(args.export) / "config.json").read_text())
    args.fp8 = config.get("quantization_config", {}).get("format") == "float-quantized"
    args.rounds = args.fp8 or args.reader == "vllm"
    if args.tolerance is None:
        args.tolerance = 0.02 if args.rounds else 1e-4
    agreed = []
    if args.dense:
        if args.reader not in WEIGHTS:
            parser.error(f"--dense is left out with {args.reader}, which reads what others do")
        agreed.append(same_weights(args.reader, args.export, args.dense, config))
    model = READERS[args.reader](args.export, args)
    print(f"quantized modules: {', '.join(sorted(model.kinds)) or 'none'}")
    tokenizer = AutoTokenizer.from_pretrained(args.export)
    agreed += [bool(model.kinds), same_losses(model, tokenizer, args), same_tokens(model, tokenizer, args)]
    if args.fp8:
        agreed.append(same_short_losses(model, tokenizer, args))
    print("ok" if all(agreed) else "FAILED")
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    sys.exit(main())
