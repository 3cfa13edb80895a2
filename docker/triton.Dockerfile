# syntax=docker/dockerfile:1
# NVIDIA's Triton Inference Server with this package; the repository is mounted:
#   mudit export triton-server deploy repository --runtime torch --gpu
#   docker build -f docker/triton.Dockerfile -t mudit:triton .
#   docker run --rm --gpus all -p 8000-8002:8000-8002 -v ./repository/models:/models:ro mudit:triton
FROM nvcr.io/nvidia/tritonserver:25.06-py3

WORKDIR /app
COPY . .
RUN pip install --no-cache-dir --break-system-packages '.[serve]'
EXPOSE 8000 8001 8002
ENTRYPOINT ["tritonserver"]
CMD ["--model-repository=/models"]
