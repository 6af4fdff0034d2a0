#!/usr/bin/env bash
# Runs fuzz targets for a time each, and prints what they did in one table.
#
#   fuzz/run.sh SECONDS [TARGET...]
#
# Without TARGET, all of them; one that is named twice runs in two processes on one corpus. The
# status is 1 where an input crashed, ran out of memory or took too long, and 2 where nothing ran.
#
#   JOBS=N         processes at a time (1)
#   BINARIES=DIR   runs the binaries in DIR in place of building them
#   ARTIFACTS=DIR  where the inputs of crashes go (fuzz/artifacts)
#   CORPUS=DIR     where what was found goes, and is read again by the next run (fuzz/corpus)
#   LOGS=DIR       where libFuzzer's output stays (nowhere)
#   MAX_RESTARTS=N how often a target goes on with the time that is left after a crash (20)

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
all=(
    chat_template dequantize export open round_trip
    safetensors shard_index side_files tokenizer verify
)
triple=x86_64-unknown-linux-gnu
rss_limit_mb=3072

usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

[[ ${1-} =~ ^[1-9][0-9]*$ ]] || usage
seconds=$1
shift
targets=("$@")
((${#targets[@]})) || targets=("${all[@]}")
for target in "${targets[@]}"; do
    if [[ " ${all[*]} " != *" $target "* ]]; then
        echo "there is no target $target; there are ${all[*]}" >&2
        exit 2
    fi
done
jobs=${JOBS:-1}
artifacts=${ARTIFACTS:-$here/artifacts}
corpus=${CORPUS:-$here/corpus}

if [[ -z ${BINARIES-} ]]; then
    # The flags of cargo-fuzz. They are unstable, which a stable compiler has to be told.
    flags=(
        -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
        -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
        -Zsanitizer=address -Ccodegen-units=1 --cfg fuzzing
    )
    bins=()
    for target in "${targets[@]}"; do bins+=(--bin "$target"); done
    target_dir=${CARGO_TARGET_DIR:-$here/target}
    (cd "$here" && RUSTC_BOOTSTRAP=1 RUSTFLAGS="${flags[*]}" CARGO_TARGET_DIR=$target_dir \
        cargo build --release --target "$triple" "${bins[@]}") || exit 2
    BINARIES=$target_dir/$triple/release
fi

for target in "${targets[@]}"; do
    if [[ ! -x $BINARIES/$target ]]; then
        echo "$BINARIES/$target is no program; build it, or leave BINARIES out" >&2
        exit 2
    fi
done

# Inputs are written to files below this directory, which goes away whatever happens to a target.
parent=${TMPDIR:-/dev/shm}
[[ -d $parent ]] || parent=/tmp
work=$(mktemp -d "$parent/smq-fuzz-run-XXXXXX")
end() {
    local running
    running=$(jobs -rp)
    # shellcheck disable=SC2086
    [[ -z $running ]] || kill $running 2>/dev/null || true
    wait || true
    rm -rf "$work"
}
trap end EXIT
trap 'exit 130' INT TERM

# Directories of seeds: the targets that read a .smq file share theirs.
seeds_of() {
    case $1 in
        open | verify | dequantize) echo "$here/seeds/smq" ;;
        export) echo "$here/seeds/smq" "$here/seeds/export" ;;
        *) echo "$here/seeds/$1" ;;
    esac
}

# Runs target $1 as process $2, again after each crash, and writes a line of the table.
one() {
    local target=$1 number=$2 pid='' log status=0 left end executed=0 crashes=0 restarts=0
    log=$work/$target.$number.log
    trap '[[ -z $pid ]] || kill "$pid" 2>/dev/null; exit 130' TERM INT
    mkdir -p "$work/$target.$number.tmp" "$corpus/$target" "$artifacts/$target"
    end=$((SECONDS + seconds))
    while left=$((end - SECONDS)) && ((left > 0)); do
        # shellcheck disable=SC2046
        TMPDIR=$work/$target.$number.tmp RAYON_NUM_THREADS=1 \
            "$BINARIES/$target" "$corpus/$target" $(seeds_of "$target") \
            -max_total_time="$left" -max_len=16384 -timeout=25 -rss_limit_mb="$rss_limit_mb" \
            -print_final_stats=1 -artifact_prefix="$artifacts/$target/" >"$log.part" 2>&1 &
        pid=$!
        status=0
        wait "$pid" || status=$?
        pid=''
        cat "$log.part" >>"$log"
        rm -rf "$work/$target.$number.tmp"/*
        ((status)) || break
        crashes=$((crashes + 1))
        restarts=$((restarts + 1))
        ((restarts <= ${MAX_RESTARTS:-20})) || break
    done
    executed=$(awk '/^stat::number_of_executed_units:/ { sum += $2 } END { print sum + 0 }' "$log")
    local coverage peak
    coverage=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | sort -n | tail -1)
    peak=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log" | sort -n | tail -1)
    printf '%-14s %12s %10s %8s %8s %8s\n' "$target" "${executed:-0}" \
        "$((${executed:-0} / seconds))" "${coverage:--}" "${peak:--}" "$crashes" \
        >"$work/$target.$number.row"
}

number=0
for target in "${targets[@]}"; do
    while (($(jobs -rp | wc -l) >= jobs)); do wait -n || true; done
    number=$((number + 1))
    one "$target" "$number" &
done
wait

if [[ -n ${LOGS-} ]]; then
    mkdir -p "$LOGS"
    cp "$work"/*.log "$LOGS"
fi
printf '%-14s %12s %10s %8s %8s %8s\n' target executions 'a second' cov 'peak MB' crashes
cat "$work"/*.row
crashed=0
for log in "$work"/*.log; do
    # What ended a process, and where its input is.
    if grep -hE 'panicked at|SUMMARY: |ERROR: |Test unit written to .*/(crash|oom|timeout|leak)-' \
        "$log" >"$work/reasons"; then
        echo
        echo "$(basename "$log" .log):"
        sort "$work/reasons" | uniq -c | sort -rn | head -40
    fi
done
awk '$NF > 0 { bad = 1 } END { exit bad }' "$work"/*.row || crashed=1
exit "$crashed"
