#!/usr/bin/env bash
# Whether negpo works on a named set of versions: bash scripts/check_stack.sh floor|vllm|newest|FILE [options]
#
#   --tests "PATHS"  what pytest runs (default: the tests that touch other libraries most)
#   --out FILE       append the row of the table in docs/stack.md to FILE
#   --keep           keep the environment (default: made in $TMPDIR and removed)
#   --env FOLDER     use an environment that exists instead of making one; its versions are read, not changed
#
# A set is a pip requirements file (scripts/stacks/). negpo itself is installed without dependencies, so that versions
# outside of its pins can be tried: the pins follow what passes here. Exit status 0 only if the tests and the smoke run
# passed; the last line is the table's row either way.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

TESTS="tests/logprobs tests/reference tests/rollout tests/trainers/test_trainers_steps.py tests/trainers/test_preference_steps.py
  tests/trainers/test_rl_steps.py tests/trainers/test_rl_runs.py tests/trainers/test_trainers_resume.py"
REST=("scipy>=1.14" "scikit-learn>=1.5" "rouge-score>=0.1.2,<0.2" "math-verify>=0.9,<0.10" "jinja2>=3.1" "matplotlib>=3.9"
  "rich>=13" "pyyaml>=6" "safetensors>=0.5" "numpy>=2.0" "pytest>=8" "pytest-timeout>=2.3" "hypothesis>=6.100")
set_name="" out="" keep=0 env_dir="" log=""

while (($#)); do
  case "$1" in
    --tests) TESTS="${2:?--tests needs paths}"; shift ;;
    --out) out="${2:?--out needs a file}"; shift ;;
    --keep) keep=1 ;;
    --env) env_dir="${2:?--env needs a folder}"; shift ;;
    -*) die "unknown option $1; see the head of $0" ;;
    *) [[ -z "$set_name" ]] || die "one set at a time, got $set_name and $1"; set_name="$1" ;;
  esac
  shift
done
requirements="$ROOT/scripts/stacks/$set_name.txt"
[[ -f "$requirements" ]] || requirements="$set_name"
[[ -n "$set_name" && -f "$requirements" ]] ||
  die "no set '${set_name:-}': choose one of $(cd "$ROOT/scripts/stacks" && ls ./*.txt | sed 's|./||; s|\.txt||' | xargs) or give a requirements file"

make_environment() {
  local base
  base="$(find_base_python)" || die "no Python 3.11 or 3.12 with the venv module found"
  step "creating $env_dir with $("$base" --version)" "$base" -m venv "$env_dir"
  step "installing $(basename "$requirements")" pip_install -r "$requirements"
  step "installing what else negpo needs" pip_install -r "$requirements" "${REST[@]}"
  step "installing negpo without dependencies" pip_install --no-deps "$ROOT"
}

smoke() {     # one training run of a model made on the spot, from the installed package, away from the checkout
  cd "$work" && "$PY" -m negpo doctor >>"$log" 2>&1 || true      # its exit status says whether the pins fit, which is the question here
  "$PY" "$ROOT/scripts/stacks/smoke.py" "$work/smoke" >>"$log" 2>&1
}

work="$(mktemp -d "${TMPDIR:-/tmp}/negpo-stack-XXXXXX")"
cleanup() { ((keep)) || rm -rf "$work"; }
trap cleanup EXIT
log="$work/log" LOG="$work/log"
made=0
if [[ -z "$env_dir" ]]; then
  env_dir="$work/env" made=1
fi
PY="$env_dir/bin/python"
if ((made)); then make_environment; fi

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
if (cd "$ROOT" && "$PY" -m pytest -q -p no:cacheprovider $TESTS) >"$work/tests.log" 2>&1; then tests=passed; else tests=FAILED; fi
counts="$(grep -E '^[0-9]+ (passed|failed)|^=+ .*(passed|failed|error)' "$work/tests.log" | tail -n 1 | tr -d '=' | sed 's/ in [0-9].*//; s/^ *//')"
if smoke; then smoked=passed; else smoked=FAILED; fi
if [[ "$tests $smoked" != "passed passed" ]]; then
  tail -n 40 "$work/tests.log" "$log" >&2
fi
versions="$("$PY" - <<'PYTHON'
import platform
from importlib.metadata import version
names = ("torch", "transformers", "trl", "accelerate", "peft", "datasets")
print(" | ".join([platform.python_version(), *map(version, names)]))
PYTHON
)"
row="| $(basename "$set_name" .txt) | $(date +%Y-%m-%d) | $versions | $tests: ${counts:-no count} | $smoked |"
[[ -z "$out" ]] || echo "$row" >>"$out"
echo "$row"
[[ "$tests $smoked" == "passed passed" ]]
