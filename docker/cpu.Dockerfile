# syntax=docker/dockerfile:1
# mudit serve on a CPU. Build from the repository's root:
#   docker build -f docker/cpu.Dockerfile -t mudit:cpu .
#   docker run --rm -p 8000:8000 -v songs:/songs mudit:cpu
FROM python:3.11-slim-bookworm

RUN useradd --create-home --uid 10001 mudit \
    && install -d -o mudit -g mudit /songs
WORKDIR /app
COPY . .
# torch without CUDA is smaller by gigabytes: name PyTorch's index of CPU builds
#   --build-arg TORCH_INDEX=...
ARG TORCH_INDEX=""
RUN pip install --no-cache-dir -c constraints.txt \
      ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} '.[serve]'
USER mudit
WORKDIR /home/mudit
VOLUME /songs
EXPOSE 8000
# SIGTERM drains: give it more than --drain-seconds before it is killed
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=120s --interval=15s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["mudit", "serve"]
CMD ["tiny", "--host", "0.0.0.0", "--port", "8000", "--folder", "/songs"]
