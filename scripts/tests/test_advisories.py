"""scripts/advisories.sh never passes without having checked. cargo-audit is replaced by a script."""

import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


class Advisories(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.project = Path(folder.name)
        (self.project / "scripts").mkdir()
        for name in ["advisories.sh", "advisories.accepted", "setup-common.sh", "sq-0.5.0.lock"]:
            shutil.copy(ROOT / "scripts" / name, self.project / "scripts")
        # No release whose sources would have to be fetched.
        common = self.project / "scripts/setup-common.sh"
        common.write_text(common.read_text().replace("SQ_VERSIONS=(0.6.0 0.5.0)", "SQ_VERSIONS=(0.5.0)"))
        self.database = self.project / "database"
        (self.database / "crates").mkdir(parents=True)
        self.calls = self.project / "calls"

    def cargo_audit(self, outcome: str):
        program = self.project / ".tools/cargo-audit/bin/cargo-audit"
        program.parent.mkdir(parents=True)
        program.write_text(
            "#!/usr/bin/env bash\n"
            '[ "$1" != --version ] || { echo "cargo-audit 0.22.2"; exit; }\n'
            f'echo "$*" >>{self.calls}\n{outcome}\n'
        )
        program.chmod(0o755)

    def run_script(self, database: Path) -> subprocess.CompletedProcess:
        env = os.environ | {"ADVISORY_DB": str(database)}
        script = self.project / "scripts/advisories.sh"
        return subprocess.run([script], env=env, capture_output=True, text=True, check=False)

    def test_every_lock_file_is_checked(self):
        self.cargo_audit("exit 0")
        run = self.run_script(self.database)
        self.assertEqual(run.returncode, 0, run.stderr)
        calls = self.calls.read_text()
        for lock in ["--file Cargo.lock", "--file fuzz/Cargo.lock", "--file scripts/sq-0.5.0.lock"]:
            self.assertIn(lock, calls)

    def test_one_advisory_fails_after_all_were_checked(self):
        self.cargo_audit("case $* in *fuzz*) exit 1 ;; esac")
        self.assertEqual(self.run_script(self.database).returncode, 1)
        self.assertEqual(len(self.calls.read_text().splitlines()), 3)

    def test_accepted_advisories_are_ignored_in_their_lock_file_only(self):
        self.cargo_audit("exit 0")
        accepted = self.project / "scripts/advisories.accepted"
        accepted.write_text("# comment\nRUSTSEC-2026-0001 Cargo.lock never called\n")
        self.assertIn("never called", self.run_script(self.database).stdout)
        ignoring = [c for c in self.calls.read_text().splitlines() if "RUSTSEC-2026-0001" in c]
        self.assertEqual(len(ignoring), 1)
        self.assertIn("--file Cargo.lock", ignoring[0])

    def test_without_a_database_nothing_passes(self):
        self.cargo_audit("exit 0")
        run = self.run_script(self.project / "none")
        self.assertEqual(run.returncode, 2)
        self.assertIn("not checked", run.stderr)


if __name__ == "__main__":
    unittest.main()
