#!/usr/bin/env bash
# Runs every fuzzer of the asan build from its seed corpus, two at a time; fails on the first crash, hang or leak.
#   scripts/fuzz.sh SECONDS [NAME...]
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-20}
shift || true
names=("$@")
if [ ${#names[@]} -eq 0 ]; then
  for source in fuzz/*_fuzzer.cc; do names+=("$(basename "$source" .cc)"); done
fi
run_one() {
  name=$1
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  if "build-asan/$name" -max_total_time="$2" -timeout=20 -rss_limit_mb=2560 -print_final_stats=1 \
    -artifact_prefix="build-asan/" "$work" "fuzz/corpus/${name%_fuzzer}" >"build-asan/$name.log" 2>&1; then
    echo "$name: $(grep -o 'stat::number_of_executed_units: [0-9]*' "build-asan/$name.log" | grep -o '[0-9]*$') inputs, nothing found"
  else
    echo "$name: FAILED"
    tail -40 "build-asan/$name.log"
    exit 1
  fi
}
export -f run_one
printf '%s\n' "${names[@]}" | xargs -P 2 -I{} bash -c 'run_one {} '"$seconds"
