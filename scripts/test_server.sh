#!/usr/bin/env bash
# Tests `tessera serve` with the clients that people use: the openai package, LangChain, curl, schemathesis over
# /openapi.json, a browser; and with those that nobody wants: broken requests, clients that vanish, clients that do not read.
#   scripts/test_server.sh [PATH/TO/tessera] [--full] [tests/server/FILE...]
# Quick: under two minutes; --full: 20,000 hostile requests. FILE...: these alone.
# TESSERA_SANITIZED=1: the program was built with a sanitizer, so that its memory is not judged.
set -euo pipefail
cd "$(dirname "$0")/.."
tessera=build/tessera
export TESSERA_FULL=0
files=()
for argument in "$@"; do
  case "$argument" in
    --full) TESSERA_FULL=1 ;;
    tests/server/*) files+=("$argument") ;;
    *) tessera=$argument ;;
  esac
done
[ ${#files[@]} -gt 0 ] || files=(tests/server)
TESSERA=$(realpath "$tessera")
export TESSERA

venv=build/venv-server
stamp=$venv/requirements.installed
if ! cmp -s tests/server/requirements.txt "$stamp"; then
  [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check -r tests/server/requirements.txt
  cp tests/server/requirements.txt "$stamp"
fi
export PATH="$PWD/$venv/bin:$PATH"
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider "${files[@]}"
