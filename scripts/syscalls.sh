#!/usr/bin/env bash
# Records the system calls of every SQ that the end-to-end tests start, and compares them with the
# seccomp profile of containers. Tenants run as processes, under strace, which must be installed.
#
#   scripts/syscalls.sh [TEST]      part of the names of tests; without: all
#
# SQ_VERSION chooses the version; tests of other versions are recorded as well. Prints how often SQ
# made each call, and exits with 1 if the profile lacks one. The traces are in target/syscalls.
# Tests that measure time, or wait until a tenant dozes, fail: a traced process is slow, and never
# counts as stopped.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PROFILE=orchestrator/src/runtime/docker/seccomp.json
export SQ_VERSION=${SQ_VERSION:-0.6.0}
TRACES=target/syscalls/$SQ_VERSION
TOOLS=$(realpath .tools)

strace --version >/dev/null || { echo "syscalls: install strace" >&2; exit 1; }
rm -rf "$TRACES"
mkdir -p "$TRACES"
# Tenants have other users, who write the traces and must reach the wrappers.
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
chmod 755 "$SCRATCH"
mkdir -m 1777 "$SCRATCH/traces"
mkdir "$SCRATCH/tools"

# The tracer is a grandchild of its own tracee, which keeps the process id that the orchestrator
# knows. SQ's arguments go through a file, or the tracer's command line would look like an SQ.
wrap() {
  local folder=$SCRATCH/tools/$1
  mkdir -p "$folder/bin"
  cat >"$folder/bin/sq" <<END
#!/bin/sh
arguments=\$(mktemp "$SCRATCH/traces/arguments.XXXXXX")
for argument in "\$@"; do echo "\$argument"; done >"\$arguments"
exec strace -D -f -qq -s 0 -e signal=none -o "$SCRATCH/traces/trace.\$\$" \
  /bin/sh "$folder/become-sq" "\$arguments"
END
  cat >"$folder/become-sq" <<END
file=\$1
set --
while read -r argument; do set -- "\$@" "\$argument"; done <"\$file"
exec "$TOOLS/$1/bin/sq" "\$@"
END
  chmod 755 "$folder/bin/sq"
}

for tool in "$TOOLS"/*; do
  case ${tool##*/} in
    sq-*) wrap "${tool##*/}" ;;
    *) ln -s "$tool" "$SCRATCH/tools/" ;;
  esac
done

status=0
RUNTIME=process TOOLS_DIR=$SCRATCH/tools BIN_DIR=$PWD/target/debug \
  cargo test --features integration/containers --test end_to_end -- "$@" || status=$?
mv "$SCRATCH"/traces/trace.* "$TRACES/"
echo "syscalls: $(ls "$TRACES" | wc -l) runs of SQ; the tests ended with $status"

# From the moment on in which the process has become SQ.
awk -v sq="execve(\"$TOOLS/sq-" '
  FNR == 1 { version = "" }
  i = index($0, sq) { split(substr($0, i + length(sq)), words, "/"); version = words[1] }
  version != "" && match($0, /^[0-9]+ +[a-z_0-9]+\(/) {
    call = substr($0, 1, RLENGTH - 1)
    sub(/^[0-9]+ +/, "", call)
    count[version " " call]++
  }
  END { for (call in count) print call, count[call] }
' "$TRACES"/trace.* | sort -k 1,1 -k 3nr | tee "$TRACES/calls"

python3 - "$PROFILE" "$TRACES/calls" <<'END'
import json, sys
profile = json.load(open(sys.argv[1]))
listed = {name for rule in profile["syscalls"] for name in rule["names"]}
missing = {line.split()[1] for line in open(sys.argv[2])} - listed
if missing:
    sys.exit(f"syscalls: {sys.argv[1]} lacks {', '.join(sorted(missing))}")
print(f"syscalls: {sys.argv[1]} has all of them")
END
