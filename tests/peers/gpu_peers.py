#!/usr/bin/env python3
"""Times what PyTorch offers on this GPU at Phi-3.5-mini's shapes with random weights, and compares
ours with it.

    gpu_peers.py                                          every part
    gpu_peers.py --parts layers,decode --json OUT         some; parts that OUT already has for this
                                                          GPU are kept
    gpu_peers.py --json OUT --ours BENCH.json KERNELS.json    `smq-run bench --json` and `smq-run
                                                              kernels --json`

Parts:
  ceilings  a kernel that only reads 4 GB, and a device copy
  layers    one linear layer: bf16 (cuBLAS) and int4 (tinygemm, groups of 128), at several
            numbers of rows
  decode    a whole decode step at batch 1, a 128-token prompt in the cache, 256 new tokens
  prefill   a prompt in bf16, its keys and values stored, logits of the last position

Everything is timed as the replay of a CUDA graph. A decode step is one graph that feeds itself: it
embeds the last token, moves to the next position and ends on argmax, so that the host only
launches. Every figure is the fastest of the settings tried: each peer is meant to be as strong as
PyTorch lets it be. What was tried goes to standard error, with what failed or no longer fitted in
--seconds. Outputs are checked against a plain computation before they are timed. Needs torch 2.11
or later, one GPU of compute capability 9.0 and 32 GB of its memory.
"""

import argparse
import json
import math
import signal
import statistics
import sys
import time
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

HIDDEN, INTERMEDIATE, LAYERS, HEADS, HEAD_DIM, VOCAB = 3072, 8192, 32, 32, 96, 32064
EPS = 1e-5
SHAPES = {
    "qkv": (3 * HIDDEN, HIDDEN),
    "o": (HIDDEN, HIDDEN),
    "gate_up": (2 * INTERMEDIATE, HIDDEN),
    "down": (HIDDEN, INTERMEDIATE),
    "lm_head": (VOCAB, HIDDEN),
}
ROWS, PREFILL = (1, 8, 16, 32, 64, 128), (128, 512, 2048)
PROMPT, NEW = 128, 256
# TILES: what tinygemm offers (inner k tiles).
GROUP, TILES = 128, (2, 4, 8)
# Four times the L2 cache of an H100: weights that are read in turn come from DRAM.
ROTATE_BYTES = 200e6
DECODE_CONFIGS = {"bf16": (), "int4 mlp": ("gate_up", "down"),
                  "int4 all": ("qkv", "o", "gate_up", "down")}


# ---- timing ----


def capture(run):
    """A CUDA graph of `run`, which was called before, so that nothing is compiled or tuned
    inside."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def replay_ms(graph, repeats=30, warmup=5):
    """Median time of a replay."""
    for _ in range(warmup):
        graph.replay()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in marks:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in marks)


def rotated_us(call, operands):
    """Time of one call when each call takes the next of `operands`."""

    def run():
        for operand in operands:
            call(operand)

    run()
    return replay_ms(capture(run)) * 1e3 / len(operands)


# ---- ceilings ----


@triton.jit
def read_kernel(source, sums, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    words = tl.load(source + program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK),
                    eviction_policy="evict_first")
    tl.store(sums + program, tl.sum(words, 0))


def time_ceilings(_):
    words = 1 << 30
    source = torch.randint(-100, 100, (words,), dtype=torch.int32, device="cuda")
    best = math.inf
    for block, warps in ((4096, 4), (8192, 4), (8192, 8), (16384, 8), (16384, 16), (32768, 16)):
        sums = torch.empty(words // block, dtype=torch.int32, device="cuda")
        run = partial(read_kernel[(words // block,)], source, sums, BLOCK=block, num_warps=warps)
        run()
        if sums.sum() != source.sum():
            raise RuntimeError("the read kernel does not read everything")
        best = min(best, replay_ms(capture(run), repeats=15))
    target = torch.empty_like(source)
    target.copy_(source)
    copy = replay_ms(capture(lambda: target.copy_(source)), repeats=15)
    return {"read_gb_per_s": 4 * words / best / 1e6, "copy_gb_per_s": 2 * 4 * words / copy / 1e6}


# ---- linear layers: a weight is a bf16 matrix, or tinygemm's packed nibbles, scales and zeros ----


def bf16_weight(layer):
    return torch.randn(SHAPES[layer], dtype=torch.bfloat16, device="cuda") * 0.02


def int4_weight(layer, inner_k_tiles):
    """Random nibbles, w = (nibble - 8) * scale; also what they mean, as bf16."""
    rows, cols = SHAPES[layer]
    packed = torch.randint(0, 256, (rows, cols // 2), dtype=torch.uint8, device="cuda")
    scales = torch.rand(cols // GROUP, rows, 1, device="cuda").add(0.5).mul(0.004)
    scales = scales.to(torch.bfloat16)
    tiles = torch.ops.aten._convert_weight_to_int4pack(packed, inner_k_tiles)
    return tiles, torch.cat([scales, torch.zeros_like(scales)], 2), packed


def int4_meaning(weight):
    """The dense matrix of an int4 weight: its even columns are the high nibbles."""
    _, scales, packed = weight
    nibbles = torch.stack([packed >> 4, packed & 15], 2).reshape(packed.shape[0], -1)
    scales = scales[:, :, 0].float().t().repeat_interleave(GROUP, 1)
    return ((nibbles.float() - 8) * scales).to(torch.bfloat16)


def linear(x, weight):
    if isinstance(weight, tuple):
        return torch.ops.aten._weight_int4pack_mm(x, weight[0], GROUP, weight[1])
    return F.linear(x, weight)


@cache
def best_tiles(layer):
    """tinygemm's fastest tiling at one row."""
    x = torch.randn(1, SHAPES[layer][1], dtype=torch.bfloat16, device="cuda")
    copies = math.ceil(2 * ROTATE_BYTES / math.prod(SHAPES[layer]))
    weights = {tiles: [int4_weight(layer, tiles) for _ in range(copies)] for tiles in TILES}
    return min(TILES, key=lambda tiles: rotated_us(partial(linear, x), weights[tiles]))


def check(what, got, want, tolerance=0.03):
    error = float((got.float() - want.float()).norm() / want.float().norm())
    if not error < tolerance:
        raise RuntimeError(f"{what}: relative error {error:.3g}")


def time_layers(_):
    results = []
    for layer, (out, cols) in SHAPES.items():
        copies = max(2, math.ceil(ROTATE_BYTES / (2 * out * cols)))
        dense = [bf16_weight(layer) for _ in range(copies)]
        packed = {tiles: [int4_weight(layer, tiles) for _ in range(4 * copies)] for tiles in TILES}
        for rows in ROWS:
            x = torch.randn(rows, cols, dtype=torch.bfloat16, device="cuda")
            bf16 = rotated_us(lambda w: F.linear(x, w), dense)
            int4 = math.inf
            for weights in packed.values():
                expected = x.float() @ int4_meaning(weights[0]).float().t()
                check(f"tinygemm {layer}", linear(x, weights[0]), expected)
                int4 = min(int4, rotated_us(lambda w: linear(x, w), weights))
            results.append({"layer": layer, "rows": rows, "bf16_us": bf16, "int4_us": int4})
        del dense, packed
    return results


# ---- the model ----


def rms_norm(x, weight):
    x = x.float()
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)).to(torch.bfloat16) * weight


def rotate(x, cos, sin):
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(torch.bfloat16)


def attend_written_out(q, keys, values, bias):
    """One query a head over the whole cache, as sums that the compiler fuses."""
    scores = (q.unsqueeze(1).float() * keys.float()).sum(-1) / math.sqrt(HEAD_DIM)
    p = (scores + bias).softmax(-1)
    return (p.unsqueeze(-1) * values.float()).sum(1).to(torch.bfloat16)


def attend_sdpa(q, keys, values, bias):
    bias = bias.expand(1, HEADS, 1, -1)
    out = F.scaled_dot_product_attention(q[None, :, None], keys[None], values[None], attn_mask=bias)
    return out[0, :, 0]


def project(x, delta, weights, cos, sin):
    """The residual stream, and queries, keys and values of every row, `[heads, rows, head_dim]`.

    `delta` is what the layer before has yet to add, so that the addition and the norm after it can
    be one kernel.
    """
    x = x + delta
    qkv = linear(rms_norm(x, weights["input_norm"]), weights["qkv"])
    q, k, v = qkv.view(-1, 3, HEADS, HEAD_DIM).permute(1, 2, 0, 3)
    return x, rotate(q, cos, sin), rotate(k, cos, sin), v


def finish_layer(x, attended, weights):
    x = x + linear(attended, weights["o"])
    gate, up = linear(rms_norm(x, weights["post_norm"]), weights["gate_up"]).chunk(2, -1)
    return x, linear(F.silu(gate) * up, weights["down"])


def decode_layer(attend):
    def layer(x, delta, weights, keys, values, rope, position, bias):
        x, q, k, v = project(x, delta, weights, *rope[:, position])
        keys[:, position] = k
        values[:, position] = v
        attended = attend(q[:, 0], keys, values, bias)
        return finish_layer(x, attended.reshape(1, HIDDEN), weights)

    return layer


def prefill_layer(x, delta, weights, keys, values, rope):
    x, q, k, v = project(x, delta, weights, *rope)
    keys.copy_(k)
    values.copy_(v)
    attended = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
    return finish_layer(x, attended.permute(1, 0, 2).reshape(-1, HIDDEN), weights)


def greedy_head(x, delta, norm, weight):
    return linear(rms_norm(x + delta, norm), weight).argmax(-1)


class Model:
    """Random weights, of which `int4` layers are packed, and an empty cache."""

    def __init__(self, int4, positions):
        torch.manual_seed(0)
        self.layers = [self.layer(int4) for _ in range(LAYERS)]
        self.embedding = torch.randn(VOCAB, HIDDEN, dtype=torch.bfloat16, device="cuda")
        self.norm = torch.ones(HIDDEN, dtype=torch.bfloat16, device="cuda")
        self.lm_head = bf16_weight("lm_head")
        side = (HEADS, positions, HEAD_DIM)
        self.caches = [tuple(torch.randn(side, dtype=torch.bfloat16, device="cuda")
                             for _ in range(2)) for _ in range(LAYERS)]
        angles = torch.outer(torch.arange(positions, device="cuda").float(),
                             10000.0 ** -(torch.arange(0, HEAD_DIM, 2, device="cuda") / HEAD_DIM))
        self.rope = torch.stack([angles.cos(), angles.sin()])

    @staticmethod
    def layer(int4):
        ones = torch.ones(HIDDEN, dtype=torch.bfloat16, device="cuda")
        weights = {"input_norm": ones, "post_norm": ones.clone()}
        for name in ("qkv", "o", "gate_up", "down"):
            weights[name] = (int4_weight(name, best_tiles(name))[:2] if name in int4
                             else bf16_weight(name))
        return weights


compiled = partial(torch.compile, fullgraph=True, dynamic=False)


def attempt(what, deadline, measure):
    """What `measure` returns; `None` if it fails or the time is over."""
    start = time.perf_counter()
    if deadline - start < 2:
        print(f"{what}: no time left", file=sys.stderr, flush=True)
        return None
    torch._dynamo.reset()
    # Again and again, since the compiler swallows some exceptions and goes on.
    signal.setitimer(signal.ITIMER_REAL, deadline - start, 2)
    try:
        result = measure()
        outcome = " ".join(f"{ms:.3f}" for ms in result) + " ms"
    # A compiler has many ways to fail, and one setting's failure must not cost the others' figures.
    except Exception as error:  # noqa: BLE001
        result = None
        outcome = f"{type(error).__name__}: {str(error)[:500]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    took = time.perf_counter() - start
    print(f"{what}: {outcome} (took {took:.0f} s)", file=sys.stderr, flush=True)
    return result


PLAIN = {"assert_indirect_indexing": False}
# One row times a matrix as a fused reduction whose Triton configuration is searched, which is how
# gpt-fast gets its speed; without it such products are cuBLAS calls.
SEARCHED = {**PLAIN, "coordinate_descent_tuning": True}
# In the order of trying them.
DECODE_SETTINGS = {
    "default": (PLAIN, attend_written_out),
    "searched": (SEARCHED, attend_written_out),
    "searched, dependent launch": ({**SEARCHED, "triton.enable_pdl": True}, attend_written_out),
    "SDPA": (PLAIN, attend_sdpa),
}


def bias_at(position, positions):
    """What hides positions from attention: 0 up to `position`, minus infinity after it."""
    return torch.zeros(positions, dtype=torch.bfloat16, device="cuda").masked_fill_(
        torch.arange(positions, device="cuda") > position, -math.inf)


def check_layer(model, run_layer, attend):
    """A compiled layer against the same function run step by step by PyTorch."""
    position = torch.tensor([PROMPT], device="cuda")
    x = torch.randn(1, HIDDEN, dtype=torch.bfloat16, device="cuda")
    outputs = []
    for layer in (run_layer, decode_layer(attend)):
        keys, values = (side.clone() for side in model.caches[0])
        outputs.append((*layer(x, torch.zeros_like(x), model.layers[0], keys, values, model.rope,
                               position, bias_at(position, PROMPT + NEW)), keys, values))
    for name, got, want in zip(("residual", "output", "keys", "values"), *outputs):
        check(f"compiled layer's {name}", got, want)


def decode_ms(model, options, attend):
    """Milliseconds a token: with each token fetched before the next step is launched, and
    without."""
    run_layer = compiled(decode_layer(attend), options=options)
    run_head, run_bias = compiled(greedy_head, options=options), compiled(bias_at, options=options)
    check_layer(model, run_layer, attend)
    token = torch.zeros(1, dtype=torch.long, device="cuda")
    position = torch.full((1,), PROMPT, dtype=torch.long, device="cuda")
    zero = torch.zeros(1, HIDDEN, dtype=torch.bfloat16, device="cuda")

    def step():
        x, delta, bias = model.embedding[token], zero, run_bias(position, PROMPT + NEW)
        for weights, (keys, values) in zip(model.layers, model.caches):
            x, delta = run_layer(x, delta, weights, keys, values, model.rope, position, bias)
        token.copy_(run_head(x, delta, model.norm, model.lm_head))
        position.add_(1)

    step()
    graph = capture(step)

    def generate(fetch):
        token.zero_()
        position.fill_(PROMPT)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(NEW):
            graph.replay()
            if fetch:
                token.item()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3 / NEW

    generate(False)
    return tuple(statistics.median(generate(fetch) for _ in range(3)) for fetch in (True, False))


@torch.inference_mode()
def time_decode(deadline):
    models = {config: Model(int4, PROMPT + NEW) for config, int4 in DECODE_CONFIGS.items()}
    best = {}
    for name, setting in DECODE_SETTINGS.items():
        # From the fewest distinct kernels to the most: each configuration reuses what the one
        # before compiled.
        for config in reversed(models):
            run = partial(decode_ms, models[config], *setting)
            if result := attempt(f"decode {config}, {name}", deadline, run):
                best[config] = min(best.get(config, (result, name)), (result, name))
    return [{"config": config, "setting": name, "ms": fetched, "tokens_per_s": 1e3 / fetched,
             "ms_free_running": free, "tokens_per_s_free_running": 1e3 / free}
            for config, ((fetched, free), name) in reversed(best.items())]


def prefill_ms(model, rows):
    run_layer, run_head = compiled(prefill_layer), compiled(greedy_head)
    tokens = torch.randint(0, VOCAB, (rows,), device="cuda")
    rope = model.rope[:, :rows]
    caches = [tuple(side[:, :rows] for side in cache) for cache in model.caches]

    def run():
        x = model.embedding[tokens]
        delta = torch.zeros_like(x)
        for weights, (keys, values) in zip(model.layers, caches):
            x, delta = run_layer(x, delta, weights, keys, values, rope)
        return run_head(x[-1:], delta[-1:], model.norm, model.lm_head)

    x = torch.randn(rows, HIDDEN, dtype=torch.bfloat16, device="cuda")
    inputs = (x, torch.zeros_like(x), model.layers[0], *caches[0], rope)
    for name, got, want in zip(("residual", "output"), run_layer(*inputs), prefill_layer(*inputs)):
        check(f"compiled prefill's {name}", got, want)
    run()
    return (replay_ms(capture(run)),)


@torch.inference_mode()
def time_prefill(deadline):
    model = Model((), max(PREFILL))
    results = {n: attempt(f"prefill {n}", deadline, partial(prefill_ms, model, n)) for n in PREFILL}
    return [{"tokens": n, "ms": result[0]} for n, result in results.items() if result]


# ---- tables ----


def decode_config(report):
    """Which of DECODE_CONFIGS a bench report's model is, by the weight bytes that a token reads."""
    for config, int4 in DECODE_CONFIGS.items():
        expected = sum((0.5 if name in int4 else 2) * math.prod(shape)
                       * (1 if name == "lm_head" else LAYERS) for name, shape in SHAPES.items())
        # Scales add 2 to 7 % to int4 weights.
        if 0.98 < report["model"]["bytes_per_token"] / expected < 1.1:
            return config
    return None


def of(peer, ours):
    return f"{ours:9.2f} {peer / ours:6.2f}x" if ours else ""


def print_report(peers, ours):
    benches = [r for r in ours if "ttft_ms" in r]
    kernels = [k for r in ours for k in r.get("kernels", [])]
    print(f"{peers['gpu']}, torch {peers['torch']}; NNx: ours is that many times as fast")
    if c := peers.get("ceilings"):
        print(f"\nread {c['read_gb_per_s']:.0f} GB/s, copy {c['copy_gb_per_s']:.0f} GB/s "
              "(read + written)")
    for weights, peer in (("bf16", "cuBLAS"), ("int4", "tinygemm")):
        if "layers" in peers:
            print(f"\n{weights:8} rows  {peer + ', us':>12}   ours, us")
        for row in peers.get("layers", []):
            mine = [k for k in kernels if (k.get("layer"), k.get("rows"), k.get("weights")) ==
                    (row["layer"], row["rows"], weights)]
            us = row[f"{weights}_us"]
            cells = (f"{of(us, k.get('us'))} {k.get('kernel', '')}" for k in mine)
            print(f"{row['layer']:8} {row['rows']:4}  {us:12.1f}   {'  '.join(cells)}".rstrip())
    if "decode" in peers:
        print("\ndecode     ms a token  tokens/s  tokens/s without fetching them   "
              "ours, ms a token")
    for row in peers.get("decode", []):
        mine = [r for r in benches
                if decode_config(r) == row["config"] and r.get("decode_tokens_per_s")]
        cells = (of(row["ms"], 1e3 / r["decode_tokens_per_s"]) for r in mine)
        print(f"{row['config']:10} {row['ms']:10.3f} {row['tokens_per_s']:9.0f} "
              f"{row['tokens_per_s_free_running']:31.0f}   {'  '.join(cells)}  ({row['setting']})")
    if "prefill" in peers:
        print("\nprefill        ms   ours, ms to the first token")
    for row in peers.get("prefill", []):
        mine = [r for r in benches
                if r["options"]["prompt_tokens"] == row["tokens"] and decode_config(r)]
        cells = (f"{of(row['ms'], r['ttft_ms']['p50'])} {decode_config(r)}" for r in mine)
        print(f"{row['tokens']:7} {row['ms']:9.2f}   {'  '.join(cells)}".rstrip())


PARTS = {"ceilings": time_ceilings, "layers": time_layers, "decode": time_decode,
         "prefill": time_prefill}


def out_of_time(_signal, _frame):
    raise TimeoutError("out of time")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS),
                        help="comma-separated; empty: only print (default: all)")
    parser.add_argument("--ours", nargs="*", default=[], metavar="FILE", help="our figures, JSON")
    parser.add_argument("--seconds", type=float, default=120,
                        help="for a part that compiles (default: 120)")
    parser.add_argument("--json", metavar="OUT", help="read and update this file")
    args = parser.parse_args()
    parts = [part for part in args.parts.split(",") if part]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")

    ours = [json.loads(Path(path).read_text()) for path in args.ours]
    signal.signal(signal.SIGALRM, out_of_time)
    device = torch.cuda.get_device_properties(0)
    peers = {"gpu": device.name, "gpu_uuid": str(device.uuid), "torch": torch.__version__}
    if args.json and Path(args.json).exists():
        earlier = json.loads(Path(args.json).read_text())
        if {**earlier, **peers} != earlier:
            parser.error(f"{args.json} was measured on another GPU or torch: give another file")
        peers = earlier
    failed = False
    for part in parts:
        start = time.perf_counter()
        try:
            peers[part] = PARTS[part](start + args.seconds)
        except RuntimeError as error:
            print(f"{part}: {error}", file=sys.stderr)
        failed |= not peers.get(part)
        print(f"{part}: took {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        torch.cuda.empty_cache()
        if args.json:
            Path(args.json).write_text(json.dumps(peers, indent=1) + "\n")
    print_report(peers, ours)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
