#!/usr/bin/env bash
# From a bare checkout: set up, then train the demo on synthetic rodents and evaluate it from held-out cameras.
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh cpu
exec .venv/bin/python -m facelift_jax.main --config configs/lgm.py:demo "$@"
