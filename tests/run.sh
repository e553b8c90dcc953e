#!/usr/bin/env bash
# Installs, lints and runs all tests, in two processes. Arguments go to pytest: ./tests/run.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."

./launch/install.sh test
source launch/environment.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/shellcheck launch/*.sh tests/run.sh .ci/run
.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"  # fixtures of a file are made once
