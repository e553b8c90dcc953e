#!/usr/bin/env bash
# From a clone to generated videos: installs, trains tokenizer and denoiser on moving handwritten digits, samples all
# ten classes, measures, and writes a page with the clips playing.
#
#   ./launch/quickstart.sh             about 15 minutes on two CPU cores
#   ./launch/quickstart.sh --smoke     the same path in a few steps
#
# Run again, it reuses what is there; interrupted, it goes on where it was. RUNS names another folder than
# runs/quickstart.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-} in
  '') mode='' runs=${RUNS:-runs/quickstart} ;;
  --smoke) mode=':smoke' runs=${RUNS:-runs/quickstart-smoke} ;;
  *) echo "usage: $0 [--smoke]" >&2; exit 2 ;;
esac

# Runs a stage and keeps its wall-clock seconds, which the page and the table show.
stage() {
  local name=$1 start=$SECONDS
  shift
  echo "== $name"
  "$@"
  mkdir -p "$runs/seconds"
  echo $((SECONDS - start)) > "$runs/seconds/$name"
}

start=$SECONDS
./launch/install.sh
mkdir -p "$runs/seconds"
[[ -f $runs/seconds/install ]] || echo $((SECONDS - start)) > "$runs/seconds/install"

python=.venv/bin/python
source launch/environment.sh
tokenizer=$runs/tokenizer denoiser=$runs/denoiser

# A stage is done when its file is newer than the checkpoints that it was made from.
if [[ ! $denoiser/evaluation.json -nt $denoiser/checkpoints ]]; then
  stage tokenizer "$python" -m walt.train_tokenizer \
    --config="configs/quickstart_tokenizer.py$mode" --workdir="$tokenizer"
  stage denoiser "$python" -m walt.train_denoiser \
    --config="configs/quickstart_denoiser.py$mode" --workdir="$denoiser" --config.tokenizer_dir="$tokenizer"
  stage sample "$python" -m walt.sample --workdir="$denoiser" --num=4
  stage evaluate "$python" -m walt.evaluate --workdir="$denoiser" ${mode:+--samples=1 --held_out=20 --training=200}
fi
"$python" -m walt.gallery --workdir="$denoiser" --seconds="$runs/seconds" --out="$runs/index.html"
