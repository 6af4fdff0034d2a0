#!/usr/bin/env bash
# memcheck and racecheck of every kernel at work on the bundled checkpoint: each way of storing
# weights, a short prompt and one of over 1024 tokens, each with decode steps, scores of many
# sequences packed into one pass, steps of many sequences with their keys and values in pages, each
# way of storing keys and values, of one sequence and in pages, steps behind many tokens, steps with
# a guess, and calibrations.
#
#     kernels/sanitize.sh [OUT_DIR]
#
# Needs a GPU and compute-sanitizer (CUDA's own). SMQ_BIN is where the release binaries are, JOBS
# how many run at once (racecheck takes gigabytes of memory each, behind many tokens more than 18),
# ONLY which runs are wanted, as a pattern of their names ("racecheck int4 many"). One line a run;
# the tools' own reports stay in OUT_DIR. Fails if any run reports anything.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=${SMQ_BIN:-target/release}
out=${1:-$(mktemp -d)}
model=tests/fixtures/phi3-tiny
mkdir -p "$out"
command -v compute-sanitizer >/dev/null || {
    echo "compute-sanitizer is not on the PATH: it comes with the CUDA toolkit" >&2
    exit 2
}

convert() { # NAME OPTION...
    local name=$1
    shift
    "$bin/smq-convert" --force "$@" "$model" "$out/$name.smq" >"$out/$name.log"
}
convert int4 --target all
convert int4-mlp-f32 --mbits -1 --target mlp
convert int4-signed-64 --target all --group-size 64 --scale-rule signed --mbits 2
convert int4-32 --target all --group-size 32
convert lut4 --scheme lut4 --target all
convert lut4-64 --scheme lut4 --levels nf4 --target all --group-size 64
convert nf4 --scheme nf4 --target all
convert fp8 --scheme fp8 --target all

# Small models for steps behind so many tokens that those have a kernel of their own: whose queries
# share keys, and whose do not.
far() { # NAME KEYS
    cat >"$out/$1.json" <<JSON
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
 "hidden_size": 384, "intermediate_size": 2176, "num_hidden_layers": 1, "num_attention_heads": 6,
 "num_key_value_heads": $2, "head_dim": 64, "vocab_size": 1000, "rms_norm_eps": 1e-5,
 "rope_theta": 10000.0, "max_position_embeddings": 16384, "tie_word_embeddings": false}
JSON
    "$bin/smq-convert" synth --force --like "$out/$1.json" "$out/$1" >"$out/$1.log"
    "$bin/smq-convert" --force --target all "$out/$1" "$out/$1.smq" >>"$out/$1.log"
}
far shared 2
far own 6

long=$(head -c 5000 tests/fixtures/sample.txt)
grep . tests/fixtures/sample.txt | sed 's/"/\\"/g; s/.*/{"text": "&"}/' >"$out/lines.jsonl"
check() { # TOOL MODEL WORK
    local tool=$1 file=$out/$2.smq work=$3 log=$out/$1-$2-$3.txt
    [ "$2" = bf16 ] && file=$model
    local command=(generate "$file" --greedy --raw -n 3 -p Hi)
    [[ $work = cache-* ]] &&
        command=(generate "$file" --greedy --raw -n 3 --kv-cache "${work#cache-}" -p "$long")
    [ "$work" = long ] && command=(generate "$file" --greedy --raw -n 3 -p "$long")
    [ "$work" = endings ] &&
        command=(eval hellaswag "$file" --data tests/fixtures/eval/hellaswag.jsonl)
    # Twice a number of sequences for the warm-up, whose steps are recorded, and once more,
    # replayed.
    local many=(bench "$file" --sequences 1,3,20 --prompt-tokens 70 --output-tokens 4 --warmup 2
        --repeats 1)
    [ "$work" = many ] && command=("${many[@]}")
    [[ $work = pages-* ]] && command=("${many[@]}" --kv-cache "${work#pages-}")
    [[ $work = far-* ]] && command=(bench "$file" --prompt-tokens 12290 --output-tokens 4 --warmup 0
        --repeats 1 --kv-cache "${work#far-}")
    [ "$work" = guesses ] && command=(bench "$file" --guesses --prompt-tokens 70 --output-tokens 6
        --warmup 0 --repeats 1)
    [ "$work" = lines ] && command=(eval lambada "$file" --data "$out/lines.jsonl")
    local program=smq-run
    if [ "$work" = calibrate ]; then
        program=smq-convert
        command=(--force --target all --calibrate tests/fixtures/sample.txt
            --calibrate-tokens 512 --calibrate-window 128)
        [ "$2" = int4 ] || command+=(--scheme "$2")
        # The options stand before CHECKPOINT and OUT.smq, --device among them.
        command+=(--device cuda -- "$model" "$out/$tool-$2-calibrated.smq")
    else
        command+=(--device cuda)
    fi
    # Learning a kernel's number of parameters ends with a call that fails, by design: not reported.
    compute-sanitizer --tool "$tool" --report-api-errors no \
        "$bin/$program" "${command[@]}" >"$log" 2>&1 </dev/null
    local status=$? summary others=0
    # A tool that could not attach has no summary.
    summary=$(grep -o 'SUMMARY:.*' "$log" | tail -n 1)
    if [[ $summary != "SUMMARY: 0 "* ]]; then
        # racecheck finds hazards within one of cuBLASLt's own kernels (nvjet), which are not ours
        # to mend.
        others=$(grep ' access at ' "$log" | grep -vc 'access at nvjet' || true)
        [[ $tool = racecheck && $summary = *hazard* ]] && grep -q 'access at nvjet' "$log" ||
            others=all
    fi
    if [ $status = 0 ] && [ -n "$summary" ] && [ "$others" = 0 ]; then
        echo "clean   $tool $2 $work"
    else
        echo "FAILED  $tool $2 $work: status $status, ${summary:-no summary} ($log)"
        return 1
    fi
}
export -f check
export bin out model long
export SMQ_SANITIZE=1 # README.md
for tool in memcheck racecheck; do
    for name in bf16 int4 int4-mlp-f32 int4-signed-64 int4-32 lut4 lut4-64 nf4 fp8; do
        for work in short long endings lines many guesses; do
            echo "$tool $name $work"
        done
    done
    for name in int4 lut4 nf4; do
        echo "$tool $name calibrate"
    done
    for cache in fp8 int8 int4; do
        echo "$tool int4 cache-$cache"
        echo "$tool int4 pages-$cache"
        echo "$tool own far-$cache"
    done
    for cache in bf16 fp8 int8 int4; do
        echo "$tool shared far-$cache"
    done
done | grep -E "${ONLY:-.}" | xargs -P "${JOBS:-4}" -L 1 bash -c 'check "$@"' check
