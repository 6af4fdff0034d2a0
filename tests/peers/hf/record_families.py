#!/usr/bin/env python3
"""Records what transformers computes with the small models of kind 16, for tests without Python.

    record_families.py            writes tests/fixtures/hf/families.json
    record_families.py --check    exits with 1 where transformers says otherwise now

The weights are not recorded: `cases/families.py` says how they follow from names and indices, and
`smq-engine/tests/families.rs` makes the same ones.
"""

import argparse
import json
import pathlib
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

# It comes first, since it silences transformers.
from lib import Answer, Case, Theirs, torch, transformers  # noqa: E402, I001
from transformers import GenerationConfig  # noqa: E402

from cases import families  # noqa: E402

OUT = HERE.parents[1] / "fixtures/hf/families.json"
# Below every window and context of the cases, and past them.
LENGTHS = (12, 120)
# Grows from below the contexts of 64 tokens to past them.
PROMPT, NEW = 56, 12
# f32 sums in another order move a logit by some 1e-5.
MARGIN = 1e-3


def tokens():
    return [3 + int(z) % 397 for z in families.hashes("tokens", max(LENGTHS))]


@torch.no_grad()
def losses(directory, ids):
    # The frequencies of a dynamic embedding depend on what the model was asked before.
    out = []
    for length in LENGTHS:
        x = torch.tensor([ids[:length]])
        log_p = torch.log_softmax(Theirs(directory).model(x).logits[0].double(), -1)
        out.append(round(-log_p[:-1].gather(1, x[0, 1:, None]).mean().item(), 9))
    return out


@torch.no_grad()
def greedy(directory, ids):
    """The tokens that generate() adds with its cache, no token ending them."""
    model = Theirs(directory).model
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=NEW)
    x = torch.tensor([ids[:PROMPT]])
    out = model.generate(
        x, attention_mask=torch.ones_like(x), output_logits=True, return_dict_in_generate=True
    )
    margins = [float(t.topk(2).values[0].diff().abs()) for t in out.logits]
    if min(margins) < MARGIN:
        return None
    return out.sequences[0, PROMPT:].tolist()


def record():
    ids, out = tokens(), []
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(families.cases()):
            if not isinstance(case, Case) or case.words is not None or case.may_run:
                continue
            directory = case.checkpoint.write(pathlib.Path(folder) / str(number))
            config = case.checkpoint.files["config.json"]
            own = {k: v for k, v in config.items() if families.COMMON.get(k, families.DROP) != v}
            absent = [k for k in families.COMMON if k not in config]
            entry = {"name": case.name, "config": own, "losses": losses(directory, ids)}
            entry |= {"absent": absent} if absent else {}
            # A case that is asked for losses alone is one where transformers' cache disagrees with
            # it.
            asked = any(isinstance(check, Answer) for check in case.checks)
            entry |= {"greedy": greedy(directory, ids) if asked else None}
            if case.name.endswith(": plain"):
                entry["tensors"] = [[n, list(s)] for n, s in families.names_and_shapes(config)]
            out.append(entry)
            print(case.name, entry["losses"], flush=True)
    return {"ids": ids, "lengths": list(LENGTHS), "prompt": PROMPT, "common": families.COMMON}, out


def text(head, cases):
    dumps = lambda value: json.dumps(value, separators=(",", ":"))  # noqa: E731
    head = {"transformers": transformers.__version__, **head}
    lines = ",\n".join(f"{dumps(key)}:{dumps(value)}" for key, value in head.items())
    return "{" + lines + ',\n"cases":[\n' + ",\n".join(map(dumps, cases)) + "\n]}\n"


def close(old, new):
    """Losses differ in their last digits from one machine to another."""
    if len(old) != len(new):
        return False
    return all(
        {**a, "losses": 0} == {**b, "losses": 0}
        and all(abs(x - y) < 1e-6 for x, y in zip(a["losses"], b["losses"]))
        for a, b in zip(old, new)
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="compare with what is there, and write nothing"
    )
    args = parser.parse_args()
    head, cases = record()
    if args.check:
        old = json.loads(OUT.read_text(encoding="utf-8"))
        if not close(old["cases"], json.loads(json.dumps(cases))):
            sys.exit(f"transformers {transformers.__version__} says otherwise than {OUT.name}")
    else:
        OUT.write_text(text(head, cases), encoding="utf-8")
        print(f"{OUT.name}: {len(cases)} cases, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
