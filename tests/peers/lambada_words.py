#!/usr/bin/env python3
"""Which words lose by quantization: the last words that LAMBADA asks for, or any of the same
passages.

    lambada_words.py LAMBADA.jsonl CHECKPOINT FILE.smq... --work DIR
                     [--json FILE] [--smq-run BINARY] [--device cpu]

Scores, in CHECKPOINT (C0) and every FILE, with `smq-run eval lambada`:
  last     the last word of the first 400 passages, as published
  random   a word drawn from the second half of each of the first 250, given what precedes it
  longer   the last word of the first 100, after three other passages
and prints each FILE's mean change of log-likelihood, in nats, with a 95 % interval; also that of
the words that occur earlier in the text and of those that do not. --json keeps every item's. What
DIR has is not scored again. Needs nothing but Python.
"""

import argparse
import json
import pathlib
import random
import re
import statistics
import subprocess

LAST, RANDOM, LONGER = 400, 250, 100
PASSAGES_BEFORE = 3


def items_of(passages):
    """Texts by kind; the word asked for is what follows the last space."""
    draw = random.Random(1)
    cut = []
    for text in passages[:RANDOM]:
        words = text.split(" ")
        cut.append(" ".join(words[: draw.randrange(max(20, len(words) // 2), len(words) - 1) + 1]))
    before = lambda i: [passages[(i + LONGER + j) % LAST] for j in range(PASSAGES_BEFORE)]
    longer = ["\n".join([*before(i), passages[i]]) for i in range(LONGER)]
    return {"last": passages[:LAST], "random": cut, "longer": longer}


def occurs_before(text):
    words = re.findall(r"[a-z']+", text.lower())
    return words[-1] in words[:-1]


def scores(model, kind, texts, args):
    data, out = args.work / f"{kind}.jsonl", args.work / f"{kind}-{model.stem}.jsonl"
    data.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    if not out.exists():
        command = [args.smq_run, "eval", "lambada", model, "--data", data]
        command += ["--device", args.device, "--out", out]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = out.read_text().splitlines()
    return [round(json.loads(line)["log_likelihoods"][0], 4) for line in lines]


def change(these):
    """Mean and half of a 95 % interval."""
    return statistics.mean(these), 1.96 * statistics.stdev(these) / len(these) ** 0.5


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("files", type=pathlib.Path, nargs="+")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--smq-run", default="target/release/smq-run")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    lines = args.data.read_text(encoding="utf-8").splitlines()[:LAST]
    kinds = items_of([json.loads(line)["text"] for line in lines])
    report = {}
    for kind, texts in kinds.items():
        seen = [occurs_before(t) for t in texts]
        base = scores(args.checkpoint, kind, texts, args)
        report[kind] = {
            "earlier": [int(s) for s in seen],
            "log_likelihoods": {args.checkpoint.stem: base},
        }
        print(
            f"{kind}: {len(texts)} words, {sum(seen)} of them earlier in the text;"
            f" C0 {statistics.mean(base):.3f}"
        )
        for file in args.files:
            these = scores(file, kind, texts, args)
            report[kind]["log_likelihoods"][file.stem] = these
            by = [a - b for a, b in zip(these, base, strict=True)]
            parts = {
                "all": by,
                "earlier": [d for d, s in zip(by, seen) if s],
                "new": [d for d, s in zip(by, seen) if not s],
            }
            parts = {name: change(part) for name, part in parts.items() if len(part) > 1}
            shown = [f"{name} {mean:+.3f} ± {half:.3f}" for name, (mean, half) in parts.items()]
            print(f"  {file.stem}: {'; '.join(shown)}")
    if args.json:
        args.json.write_text(json.dumps(report, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
