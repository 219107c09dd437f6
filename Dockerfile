# cirray for a cluster or one machine:   docker build --target cpu -t cirray:cpu .
#                                        docker build --target gpu -t cirray:gpu .
# The GPU image needs the driver and the container toolkit of the host; CUDA's libraries come with PyTorch.
# PyTorch without CUDA for the CPU image, three gigabytes smaller: --build-arg TORCH_INDEX=URL of PyTorch's CPU wheels.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS base
# wget: KubeRay's health checks. g++: DeepSpeed builds its optimiser at first use.
RUN apt-get update && apt-get install --yes --no-install-recommends wget g++ && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
ENV OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0
ENV RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD=0 RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP=0
WORKDIR /opt/cirray
COPY pyproject.toml setup.py MANIFEST.in constraints.txt README.md LICENSE ./
COPY cirray cirray
COPY jobs jobs
COPY serve_configs serve_configs

FROM base AS cpu
ARG TORCH_INDEX=
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".[cpu,photos,gallery]"
RUN useradd --create-home --uid 1000 ray
USER ray
WORKDIR /home/ray
EXPOSE 8000
ENTRYPOINT ["cirray"]
CMD ["--help"]

FROM base AS gpu
RUN pip install --constraint constraints.txt ".[gpu,train,photos,gallery]"
RUN useradd --create-home --uid 1000 ray
USER ray
WORKDIR /home/ray
EXPOSE 8000
ENTRYPOINT ["cirray"]
CMD ["--help"]
