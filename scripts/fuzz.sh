#!/usr/bin/env bash
# Runs fuzz targets of fuzz/ for FUZZ_SECONDS each (default 20), starting from the committed corpus and
# from what earlier runs have found. A crash ends the run with 1 and names the input that caused it.
# usage: fuzz.sh [--jobs N] [TARGET...]     N targets run at the same time; default: all, one by one
#
# The stable compiler can add the coverage counters that libFuzzer needs, so neither cargo-fuzz nor
# nightly is required. No address sanitizer: the code has no unsafe blocks that it could check.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../fuzz"
HOST_TARGET=x86_64-unknown-linux-gnu
SECONDS_EACH=${FUZZ_SECONDS:-20}
jobs=1
if [ "${1:-}" = --jobs ]; then
  jobs=${2:?--jobs needs a number}
  shift 2
fi
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
  -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"

# A separate folder, because the flags would invalidate other builds. With --target they do not apply to
# build scripts.
RUSTFLAGS=$(tr -s '\n ' ' ' <<<"$coverage") \
  cargo build --locked --release --bins --target "$HOST_TARGET" --target-dir target

# Runs one target, and prints its log if it fails.
run() {
  local target=$1 log status=0
  log=$(mktemp)
  mkdir -p "corpus/$target" "found/$target" "artifacts/$target"
  "target/$HOST_TARGET/release/$target" -max_total_time="$SECONDS_EACH" -max_len=4096 \
    -rss_limit_mb=1024 -timeout=10 -verbosity=0 -print_final_stats=1 \
    -artifact_prefix="artifacts/$target/" "found/$target" "corpus/$target" >"$log" 2>&1 || status=$?
  if [ "$status" != 0 ]; then
    cat "$log"
    echo "fuzz: $target failed; repeat it with: fuzz/target/$HOST_TARGET/release/$target FILE," \
      "with a file of fuzz/artifacts/$target/"
  else
    echo "fuzz: $target: $(awk '/number_of_executed_units/ { print $2 }' "$log") inputs in" \
      "$SECONDS_EACH s"
  fi
  rm -f "$log"
  return "$status"
}

[ $# -gt 0 ] || set -- $(cd fuzz_targets && printf '%s\n' *.rs | sed 's/\.rs$//')
failed=0
running=0
for target; do
  if [ "$running" -ge "$jobs" ]; then
    wait -n || failed=1
    running=$((running - 1))
  fi
  run "$target" &
  running=$((running + 1))
done
while [ "$running" -gt 0 ]; do
  wait -n || failed=1
  running=$((running - 1))
done
exit "$failed"
