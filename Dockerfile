# GPU nodes: docker build -t negpo . && docker run --gpus all negpo doctor
# The versions are a set of scripts/stacks that check_stack.sh tried (docs/stack.md).
FROM python:3.11.11-slim-bookworm

# A C++ compiler and ninja: Triton and DeepSpeed compile their kernels at first use.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ ninja-build \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false

WORKDIR /opt/negpo
COPY scripts/stacks/newest.txt scripts/stacks/newest.txt
RUN pip install -r scripts/stacks/newest.txt
COPY . .
RUN pip install --constraint scripts/stacks/newest.txt ".[deepspeed]"

RUN useradd --create-home negpo
USER negpo
WORKDIR /home/negpo
ENTRYPOINT ["negpo"]
CMD ["doctor"]
