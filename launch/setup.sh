#!/usr/bin/env bash
# Makes .venv and installs the locked requirements: bash launch/setup.sh [cpu]
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:-cpu}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup.sh: $python is older than 3.11; name another one: PYTHON=python3.12 bash launch/setup.sh" >&2
  exit 2
}
case $kind in
  cpu) lock=requirements.txt ;;
  *) echo "setup.sh: unknown kind '$kind'; known: cpu" >&2; exit 2 ;;
esac
stamp=.venv/installed-$(sha256sum "$lock" | cut -c1-16)
if [ ! -e "$stamp" ]; then
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
  touch "$stamp"
fi
