#!/usr/bin/env python3
"""What int4 keys lose by how they are grouped: SmolLM2-135M in f32, keys of every layer rounded.

    results/quality/keys_by_channel.py SMOLLM2_DIR TEXT [--windows 6]

Needs numpy and tokenizers. Windows of 512 tokens, mean KL divergence from the model with its own
keys. A group of 32 has a scale with two bits of mantissa that takes its largest to -8, as
spec/cache.md has it; groups of 32 elements of a token are what the engines cache.
"""

import argparse
import json
import struct
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

WINDOW = 512


def load(directory):
    """The model's tensors in f32, as {name: array}."""
    path = Path(directory) / "model.safetensors"
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length)

    def tensor(entry):
        begin, end = entry["data_offsets"]
        wide = data[begin:end].view(np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(entry["shape"])

    return {name: tensor(entry) for name, entry in header.items() if name != "__metadata__"}


class Model:
    """Llama's forward pass over one window."""

    def __init__(self, directory):
        self.tensors = load(directory)
        self.config = json.loads((Path(directory) / "config.json").read_text())

    def log_probs(self, tokens, keys):
        """`keys(layer, k)` takes rotated keys `[kv_heads, tokens, head_dim]`."""
        c, t = self.config, self.tensors
        heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        d = c["hidden_size"] // heads
        half, n = d // 2, len(tokens)
        angles = np.arange(n)[:, None] / c["rope_theta"] ** (np.arange(0, d, 2) / d)
        cosine, sine = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        mask = np.triu(np.full((n, n), -np.inf, np.float32), 1)

        def norm(x, weight):
            return x / np.sqrt((x * x).mean(-1, keepdims=True) + c["rms_norm_eps"]) * weight

        def rotate(x):
            a, b = x[..., :half], x[..., half:]
            return np.concatenate([a * cosine - b * sine, b * cosine + a * sine], -1)

        x = t["model.embed_tokens.weight"][tokens]
        for layer in range(c["num_hidden_layers"]):
            weight = lambda name: t[f"model.layers.{layer}.{name}.weight"]  # noqa: E731
            y = norm(x, weight("input_layernorm"))
            split = lambda name, count: (  # noqa: E731
                (y @ weight(f"self_attn.{name}").T).reshape(n, count, d).transpose(1, 0, 2)
            )
            q, v = rotate(split("q_proj", heads)), split("v_proj", kv_heads)
            k = keys(layer, rotate(split("k_proj", kv_heads)))
            out = np.empty((heads, n, d), np.float32)
            for head in range(heads):
                own = head // (heads // kv_heads)
                p = np.exp(log_softmax(q[head] @ k[own].T / np.sqrt(d) + mask))
                out[head] = p @ v[own]
            x = x + out.transpose(1, 0, 2).reshape(n, -1) @ weight("self_attn.o_proj").T
            y = norm(x, weight("post_attention_layernorm"))
            gate = y @ weight("mlp.gate_proj").T
            y = gate / (1 + np.exp(-gate)) * (y @ weight("mlp.up_proj").T)
            x = x + y @ weight("mlp.down_proj").T
        x = norm(x, t["model.norm.weight"])
        return log_softmax(x @ t["model.embed_tokens.weight"].T)


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def int4(groups):
    """Groups along the last axis, by a scale that takes the largest to -8."""
    at = np.abs(groups).argmax(-1)[..., None]
    mantissa, exponent = np.frexp(np.take_along_axis(groups, at, -1) / -8)
    scale = np.ldexp(np.round(mantissa * 8) / 8, exponent)
    codes = np.round(groups / np.where(scale == 0, 1, scale))
    return (np.clip(codes, -8, 7) * scale).astype(np.float32)


def int4_with_zero(groups):
    """Likewise with an exact scale and an exact zero point."""
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    scale = np.where(high > low, (high - low) / 15, 1)
    return (np.round((groups - low) / scale) * scale + low).astype(np.float32)


def by_token(k, code=int4, size=32):
    heads, n, d = k.shape
    return code(k.reshape(heads, n, d // size, size)).reshape(k.shape)


def by_channel(k, code=int4, size=32):
    heads, n, d = k.shape
    groups = k.transpose(0, 2, 1).reshape(heads, d, n // size, size)
    return code(groups).reshape(heads, d, n).transpose(0, 2, 1)


def statistics(model, windows):
    """Of each layer's channels `[kv_heads, 1, head_dim]`: the mean, and the largest magnitude."""
    sums, largest = {}, {}

    def look(layer, k):
        sums[layer] = sums.get(layer, 0) + k.mean(1, keepdims=True)
        largest[layer] = np.maximum(largest.get(layer, 0), np.abs(k).max(1, keepdims=True))
        return k

    for tokens in windows:
        model.log_probs(tokens, look)
    return {layer: total / len(windows) for layer, total in sums.items()}, largest


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--windows", type=int, default=6)
    args = parser.parse_args()
    model = Model(args.model)
    tokenizer = Tokenizer.from_file(str(Path(args.model) / "tokenizer.json"))
    ids = np.array(tokenizer.encode(Path(args.text).read_text()[:100_000]).ids)
    windows = [ids[WINDOW * i : WINDOW * (i + 1)] for i in range(args.windows + 2)]
    # Two windows behind those that are scored say what channels are like.
    mean, largest = statistics(model, windows[args.windows :])
    power = {
        layer: 2.0 ** np.round(np.log2(m / m.mean(-1, keepdims=True)))
        for layer, m in largest.items()
    }
    ways = {
        "32 of a token": lambda _, k: by_token(k),
        "32 of a token, zero point": lambda _, k: by_token(k, int4_with_zero),
        "32 of a token less its channel's mean": lambda i, k: by_token(k - mean[i]) + mean[i],
        "32 of a token, channels by powers of two": lambda i, k: by_token(k / power[i]) * power[i],
        "a channel of 32 tokens": lambda _, k: by_channel(k),
        "a channel of 64 tokens": lambda _, k: by_channel(k, size=64),
        "a channel less its mean": lambda i, k: by_channel(k - mean[i]) + mean[i],
        "a channel, zero point": lambda _, k: by_channel(k, int4_with_zero),
    }
    found = {name: [] for name in ways}
    for tokens in windows[: args.windows]:
        own = model.log_probs(tokens, lambda _, k: k)[:-1]
        for name, keys in ways.items():
            other = model.log_probs(tokens, lambda i, k, keys=keys: keys(i, k).astype(np.float32))
            found[name].append((np.exp(own) * (own - other[:-1])).sum(-1).mean())
    for name, divergences in found.items():
        error = np.std(divergences, ddof=1) / len(divergences) ** 0.5
        print(f"| {name} | {np.mean(divergences):.4f} +- {error:.4f} |")


if __name__ == "__main__":
    main()
