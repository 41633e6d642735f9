#!/bin/sh
# Fuzzes the C code under ASan and UBSan: fuzz/run.sh [SECONDS] [SEED]. Needs a C compiler.
set -eu
here=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
${CC:-cc} -std=c11 -D_DEFAULT_SOURCE -O1 -g -Wall -Wextra \
    -fsanitize=address,undefined -fno-sanitize-recover=all \
    -I"$here/../c" "$here/fuzz_ladder.c" "$here"/../c/*.c -o "$work/fuzz_ladder"
TMPDIR=$work "$work/fuzz_ladder" "${1:-10}" "${2:-1}"
