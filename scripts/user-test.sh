#!/usr/bin/env bash
# Tests the gateway from a page in headless Chromium, by fetch() from another origin. Starts a stack
# and ends it. Installs Debian's `chromium` if it is missing and the user is root.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v chromium >/dev/null; then
  if [ "$(id -u)" != 0 ]; then
    echo "user-test: chromium is missing: apt-get install chromium" >&2
    exit 1
  fi
  echo "user-test: installing Debian's chromium"
  apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium >/dev/null
fi

integration=${BIN_DIR:-${CARGO_TARGET_DIR:-target}/debug}/integration
work=$(mktemp -d)
cleanup() {
  "$integration" --dir "$work/run" stop >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT
"$integration" --dir "$work/run" stack --detach --any-ports >"$work/stack.txt" || {
  cat "$work/stack.txt" >&2
  exit 1
}
# shellcheck disable=SC1091
. "$work/run/demo.env"

# A file's origin is `null`, so every request is cross-origin, with a preflight if it has a key.
sed -e "s|@URL@|$SQ_URL|" -e "s|@KEY@|$SQ_KEY_ALICE|" scripts/user-test.html >"$work/page.html"
# The browser does not know the development certificate, and pages need a permission for addresses of
# this host. Everything else is as for a user.
timeout 90 chromium --headless=new --no-sandbox --disable-gpu --user-data-dir="$work/profile" \
  --ignore-certificate-errors --disable-features=LocalNetworkAccessChecks \
  --virtual-time-budget=30000 --dump-dom "file://$work/page.html" \
  >"$work/dom.txt" 2>"$work/chromium.txt" || { tail -5 "$work/chromium.txt" >&2; exit 1; }
sed -n 's/.*<pre id="log">\([^<]*\).*/\1/p; /^[a-z].*: \(ok\|FAILED\)/p' "$work/dom.txt" | sort -u
grep -q 'all checks passed' "$work/dom.txt" || { cat "$work/dom.txt" >&2; exit 1; }
