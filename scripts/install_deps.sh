#!/usr/bin/env bash
# Installs what the build and the tests need from the distribution's packages; does nothing where all is there.
#   scripts/install_deps.sh [build|test|check]     (each includes the one before it)
set -euo pipefail
what=${1:-build}
packages=(g++ cmake ninja-build pkg-config libjpeg62-turbo-dev zlib1g-dev libwebp-dev libutf8proc-dev
  nlohmann-json3-dev libcli11-dev libspdlog-dev libfmt-dev libboost-dev libssl-dev)
[ "$what" = build ] || packages+=(libgtest-dev libgmock-dev python3 python3-venv xz-utils liblzma-dev curl chromium chromium-driver)
[ "$what" = check ] && packages+=(clang-14 libclang-rt-14-dev llvm-14 lld-14 hipcc)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "install_deps: need root or sudo to install: ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
echo "installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
