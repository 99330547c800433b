#!/usr/bin/env bash
# What a machine with a GPU can tell, within eight minutes: benchmarks/gpu.sh [PYTHON] [FOLDER of the outputs]
# The core of the tests, the training rows at 256 pixels in bfloat16, and the time of a step beside its floor.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
out=${2:-gpu}
begin=$SECONDS
backend=$("$python" -c 'import jax; print(jax.default_backend())' 2>/dev/null)
if [ "$backend" != gpu ]; then
  echo "gpu.sh: $python finds no GPU (its backend is ${backend:-none}): nothing to measure" >&2
  exit 1
fi
mkdir -p "$out"
status=0
# Each part has a share of the eight minutes; what it has written by then stays.
part() { # seconds, name, command
  local limit=$1 name=$2
  shift 2
  echo "== $name, at most $limit s ($((SECONDS - begin)) s so far)"
  timeout "$limit" "$@" 2>"$out/$name.log" | tee "$out/$name.txt"
  local code=${PIPESTATUS[0]}
  if [ "$code" -ne 0 ]; then
    echo "== $name: exit status $code, see $out/$name.log" >&2
    status=1
  fi
}
# Products in float32, as the tests' tolerances are.
part 150 tests env JAX_PLATFORMS=cuda XLA_FLAGS= JAX_DEFAULT_MATMUL_PRECISION=highest "$python" -m pytest -q -p no:cacheprovider -n0 \
  tests/estimators/test_search.py tests/objectives/test_losses.py tests/data/test_augment.py tests/training/test_model.py \
  tests/training/test_optim.py tests/backbones/test_backbones.py
part 150 floor "$python" -m benchmarks.floor --repeats=3
part 165 rows "$python" -m benchmarks --rows='training/*/256/bfloat16' --cores=0 --output="$out/rows.json"
exit "$status"
