#!/usr/bin/env bash
# The denoiser's experiments on moving digits: text to video with pictures beside clips, frame prediction with rollouts,
# super-resolution, and the paper's ablations at toy size. Trains, measures on held-out data, and prints a table.
#
#   ./launch/denoiser_experiments.sh [text | frames | upsample | ARM:SEED ...]       some hours on two CPU cores
#
# ARM is one of configs/digits_ablation.py. Run again, it reuses what is there. RUNS names another folder than
# runs/digits. The tokenizer is the quickstart's, for frames and super-resolution one of their own; it is trained where
# it is not there.
set -euo pipefail
cd "$(dirname "$0")/.."

runs=${RUNS:-runs/digits}
default=(text frames upsample)
for seed in 0 1 2; do
  for arm in base no_self_conditioning no_zero_snr full_attention separate_adaln; do default+=("$arm:$seed"); done
done
asked=("${@:-${default[@]}}")

./launch/install.sh
python=.venv/bin/python
source launch/environment.sh

for run in "${asked[@]}"; do
  workdir=$runs/${run/:/-} seed=0 config=configs/digits_$run.py
  tokenizer=runs/quickstart/tokenizer tokenizer_config=configs/quickstart_tokenizer.py
  case $run in
    text) ;;
    frames | upsample) tokenizer=$runs/${run}_tokenizer tokenizer_config=configs/digits_${run}_tokenizer.py ;;
    *) config=configs/digits_ablation.py:${run%:*} seed=${run#*:} ;;
  esac
  echo "== $run"
  [[ ${trained:-} == "$tokenizer" ]] ||
    "$python" -m walt.train_tokenizer --config="$tokenizer_config" --workdir="$tokenizer"
  trained=$tokenizer
  # The arms of the ablation are trained on the same latents.
  if [[ $run == *:* && ! -d $workdir && -d $runs/latents ]]; then
    mkdir -p "$workdir" && cp -r "$runs/latents" "$workdir/latents"
  fi
  "$python" -m walt.train_denoiser --config="$config" --workdir="$workdir" --config.tokenizer_dir="$tokenizer" \
    --config.seed="$seed"
  if [[ $run == *:* && ! -d $runs/latents ]]; then cp -r "$workdir/latents" "$runs/latents"; fi
  if [[ ! $workdir/evaluation.json -nt $workdir/checkpoints ]]; then
    "$python" -m walt.evaluate --workdir="$workdir" --held_out=100 --samples=20 --batch_size=50 --perceptual=none > /dev/null
  fi
done
"$python" - "$runs" "${asked[@]}" << 'END'
import json, pathlib, statistics, sys

runs, asked = pathlib.Path(sys.argv[1]), sys.argv[2:]
for run in asked:
    folder = runs / run.replace(':', '-')
    evaluation = json.loads((folder / 'evaluation.json').read_text())
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    rates = [line['train/steps_per_second'] for line in lines if 'train/steps_per_second' in line]
    losses = [line['validation/loss'] for line in lines if 'validation/loss' in line]
    shown = {'loss': losses[-1], 'steps a second': statistics.median(rates)}
    for part in ('samples', 'prompts', 'prediction', 'upsampling'):
        figures = evaluation.get(part, {})
        shown |= {f'{part} {name}': value for name, value in figures.items() if isinstance(value, (float, dict))}
    print(run, json.dumps({name: round(v, 3) if isinstance(v, float) else v for name, v in shown.items()}))
END
