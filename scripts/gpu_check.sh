#!/usr/bin/env bash
# Every run that needs a GPU, from a build made elsewhere: operators, golden models, imposed limits, memory checker, speed.
# Prints one table at the end; logs go to --logs (default build/gpu_check). Ends within 10 minutes on an H200.
#   scripts/gpu_check.sh [--build DIR] [--logs DIR] [--quick]
# DIR holds libtessera_cuda.so, ops_tests, models_tests and gpu_bench (scripts/build_cuda.sh; -DTESSERA_BENCH=ON).
# Golden models come from TESSERA_FIXTURES where it is set. --quick leaves out the memory checker and the limited speeds.
set -uo pipefail
cd "$(dirname "$0")/.."
build=build logs=build/gpu_check quick=0
while [ $# -gt 0 ]; do
  case "$1" in
    --build) build=$2; shift 2 ;;
    --logs) logs=$2; shift 2 ;;
    --quick) quick=1; shift ;;
    *) echo "gpu_check.sh: unknown option $1; known: --build DIR, --logs DIR, --quick" >&2; exit 2 ;;
  esac
done
mkdir -p "$logs"
logs=$(cd "$logs" && pwd)
build=$(cd "$build" && pwd)
export TESSERA_CUDA_MODULE="$build/libtessera_cuda.so" TESSERA_TEST_BACKENDS=cuda TESSERA_TEST_DEVICE=cuda
# Test programs know the path of the tree they were built in, which need not be this one.
export TESSERA_FIXTURES="${TESSERA_FIXTURES:-$PWD/tests/data}"
failed=0
rows=()

# check NAME SECONDS COMMAND...: runs it, keeps its log, adds a row.
check() {
  local name=$1 seconds=$2 begin=$SECONDS result log
  shift 2
  log="$logs/${name// /_}.log"
  if timeout "$seconds" "$@" >"$log" 2>&1; then result=passed; else result="FAILED ($?)"; failed=1; fi
  rows+=("$(printf '%-44s %-12s %4d s  %s' "$name" "$result" $((SECONDS - begin)) \
    "$(grep -E '^\[  (PASSED|FAILED)  \] [0-9]+ test' "$log" | tr '\n' ' ')")")
}

command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
date -u
check "operators" 120 "$build/ops_tests"
for bytes in 65536 49152; do
  check "operators, $bytes bytes a block" 120 env TESSERA_TEST_SHARED_MEMORY=$bytes "$build/ops_tests"
done
check "golden models" 120 "$build/models_tests" --gtest_filter='*Golden*'
for bytes in 65536 49152; do
  check "golden models, $bytes bytes a block" 120 env TESSERA_TEST_SHARED_MEMORY=$bytes "$build/models_tests" \
    --gtest_filter='*Golden*'
done
for model in InternVL3-8B InternVL3-1B; do
  check "speed $model" 150 "$build/gpu_bench" $model
  cat "$logs/speed_$model.log"
done
if [ $quick = 0 ]; then
  check "speed InternVL3-8B, 49152 bytes a block" 120 "$build/gpu_bench" InternVL3-8B --parts vit,prefill \
    --limit shared_memory_per_block=49152
  cat "$logs/speed_InternVL3-8B,_49152_bytes_a_block.log"
  if command -v compute-sanitizer >/dev/null; then
    check "operators under memcheck" 150 compute-sanitizer --tool memcheck --error-exitcode 9 "$build/ops_tests"
    check "operators under racecheck" 150 compute-sanitizer --tool racecheck --error-exitcode 9 "$build/ops_tests" \
      --gtest_filter='*bf16*'
  else
    rows+=("memory checker: compute-sanitizer is not there")
  fi
fi
printf '\n%s\n' "--------"
printf '%s\n' "${rows[@]}"
exit $failed
