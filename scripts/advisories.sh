#!/usr/bin/env bash
# Compares every lock file that this product is built from with the RustSec advisory database. Fails
# loudly without a database: a check that did not run must not look like one that passed.
#
#   scripts/advisories.sh
#
#   ADVISORY_DB=FOLDER   a clone of https://github.com/rustsec/advisory-db, for a machine that cannot
#                        fetch it
#
# Exit codes: 0 nothing but what scripts/advisories.accepted lists; 1 an advisory; 2 not checked
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup-common.sh

CARGO_AUDIT_VERSION=0.22.2
ACCEPTED=scripts/advisories.accepted
AUDIT=$TOOLS/cargo-audit/bin/cargo-audit

not_checked() { printf 'advisories: not checked: %s\n' "$*" >&2; exit 2; }

install_cargo_audit() {
  local installed
  installed=$("$AUDIT" --version 2>/dev/null) || installed=none
  [[ $installed != *" $CARGO_AUDIT_VERSION" ]] || return 0
  echo "advisories: building cargo-audit $CARGO_AUDIT_VERSION (a few minutes)" >&2
  quietly cargo install cargo-audit --locked --version "=$CARGO_AUDIT_VERSION" \
    --root "$TOOLS/cargo-audit" --force || not_checked "cargo-audit does not build"
}

# Sets DATABASE to a clone, made or brought up to date if none is given.
find_database() {
  DATABASE=${ADVISORY_DB:-$TOOLS/advisory-db}
  if [ -n "${ADVISORY_DB:-}" ]; then
    [ -d "$DATABASE/crates" ] ||
      not_checked "ADVISORY_DB=$ADVISORY_DB is no clone of https://github.com/rustsec/advisory-db"
  elif [ -d "$DATABASE/.git" ]; then
    git -C "$DATABASE" pull --quiet --ff-only || not_checked "the database cannot be brought up to date"
  else
    git clone --quiet --depth 1 https://github.com/rustsec/advisory-db "$DATABASE" ||
      not_checked "the database cannot be fetched; name a clone: ADVISORY_DB=FOLDER make advisories"
  fi
  echo "advisories: database of $(git -C "$DATABASE" log -1 --format=%cs 2>/dev/null || echo unknown)"
}

# Checks lock file $2, which is called $1.
check() {
  local name=$1 lock=$2 id file reason
  local -a ignored=()
  while read -r id file reason; do
    [ "$file" = "$name" ] || continue
    ignored+=(--ignore "$id")
    echo "advisories: $name: $id is accepted: $reason"
  done < <(grep -v '^#' "$ACCEPTED")
  echo "advisories: $name"
  "$AUDIT" audit --db "$DATABASE" --no-fetch --stale --quiet --deny unsound --deny yanked \
    --file "$lock" ${ignored[@]+"${ignored[@]}"} || found=1
}

trap clean_up EXIT
found=0
install_cargo_audit
find_database
check Cargo.lock Cargo.lock
check fuzz/Cargo.lock fuzz/Cargo.lock
for version in "${SQ_VERSIONS[@]}"; do
  lock=scripts/sq-$version.lock
  if [ ! -e "$lock" ]; then
    sq_source "$version"
    lock=$SCRATCH/vendor/sq/Cargo.lock
  fi
  check "sq-$version" "$lock"
done
exit $found
