#!/usr/bin/env bash
# The slower checks: the test suite, the served program under load and the fuzzers under the address and
# undefined-behaviour sanitizers (one clang build for all), the runtime's and the server's tests and the served program
# under the thread sanitizer, the plain CUDA kernels compiled by hipcc, and, where nvcc is there, the CUDA module (sm_90a
# and PTX; compiled, not run).
#   scripts/check.sh            20 seconds a fuzzer, 1,800 hostile requests under each sanitizer
#   scripts/check.sh --full     a minute a fuzzer, 20,000 hostile requests under each sanitizer
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=20
under_load=(tests/server/hostile_test.py tests/server/operations_test.py tests/server/model_test.py)
if [ "${1:-}" = "--full" ]; then
  seconds=60
  under_load=(--full)
fi
scripts/install_deps.sh check
export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1
export TESSERA_SANITIZED=1  # memory of the programs below is their sanitizers'

echo "== address and undefined-behaviour sanitizers: tests"
scripts/build.sh asan
# The emulation of GPU threads switches stacks by hand, which the sanitizer does not follow; test.sh runs it.
ctest --test-dir build-asan --no-tests=error --output-on-failure -j "$(nproc)" --timeout 2400 -E emulated

echo "== address and undefined-behaviour sanitizers: the served program"
scripts/test_server.sh build-asan/tessera "${under_load[@]}"

echo "== fuzzers, $seconds s each, two at a time"
scripts/fuzz.sh "$seconds"

echo "== thread sanitizer: runtime and server"
cmake --preset tsan >/dev/null
tsan_targets=()
for room in runtime server; do
  [ -f "tests/$room/CMakeLists.txt" ] && tsan_targets+=("${room}_tests")
done
if [ ${#tsan_targets[@]} -gt 0 ]; then
  cmake --build --preset tsan --target tessera "${tsan_targets[@]}"
  ctest --test-dir build-tsan --no-tests=error --output-on-failure -R "^($(IFS='|'; echo "${tsan_targets[*]%_tests}"))$" --timeout 1200
  scripts/test_server.sh build-tsan/tessera "${under_load[@]}"
fi

echo "== plain CUDA kernels for another maker's GPU, warps of 64 threads (hipcc, gfx90a; compiled, not run)"
for kernel in src/backends/cuda/plain/*.cu; do
  hipcc -x hip -std=c++20 -O2 -Wall -Werror --offload-arch=gfx90a -Isrc -Iinclude -c "$kernel" -o /dev/null
done

if command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; then
  echo "== CUDA module (compiled, not run)"
  scripts/build_cuda.sh --arch 90a
else
  echo "== no nvcc here: the CUDA module was not compiled"
fi
