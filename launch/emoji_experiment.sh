#!/usr/bin/env bash
# Text to video on animated emoji: fetches and converts the clips, trains tokenizer and denoiser, samples held-out
# captions beside training ones, and measures.
#
#   ./launch/emoji_experiment.sh            for one accelerator
#   ./launch/emoji_experiment.sh small      for a CPU: hours on two cores
#
# Run again, it goes on where it was. RUNS names another folder than runs/emoji. launch/emoji.sh says whose the
# animations are: keep them, and what is made of them, to yourself.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-} in
  '') mode='' ;;
  small) mode=':small' ;;
  *) echo "usage: $0 [small]" >&2; exit 2 ;;
esac
runs=${RUNS:-runs/emoji}

./launch/install.sh
python=.venv/bin/python
source launch/environment.sh
./launch/emoji.sh
"$python" -m walt.train_tokenizer --config="configs/emoji_tokenizer.py$mode" --workdir="$runs/tokenizer"
"$python" -m walt.train_denoiser --config="configs/emoji_text.py$mode" --workdir="$runs/text" \
  --config.tokenizer_dir="$runs/tokenizer"
"$python" - .cache/emoji/64 "$runs" << 'END'
import json, pathlib, sys

clips, runs = map(pathlib.Path, sys.argv[1:])
for split in ('train', 'validation'):
    captions = json.loads((clips / split / 'captions.json').read_text())
    captions = sorted(caption for path, caption in captions.items() if (clips / split / path).exists())
    chosen = captions[:: max(1, len(captions) // 12)][:12]
    (runs / f'{split}.txt').write_text('\n'.join(chosen) + '\n')
END
for split in train validation; do
  "$python" -m walt.sample --workdir="$runs/text" --prompts="$runs/$split.txt" --out="$runs/$split"
done
"$python" -m walt.evaluate --workdir="$runs/text" --held_out=213 --batch_size=20
