#!/usr/bin/env bash
# A page in headless Chromium talks to the gateway by fetch(), from another origin. Starts a stack of
# its own and ends it. Installs Debian's `chromium` when it is missing and we are root.
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

# A file's origin is `null`: every request is a cross-origin one, with a preflight where it has a key.
sed -e "s|@URL@|$SQ_URL|" -e "s|@KEY@|$SQ_KEY_ALICE|" scripts/user-test.html >"$work/page.html"
# The development certificate is not in the browser's store, and its address is this host's own, which
# pages need a permission for; everything else is as for a user.
timeout 90 chromium --headless=new --no-sandbox --disable-gpu --user-data-dir="$work/profile" \
  --ignore-certificate-errors --disable-features=LocalNetworkAccessChecks --virtual-time-budget=30000 --dump-dom "file://$work/page.html" \
  >"$work/dom.txt" 2>"$work/chromium.txt" || { tail -5 "$work/chromium.txt" >&2; exit 1; }
sed -n 's/.*<pre id="said">\([^<]*\).*/\1/p; /^[a-z].*: \(ok\|FAILED\)/p' "$work/dom.txt" | sort -u
grep -q 'all good' "$work/dom.txt" || { cat "$work/dom.txt" >&2; exit 1; }
