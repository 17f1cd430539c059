#!/usr/bin/env bash
# Trains on all accelerators of this machine: bash launch/local.sh --config configs/lgm.py:big [flags]
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh gpu
exec .venv/bin/python -m facelift_jax.main "$@"
