#!/usr/bin/env python3
"""Checks every dependency against deny.toml: licence, source, bans, versions. Needs no network.

Reads the part of cargo-deny's format that the file uses: licenses.allow, bans.deny, bans.skip (as
`crate = "name@version"`), sources.allow-registry. All faults are reported at once.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def packages(targets: list[str]) -> list[dict]:
    """Every package that a build for one of the targets uses, including our own."""
    found = {}
    for target in targets:
        command = ["cargo", "metadata", "--format-version=1", "--locked"]
        out = subprocess.run(
            [*command, f"--filter-platform={target}"], cwd=ROOT, stdout=subprocess.PIPE
        )
        if out.returncode != 0:
            sys.exit("dependency-policy: error: cargo metadata failed: is Cargo.lock up to date?")
        metadata = json.loads(out.stdout)
        used = {node["id"] for node in metadata["resolve"]["nodes"]}
        found |= {p["id"]: p for p in metadata["packages"] if p["id"] in used}
    return list(found.values())


def licence_fits(expression: str, allowed: set[str]) -> bool:
    """Returns whether allowed licences satisfy an SPDX expression."""
    tokens = re.findall(r"[()]|[^\s()/]+|/", expression)

    def either() -> bool:
        fits = both()
        while tokens and tokens[0] in ("OR", "/"):  # "MIT/Apache-2.0" is the old syntax
            tokens.pop(0)
            fits = both() or fits
        return fits

    def both() -> bool:
        fits = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            fits = one() and fits
        return fits

    def one() -> bool:
        token = tokens.pop(0)
        if token == "(":
            fits = either()
            tokens.pop(0)
            return fits
        if tokens and tokens[0] == "WITH":
            tokens.pop(0)
            token = f"{token} WITH {tokens.pop(0)}"
        return token in allowed

    return either()


def check(policy: dict, found: list[dict]) -> list[str]:
    faults = []
    allowed = set(policy["licenses"]["allow"])
    registries = {f"registry+{url}" for url in policy["sources"]["allow-registry"]}
    banned = {entry["crate"]: entry["reason"] for entry in policy["bans"]["deny"]}
    versions = defaultdict(set)
    for package in found:
        name = f"{package['name']} {package['version']}"
        versions[package["name"]].add(package["version"])
        if not package["license"]:
            faults.append(f"{name}: states no licence")
        elif not licence_fits(package["license"], allowed):
            faults.append(f"{name}: licence {package['license']} is not allowed")
        if package["source"] is not None and package["source"] not in registries:
            faults.append(f"{name}: comes from {package['source']}")
        if package["name"] in banned:
            faults.append(f"{name}: banned: {banned[package['name']]}")
    skips = {entry["crate"] for entry in policy["bans"]["skip"]}
    for name, several in sorted(versions.items()):
        left = {v for v in several if f"{name}@{v}" not in skips}
        if len(left) > 1:
            faults.append(f"{name}: several versions: {', '.join(sorted(several))}")
        skips -= {f"{name}@{v}" for v in several if len(several) > 1}
    faults += [f"deny.toml: skip of {entry} is not needed" for entry in sorted(skips)]
    return faults


def main() -> int:
    policy = tomllib.loads((ROOT / "deny.toml").read_text())
    found = packages(policy["graph"]["targets"])
    faults = check(policy, found)
    for fault in faults:
        print(f"dependency-policy: error: {fault}", file=sys.stderr)
    if not faults:
        print(f"dependency-policy: {len(found)} packages: OK")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
