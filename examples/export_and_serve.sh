#!/usr/bin/env bash
# Exports a model, checks the export, generates with it, and writes a model repository to serve.
#
#     examples/export_and_serve.sh out/deploy
#
# MODEL names a model or a folder (default: tiny). Needs the extra `export`. Further arguments go to
# the export, such as --flavour bf16.
set -euo pipefail
work=${1:-deployment}
MODEL=${MODEL:-tiny}
mkdir -p "$work"

# graphs for ONNX Runtime and OpenVINO; the export fails when its songs differ from PyTorch's
mudit export onnx "$MODEL" "$work/deploy" --flavour fp32 "${@:2}"
mudit export verify "$work/deploy" --no-parity

mudit generate --model "$work/deploy" --runtime onnxruntime --description "钢琴，抒情" \
  --seconds 6 --seed 1 --out "$work/graph.wav"

# a repository for NVIDIA's Triton Inference Server
mudit export triton-server "$work/deploy" "$work/repository" --runtime onnxruntime
echo "serve it with: tritonserver --model-repository=$work/repository/models"
