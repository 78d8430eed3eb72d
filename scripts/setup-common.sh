# Shared by setup.sh, images.sh and the script of .ci/. Sourced, never run.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TOOLS=$ROOT/.tools

ENVOY_VERSION=1.40.0
ENVOY_SHA256=a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884
ENVOY_IMAGE=envoyproxy/envoy:v$ENVOY_VERSION
PAUSE_IMAGE=sq-gateway/pause:1
HOST_TARGET=x86_64-unknown-linux-gnu
SQ_VERSIONS=(0.6.0 0.5.0)
# docs/sq.md describes how the versions in between differ.
case ${SQ_VERSION:-0.6.0} in 0.6.0 | 0.5.0) ;; *) SQ_VERSIONS+=("$SQ_VERSION") ;; esac

SCRATCH=
say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }
clean_up() { if [ -n "$SCRATCH" ]; then rm -rf "$SCRATCH"; fi; }

# Creates one scratch folder per run, on first use; its path is in SCRATCH.
scratch() { [ -n "$SCRATCH" ] || SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/sq-gateway-setup.XXXXXX"); }

# Runs a command quietly. Shows the end of its output if it fails.
quietly() {
  scratch
  "$@" >"$SCRATCH/log" 2>&1 || { tail -n 15 "$SCRATCH/log" >&2; return 1; }
}

# Whether the active rustc can link a library that uses std for target $1.
target_works() {
  scratch
  printf '#[unsafe(no_mangle)] pub extern "C" fn f(n: u32) -> usize { format!("{n}").len() }\n' \
    >"$SCRATCH/probe.rs"
  rustc --target "$1" --crate-type cdylib --edition 2024 -O -C lto=fat -o "$SCRATCH/probe.wasm" \
    "$SCRATCH/probe.rs" >/dev/null 2>&1
}

# Whether $1 is an Envoy of the pinned version that runs on this machine. The whole output is read
# before it is searched: `envoy --version | grep -q` fails at random under pipefail, because grep
# leaves early and Envoy then dies of SIGPIPE.
envoy_works() {
  local version
  version=$("$1" --version 2>/dev/null) || return 1
  [[ $version == */$ENVOY_VERSION/* ]]
}

docker_answers() { timeout 5 docker version --format '{{.Server.Version}}' 2>/dev/null; }
have_image() { docker image inspect "$1" >/dev/null 2>&1; }

# Turns folder $1 into image $2 that holds nothing else. The other arguments are `--change`
# instructions.
import_image() {
  local dir=$1 image=$2 change
  local -a changes=(--change "LABEL sq-gateway.built-here=true")
  shift 2
  for change in "$@"; do changes+=(--change "$change"); done
  tar -C "$dir" --owner=0 --group=0 --numeric-owner -c . |
    quietly docker import "${changes[@]}" - "$image" || die "Docker cannot import $image"
  say "built image $image"
}

# The sources of release $1 of SQ, in $SCRATCH/vendor/sq.
sq_source() {
  scratch
  rm -rf "$SCRATCH/vendor"
  mkdir -p "$SCRATCH/src"
  touch "$SCRATCH/src/lib.rs"
  printf '%s\n' '[package]' 'name = "sources"' 'edition = "2024"' '[dependencies]' "sq = \"=$1\"" \
    >"$SCRATCH/Cargo.toml"
  quietly cargo vendor --quiet --manifest-path "$SCRATCH/Cargo.toml" "$SCRATCH/vendor" ||
    die "cargo cannot fetch SQ $1: is crates.io reachable?"
}
