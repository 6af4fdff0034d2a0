#!/usr/bin/env bash
# Puts the same load on a server with `smq-run load` and with guidellm, one after the other, three
# times, and prints both.
#
#     compare_load.sh URL MODEL_DIR SMQ_RUN OUT_DIR [CLIENTS] [REQUESTS] [PROMPT] [OUTPUT]
#
# MODEL_DIR has the tokenizer by which guidellm makes its prompts. PROMPT and OUTPUT count tokens.
# DATA=FILE gives load prompts of text, for servers that take no token ids. guidellm's own
# `mock-server`, which waits for a time that it is told and computes nothing, is one: there the two
# must agree, however busy the machine is.
# Needs `pip install guidellm` (0.8) on PATH.
set -euo pipefail
url=$1 model=$2 smq_run=$3 out=$4
clients=${5:-4} requests=${6:-32} prompt=${7:-128} output=${8:-32}
mkdir -p "$out"
prompts=(--prompt-len "$prompt" --vocab 40000)
if [ -n "${DATA:-}" ]; then
    prompts=(--data "$DATA")
fi

# Prompts of both are different ones, and so are those of each round.
for round in 1 2 3; do
    "$smq_run" load --url "$url" --concurrency "$clients" --num-prompts "$requests" \
        "${prompts[@]}" --output-len "$output" --seed $((round * 1000)) \
        --json="$out/load-$round.json" > "$out/load-$round.txt"
    HF_HUB_OFFLINE=1 guidellm run \
        --backend kind=openai_http,target="$url",request_format=/v1/completions \
        --profile kind=concurrent,streams="$clients" \
        --seed kind=static,value=$((round * 1000 + 7)) \
        --data kind=synthetic_text,prompt_tokens="$prompt",output_tokens="$output" \
        --constraint kind=max_requests,count="$requests" \
        --tokenizer kind=hf_auto,model="$model" --disable-progress \
        --output kind=json,path="$out/guidellm-$round.json" > "$out/guidellm-$round.txt" 2>&1
done
python3 - "$out" <<'PYTHON'
import json, pathlib, statistics, sys

out = pathlib.Path(sys.argv[1])
rows = []
for round in (1, 2, 3):
    level = json.loads((out / f"load-{round}.json").read_text())["levels"][0]
    guidellm = json.loads((out / f"guidellm-{round}.json").read_text())
    metrics = guidellm["benchmarks"][0]["metrics"]
    mean = lambda name: metrics[name]["successful"]["mean"]
    rows.append([
        ("TTFT, mean ms", level["mean_ttft_ms"], mean("time_to_first_token_ms")),
        ("ITL, mean ms", level["mean_itl_ms"], mean("inter_token_latency_ms")),
        ("E2EL, mean ms", level["mean_e2el_ms"], mean("request_latency") * 1e3),
        ("output tokens/s", level["output_throughput"], mean("output_tokens_per_second")),
    ])
print(f"{'':16} {'load':>28} {'guidellm':>28}  median against median")
for figures in zip(*rows):
    ours, theirs = [f[1] for f in figures], [f[2] for f in figures]
    show = lambda values: " ".join(f"{v:9.2f}" for v in values)
    difference = statistics.median(ours) / statistics.median(theirs) - 1
    print(f"{figures[0][0]:16} {show(ours)} {show(theirs)}  {difference:+.1%}")
PYTHON
