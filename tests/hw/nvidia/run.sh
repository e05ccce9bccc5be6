#!/usr/bin/env bash
# Everything that needs a real NVIDIA GPU, in one command and without a network.
#
#   tests/hw/nvidia/run.sh [OUT] [STEP ..]     steps: probe doctor tests record bench peers (all of them unless named)
#
# OUT (default ./hw-nvidia) receives every output. Python packages that are missing are taken from tests/hw/nvidia/wheels, which
# tests/hw/nvidia/fetch_wheels fills beforehand. $PYTHON names the interpreter, $DEVRT_HW other devices than the machine's own,
# $PEERS options of bench/nvidia.py. To rehearse:
#   DEVRT_HW=virtual:nvidia/sm_90 PEERS="--mib 4 --side 256 --rounds 2" tests/hw/nvidia/run.sh
set -u
cd "$(dirname "$0")/../../.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
out=${1:-hw-nvidia}
shift || true
steps=${*:-probe doctor tests record bench peers}
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} DEVRT_CACHE=${DEVRT_CACHE:-$(mktemp -d)}
if ! "$PYTHON" -c 'import cffi, numpy, yaml, tabulate, llvmlite, pytest, hypothesis' 2>/dev/null; then
  site=$(mktemp -d)
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" tests/hw/nvidia/wheels/*.whl || exit 2
  export PYTHONPATH=$PYTHONPATH:$site
fi
# While somebody has a card open the driver keeps it ready; without, each step would wait seconds for it to start.
if (exec 9<>/dev/nvidia0) 2>/dev/null; then exec 9<>/dev/nvidia0; fi
device=${DEVRT_HW:-nvidia:0}
device=${device%% *}
failed=0
for step in $steps; do
  echo "== $step"
  case $step in
    probe) "$PYTHON" -m tests.hw.nvidia.probe "$device" "$out/probe.json" 2>&1 | tee "$out/probe.txt" ;;
    doctor) "$PYTHON" -m devrt.cli.main doctor --record "$out/doctor.jsonl" --device "$device" 2>&1 | tee "$out/doctor.txt" ;;
    tests) "$PYTHON" -m pytest -q -x --maxfail=20 -p no:cacheprovider tests/hw/nvidia 2>&1 | tee "$out/tests.txt" ;;
    record) "$PYTHON" -m tests.hw.nvidia.record "$device" "$out/run.jsonl" 2>&1 | tee "$out/record.txt" ;;
    bench) "$PYTHON" -m devrt.cli.main bench --quick --device "$device" 2>&1 | tee "$out/bench.txt" ;;
    peers) "$PYTHON" bench/nvidia.py --device "$device" ${PEERS:-} --write --json "$out/peers.json" 2>&1 | tee "$out/peers.txt"
           cp bench/results/*.md "$out" ;;
    *) echo "no such step: $step"; exit 2 ;;
  esac
  [ "${PIPESTATUS[0]}" = 0 ] || { echo "$step: failed"; failed=1; }
done
exit $failed
