#!/usr/bin/env python3
"""Calibrates int4 with the packages that others use, on the tokens that smq-convert takes.

    calibrate.py llm-compressor MODEL TEXT OUT [--actorder none]    GPTQ, as compressed-tensors
    calibrate.py auto-round MODEL TEXT OUT [--iters 200]            SignRound, as AutoRound saves it
    calibrate.py loss MODEL TEXT                                    transformers on a directory

The first two quantize all linears but lm_head to symmetric int4 in groups of --group-size, and
leave what a package lets one choose beyond that at its default, but for auto-round's compilation,
which changes only its speed. The text is tokenized as one string without special tokens, and its
first --tokens tokens are cut into windows of --window, each a sequence of its own. `loss` prints
the mean negative log-likelihood of each of the first --windows windows of a text, in f32, to hold
against what `smq-run eval kl` says of the imported file. Each package has its own requirements
file, because llm-compressor's newest release does not allow auto-round's.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def windows_of(tokenizer, text, tokens, window):
    """`[tokens / window, window]` token ids."""
    ids = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False).input_ids
    if len(ids) < tokens:
        raise SystemExit(f"{text} has {len(ids)} tokens, and {tokens} are wanted of it")
    return torch.tensor(ids[: tokens // window * window]).view(-1, window)


def llm_compressor(args, tokenizer, windows):
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    int4 = QuantizationArgs(
        num_bits=4, symmetric=True, strategy="group", group_size=args.group_size
    )
    recipe = GPTQModifier(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=int4)},
        ignore=["lm_head"],
        actorder=None if args.actorder == "none" else args.actorder,
    )
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in windows.tolist()]
    model = oneshot(
        model=str(args.model),
        tokenizer=tokenizer,
        dataset=Dataset.from_list(rows),
        recipe=recipe,
        num_calibration_samples=len(rows),
        max_seq_length=args.window,
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(args.out, save_compressed=True)
    tokenizer.save_pretrained(args.out)


def auto_round(args, tokenizer, windows):
    from auto_round import AutoRound

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto")
    rounding = AutoRound(
        model,
        tokenizer=tokenizer,
        scheme="W4A16",
        group_size=args.group_size,
        sym=True,
        dataset=list(windows.split(1)),
        nsamples=len(windows),
        seqlen=args.window,
        iters=args.iters,
        device_map="cpu",
        enable_torch_compile=False,
    )
    rounding.quantize_and_save(args.out, format="auto_round")


@torch.no_grad()
def loss(args):
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    windows = windows_of(tokenizer, args.text, args.windows * args.window, args.window)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    for ids in windows:
        logits = model(ids[None], use_cache=False).logits[0, :-1].float()
        print(f"{torch.nn.functional.cross_entropy(logits, ids[1:]).item():.6f}")


def quantize(args):
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    windows = windows_of(tokenizer, args.text, args.tokens, args.window)
    begin = time.monotonic()
    args.package(args, tokenizer, windows)
    seconds = round(time.monotonic() - begin, 1)
    print(json.dumps({"out": str(args.out), "windows": list(windows.shape), "seconds": seconds}))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for name, package in (("llm-compressor", llm_compressor), ("auto-round", auto_round)):
        command = commands.add_parser(name)
        command.add_argument("model", type=Path)
        command.add_argument("text", type=Path)
        command.add_argument("out", type=Path)
        command.add_argument("--group-size", type=int, default=64)
        command.add_argument("--tokens", type=int, default=32768)
        command.add_argument("--window", type=int, default=512)
        command.set_defaults(run=quantize, package=package)
        if package is llm_compressor:
            command.add_argument("--actorder", choices=["static", "none"], default="static")
        else:
            command.add_argument("--iters", type=int, default=200)
    command = commands.add_parser("loss")
    command.add_argument("model", type=Path)
    command.add_argument("text", type=Path)
    command.add_argument("--windows", type=int, default=1)
    command.add_argument("--window", type=int, default=512)
    command.set_defaults(run=loss)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
