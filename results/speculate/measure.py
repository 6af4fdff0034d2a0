#!/usr/bin/env python3
"""Generation with and without guessed tokens: speed, how often guesses were right, equal texts.

    results/speculate/measure.py target/release/smq-run MODEL [--draft DRAFT]

Prompts are made of this repository's own text and code. Each is generated in turn without and with
guesses, --rounds times; the fastest of each counts, since other work on the machine only slows.
Texts have to be the same; on a GPU, where `generate` without guesses takes the engine of one
sequence, those with guesses among themselves.
"""

import argparse
import json
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def functions(path, count):
    """The first `count` functions of a Rust file that are a few hundred bytes long."""
    text = (ROOT / path).read_text()
    found = re.findall(r"^    pub fn .*?^    }$", text, re.M | re.S)
    return [f for f in found if 250 < len(f) < 900][:count]


def paragraphs(path, count):
    """The first `count` longer paragraphs of a page."""
    parts = (ROOT / path).read_text().split("\n\n")
    plain = [" ".join(p.split()) for p in parts if p[:1].isalpha()]
    return [p for p in plain if 350 < len(p) < 1200][:count]


CODE = functions("smq-engine/src/serve/pages.rs", 3) + functions("smq-model/src/rope.rs", 1)
TEXT = (
    paragraphs("docs/src/serve.md", 1)
    + paragraphs("docs/src/run.md", 2)
    + paragraphs("docs/src/inspect.md", 1)
)
QUESTIONS = [
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper who finds a letter.",
    "How do I make bread at home?",
    "What should I look at when I buy a used bicycle?",
]
WITHOUT_COMMENTS = "Write this function again with all comments removed."
CORRECTED = "Copy this text and correct its spelling:"
SUMMARY = "Summarize this text in its own words."
GREEDY = ["--greedy"]
# No four tokens come twice, so that no guess behind three that came before is right.
NO_REPEATS = ["--temperature", "0.8", "--no-repeat-ngram-size", "4"]
TASKS = {
    "code, copied with a change": (
        GREEDY,
        [f"```rust\n{c}\n```\n{WITHOUT_COMMENTS}" for c in CODE],
    ),
    "text, copied with corrections": (GREEDY, [f"{CORRECTED}\n\n{t}" for t in TEXT]),
    "summaries that may quote": (GREEDY, [f"{t}\n\n{SUMMARY}" for t in TEXT]),
    "questions": (GREEDY, QUESTIONS),
    "questions, sampled": (["--temperature", "0.8"], QUESTIONS),
    "no guess is right": (NO_REPEATS, QUESTIONS),
}


def generate(args, prompt, settings, guessing):
    command = [args.program, "generate", args.model, "--device", args.device, "--json"]
    command += ["-n", str(args.tokens), "--prompt", prompt, *settings, *guessing]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--draft", help="a draft model in place of repeats")
    parser.add_argument("--guess", default="ngram", help="what --speculate is given")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="tasks whose names have this in them")
    args = parser.parse_args()
    guessing = ["--draft", args.draft] if args.draft else ["--speculate", args.guess]
    print("| task | tokens/s without | with | | tokens a step | guessed | right |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, (settings, prompts) in TASKS.items():
        if args.only not in name:
            continue
        tokens = steps = guessed = right = 0
        # Seconds of all prompts.
        without = with_guesses = 0.0
        for prompt in prompts:
            times, texts = [[], []], {}
            for _ in range(args.rounds):
                for some, flags in zip(times, ([], guessing)):
                    report = generate(args, prompt, settings, flags)
                    some.append(report["tpot_ms"] / 1e3 if report["tpot_ms"] else 0.0)
                    # A GPU's engine of one sequence, which does not guess, has other arithmetic.
                    engine = bool(flags) and args.device == "cuda"
                    same = texts.setdefault(engine, report["ids"])
                    assert report["ids"] == same, f"{prompt!r} has another text"
            further = max(report["output_tokens"] - 1, 0)
            without += further * min(times[0])
            with_guesses += further * min(times[1])
            g = report["guesses"]
            tokens += report["output_tokens"]
            steps += report["output_tokens"] - g["accepted_tokens"]
            guessed += g["draft_tokens"]
            right += g["accepted_tokens"]
        before, after = tokens / without, tokens / with_guesses
        share = right / guessed if guessed else 0.0
        print(
            f"| {name} | {before:.0f} | {after:.0f} | {100 * (after / before - 1):+.0f} % "
            f"| {tokens / steps:.2f} | {guessed / tokens:.2f} | {100 * share:.0f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
