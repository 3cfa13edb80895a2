#!/usr/bin/env bash
# Fine-tunes a model on a folder of your own songs and generates with the result.
#
#     examples/finetune.sh songs/ out/mine
#
# Beside song.ogg, song.txt holds its lyrics and song.json its descriptions; a manifest (.jsonl) works
# too, and docs/training.md explains both. MODEL is what the training starts from (default: tiny),
# STEPS how long it goes on (default: 200). Each command goes on where it was interrupted.
set -euo pipefail
songs=${1:?"a folder of songs or a manifest (.jsonl)"}
out=${2:-mine}
MODEL=${MODEL:-tiny}
STEPS=${STEPS:-200}

# copies would teach the same song twice, and make the validation look better than it is
mudit data dedupe "$songs" --out "$out.copies"

# encodes, trains a LoRA (--full: all weights), validates, writes a whole model folder
mudit finetune "$songs" --out "$out" --model "$MODEL" --steps "$STEPS" --samples 0 \
  --leave-out "$out.copies/copies.jsonl"

mudit generate --model "$out" --description "民谣，吉他，女声" --seconds 6 --seed 1 --out "$out.wav"
