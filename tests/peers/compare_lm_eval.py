#!/usr/bin/env python3
"""Compares `smq-run eval` item by item with what lm_eval_peer.py wrote.

    compare_lm_eval.py MODEL --peer OUT [--smq-run BINARY] [--tasks ...] [--json FILE]

Runs smq-run on OUT/TASK.data.jsonl, the items that the harness saw, on the CPU. Log-likelihoods
must agree to --tolerance nats, every item's metrics and answers must be equal, and so must the
tasks' figures. Both compute in f32: of the 3,600 continuations of two models that were compared,
one of a hundred tokens in HellaSwag differed most, by 4.5e-4, which is why the tolerance is 1e-3.
Where two choices lie closer together than twice the tolerance, either order is the arithmetic's;
such items are counted, and excused only if they differ. Exits with 1 on any disagreement. Needs
nothing but Python.
"""

import argparse
import json
import pathlib
import subprocess
import sys

# The harness's names for the figures of smq-run.
FIGURES = {
    "acc": "acc,none",
    "acc_norm": "acc_norm,none",
    "perplexity": "perplexity,none",
    "strict_match": "exact_match,strict-match",
    "flexible_extract": "exact_match,flexible-extract",
}
FILTERS = {"strict_match": "strict-match", "flexible_extract": "flexible-extract"}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def compare(task, model, peer, smq_run, tolerance):
    harness = json.loads((peer / f"{task}.harness.json").read_text())
    ours_path, report_path = peer / f"{task}.smq.jsonl", peer / f"{task}.smq.json"
    command = [smq_run, "eval", task, model, "--data", peer / f"{task}.data.jsonl"]
    command += ["--out", ours_path, f"--json={report_path}", "--device", "cpu"]
    most = (harness["config"].get("gen_kwargs") or {}).get("max_gen_toks")
    if most:
        command += ["--max-new-tokens", str(most)]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    report = json.loads(report_path.read_text())
    theirs, ours = lines(peer / f"{task}.harness.jsonl"), lines(ours_path)
    assert [t["index"] for t in theirs] == [o["index"] for o in ours]
    out = {"task": task, "items": len(ours), "log_likelihoods": 0, "largest_difference_nats": 0.0}
    out |= {"answers_equal": 0, "metrics_differ": 0, "excused": 0, "wrong": []}
    for their, our in zip(theirs, ours):
        pairs = zip(their.get("log_likelihoods", []), our.get("log_likelihoods", []), strict=True)
        differences = [abs(a - b) for a, b in pairs]
        out["log_likelihoods"] += len(differences)
        out["largest_difference_nats"] = max([out["largest_difference_nats"], *differences])
        right = all(d <= tolerance for d in differences)
        if "response" in their:
            same = their["response"] == our["response"]
            out["answers_equal"] += same
            extracted = ((our["extracted"][m], their["extracted"][f]) for m, f in FILTERS.items())
            right &= same and all(a == b for a, b in extracted)
        wanted = {m: v for m, v in our["metrics"].items() if m != "perplexity"}
        got = {m: their["metrics"][FILTERS.get(m, m)] for m in wanted}
        if wanted != got:
            out["metrics_differ"] += 1
            ranked = sorted(their.get("log_likelihoods", []))[-2:]
            close = len(ranked) == 2 and ranked[1] - ranked[0] < 2 * tolerance
            out["excused"] += close
            right &= close
        if not right:
            out["wrong"].append(our["index"])
    out["figures"] = {
        m: {
            "smq_run": s["value"],
            "harness": harness["results"][FIGURES[m]],
            "smq_run_stderr": s["stderr"],
            "harness_stderr": harness["results"][FIGURES[m].replace(",", "_stderr,")],
        }
        for m, s in report["scores"].items()
    }
    if task == "gsm8k":
        out |= {key: report[key] for key in ("chat_template", "max_new_tokens")}
        assert out["chat_template"] == harness["chat_template"]
    else:
        del out["answers_equal"]
    out["harness_batch_size"] = harness.get("batch_size", 1)
    out |= {key: harness[key] for key in ("lm_eval_version", "transformers_version")}
    return out


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--peer", type=pathlib.Path, required=True)
    parser.add_argument("--smq-run", default="target/release/smq-run")
    parser.add_argument("--tasks", default="lambada,hellaswag,arc,gsm8k")
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="nats a continuation [default: 0.001]"
    )
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    results = []
    for task in args.tasks.split(","):
        result = compare(task, args.model, args.peer, args.smq_run, args.tolerance)
        results.append(result)
        print(json.dumps(result))
    if args.json:
        report = {"tolerance_nats": args.tolerance, "tasks": results}
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(any(result["wrong"] for result in results))


if __name__ == "__main__":
    main()
