# vlaprune in a container, the renderer of its simulators included.
#   docker build -t vlaprune .                                                                      CPU
#   docker build -t vlaprune:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .  CUDA
#   docker run --rm [--gpus all] -v "$PWD/results:/data/results" vlaprune eval model=toy bench=toy method=fastv
FROM python:3.11-slim-bookworm
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=libero,video,serve,joblib,smol
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 MUJOCO_GL=egl NVIDIA_DRIVER_CAPABILITIES=all
COPY scripts/system.sh scripts/constraints.txt scripts/client.txt scripts/smol.txt /opt/vlaprune/scripts/
RUN bash /opt/vlaprune/scripts/system.sh \
    && apt-get install -y -qq --no-install-recommends git g++ >/dev/null \
    && rm -rf /var/lib/apt/lists/* \
    && pip install -q --index-url "$TORCH_INDEX" torch==2.13.0
COPY pyproject.toml README.md LICENSE /opt/vlaprune/
COPY vlaprune /opt/vlaprune/vlaprune
COPY configs /opt/vlaprune/configs
RUN pip install -q -c /opt/vlaprune/scripts/constraints.txt "/opt/vlaprune[$EXTRAS]" \
    && pip install -q --no-deps -r /opt/vlaprune/scripts/smol.txt
WORKDIR /data
ENTRYPOINT ["vlaprune"]
CMD ["--help"]
