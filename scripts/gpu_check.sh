#!/usr/bin/env bash
# Every run that needs a GPU, from a build made elsewhere: operators, models, the engine, imposed limits, memory checkers, a
# start of an 8B checkpoint, memory against the plan, a request mix, speed, transformers beside it. Prints one table at the
# end; logs go to --logs (default build/gpu_check). Ends within 10 minutes on an H200.
#   scripts/gpu_check.sh [--build DIR] [--logs DIR] [--only PART,...] [--scratch DIR]
# DIR holds tessera, libtessera_cuda.so, ops_tests, models_tests, pipeline_tests and make_checkpoint
# (scripts/build_cuda.sh; -DTESSERA_BENCH=ON), and shared libraries that the machine lacks in DIR/lib. Parts: tests,
# checkers, start, serving, speed, peers. Golden models come from TESSERA_FIXTURES where it is set; checkpoints of random
# weights (17 GB) go to --scratch (default /dev/shm).
set -uo pipefail
cd "$(dirname "$0")/.."
build=build logs=build/gpu_check only=tests,checkers,start,serving,speed,peers scratch=/dev/shm
while [ $# -gt 0 ]; do
  case "$1" in
    --build) build=$2; shift 2 ;;
    --logs) logs=$2; shift 2 ;;
    --only) only=$2; shift 2 ;;
    --scratch) scratch=$2; shift 2 ;;
    *) echo "gpu_check.sh: unknown option $1; known: --build DIR, --logs DIR, --only PART,..., --scratch DIR" >&2; exit 2 ;;
  esac
done
mkdir -p "$logs"
logs=$(cd "$logs" && pwd)
build=$(cd "$build" && pwd)
tessera=$build/tessera
export TESSERA_CUDA_MODULE="$build/libtessera_cuda.so" TESSERA_TEST_BACKENDS=cuda TESSERA_TEST_DEVICE=cuda
# Test programs know the path of the tree they were built in, which need not be this one.
export TESSERA_FIXTURES="${TESSERA_FIXTURES:-$PWD/tests/data}"
[ -d "$build/lib" ] && export LD_LIBRARY_PATH="$build/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
failed=0
: > "$logs/table"

part() { [[ ",$only," == *",$1,"* ]]; }
row() { printf '%s\n' "$1" >> "$logs/table"; }

# check_shards NAME SECONDS SHARDS COMMAND...: runs it so many times side by side, each with its share of the tests, keeps their
# log, adds one row.
check_shards() {
  local name=$1 seconds=$2 shards=$3 begin=$SECONDS result=passed log shard process processes=()
  shift 3
  log="$logs/${name//[ ,:]/_}.log"
  for ((shard = 0; shard < shards; ++shard)); do
    GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$shard timeout "$seconds" "$@" >"$log.$shard" 2>&1 &
    processes+=($!)
  done
  for process in "${processes[@]}"; do wait "$process" || result="FAILED ($?)"; done
  cat "$log".[0-9]* >"$log"
  rm "$log".[0-9]*
  row "$(printf '%-46s %-12s %4d s  %s' "$name" "$result" $((SECONDS - begin)) "$(summary "$log")")"
}

# What the tests and checkers in a log say, added up.
summary() {
  awk '/^\[  (PASSED|FAILED)  \] [0-9]+ test/ { tests[$2] += $4 }
       /(ERROR|RACECHECK) SUMMARY: / { found[$2] += $4 }
       END { for (k in tests) printf "%d %s ", tests[k], k
             for (k in found) printf "%s: %d ", k, found[k] }' "$1"
}

# check NAME SECONDS COMMAND...: the same of one process.
check() { check_shards "$1" "$2" 1 "${@:3}"; }

used_mib() { nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -1; }

# Prints "plan P MiB, fact F MiB (D %)" for a sampled log of nvidia-smi and a plan's bytes.
against_plan() {
  python3 -c '
import sys
fact = max(int(line) for line in open(sys.argv[1])) - int(sys.argv[2])
plan = int(sys.argv[3]) / 2**20
print("plan %.0f MiB, fact %d MiB (%+.2f %%)" % (plan, fact, 100 * (fact / plan - 1)))' "$@"
}

# The demo's answers are compared in f32 and bf16 at each limit: the suites pass only where all are equal to the CPU's.
run_tests() {
  local bytes
  check_shards "operators" 140 3 "$build/ops_tests" &
  check "engine and pipeline" 140 "$build/pipeline_tests" --gtest_filter='-WorkerPool*' &
  check "golden models" 140 "$build/models_tests" --gtest_filter='*Golden*' &
  for bytes in 65536 49152; do
    check_shards "operators, $bytes bytes a block" 140 3 env TESSERA_TEST_SHARED_MEMORY=$bytes "$build/ops_tests" &
    check "golden models, $bytes bytes a block" 140 env TESSERA_TEST_SHARED_MEMORY=$bytes "$build/models_tests" --gtest_filter='*Golden*' &
    check "answers, $bytes bytes a block" 140 env TESSERA_TEST_SHARED_MEMORY=$bytes "$build/pipeline_tests" --gtest_filter='*Golden*:*Demo*' &
  done
  wait
}

# Without the test that breaks the device on purpose. racecheck goes without the library, whose own kernels (nvjet_*) it reports (excluded by
# name they end in an error of the tool), by a limit that all others fit, and without rehearsals: what they read nobody uses (docs/decisions.md).
run_checkers() {
  if ! command -v compute-sanitizer >/dev/null; then row "memory checkers: compute-sanitizer is not there"; return; fi
  local racecheck=(env TESSERA_TEST_FOLLOWED=1 TESSERA_CUDA_REHEARSAL=0 compute-sanitizer --tool racecheck --error-exitcode 9 "$build/ops_tests")
  check_shards "operators under memcheck" 140 2 compute-sanitizer --tool memcheck --error-exitcode 9 "$build/ops_tests" --gtest_filter='*cuda_bf16*:*cuda_f32*:-*FaultTest*' &
  TESSERA_TEST_SHARED_MEMORY=230000 check_shards "operators under racecheck" 140 10 "${racecheck[@]}" --gtest_filter='*cuda_bf16*:-*FaultTest*:*DecoderLayerTest*' &
  check_shards "whole layers under racecheck" 140 3 "${racecheck[@]}" --gtest_filter='*DecoderLayerTest*cuda_bf16*' &
  wait
}

make_checkpoints() {
  mkdir -p "$logs/tokenizer"
  xz -dkc tests/data/tokenizers/qwen3.tokenizer.json.xz > "$logs/tokenizer/tokenizer.json"
  cp tests/data/tokenizers/qwen3.tokenizer_config.json "$logs/tokenizer/tokenizer_config.json"
  for model in "$@"; do
    [ -d "$scratch/$model" ] || "$build/make_checkpoint" "$model" "$scratch/$model" "$logs/tokenizer"
  done
}

# From exec to ready, the first picture beside the second (the device's seconds for 13 tiles and their prompt).
run_start() {
  make_checkpoints InternVL3-8B
  local log="$logs/start" before pid
  before=$(used_mib)
  check "start of an 8B checkpoint" 120 python3 scripts/gpu_start.py "$tessera" "$scratch/InternVL3-8B" --log "$log"
  row "$(sed 's/^/  /' "$log.rows" 2>/dev/null)"
  row "  memory used before: $before MiB"
}

# serving MODEL: the mix of bench --serving; memory as nvidia-smi sees it while it runs.
serving() {
  local model=$1 before sampler
  make_checkpoints "$model"
  before=$(used_mib)
  (while sleep 0.2; do used_mib; done > "$logs/used_$model") &
  sampler=$!
  check "serving $model" 120 "$tessera" bench --serving "$scratch/$model" --device cuda --max-batch-size 64 --session-len 8192 --json
  kill $sampler
  local plan
  plan=$("$tessera" plan "$scratch/$model" --devices auto --max-batch-size 64 --session-len 8192 --json |
    python3 -c 'import json,sys; print(json.load(sys.stdin)["devices"][0]["total_bytes"])')
  row "  memory under load: $(against_plan "$logs/used_$model" "$before" "$plan")"
  row "  $(python3 -c '
import json, sys
for line in open(sys.argv[1]):
    if line.startswith("["):
        r = json.loads(line)[0]
        print("%.1f requests/s, %.0f tokens/s; first token p50 %.0f ms; between tokens p50 %.1f p99 %.1f ms; %d failed" % (
            r["requests_per_s"], r["tokens_per_s"], 1e3 * r["first_token_s"]["p50"], 1e3 * r["inter_token_s"]["p50"],
            1e3 * r["inter_token_s"]["p99"], r["failed"]))' "$logs/serving_$model.log")"
}

speed() {
  local name=$1
  shift
  check "speed $name" 120 "$tessera" bench --device cuda --repeat 10 "$@"
  row "$(grep -E '^(probes|vit|prefill|first|decode)' "$logs/speed_${name//[ ,:]/_}.log" | sed 's/^/  /')"
}

command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
date -u
part tests && run_tests
part checkers && run_checkers
part start && run_start
part serving && { serving InternVL3-8B; serving InternVL3-1B; }
if part speed; then
  speed InternVL3-8B --shape InternVL3-8B
  speed InternVL3-1B --shape InternVL3-1B
  speed "InternVL3-8B, 49152 bytes a block" --shape InternVL3-8B --only vit_13_tiles,prefill_3392 --limit shared_memory_per_block=49152
fi
if part peers; then
  check "transformers, InternVL3-8B" 150 python3 bench/peers/transformers_on_gpu.py --tessera "$tessera" --shape InternVL3-8B
  row "$(grep '^|' "$logs/transformers__InternVL3-8B.log" | sed 's/^/  /')"
fi
printf '\n%s\n' "--------"
cat "$logs/table"
grep -q FAILED "$logs/table" && failed=1
exit $failed
