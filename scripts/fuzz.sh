#!/usr/bin/env bash
# Runs every target of gate/fuzz for FUZZ_SECONDS (default 20), starting from its saved corpus.
# usage: fuzz.sh [TARGET...]
#
# The stable compiler can add the coverage counters that libFuzzer needs, so neither cargo-fuzz nor
# nightly is required. The gate has no unsafe code that an address sanitizer could check.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../gate/fuzz"
HOST_TARGET=x86_64-unknown-linux-gnu
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
  -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing"

# A separate folder, because the flags would invalidate other builds. With --target they do not apply to
# build scripts.
RUSTFLAGS=$(tr -s '\n ' ' ' <<<"$coverage") \
  cargo build --release --bins --target "$HOST_TARGET" --target-dir target

[ $# -gt 0 ] || set -- $(cd fuzz_targets && printf '%s\n' *.rs | sed 's/\.rs$//')
for target in "$@"; do
  mkdir -p "corpus/$target" "artifacts/$target"
  echo "fuzz: $target for ${FUZZ_SECONDS:-20} s"
  "target/$HOST_TARGET/release/$target" -max_total_time="${FUZZ_SECONDS:-20}" -max_len=4096 \
    -verbosity=0 -print_final_stats=1 -artifact_prefix="artifacts/$target/" "corpus/$target"
done
