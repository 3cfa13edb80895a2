#!/usr/bin/env bash
# Exports a model, checks the export, generates with it, and serves it over HTTP.
#
#     examples/export_and_serve.sh out/deploy
#
# MODEL names a model or a folder (default: tiny), PORT where the service listens. Needs the extras
# `export` and `serve`, and curl. Further arguments go to the export, such as --flavour bf16.
set -euo pipefail
work=${1:-deployment}
MODEL=${MODEL:-tiny}
PORT=${PORT:-8000}
mkdir -p "$work"

# graphs for ONNX Runtime and OpenVINO; the export fails when its songs differ from PyTorch's
mudit export onnx "$MODEL" "$work/deploy" --flavour fp32 "${@:2}"
mudit export verify "$work/deploy" --no-parity

mudit generate --model "$work/deploy" --runtime onnxruntime --description "钢琴，抒情" \
  --seconds 6 --seed 1 --out "$work/graph.wav"

# the HTTP service, until this script ends
mudit serve "$work/deploy" --runtime onnxruntime --port "$PORT" --folder "$work/songs" &
server=$!
trap 'kill "$server"; wait "$server" || true' EXIT
until curl --silent --fail --output /dev/null "http://127.0.0.1:$PORT/ready"; do
  kill -0 "$server" # ends the script when the service has ended
  sleep 1
done
curl --silent --show-error --fail "http://127.0.0.1:$PORT/v1/audio/generate" \
  -H 'content-type: application/json' --output "$work/served.wav" \
  -d '{"description": "钢琴，抒情", "seconds": 6, "seed": 1}'

# a repository for NVIDIA's Triton Inference Server, which serves the same songs
mudit export triton-server "$work/deploy" "$work/repository" --runtime onnxruntime
echo "tritonserver --model-repository=$work/repository/models"
