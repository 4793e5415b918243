#!/usr/bin/env bash
# Installs what is missing, builds the release preset, runs every test that is quick. TESSERA_FIXTURES may name the
# whole fixture set; without it the tests use the project's own choice under tests/data.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install_deps.sh test
scripts/build.sh release
ctest --test-dir build --no-tests=error --output-on-failure -j "$(nproc)"
[ ! -x scripts/test_server.sh ] || scripts/test_server.sh build/tessera
