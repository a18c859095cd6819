# Sourced by quickstart.sh and test.sh: finds or makes a Python environment and installs negpo into it.
#
# prepare_env EXTRAS   afterwards $PY is the interpreter of an environment in which `negpo` and EXTRAS are installed.
#
# Which environment: $NEGPO_VENV if set, else the active one ($VIRTUAL_ENV, or a conda environment other than base),
# else .venv in the checkout. Running it again skips everything while pyproject.toml is unchanged.
# On a machine without an NVIDIA GPU the CPU build of torch is installed first, so that nothing pulls CUDA libraries.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
TORCH_VERSION=2.13.0                                     # the release vllm 0.31 pins; negpo itself accepts >=2.11
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu     # PyTorch's own index of CPU builds
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
export HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false

say() { printf '[negpo] %s\n' "$*"; }
die() { printf '[negpo] error: %s\n' "$*" >&2; exit 1; }

# step "what is done" command...   one line with the seconds it took; the command's output goes to $LOG, its end is shown on failure
step() {
  local what="$1" begin=$SECONDS
  shift
  if "$@" >>"$LOG" 2>&1; then
    say "$what: $((SECONDS - begin)) s"
  else
    local status=$?
    say "$what: failed (exit status $status); end of $LOG:" >&2
    tail -n 25 "$LOG" >&2
    exit "$status"
  fi
}

is_supported_python() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_base_python() {
  local candidate
  for candidate in python3.12 python3.11 python3 python; do
    if is_supported_python "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

choose_environment() {
  local env_dir="${NEGPO_VENV:-}"
  if [[ -z "$env_dir" && -n "${VIRTUAL_ENV:-}" && -x "$VIRTUAL_ENV/bin/python" ]]; then
    env_dir="$VIRTUAL_ENV"
    say "using the active environment $env_dir"
  elif [[ -z "$env_dir" && -n "${CONDA_PREFIX:-}" && "${CONDA_DEFAULT_ENV:-base}" != base ]]; then
    env_dir="$CONDA_PREFIX"
    say "using the active conda environment $env_dir"
  fi
  env_dir="${env_dir:-$ROOT/.venv}"
  LOG="$env_dir/negpo-install.log"
  PY="$env_dir/bin/python"
  if [[ ! -x "$PY" ]]; then
    local base
    base="$(find_base_python)" || die "no Python 3.11 or 3.12 with the venv module found. Install one \
(Debian/Ubuntu: apt install python3.11-venv, others: https://www.python.org) or activate an environment that has it."
    mkdir -p "$env_dir"
    step "creating $env_dir with $("$base" --version)" "$base" -m venv "$env_dir"
  fi
  "$PY" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$PY is $("$PY" --version); negpo needs Python 3.11 or newer. Activate another environment, or none to get $ROOT/.venv."
  "$PY" -m pip --version >/dev/null 2>&1 || die "$PY has no pip. Run: $PY -m ensurepip"
}

torch_in_range() {
  "$PY" -c 'import sys, torch; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11))' >/dev/null 2>&1
}

has_nvidia_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

pip_install() { "$PY" -m pip install --quiet --progress-bar off "$@"; }

# true only if pip says (without installing) that the plain torch package comes without CUDA libraries
plain_torch_is_free_of_cuda() {
  "$PY" -m pip install --quiet --dry-run --ignore-installed --report - "torch==$TORCH_VERSION" 2>>"$LOG" | "$PY" -c '
import json, sys
names = [item["metadata"]["name"].lower() for item in json.load(sys.stdin)["install"]]
sys.exit(any(name.startswith(("nvidia-", "cuda-", "triton")) for name in names))'
}

install_cpu_torch() {
  pip_install "torch==$TORCH_VERSION+cpu" && return
  pip_install "torch==$TORCH_VERSION" --index-url "$TORCH_CPU_INDEX" --retries 0 --timeout 10 && return
  plain_torch_is_free_of_cuda && pip_install "torch==$TORCH_VERSION" && return
  echo "No CPU build of torch $TORCH_VERSION in the configured index or at $TORCH_CPU_INDEX; the plain package brings CUDA libraries."
  echo "Install a CPU build of torch >= 2.11 with $PY -m pip, then run this script again."
  return 1
}

install_torch() {
  if torch_in_range; then
    say "keeping torch $(torch_version)"
  elif has_nvidia_gpu; then
    step "installing torch $TORCH_VERSION (NVIDIA GPU found)" pip_install "torch==$TORCH_VERSION"
  else
    step "installing torch $TORCH_VERSION, CPU build (no NVIDIA GPU)" install_cpu_torch
  fi
}

torch_version() { "$PY" -c 'from importlib.metadata import version; print(version("torch"))'; }

# stamp_of EXTRAS   a file that exists once exactly this pyproject.toml of this checkout was installed with EXTRAS
stamp_of() {
  local key
  key="$({ echo "$ROOT"; cat "$ROOT/pyproject.toml"; } | cksum | cut -d' ' -f1)"
  printf '%s/negpo-installed-%s-%s' "$(dirname "$LOG")" "$key" "${1:-core}"
}

prepare_env() {
  local extras="$1" spec="$ROOT" constraint
  choose_environment
  if [[ -e "$(stamp_of "$extras")" ]] && "$PY" -c 'from importlib.metadata import version as v; v("negpo"), v("torch")' 2>/dev/null; then
    say "environment ready: $(dirname "$LOG")"
    return
  fi
  install_torch
  constraint="$(dirname "$LOG")/negpo-constraint.txt"
  echo "torch==$(torch_version)" >"$constraint"            # whatever else is installed, this build of torch stays
  [[ -n "$extras" ]] && spec="$ROOT[$extras]"
  step "installing negpo${extras:+ with $extras}" pip_install --constraint "$constraint" --editable "$spec"
  touch "$(stamp_of "$extras")" "$(stamp_of "")"
}
