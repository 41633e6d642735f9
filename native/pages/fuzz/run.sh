#!/bin/sh
# Fuzzes the C code under ASan and UBSan: fuzz/run.sh [SECONDS] [SEED]. Needs a C compiler, and a
# Python with this package for the first streams.
set -eu
here=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
${CC:-cc} -std=c11 -O1 -g -Wall -Wextra -fsanitize=address,undefined -fno-sanitize-recover=all \
    -I"$here/../c" "$here/fuzz_stream.c" "$here/../c/stream.c" "$here/../c/pages.c" \
    -o "$work/fuzz_stream"
${PYTHON:-python3} - "$work" <<'PYTHON'
import random
import sys
from pathlib import Path

from novacron_native_pages.synthetic import random_stream

for seed in range(60):
    stream = random_stream(random.Random(seed), records=seed * 3)
    Path(sys.argv[1], f"{seed}.stream").write_bytes(stream)
PYTHON
"$work/fuzz_stream" "${1:-10}" "${2:-1}" "$work"/*.stream
