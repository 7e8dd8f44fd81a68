#!/bin/sh
# Builds ik_llama.cpp with all instructions of this machine, for bench_cpu.py, from a stated commit: from the
# network, from a clone, or from a folder that already holds the files of that commit.
#
#     benchmarks/peers/ik_llama_cpp.sh [CLONE OR FOLDER]
set -eu
COMMIT=8337e4cd3861406fc04e0854b1409cd1b027fbc9
TARGET="${XDG_CACHE_HOME:-$HOME/.cache}/layercoop_fast/peers/ik_llama.cpp"
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
if [ -f "${1:-}/CMakeLists.txt" ] && [ ! -e "$1/.git" ]; then
    SOURCE=$1
else
    SOURCE="$WORK/source"
    git init --quiet "$SOURCE"
    git -C "$SOURCE" fetch --quiet --depth 1 "${1:-https://github.com/ikawrakow/ik_llama.cpp}" "$COMMIT"
    git -C "$SOURCE" checkout --quiet FETCH_HEAD
fi
. "$(dirname "$0")/build.sh"
