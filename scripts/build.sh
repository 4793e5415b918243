#!/usr/bin/env bash
# Configures a preset, tests included (demo.sh leaves them out of the same folder), and builds targets of it (all when none is named).
#   scripts/build.sh PRESET [TARGET...]
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-release}
shift || true
cmake --preset "$preset" -DTESSERA_TESTS=ON -Wno-dev >/dev/null 2>&1 || cmake --preset "$preset" -DTESSERA_TESTS=ON
cmake --build --preset "$preset" ${1:+--target "$@"}
