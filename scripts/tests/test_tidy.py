"""Each rule of scripts/tidy.py fires on a text that breaks it and passes one that does not."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(SCRIPTS))
import tidy  # noqa: E402

GLOSSARY = """# Glossary

## Parts

| term | meaning |
|---|---|
| relay | The ranch's server. |

## Words that are not used

| not | but |
|---|---|
| slot, hold | permit |
"""


class Tidy(unittest.TestCase):
    def broken(self, **texts: str) -> dict[str, list[str]]:
        """The rules that a tree with these files breaks. `__` in a name stands for `/`."""
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "GLOSSARY.md").write_text(GLOSSARY)
            (root / "ARCHITECTURE.md").write_text("# Architecture\n")
            for name, text in texts.items():
                path = root / name.replace("__", "/").replace("_dot_", ".")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            found = tidy.check(root)
            return {name: rule.places for name, rule in found.items() if not rule.holds()}

    def assert_breaks(self, rule: str, **texts: str) -> None:
        self.assertEqual(list(self.broken(**texts)), [rule])

    def assert_tidy(self, **texts: str) -> None:
        self.assertEqual(self.broken(**texts), {})

    def test_plain_sources_are_tidy(self):
        self.assert_tidy(
            src__lib_dot_rs="/// Rate-limits verification of unknown keys.\npub struct Limiter;\n",
            docs__a_dot_md="# A\n\n*For operators: how it is set up.*\n\nSee [the lib](../src/lib.rs).\n",
        )

    def test_doc_comment_that_opens_like_an_answer(self):
        self.assert_breaks("opening", a_dot_rs="/// Whom to wake first of all.\nfn a() {}\n")

    def test_fragment_as_doc_comment(self):
        self.assert_breaks("fragment", a_dot_rs="/// Its tier.\nfn a() {}\n")

    def test_each_turn_of_phrase_is_found(self):
        for text in ("nobody waits", "the askers", "read anew", "a life of a VM", "is to be done"):
            self.assert_breaks("dialect", a_dot_rs=f"// In this case {text}.\nfn a() {{}}\n")

    def test_tuple_let(self):
        self.assert_breaks("tuple", a_dot_rs="fn a() {\n    let (b, c) = (1, 2);\n}\n")

    def test_destructured_value_is_no_tuple_let(self):
        self.assert_tidy(a_dot_rs="fn a() {\n    let (b, c) = pair();\n}\n")

    def test_long_test_name(self):
        long = "a_" * 10 + "b"
        self.assert_breaks("test-name", a_dot_rs=f"#[test]\nfn {long}() {{}}\n")

    def test_file_that_does_not_exist(self):
        self.assert_breaks("file", a_dot_rs="// The rules stand in `gone.rs`, as before.\nfn a() {}\n")
        self.assert_breaks("file", README_dot_md="See `src/gone.rs`.\n")

    def test_dead_link_and_dead_anchor(self):
        self.assert_breaks("link", README_dot_md="[map](GONE.md)\n")
        self.assert_breaks("link", README_dot_md="# A\n\n[map](#b)\n")
        self.assert_tidy(README_dot_md="# The map\n\n[map](#the-map)\n")

    def test_wide_line(self):
        self.assert_breaks("width", README_dot_md="word " * 30 + "\n")
        self.assert_tidy(README_dot_md="| " + "word " * 30 + "|\n```\n" + "word " * 30 + "\n```\n")

    def test_page_without_reader(self):
        self.assert_breaks("page", docs__a_dot_md="# A\n\nText.\n")

    def test_refused_word_in_public_type(self):
        self.assert_breaks("glossary", a_dot_rs="/// One of the start permits.\npub struct StartSlot;\n")

    def test_public_type_defined_twice(self):
        self.assert_breaks("glossary", a_dot_rs="pub struct Row;\n", b_dot_rs="pub enum Row {}\n")
        self.assert_tidy(
            a__Cargo_dot_toml="", a__src__lib_dot_rs="pub struct Row;\n",
            b__Cargo_dot_toml="", b__src__lib_dot_rs="pub struct Row;\n",
        )

    def test_early_leaving_reader(self):
        for reader in ("grep -q x", "grep -m1 x", "head -n 1", "sed 5q", "awk '{ print; exit }'"):
            self.assert_breaks("pipe", a_dot_sh=f"producer | {reader}\n")
        self.assert_tidy(a_dot_sh="grep -q x file\nproducer | awk '{ n++ } END { print n }'\n")

    def test_long_architecture(self):
        self.assert_breaks("architecture", ARCHITECTURE_dot_md="line\n" * 151)

    def test_exit_code_and_listing(self):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "GLOSSARY.md").write_text(GLOSSARY)
            (Path(folder) / "ARCHITECTURE.md").write_text("# Architecture\n")
            (Path(folder) / "a.rs").write_text("fn a() {\n    let (b, c) = (1, 2);\n}\n")
            run = [sys.executable, SCRIPTS / "tidy.py", folder]
            whole = subprocess.run(run, capture_output=True, text=True)
            self.assertEqual(whole.returncode, 1)
            self.assertIn("tuple", whole.stdout)
            listed = subprocess.run([*run, "--list", "tuple"], capture_output=True, text=True)
            self.assertEqual((listed.returncode, listed.stdout[:5]), (0, "a.rs:"))


if __name__ == "__main__":
    unittest.main()
