# featcache in a container: `docker build --target cpu --tag featcache:cpu .`, or `--target cuda`.

ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY featcache featcache
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON_VERSION}-slim AS base
# Caches and runs lie in the volume; the user owns it and nothing else.
RUN useradd --create-home --uid 1000 featcache && install --directory --owner featcache --group featcache /data
ENV FEATCACHE_DATA_DIR=/data FEATCACHE_RUNS_DIR=/data/runs TORCH_HOME=/data/torch HF_HOME=/data/huggingface
COPY constraints.txt /constraints.txt

FROM base AS cpu
# Torch alone comes from its index of CPU versions: the other packages there may be older than the pinned ones.
RUN pip install --no-cache-dir --no-deps --constraint /constraints.txt \
    --index-url https://download.pytorch.org/whl/cpu torch torchvision
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --constraint /constraints.txt /wheels/*.whl
USER 1000
WORKDIR /data
VOLUME /data
ENTRYPOINT ["featcache"]
CMD ["--help"]

FROM base AS cuda
# Torch's wheels for Linux bring the CUDA libraries; the machine has the driver and NVIDIA's container toolkit.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --constraint /constraints.txt /wheels/*.whl
USER 1000
WORKDIR /data
VOLUME /data
ENTRYPOINT ["featcache"]
CMD ["--help"]
