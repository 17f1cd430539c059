#!/usr/bin/env bash
# From a bare checkout: set up, reconstruct animals without training, then train the demo network and evaluate it.
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh cpu
python=.venv/bin/python
$python -m facelift_jax.data.rodent --out data/rodent-demo --scenes 6 --size 128 --uneven
$python -m facelift_jax.evaluate --baseline hull data/rodent-demo --refine --turntable-frames 30 --out runs/hull-demo
echo "Without training: open runs/hull-demo/report.html. Now a small network is trained; it takes about five minutes."
exec $python -m facelift_jax.main --config configs/lgm.py:demo "$@"
