#!/usr/bin/env bash
# Generates a manifest of songs as one batch: one JSON object a line says what each song should be.
#
#     examples/manifest_of_songs.sh out/album
#
# MODEL names a model or a folder (default: tiny). Run again after an interruption: songs whose file
# is there are left out.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-album}
MODEL=${MODEL:-tiny}

# first only read everything: wrong lines are named, and nothing is generated
mudit generate --model "$MODEL" --manifest "$here/manifest/songs.jsonl" --out "$out" --dry-run
mudit generate --model "$MODEL" --manifest "$here/manifest/songs.jsonl" --out "$out" --skip-existing
