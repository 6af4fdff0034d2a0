#!/usr/bin/env python3
"""Runs the real lm-evaluation-harness on local files and writes what it scored, one JSON line an
item.

    lm_eval_peer.py MODEL_DIR --data DIR --out DIR [--limit N]
                    [--tasks lambada,hellaswag,arc,gsm8k] [--golden FILE]

MODEL_DIR is a Hugging Face checkpoint, run by transformers on the CPU in f32, by default at batch
size 1. The tasks are the harness's own YAML files (lambada_openai, hellaswag, arc_challenge, gsm8k)
with nothing changed but where the data comes from, without examples, and gsm8k with the chat
template where the tokenizer has one. DIR holds TASK.jsonl or the files as they are published (see
FILES); only their first N items are used, and they are written to OUT/TASK.data.jsonl, so that
`smq-run eval TASK MODEL --data OUT/TASK.data.jsonl` sees the same items. Then compare_lm_eval.py
compares. --golden writes everything into one file besides: tests/fixtures/eval/golden.json is that
of phi3-tiny on tests/fixtures/eval.

With --url http://HOST:PORT the harness asks a server through its `local-completions` in place of
running the model, as MODEL_DIR's tokenizer encodes it; `smq-run serve MODEL` is such a server.
Needs lm-eval 0.4 (with datasets; its extra `api` for --url), transformers, and torch without --url;
nothing is downloaded.
"""

import argparse
import json
import os
import pathlib
import sys
import urllib.request

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# The harness's task, its YAML file, the split it scores, and where the data may lie.
TASKS = {
    "lambada": ("lambada_openai", "lambada/lambada_openai.yaml", "test"),
    "hellaswag": ("hellaswag", "hellaswag/hellaswag.yaml", "validation"),
    "arc": ("arc_challenge", "arc/arc_challenge.yaml", "test"),
    "gsm8k": ("gsm8k", "gsm8k/gsm8k.yaml", "test"),
}
FILES = {
    "lambada": ["lambada.jsonl", "lambada/lambada_openai_test.jsonl"],
    "hellaswag": [
        "hellaswag.jsonl",
        "hellaswag/hellaswag_val_activitynet913.jsonl",
        "hellaswag/hellaswag_val.jsonl",
    ],
    "arc": ["arc.jsonl", "arc/arc_challenge_test.jsonl"],
    "gsm8k": ["gsm8k.jsonl", "gsm8k/test.jsonl"],
}


def items(task, data, limit):
    path = next((data / name for name in FILES[task] if (data / name).exists()), None)
    if path is None:
        sys.exit(f"{data}: holds none of {', '.join(FILES[task])}")
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(limit))]
    return [hugging_face_form(task, row) for row in rows]


def hugging_face_form(task, row):
    """The columns that the harness's YAML names, as Hugging Face's data sets have them."""
    if task == "arc" and isinstance(row["choices"], list):
        labels = [chr(ord("A") + i) for i in range(len(row["choices"]))]
        return {
            "question": row["question"],
            "choices": {"text": row["choices"], "label": labels},
            "answerKey": labels[row["answer"]],
        }
    if task == "hellaswag":
        keep = {key: row[key] for key in ("activity_label", "ctx_a", "ctx_b", "endings")}
        return keep | {"label": str(row["label"])}
    return row


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--tasks", default="lambada,hellaswag,arc,gsm8k")
    parser.add_argument(
        "--max-gen-toks", type=int, help="new tokens of gsm8k [default: the harness's, 256]"
    )
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--bootstrap-iters", type=int, default=100000)
    parser.add_argument("--url")
    parser.add_argument("--concurrency", type=int, default=1, help="requests at a time, with --url")
    parser.add_argument("--golden", type=pathlib.Path)
    args = parser.parse_args()

    import lm_eval
    import lm_eval.tasks
    args.out.mkdir(parents=True, exist_ok=True)
    yaml_dir = (args.out / "tasks").absolute()
    yaml_dir.mkdir(exist_ok=True)
    own = pathlib.Path(lm_eval.tasks.__file__).parent
    model = harness_model(args)
    templated = model.tokenizer.chat_template is not None
    golden = {"origin": f"lm_eval_peer.py with lm-eval {lm_eval.__version__}"}
    for task in args.tasks.split(","):
        name, yaml, split = TASKS[task]
        data = (args.out / f"{task}.data.jsonl").absolute()
        rows = items(task, args.data, args.limit)
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        no_validation = "" if split == "validation" else "validation_split: null\n"
        (yaml_dir / f"{task}.yaml").write_text(
            f"include: {own / yaml}\ntask: local_{name}\ndataset_path: json\ndataset_name: null\n"
            f"dataset_kwargs:\n  data_files:\n    {split}: {data}\n"
            "training_split: null\nfewshot_split: null\n" + no_validation
        )
        manager = lm_eval.tasks.TaskManager(include_path=str(yaml_dir), include_defaults=False)
        chat = task == "gsm8k" and templated
        limited = task == "gsm8k" and args.max_gen_toks
        result = lm_eval.simple_evaluate(
            model=model,
            tasks=[f"local_{name}"],
            num_fewshot=0,
            task_manager=manager,
            apply_chat_template=chat,
            bootstrap_iters=args.bootstrap_iters,
            gen_kwargs={"max_gen_toks": args.max_gen_toks} if limited else None,
        )
        golden[task] = write(args.out / task, result, f"local_{name}", chat, args.batch_size)
    if args.golden:
        text = json.dumps(golden, indent=1, ensure_ascii=False) + "\n"
        args.golden.write_text(text, encoding="utf-8")


def harness_model(args):
    if args.url is None:
        from lm_eval.models.huggingface import HFLM

        return HFLM(
            pretrained=args.model, dtype="float32", device="cpu", batch_size=args.batch_size
        )
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    with urllib.request.urlopen(f"{args.url}/v1/models") as models:
        served = json.load(models)["data"][0]
    return LocalCompletionsAPI(
        base_url=f"{args.url}/v1/completions",
        model=served["id"],
        tokenizer=args.model,
        tokenizer_backend="huggingface",
        max_length=served["max_model_len"],
        batch_size=args.batch_size,
        num_concurrent=args.concurrency,
    )


def write(stem, result, name, chat, batch_size):
    merged = {}
    for sample in result["samples"][name]:
        item = merged.setdefault(sample["doc_id"], {"index": sample["doc_id"], "metrics": {}})
        arguments = sample["arguments"]
        first = arguments[0] if isinstance(arguments, list) else arguments["gen_args_0"]
        item["context"] = first[0] if isinstance(first, (list, tuple)) else first["arg_0"]
        responses = [r[0] if isinstance(r, (list, tuple)) else r for r in sample["resps"]]
        if isinstance(responses[0], str):
            item["response"] = responses[0]
            item.setdefault("extracted", {})[sample["filter"]] = sample["filtered_resps"][0]
            item["metrics"][sample["filter"]] = sample["exact_match"]
        else:
            item["log_likelihoods"] = [float(r[0]) for r in responses]
            item["greedy"] = [bool(r[1]) for r in responses]
            item["metrics"] = {m: float(sample[m]) for m in ("acc", "acc_norm") if m in sample}
    with open(stem.with_suffix(".harness.jsonl"), "w", encoding="utf-8") as out:
        out.writelines(json.dumps(merged[i], ensure_ascii=False) + "\n" for i in sorted(merged))
    summary = {
        "task": name,
        "chat_template": chat,
        "batch_size": batch_size,
        "items": len(merged),
        "results": {
            k: v for k, v in result["results"][name].items() if isinstance(v, (int, float))
        },
        "config": {k: result["config"].get(k) for k in ("bootstrap_iters", "gen_kwargs")},
        "lm_eval_version": result.get("lm_eval_version"),
        "transformers_version": result.get("transformers_version"),
    }
    stem.with_suffix(".harness.json").write_text(json.dumps(summary, indent=2, default=str) + "\n")
    print(json.dumps(summary["results"]))
    return {"results": summary["results"], "items": [merged[i] for i in sorted(merged)]}


if __name__ == "__main__":
    main()
