#!/usr/bin/env bash
# Environment, install and the main job on the embedded default: bash scripts/quickstart.sh [options of `negpo demo`]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

prepare_env ""
cd "$ROOT"
"$PY" -m negpo demo --out runs/demo "$@"
say "environment: source $(dirname "$PY")/activate"
