#!/usr/bin/env bash
# Builds build/libtessera_cuda.so beside the program, which opens it at run time. Needs nvcc 13 (PATH or /usr/local/cuda/bin).
#   scripts/build_cuda.sh                sm_80, sm_86, sm_90a and PTX
#   scripts/build_cuda.sh --arch 90a     one machine code (several: "80;90a")
set -euo pipefail
cd "$(dirname "$0")/.."
arch="80;86;90a"
while [ $# -gt 0 ]; do
  case "$1" in
    --arch) [ $# -ge 2 ] || { echo "build_cuda.sh: --arch needs a value, such as 90a" >&2; exit 2; }
            arch=$2; shift 2 ;;
    *) echo "build_cuda.sh: unknown option $1; known: --arch LIST" >&2; exit 2 ;;
  esac
done
if ! command -v nvcc >/dev/null && [ ! -x /usr/local/cuda/bin/nvcc ]; then
  echo "build_cuda.sh: nvcc is not there; install the CUDA 13 toolkit" >&2
  exit 1
fi
cmake --preset release -DTESSERA_CUDA=ON "-DTESSERA_CUDA_ARCH=$arch"
cmake --build build --target tessera_cuda
ls -l build/libtessera_cuda.so
