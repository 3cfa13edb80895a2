# syntax=docker/dockerfile:1
# mudit serve on an NVIDIA GPU, with the host's driver and the container toolkit:
#   docker build -f docker/cuda.Dockerfile -t mudit:cuda .
#   docker run --rm --gpus all -p 8000:8000 -v models:/models:ro -v songs:/songs mudit:cuda /models/mine
FROM nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3.12 python3.12-venv gcc python3.12-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 mudit \
    && install -d -o mudit -g mudit /songs
ENV PATH=/opt/mudit/bin:$PATH
WORKDIR /app
COPY . .
RUN python3.12 -m venv /opt/mudit \
    && pip install --no-cache-dir '.[serve]'
USER mudit
WORKDIR /home/mudit
VOLUME /songs
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=300s --interval=15s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["mudit", "serve", "--host", "0.0.0.0", "--port", "8000", "--folder", "/songs"]
CMD ["tiny"]
