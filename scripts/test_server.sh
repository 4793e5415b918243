#!/usr/bin/env bash
# Tests `tessera serve` with the clients that people use: the openai package, curl, schemathesis over /openapi.json, a
# browser; and with those that nobody wants: broken requests, clients that vanish, clients that do not read.
#   scripts/test_server.sh [PATH/TO/tessera] [--full]     quick: under two minutes; --full: 10,000 hostile requests
set -euo pipefail
cd "$(dirname "$0")/.."
tessera=build/tessera
export TESSERA_FULL=0
for argument in "$@"; do
  if [ "$argument" = --full ]; then TESSERA_FULL=1; else tessera=$argument; fi
done
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
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/server
