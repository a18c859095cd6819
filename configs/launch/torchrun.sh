#!/bin/bash
# Many machines without a scheduler: run this line on each of them, with the same HEAD.
#
#   HEAD=10.0.0.1:29500 NODES=2 GPUS=8 bash configs/launch/torchrun.sh npo --config npo/tofu_forget10 --output_dir out/npo
#
# STRATEGY is ddp (default), zero1, zero2 or zero3. The output folder must be on a file system that all machines see.
# A machine that joins late is waited for; one that dies ends the run on all of them (resume with
# --resume_from_checkpoint true on the same number of ranks).
set -euo pipefail

: "${HEAD:?set HEAD to the address:port of one of the machines, the same on all}"
STRATEGY="${STRATEGY:-ddp}"
SHARDING=()
if [[ "$STRATEGY" == zero* ]]; then
  CONFIGS="$(python -c 'from negpo.configs import CONFIGS; print(CONFIGS)')"
  SHARDING=(--deepspeed "$CONFIGS/deepspeed/$STRATEGY.json")
fi

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}"   # seconds for a checkpoint after SIGTERM
exec torchrun \
  --nnodes "${NODES:-2}" \
  --nproc_per_node "${GPUS:-8}" \
  --rdzv_id "${RUN_ID:-negpo}" \
  --rdzv_backend c10d \
  --rdzv_endpoint "$HEAD" \
  -m negpo train "$@" "${SHARDING[@]}"
