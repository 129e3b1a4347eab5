# The image of head, workers and jobs: `docker build -t crescendo .`. CPU or GPU: torch brings its CUDA libraries along.
FROM python:3.11.15-slim-bookworm

# wget: KubeRay's probes of the nodes use it. libgomp1: PyTorch. gcc and libc6-dev: Triton, for trainer.compile.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev libgomp1 wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray

ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
COPY requirements.lock /tmp/
RUN pip install --no-cache-dir uv==0.9.10 && uv venv --quiet /opt/venv \
    && uv pip install --quiet --no-cache --compile-bytecode --requirement /tmp/requirements.lock \
    && rm /tmp/requirements.lock

# The code of jobs that bring none along. Owned by root: a job can't change it.
ENV PYTHONPATH=/crescendo
WORKDIR /crescendo
COPY datasets datasets
COPY infra infra
COPY jobs jobs
COPY model model
COPY pipeline pipeline
RUN python -m compileall -q --invalidation-mode checked-hash datasets infra jobs model pipeline

USER 1000
