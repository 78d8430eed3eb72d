#!/usr/bin/env bash
# Builds Docker images of Envoy and SQ from the programs that
# scripts/setup.sh has put into .tools/.
#
#   scripts/images.sh IMAGE...
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup-common.sh

# Laid out like the published image: /exo/sq, working directory /exo.
build_sq() {
  local version=$1 dir=$SCRATCH/sq-$1
  install -D -m 755 "$TOOLS/sq-$version/bin/sq" "$dir/exo/sq"
  mkdir -p "$dir/data"
  import_image "$dir" "wbic16/sq:$version" "WORKDIR /exo" 'CMD ["./sq", "host", "1337"]' \
    "EXPOSE 1337"
}

# The wheel's Envoy with the libraries that it links to. Arguments that begin with a dash mean the
# same as in the published image; that one also changes to user 101, this one stays root.
build_envoy() {
  local dir=$SCRATCH/envoy library
  install -D -m 755 "$TOOLS/envoy" "$dir/usr/local/bin/envoy"
  for library in $(ldd "$TOOLS/envoy" | grep -oE '/[^ ]+'); do
    install -D -m 755 "$library" "$dir$library"
  done
  mkdir -m 1777 "$dir/tmp"
  import_image "$dir" "$ENVOY_IMAGE" 'ENTRYPOINT ["/usr/local/bin/envoy"]' \
    'CMD ["-c", "/etc/envoy/envoy.yaml"]'
}

trap clean_up EXIT
[ $# -gt 0 ] || die "name at least one image"
scratch
for image in "$@"; do
  case $image in
    wbic16/sq:*) build_sq "${image#wbic16/sq:}" ;;
    "$ENVOY_IMAGE") build_envoy ;;
    *) die "$image: there is no recipe for this image" ;;
  esac
done
