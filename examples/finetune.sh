#!/usr/bin/env bash
# Fine-tunes a model on a folder of your own songs and generates with the result.
#
#     examples/finetune.sh SONGS.jsonl out/finetune
#
# SONGS.jsonl names audio files, lyrics and descriptions, one JSON object a line; docs/training.md
# lists its fields. A folder of audio files works too: songs then come without words.
# MODEL is what the training starts from (default: tiny), STEPS how long it goes on (default: 200).
# Every command can be run again after an interruption and goes on where it was.
set -euo pipefail
songs=${1:?"a manifest (.jsonl) or a folder of audio files"}
work=${2:-finetune}
MODEL=${MODEL:-tiny}
STEPS=${STEPS:-200}

# audio, lyrics and descriptions become latents, phonemes and vectors
mudit data encode "$songs" --model "$MODEL" --out "$work/latents"
mudit data inspect "$work/latents"

# a copy of the model: the trained transformer will take the old one's place in it, and codec and
# text encoder stay as they are
folder=$(python -c "import sys; from mudit_engine.models.folder import model_folder; print(model_folder(sys.argv[1]))" "$MODEL")
mkdir -p "$work/model" && cp "$folder"/*.json "$folder"/*.safetensors "$work/model"

# the recipe of the embedded model, from finished weights, with a small learning rate
mudit train tiny-dit-finetune --out "$work/run" --export "$work/model" \
  --set model="$MODEL" --set init="$MODEL" --set model_overrides='{}' \
  --set data.folder="$work/latents" --set steps="$STEPS" --set schedule.warmup=1 \
  --set optimizer.lr=1e-4 --set log.validate_every=0

mudit generate --model "$work/model" --description "民谣，吉他，女声" --seconds 6 --seed 1 \
  --out "$work/song.wav"
