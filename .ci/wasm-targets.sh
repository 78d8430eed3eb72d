#!/usr/bin/env bash
# Installs std for wasm targets where rustup's server cannot be reached: builds it once with the
# active compiler from Debian's rust-src of the same version.
#
#   .ci/wasm-targets.sh TARGET...
#
# The result lies in the toolchain's sysroot, where rustup would have put it. Takes about two
# minutes on two cores. Needs a Debian machine; its package sources stay as they are.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup-common.sh

# Configures an apt with folders and lists separate from the machine's. Signatures are checked as
# usual. Leaves its options in APT.
private_apt() {
  local dir=$SCRATCH/apt key=/usr/share/keyrings/debian-archive-keyring.gpg mirror suite
  command -v apt-get >/dev/null && [ -e "$key" ] || die "this is not a Debian machine"
  mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true; } |
    awk '!/^#/ && !found && match($0, "https?://[^ ]+/debian/?( |$)") {
      found = substr($0, RSTART, RLENGTH); sub(" $", "", found) } END { print found }')
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
  version=$(apt-cache "${APT[@]}" madison "$1" | awk -F' *[|] *' '{print $2}' | sort -V |
    awk -v prefix="$2" 'index($0, prefix) == 1 { newest = $0 } END { print newest }')
  [ -n "$version" ] || return 1
  mkdir -p "$SCRATCH/deb" "$3"
  (cd "$SCRATCH/deb" && quietly apt-get "${APT[@]}" download -qq "$1=$version") || return 1
  dpkg -x "$SCRATCH/deb/$1"_*.deb "$3"
}

# Bitcode in the rlibs, or fat LTO of the filter fails; no scratch paths in panic messages.
build_std() {
  local target=$1 version=$2 source=$3
  quietly env -u CARGO_ENCODED_RUSTFLAGS -u RUSTC_WRAPPER RUSTC_BOOTSTRAP=1 \
    RUSTFLAGS="-Cembed-bitcode=yes -Cdebuginfo=0 --remap-path-prefix=$source=/rustc/$version" \
    __CARGO_TESTS_ONLY_SRC_ROOT="$source/library" \
    cargo build --release --target "$target" --manifest-path "$SCRATCH/seed/Cargo.toml" \
    --target-dir "$SCRATCH/std" -Zbuild-std=std,panic_abort,test
}

# Moves what build_std made for target $1 into the sysroot.
install_std() {
  local target=$1 new
  new=$SYSROOT/lib/rustlib/.new-$target
  rm -rf "$new"
  mkdir -p "$new/lib/self-contained"
  cp "$SCRATCH/std/$target/release/deps/"lib*.rlib "$new/lib/"
  rm -f "$new"/lib/libseed-*
  case $target in
    *wasi*) # rustc looks for WASI's libc and start files here
      find "$SCRATCH/wasi" \( -name libc.a -o -name 'crt1-command.o' -o -name 'crt1-reactor.o' \) \
        -path '*/wasm32-wasi/*' -exec cp {} "$new/lib/self-contained/" \; ;;
  esac
  rm -rf "$SYSROOT/lib/rustlib/$target"
  mv "$new" "$SYSROOT/lib/rustlib/$target"
}

trap clean_up EXIT
[ $# -gt 0 ] || die "name at least one target"
scratch
VERSION=$(rustc -vV | sed -n 's/^release: //p')
SYSROOT=$(rustc --print sysroot)
private_apt
unpack_deb rust-src "$VERSION+" "$SCRATCH/src" || die "Debian has no rust-src $VERSION"
unpack_deb wasi-libc "" "$SCRATCH/wasi" || die "cannot fetch Debian's wasi-libc: try again"
source=$(echo "$SCRATCH"/src/usr/src/rustc-*)
mkdir -p "$SCRATCH/seed/src"
: >"$SCRATCH/seed/src/lib.rs"
cat >"$SCRATCH/seed/Cargo.toml" <<'TOML'
[package]
name = "seed"
version = "0.0.0"
edition = "2024"
[workspace]
[profile.release]
panic = "abort"
TOML
for target in "$@"; do
  say "building std $VERSION for $target from Debian's sources (about a minute)"
  build_std "$target" "$VERSION" "$source" || die "std does not build for $target"
  install_std "$target"
done
