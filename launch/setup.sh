#!/usr/bin/env bash
# Makes .venv and installs the locked requirements: bash launch/setup.sh [cpu|gpu]
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:-cpu}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup.sh: $python is older than 3.11; name another one: PYTHON=python3.12 bash launch/setup.sh" >&2
  exit 2
}
case $kind in
  cpu | gpu) ;;
  *) echo "setup.sh: unknown kind '$kind'; known: cpu, gpu" >&2; exit 2 ;;
esac
stamp=.venv/installed-$kind-$(sha256sum requirements.txt | cut -c1-16)
if [ ! -e "$stamp" ]; then
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
  if [ "$kind" = gpu ]; then # CUDA libraries of the locked jax
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "jax[cuda13]"
  fi
  touch "$stamp"
fi
