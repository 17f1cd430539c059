#!/usr/bin/env bash
# Sets up and runs every check except the slow tests; arguments go to pytest: bash launch/check.sh [-m slow]
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh cpu
export PATH="$PWD/.venv/bin:$PATH"
ruff format --check .
ruff check .
pyright
NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet --site-dir "$(mktemp -d)"
if [ $# -eq 0 ]; then set -- -m "not slow and not gpu"; fi
pytest -n 2 --dist worksteal "$@"
