#!/bin/sh
# Builds llama.cpp with all instructions of this machine, for bench_cpu.py: from the source that llama-cpp-python's
# package of a stated version carries, so that a package index is all it needs.
#
#     benchmarks/peers/llama_cpp.sh
set -eu
VERSION=0.3.36
TARGET="${XDG_CACHE_HOME:-$HOME/.cache}/layercoop_fast/peers/llama.cpp"
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
"${PYTHON:-python3}" -m pip download --quiet --no-deps --no-binary llama-cpp-python -d "$WORK" "llama-cpp-python==$VERSION"
tar -xzf "$WORK"/llama_cpp_python-*.tar.gz -C "$WORK"
SOURCE="$WORK/llama_cpp_python-$VERSION/vendor/llama.cpp"
. "$(dirname "$0")/build.sh"
