#!/usr/bin/env python3
"""Loads a directory that `smq-convert --to compressed-tensors` wrote with Hugging Face transformers on the CPU, and compares it.

    check_compressed_tensors.py EXPORT --reference DENSE    DENSE: `--to safetensors --dtype f32` of the same .smq file
    check_compressed_tensors.py EXPORT --golden FILE        FILE: logits and greedy tokens as in phi3-tiny's golden.json

With --reference, every weight that compressed-tensors dequantizes must equal the dense one, and the logits of each
prompt at every position must agree within --tolerance. With --golden, the logits that the file gives for the last
position must; each of its prompts has prompt_ids and greedy_ids, and may have top8_ids with top8_logits. Greedy continuations are compared token by token. Exits with 1 on any disagreement.
Needs torch, transformers and compressed-tensors.
"""

import argparse
import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "Once upon a time there was a king who had three sons, and",
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Water boils at a temperature of",
]


def load(path, dtype):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return model.eval()


@torch.no_grad()
def logits(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0].float()


@torch.no_grad()
def greedy(model, ids, tokens):
    """A whole forward pass for each token, so that nothing depends on a cache; stop tokens are not honoured."""
    out = []
    for _ in range(tokens):
        out.append(int(logits(model, ids + out)[-1].argmax()))
    return out


def agreement(ours, theirs):
    """Tokens equal from the start, of how many."""
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), len(theirs))
    return same, len(theirs)


def compare_weights(model, reference):
    """Every dequantized weight against the dense model's; returns tensors, elements and unequal elements."""
    dense = dict(reference.named_modules())
    tensors = elements = unequal = 0
    for name, module in model.named_modules():
        if getattr(module, "quantization_scheme", None) is None:
            continue
        tensors += 1
        elements += module.weight.numel()
        unequal += int((module.weight != dense[name].weight).sum())
    return tensors, elements, unequal


def against_reference(args, model):
    reference = load(args.reference, getattr(torch, args.reference_dtype))
    tokenizer = AutoTokenizer.from_pretrained(args.reference)
    worst = same = total = 0
    for prompt in args.prompt or PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        ours, theirs = logits(model, ids), logits(reference, ids)
        difference = float((ours - theirs).abs().max())
        agreed, tokens = agreement(greedy(model, ids, args.tokens), greedy(reference, ids, args.tokens))
        print(f"{prompt!r}: {len(ids)} positions, max abs logit {float(theirs.abs().max()):.3f}, "
              f"max abs difference {difference:.3e}, greedy {agreed} of {tokens}")
        worst, same, total = max(worst, difference), same + agreed, total + tokens
    # The first forward pass has dequantized the modules.
    tensors, elements, unequal = compare_weights(model, reference)
    print(f"weights: {tensors} int4 tensors, {elements} elements, {unequal} differ from the dense ones")
    if tensors == 0:
        print("no int4 tensor was found: this is no compressed-tensors directory")
    return worst, same == total and tensors > 0 and (unequal == 0 or args.tolerance > 0)


def against_golden(args, model):
    worst, same, total = None, 0, 0
    with open(args.golden) as file:
        golden = json.load(file)["prompts"]
    for prompt in golden:
        line = f"{prompt.get('name', 'prompt')}: {len(prompt['prompt_ids'])} positions"
        if "top8_ids" in prompt:
            last = logits(model, prompt["prompt_ids"])[-1]
            theirs = torch.tensor(prompt["top8_logits"])
            difference = float((last[prompt["top8_ids"]] - theirs).abs().max())
            line += f", max abs difference {difference:.3e}"
            worst = max(worst or 0.0, difference)
        ours = greedy(model, prompt["prompt_ids"], len(prompt["greedy_ids"]))
        agreed, tokens = agreement(ours, prompt["greedy_ids"])
        print(f"{line}, greedy {agreed} of {tokens}")
        same, total = same + agreed, total + tokens
    return worst, total > 0 and same == total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", metavar="EXPORT")
    other = parser.add_mutually_exclusive_group(required=True)
    other.add_argument("--reference", metavar="DENSE")
    other.add_argument("--golden", metavar="FILE")
    parser.add_argument("--dtype", default="float32", help="what EXPORT computes in (default: float32)")
    parser.add_argument("--reference-dtype", default="float32", help="what DENSE computes in (default: float32)")
    parser.add_argument("--prompt", action="append", help="instead of the built-in prompts; may be repeated")
    parser.add_argument("--tokens", type=int, default=24, help="greedy tokens a prompt (default: 24)")
    parser.add_argument("--tolerance", type=float, default=0.0, help="largest logit difference allowed (default: 0)")
    args = parser.parse_args()

    model = load(args.export, getattr(torch, args.dtype))
    worst, agreed = (against_reference if args.reference else against_golden)(args, model)
    ok = agreed and (worst is None or worst <= args.tolerance)
    compared = "no logits given" if worst is None else f"max abs difference {worst:.3e} (tolerance {args.tolerance:g})"
    print(f"{'ok' if ok else 'FAILED'}: {compared}, greedy tokens {'agree' if agreed else 'or weights disagree'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
