#!/usr/bin/env python3
"""Runs what `smq-convert --to` wrote with the program that it is for, on the CPU, and compares it
with smq-run on the .smq file.

    check_export.py gptq EXPORT FILE.smq                  transformers with GPTQModel
    check_export.py gptqmodel EXPORT FILE.smq             GPTQModel's own loader
    check_export.py mlx EXPORT FILE.smq                   mlx-lm
    check_export.py compressed-tensors EXPORT FILE.smq    transformers with compressed-tensors
    check_export.py vllm EXPORT FILE.smq                  vLLM's CPU build, of compressed-tensors or
                                                          gptq; not run in CI
    check_export.py onnxruntime-genai EXPORT FILE.smq     its model builder and runtime, of gptq;
                                                          not run in CI
    check_export.py llama.cpp EXPORT FILE.smq             llama.cpp's converter, of gptq, whose
        --dense DIR --converter convert_hf_to_gguf.py     weights alone are compared; not run in CI

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

llama.cpp's converter multiplies each number from -8 to 7 by its scale in f32, as --dense does. An
f16 scale has 11 bits and such a number 4, so that the product has at most 15 of f32's 24 bits and
lies far within its range: neither of them rounds. The other tensors only widen. So the bound is 0,
and all tensors of the GGUF file, of which the converter is asked for f32, must be those of --dense,
bit for bit. Of Llama models it puts the rows of q and k into another order, which is undone first.

onnxruntime-genai's builder takes q, k and v to one matrix and Phi-3's gate and up projection to
two, widens the scales to f32 and keeps the integers. What it wrote is dequantized here once more,
with a bound of 0 for the same reason. Its kernel rounds activations to int8, a scale for each block
of a row, at accuracy level 4, which is the default, and the builder quantizes embedding and head to
int4 by itself. Neither is ours to judge. So the script asks for level 1, which is f32, and for
embedding and head as they are. Then nothing but the order of sums differs, as in the other readers
of f32. With --accuracy-level 4 the mean alone must agree, to 0.02, and greedy tokens are counted.

Needs numpy and transformers (5.24.0 was used), and what the reader is made of: torch, optimum and
gptqmodel; mlx[cpu] and mlx-lm; torch and compressed-tensors; vllm-cpu (0.32.0 with torch 2.13.0 and
transformers 5.19.0 was used); torch, onnx and onnxruntime-genai; torch, sentencepiece and the gguf
of the converter's own version. vLLM chooses LongRoPE's factors by the longest context that it is to
take, which is --window and one here: the bundled checkpoint has its short ones up to --window 511.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

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


def joined(weights):
    """With q, k and v of a layer as one matrix, and gate and up projection as one."""
    out = dict(weights)
    for name in weights:
        above, _, last = name.removesuffix(".weight").rpartition(".")
        for whole, parts in JOINED.items():
            if last == parts[0]:
                rows = [out.pop(f"{above}.{part}.weight") for part in parts]
                out[f"{above}.{whole}.weight"] = np.concatenate(rows)
    return out


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


def unequal_bits(ours, theirs):
    return int((ours.view(np.uint32) != theirs.view(np.uint32)).sum())


def same_gguf(config, args):
    """Whether llama.cpp's converter has the tensors of --dense, and no others of the model."""
    dense, made = Tensors(args.dense), dict(gguf_tensors(config, args))
    unequal = sum(unequal_bits(values, dense.stored(name)) for name, values in made.items())
    absent = sorted(set(dense.found) - set(made))
    print(f"GGUF: {len(made)} tensors, {sum(values.size for values in made.values())} elements, "
          f"{unequal} differ from the dense; not in it: {', '.join(absent) or 'none'}")
    return bool(made) and unequal == 0 and not absent


def run_tool(*arguments):
    """A program in Python that makes something of the export; ends with its last words if it
    fails."""
    ran = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)
    if ran.returncode:
        sys.exit("\n".join(ran.stderr.splitlines()[-12:]))


def gguf_tensors(config, args):
    """What the converter makes of the export, by the names that its tensors have there."""
    import gguf

    with tempfile.TemporaryDirectory() as directory:
        source, out = pathlib.Path(directory) / "export", pathlib.Path(directory) / "model.gguf"
        source.mkdir()
        for path in pathlib.Path(args.export).resolve().iterdir():
            (source / path.name).symlink_to(path)
        if config["model_type"] == "phi3" and not (source / "tokenizer.model").exists():
            write_tokenizer_model(source)
        run_tool(args.converter, source, "--outtype", "f32", "--outfile", out)
        reader = gguf.GGUFReader(out)
        name_of = reader.fields["general.architecture"].contents()
        kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == name_of)
        names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
        theirs = {names.get_name(name, try_suffixes=(".weight", ".bias")): name
                  for name in Tensors(args.dense).found}
        for tensor in reader.tensors:
            if tensor.name.startswith("rope_f"):  # of the configuration, not of the weights
                continue
            values = np.array(tensor.data)
            heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
            part = tensor.name.split(".")[-2]
            if name_of == "llama" and part in heads:
                # Pairs of rows that rotate together are a half of a head apart for transformers,
                # and neighbours in GGUF.
                pairs = values.reshape(config[heads[part]], -1, 2, *values.shape[1:])
                values = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
            yield theirs[tensor.name], values


def write_tokenizer_model(directory):
    """The converter refuses Phi-3 without sentencepiece's file, whatever the weights are. Of a
    checkpoint that has none, the vocabulary of tokenizer.json stands in for it here, where nothing
    is made of it."""
    from sentencepiece import sentencepiece_model_pb2

    stored = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in stored["added_tokens"]}
    pieces = {**stored["model"]["vocab"], **added}
    model = sentencepiece_model_pb2.ModelProto()
    kinds = model.SentencePiece
    for piece in sorted(pieces, key=pieces.get):
        kind = kinds.CONTROL if piece in added else kinds.NORMAL
        model.pieces.add(piece=piece, score=0,
                         type=kinds.UNKNOWN if piece == "<unk>" else kind)
    (directory / "tokenizer.model").write_bytes(model.SerializeToString())


# These layers' rows are one matrix in some programs and in some models.
JOINED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


class Products:
    """Compares what layers make of their inputs with products in f64, where their weights are
    known by name. `dtype_bits` are the bits of mantissa that inputs and outputs have."""

    def __init__(self, weights, fp8, dtype_bits):
        self.weights, self.fp8, self.dtype_bits = weights, fp8, dtype_bits
        self.watched, self.seen, self.elements, self.worst, self.handles = set(), set(), 0, 0.0, []

    def watch(self, model):
        for name, module in model.named_modules():
            above, _, last = name.rpartition(".")
            parts = [name] if f"{name}.weight" in self.weights else [
                f"{above}.{part}" for part in JOINED.get(last, [])]
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


class OnnxruntimeGenai:
    """Its model builder, and its runtime on what that has written."""

    def __init__(self, path, args):
        import onnxruntime_genai

        self.genai, self.directory = onnxruntime_genai, tempfile.TemporaryDirectory()
        # Release 0.18.0 ignores the older names of these options, such as int4_accuracy_level,
        # though it says that they still work.
        run_tool("-m", "onnxruntime_genai.models.builder", "-i", path, "-o",
                 f"{self.directory.name}/model", "-c", f"{self.directory.name}/cache", "-p", "int4",
                 "-e", "cpu", "--extra_options", f"accuracy_level={args.accuracy_level}",
                 "nodes_to_exclude=/lm_head/MatMul,/model/embed_tokens/Gather")
        self.read(f"{self.directory.name}/model", args.accuracy_level)
        self.model = onnxruntime_genai.Model(f"{self.directory.name}/model")

    def read(self, path, level):
        """`MatMulNBits`: rows of blocks, two numbers a byte with the first one low, and zero points
        in the same way, of which each row begins a byte."""
        import onnx

        graph = onnx.load(f"{path}/model.onnx").graph
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        halves = lambda codes: np.stack([codes & 15, codes >> 4], axis=-1).astype(np.float32)
        self.weights, self.kinds = {}, set()
        for node in graph.node:
            if node.op_type != "MatMulNBits":
                continue
            if [item.i for item in node.attribute if item.name == "accuracy_level"] != [level]:
                sys.exit(f"{node.name} has not the accuracy level {level} that was asked for")
            codes, scales, zeros = (onnx.numpy_helper.to_array(tensors[name])
                                    for name in node.input[1:4])
            rows, blocks = codes.shape[:2]
            numbers = halves(codes).reshape(rows, blocks, -1)
            numbers -= halves(zeros).reshape(rows, -1)[:, :blocks, None]
            name = node.name.strip("/").removesuffix("/MatMulNBits").replace("/", ".")
            self.weights[name.replace(".attn.", ".self_attn.") + ".weight"] = (
                scales.reshape(rows, blocks, 1) * numbers).reshape(rows, -1)
            self.kinds.add(f"{node.op_type} of accuracy level {level}")

    def same_weights(self, weights):
        ours, theirs = joined(weights), joined(self.weights)
        unequal = sum(unequal_bits(np.ascontiguousarray(values), theirs[name])
                      for name, values in ours.items() if name in theirs)
        print(f"ONNX: {len(theirs)} of {len(ours)} matrices, {unequal} elements differ "
              "from the export")
        return set(ours) == set(theirs) and unequal == 0

    def started(self, ids, more):
        params = self.genai.GeneratorParams(self.model)
        params.set_search_options(max_length=len(ids) + more, do_sample=False)
        generator = self.genai.Generator(self.model, params)
        generator.append_tokens(np.array(ids, np.int32))
        return generator

    def losses(self, windows):
        return [window_loss(self.started(window, 1).get_output("logits")[0], window)
                for window in windows]

    def greedy(self, ids, count):
        """With its cache, and on where a text would end, as smq-run's ids do."""
        generator, out = self.started(ids, count + 1), []
        for _ in range(count):
            out.append(int(generator.get_output("logits")[0, -1].argmax()))
            generator.append_tokens(np.array(out[-1:], np.int32))
        return out


def vllm_schemes(model):
    """What its linear layers are, compressed-tensors' by their scheme."""
    methods = (getattr(module, "scheme", getattr(module, "quant_method", None))
               for module in model.modules())
    names = {type(method).__name__ for method in methods}
    return {name for name in names if name.startswith(("CompressedTensorsW", "AutoGPTQ"))}


READERS = {"gptq": Torch, "gptqmodel": Gptqmodel, "mlx": Mlx, "compressed-tensors": Torch,
           "vllm": Vllm, "onnxruntime-genai": OnnxruntimeGenai}


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
    parser.add_argument("reader", choices=[*READERS, "llama.cpp"])
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
    parser.add_argument("--converter", metavar="PROGRAM",
                        help="llama.cpp's convert_hf_to_gguf.py, which llama.cpp needs")
    parser.add_argument("--accuracy-level", type=int, choices=[1, 4], default=1,
                        help="of onnxruntime-genai: 1 for f32 (default), 4 for int8 activations")
    args = parser.parse_args()
    if args.reader == "llama.cpp" and not (args.converter and args.dense):
        parser.error("llama.cpp needs --converter and --dense")

    from transformers import AutoTokenizer

    config = json.loads((pathlib.Path(args.export) / "config.json").read_text())
    form = form_of(config)
    args.fp8 = form == "float-quantized"
    bf16 = args.reader in ("gptqmodel", "vllm")
    genai = args.reader == "onnxruntime-genai"
    args.rounds = args.fp8 or bf16 or genai and args.accuracy_level == 4
    if args.tolerance is None:
        args.tolerance = 0.02 if args.rounds else 1e-4
    weights = dict(WEIGHTS[form](Tensors(args.export), config))
    agreed = [same_weights(weights, args.dense)] if args.dense else []
    if args.reader == "llama.cpp":
        return verdict([*agreed, same_gguf(config, args)])
    model = READERS[args.reader](args.export, args)
    print(f"quantized modules: {', '.join(sorted(model.kinds)) or 'none'}")
    tokenizer = AutoTokenizer.from_pretrained(args.export)
    agreed.append(bool(model.kinds))
    if genai:
        agreed.append(model.same_weights(weights))
    elif args.rounds:
        agreed.append(same_products(model, tokenizer, weights, args))
    agreed += [same_losses(model, tokenizer, args), same_tokens(model, tokenizer, args)]
    if args.fp8:
        agreed.append(same_short_losses(model, tokenizer, args))
    return verdict(agreed)


def verdict(agreed):
    print("ok" if all(agreed) else "FAILED")
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    sys.exit(main())
