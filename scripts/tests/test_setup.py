"""The checks of scripts/setup.sh give the same result every time. Needs .tools/envoy."""

import os
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TRIES = 100


def bash(script: str, *args: str) -> subprocess.CompletedProcess:
    command = f"set -euo pipefail; cd {ROOT}; . scripts/setup-common.sh; {script}"
    return subprocess.run(["bash", "-c", command, "bash", *args], capture_output=True, text=True)


class EnvoyCheck(unittest.TestCase):
    def fake_envoy(self, folder: str, text: str) -> str:
        path = Path(folder) / "envoy"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    def test_pinned_envoy_passes_a_hundred_times(self):
        run = bash(f"for i in $(seq {TRIES}); do envoy_works .tools/envoy; done")
        self.assertEqual(run.returncode, 0, run.stderr)

    def test_envoy_that_goes_on_writing_passes(self):
        """A reader that leaves at the first match would kill this one every time."""
        with tempfile.TemporaryDirectory() as folder:
            envoy = self.fake_envoy(folder, "echo envoy /1.40.0/; exec head -c 1000000 /dev/zero")
            self.assertEqual(bash('envoy_works "$1" 2>/dev/null', envoy).returncode, 0)

    def test_other_version_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            envoy = self.fake_envoy(folder, "echo envoy version: x/1.39.0/Clean")
            self.assertNotEqual(bash('envoy_works "$1"', envoy).returncode, 0)

    def test_envoy_that_does_not_run_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            envoy = self.fake_envoy(folder, "echo envoy /1.40.0/; exit 1")
            self.assertNotEqual(bash('envoy_works "$1"', envoy).returncode, 0)
            self.assertNotEqual(bash('envoy_works "$1"', os.path.join(folder, "none")).returncode, 0)


class Steps(unittest.TestCase):
    def test_unknown_step_is_refused(self):
        run = subprocess.run(
            [ROOT / "scripts/setup.sh", "envoi"], capture_output=True, text=True, check=False
        )
        self.assertEqual(run.returncode, 1)
        self.assertIn("unknown step 'envoi'; the steps are: wasm envoy sq", run.stderr)


if __name__ == "__main__":
    unittest.main()
