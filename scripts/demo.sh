#!/usr/bin/env bash
# From a fresh Debian machine to answers about pictures: installs what is missing, builds build/tessera, asks the
# embedded demo model about three pictures, and says how fast it was.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install_deps.sh build
echo "building build/tessera"
cmake --preset release -DTESSERA_TESTS=OFF >/dev/null
cmake --build --preset release --target tessera

ask() {
  echo
  echo "picture:  $1"
  echo "question: $2"
  printf 'answer:   '
  build/tessera run demo --image "$1" --prompt "$2" --speed
}
ask examples/02-shapes-1344x896.png "Describe the image."
ask examples/05-handwriting-672x224.png "What number is written?"
ask examples/07-sign-672x448.png "What is written here?"
echo
echo "Talk to it: build/tessera chat demo --image examples/03-shapes-896x672.png"
