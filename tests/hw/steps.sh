# Steps of a run on a real card, for the vendors' scripts to source: each has a limit, writes what it says as it says it, and
# may fail without keeping later ones from running.
#
# A caller sets `out`, a folder, and `most`, seconds for everything. $PATIENCE multiplies all limits, to rehearse on virtual GPUs.
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
PATIENCE=${PATIENCE:-1}
export PYTHON PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} DEVRT_CACHE=${DEVRT_CACHE:-$(mktemp -d)}
failed=0

# step NAME SECONDS COMMAND ..: what it prints is also in $out/NAME.txt. An interrupt at the limit lets pytest tell what failed so far.
step() {
  local name=$1 limit=$(($2 * PATIENCE)) left=$((most * PATIENCE - SECONDS)) status
  shift 2
  [ "$limit" -lt "$left" ] || limit=$left
  echo "== $name"
  if [ "$limit" -lt 5 ]; then
    echo "$name: not begun, the $((most * PATIENCE)) s of this run are over" | tee "$out/$name.txt"
    failed=1
    return 1
  fi
  timeout -s INT -k 20 "$limit" "$@" 2>&1 | tee "$out/$name.txt"
  status=${PIPESTATUS[0]}
  [ "$status" != 124 ] && [ "$status" != 137 ] || echo "$name: ended after its $limit s" | tee -a "$out/$name.txt"
  [ "$status" = 0 ] || { echo "$name: failed"; failed=1; }
  return "$status"
}

# A test that hangs is ended by tests/hw/conftest.py, or says where after a minute, long before its step ends.
tests=("$PYTHON" -m pytest -v --tb=short --maxfail=20 -p no:cacheprovider -o faulthandler_timeout=$((60 * PATIENCE)))
