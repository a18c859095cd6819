#!/usr/bin/env bash
# Environment, install with test extras and the whole test suite: bash scripts/test.sh [options of pytest]
set -euo pipefail
TEST_EXTRAS="dev,lm-eval"
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

prepare_env "$TEST_EXTRAS"
cd "$ROOT"
export OMP_NUM_THREADS=1     # two workers share the cores; more threads a worker only get in each other's way
exec "$PY" -m pytest -n 2 "$@"
