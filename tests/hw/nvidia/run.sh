#!/usr/bin/env bash
# Everything that needs a real NVIDIA GPU, in one command and without a network, in less than ten minutes.
#
#   tests/hw/nvidia/run.sh [OUT] [STEP ..]     steps: probe doctor record tests bench peers (all of them unless named)
#
# OUT (default ./hw-nvidia) receives every output, as it comes. Python packages that are missing are taken from
# tests/hw/nvidia/wheels, which tests/hw/nvidia/fetch_wheels fills beforehand. $PYTHON names the interpreter, $DEVRT_HW other
# devices than the machine's own, $PEERS options of bench/nvidia.py, $PATIENCE a factor for all limits. To rehearse:
#   DEVRT_HW=virtual:nvidia/sm_90 PATIENCE=5 PEERS="--mib 4 --side 256 --rounds 2" tests/hw/nvidia/run.sh
#   PATIENCE=5 PEERS=".." devrt virtual exec nvidia/sm_90 -- tests/hw/nvidia/run.sh     through the real system calls
set -u
cd "$(dirname "$0")/../../.."
out=${1:-hw-nvidia}
shift || true
steps=${*:-probe doctor record tests bench peers}
most=570
mkdir -p "$out"
. tests/hw/steps.sh
if ! "$PYTHON" -c 'import cffi, numpy, yaml, tabulate, llvmlite, pytest, hypothesis' 2>/dev/null; then
  site=$(mktemp -d)
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --find-links tests/hw/nvidia/wheels --target "$site" \
    -r tests/hw/nvidia/packages.txt || exit 2
  export PYTHONPATH=$PYTHONPATH:$site
fi
device=${DEVRT_HW:-nvidia:0}
device=${device%% *}

# While somebody has a card open the driver keeps it ready; without, each step would wait seconds for it to start. One that went
# wrong is let go, so that the driver can start it anew. The probe does both by itself.
hold() { if (exec 9<>/dev/nvidia0) 2>/dev/null; then exec 9<>/dev/nvidia0; fi; }
release() { exec 9>&-; }

for one in $steps; do
  [ "$one" = probe ] && release || hold
  case $one in
    probe) step probe 210 "$PYTHON" -m tests.hw.nvidia.probe "$device" "$out/probe.json" ;;
    doctor) step doctor 45 "$PYTHON" -m devrt.cli.main doctor --record "$out/doctor.jsonl" --device "$device" ;;
    record) step record 45 "$PYTHON" -m tests.hw.nvidia.record "$device" "$out/run.jsonl" ;;
    tests) step tests 240 "${tests[@]}" tests/hw/nvidia ;;
    bench) step bench 100 "$PYTHON" -m devrt.cli.main bench --quick --device "$device" ;;
    peers) step peers 200 "$PYTHON" bench/nvidia.py --device "$device" ${PEERS:-} --write "$out" ;;
    *) echo "no such step: $one"; exit 2 ;;
  esac || release
done
exit $failed
