#!/usr/bin/env bash
# Validates each configuration of envoy/ with the pinned Envoy and the real filter. Envoy loads the
# module and passes it its configuration, so a fault in either is found.
#
# openssl makes throw-away certificates. (sds/server.yaml belongs to the listener and is read only by an
# Envoy that serves.)
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ENVOY=${ENVOY:-$ROOT/.tools/envoy}
FILTER=${FILTER:-$ROOT/target/filter.wasm}
die() { printf 'envoy-validate: error: %s\n' "$*" >&2; exit 1; }

[ -x "$ENVOY" ] || die "$ENVOY is missing: run 'make setup'"
[ -s "$FILTER" ] || die "$FILTER is missing: run 'make wasm'"

home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
mkdir -p "$home/tls" "$home/sds"
cp "$FILTER" "$home/filter.wasm"
for file in "$ROOT"/envoy/*.yaml "$ROOT"/envoy/sds/*.yaml; do
  copy=$home/${file#"$ROOT"/envoy/}
  sed "s#/etc/sq-gateway#$home#g" "$file" >"$copy"
done

command -v openssl >/dev/null || die "openssl is missing; it is needed to check envoy/sds/"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 \
  -subj /CN=localhost -keyout "$home/tls/server.key" -out "$home/tls/server.pem" 2>/dev/null
cp "$home/tls/server.key" "$home/tls/relay-client.key"
cp "$home/tls/server.pem" "$home/tls/relay-client.pem"
cp "$home/tls/server.pem" "$home/tls/relay-ca.pem"

for name in bootstrap standalone ratelimit; do
  SQ_ALICE_KEY=unused "$ENVOY" --mode validate --log-level warning -c "$home/$name.yaml" \
    >"$home/log" 2>&1 || { grep -v '\[info\]' "$home/log" >&2; die "envoy/$name.yaml is refused"; }
  # For Envoy, a secret's file that does not parse is only a warning.
  if grep -q 'update rejected' "$home/log"; then
    grep 'update rejected' "$home/log" >&2
    die "envoy/sds/ is refused"
  fi
  echo "envoy/$name.yaml: OK"
done
