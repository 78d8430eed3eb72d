#!/usr/bin/env python3
"""Checks how the sources and docs read. `make tidy` runs it.

usage: tidy.py [--list RULE] [DIR]

Prints each rule with its figure and its bound; with --list, the places that one rule counts. Exits
with 1 if a rule is broken. What each rule is for stands beside it in RULES.
"""

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SKIPPED = {"target", ".git", ".tools", "run", "corpus", "artifacts"}
WIDTH = 100
ARCHITECTURE_LINES = 150

# A doc comment is a sentence or a noun phrase. One that opens like this answers an unasked question.
RIDDLE_OPENING = re.compile(
    r"^(What|Who|Whom|Whose|Whether|Which|Where|When|Why|How|As|So|That|One that|Those|Nothing)\b"
)
# Turns of phrase that a reader has to decode, with what to write instead.
DIALECT = {
    r"\b(nobody|somebody)\b": "no one is meant: name the part, or write 'no tenant', 'no client'",
    r"\bwho(m)?ever\b": "name the part",
    r"\btold\b": "informed, notified, or name the message",
    r"\baskers?\b": "client or waiter",
    r"\banew\b": "again",
    r"\bmeanwhile\b": "in the meantime, or name the interval",
    r"\bso (many|much|long|often)\b": "give the number",
    r"\b(by itself|of (its|their|his) own)\b": "on its own, automatically, or leave it out",
    r"\b(life|lives)\b": "run, instance, or lifetime of a value",
    r"\ball the same\b": "nevertheless",
    r"\bas dear\b": "O(n), as expensive",
    r"\b(is|are) to be\b": "must be, is",
    r"\bwhat (is|was|has|came|comes|becomes)\b": "name it",
}
TUPLE_LET = re.compile(r"^\s*let \((?:mut )?\w+(?:, (?:mut )?\w+)+\) = \(")
TEST_FN = re.compile(r"#\[(?:\w+::)*test[^\]]*\]\s*(?:#\[[^\]]*\]\s*)*(?:async )?fn (\w+)")
FILE_NAME = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.(?:rs|md|sh|py|yaml|toml|sql|json|proto|html))`")
PUBLIC_TYPE = re.compile(r"^pub (?:struct|enum|trait|type|union) (\w+)", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# Readers that may leave before the writer has finished: under `pipefail` its SIGPIPE fails the step.
EARLY_READER = re.compile(
    r"\|\s*(grep\s+(-\w*q|-m ?\d|--quiet)|head\b|sed\s+(-n\s+)?['\"]?\d*q|awk\b[^|]*\bexit\b)"
)
# Written by their programs while they run, so a checkout does not have them.
GENERATED_FILES = {
    "orchestrator.toml", "relay.toml", "filter.wasm", "page.html", "billing.toml", "envoy.yaml",
}


@dataclass
class Rule:
    """One rule: its meaning, the largest figure that passes, and what was found."""

    meaning: str
    bound: float = 0
    per: str = ""
    scale: float = 1
    total: int = 0
    places: list[str] = field(default_factory=list)

    def figure(self) -> float:
        if not self.per:
            return len(self.places)
        return self.scale * len(self.places) / max(self.total, 1)

    def holds(self) -> bool:
        return self.figure() <= self.bound


def rules() -> dict[str, Rule]:
    return {
        "opening": Rule("doc comments that open like an answer", 0.5, "% of doc comments", 100),
        "fragment": Rule("doc comments of one or two words", 1, "% of doc comments", 100),
        "dialect": Rule("lines with a turn of phrase to decode", 2, "per 10,000 words", 1e4),
        "tuple": Rule("several bindings packed into one let"),
        "test-name": Rule("test names of more than ten words"),
        "file": Rule("file names in comments and docs that do not exist"),
        "link": Rule("links in docs that lead nowhere"),
        "width": Rule(f"lines of docs wider than {WIDTH} columns"),
        "page": Rule("pages of docs/ that do not begin with their reader"),
        "glossary": Rule("terms defined twice, and public types against the glossary"),
        "pipe": Rule("early-leaving readers behind a pipe"),
        "architecture": Rule(f"lines of ARCHITECTURE.md above {ARCHITECTURE_LINES}"),
    }


def files(root: Path, *suffixes: str) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if path.suffix in suffixes and not SKIPPED & set(inside.parts) and path.is_file():
            yield path


def comment_text(line: str) -> str:
    return line.strip().lstrip("/!").strip()


def check_rust(root: Path, found: dict[str, Rule], names: set[str]) -> None:
    for path in files(root, ".rs"):
        text = path.read_text()
        short = path.relative_to(root)
        block: list[str] = []
        start = 0
        for number, line in enumerate([*text.split("\n"), ""], 1):
            stripped = line.strip()
            if stripped.startswith("///"):
                start = start if block else number
                block.append(comment_text(line))
            elif block:
                check_doc_comment(f"{short}:{start}", " ".join(block).strip(), found)
                block = []
            if stripped.startswith("//"):
                check_comment_line(f"{short}:{number}", comment_text(line), found, names)
            elif TUPLE_LET.match(line):
                found["tuple"].places.append(f"{short}:{number}: {stripped}")
        for name in TEST_FN.findall(text):
            if len(name.split("_")) > 10:
                found["test-name"].places.append(f"{short}: {name}")


def check_doc_comment(place: str, text: str, found: dict[str, Rule]) -> None:
    found["opening"].total += 1
    found["fragment"].total += 1
    if RIDDLE_OPENING.match(text):
        found["opening"].places.append(f"{place}: {text[:90]}")
    if len(text.split()) <= 2:
        found["fragment"].places.append(f"{place}: {text}")


def check_comment_line(place: str, text: str, found: dict[str, Rule], names: set[str]) -> None:
    found["dialect"].total += len(text.split())
    for pattern, instead in DIALECT.items():
        if re.search(pattern, text, re.IGNORECASE):
            found["dialect"].places.append(f"{place}: {text[:80]}  [write: {instead}]")
    check_file_names(place, text, found, names)


def check_file_names(place: str, text: str, found: dict[str, Rule], names: set[str]) -> None:
    for named in FILE_NAME.findall(text):
        known = named in GENERATED_FILES or any(
            name == named or name.endswith("/" + named) for name in names
        )
        if not known and named.rsplit("/", 1)[-1] not in GENERATED_FILES:
            found["file"].places.append(f"{place}: {named}")


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


def check_docs(root: Path, found: dict[str, Rule], names: set[str]) -> None:
    for path in files(root, ".md"):
        short = path.relative_to(root)
        text = path.read_text()
        is_decision = "decisions" in short.parts
        in_code = False
        for number, line in enumerate(text.split("\n"), 1):
            place = f"{short}:{number}"
            if line.lstrip().startswith("```"):
                in_code = not in_code
            one_word = " " not in line.strip(" -*")
            is_literal = in_code or line.startswith("    ") or line.lstrip().startswith("|")
            if len(line) > WIDTH and not (is_literal or one_word):
                found["width"].places.append(f"{place}: {len(line)} columns")
            # A decision speaks of the files of its day.
            if not in_code and not is_decision:
                check_file_names(place, line, found, names)
            for link in LINK.findall(line) if not in_code else []:
                check_link(place, path, link, found)
        if short.parts[0] == "docs" and not is_decision and len(short.parts) == 2:
            opening = [line for line in text.split("\n")[1:] if line.strip()]
            if not opening or not opening[0].startswith("*For "):
                found["page"].places.append(f"{short}: begin with '*For READERS: QUESTIONS.*'")
    architecture = (root / "ARCHITECTURE.md").read_text().count("\n")
    for number in range(ARCHITECTURE_LINES + 1, architecture + 1):
        found["architecture"].places.append(f"ARCHITECTURE.md:{number}")


def check_link(place: str, page: Path, link: str, found: dict[str, Rule]) -> None:
    if re.match(r"[a-z]+:", link):
        return
    target, _, anchor = link.partition("#")
    file = (page.parent / target) if target else page
    if not file.exists():
        found["link"].places.append(f"{place}: {link}")
    elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text()):
        found["link"].places.append(f"{place}: {link}: no such heading")


def glossary_rows(text: str, section: str) -> list[tuple[str, str]]:
    """The two columns of each table below a heading; '' is every heading but the last."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    bodies = dict(zip(parts[1::2], parts[2::2], strict=True))
    chosen = [bodies[section]] if section in bodies else []
    rows = [re.match(r"\| ([^|]+) \| ([^|]+) \|", line) for b in chosen for line in b.split("\n")]
    cells = [(row[1].strip(), row[2].strip()) for row in rows if row]
    return [cell for cell in cells if cell[0] not in ("term", "not") and "---" not in cell[0]]


REFUSED_WORDS = "Words that are not used"


def check_glossary(root: Path, found: dict[str, Rule]) -> None:
    text = (root / "GLOSSARY.md").read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    terms: dict[str, str] = {}
    for heading in headings:
        if heading == REFUSED_WORDS:
            continue
        for term, _ in glossary_rows(text, heading):
            if term in terms:
                found["glossary"].places.append(f"GLOSSARY.md: {term}: in {terms[term]} too")
            terms[term] = heading
    refused = {}
    for words, instead in glossary_rows(text, REFUSED_WORDS):
        for word in words.split(", "):
            refused[word.capitalize()] = instead
            if word in terms:
                found["glossary"].places.append(f"GLOSSARY.md: {word}: defined and refused")
    check_public_types(root, found, refused)


def crate_of(path: Path, root: Path) -> Path:
    for folder in path.parents:
        if (folder / "Cargo.toml").exists() or folder == root:
            return folder
    return root


def check_public_types(root: Path, found: dict[str, Rule], refused: dict[str, str]) -> None:
    """Each name stands for one public type of its crate, and has no word that is refused."""
    places: dict[tuple[Path, str], list[str]] = defaultdict(list)
    for path in files(root, ".rs"):
        if {"tests", "benches", "examples"} & set(path.relative_to(root).parts):
            continue
        for name in PUBLIC_TYPE.findall(path.read_text()):
            places[(crate_of(path, root), name)].append(str(path.relative_to(root)))
            for word in re.findall(r"[A-Z][a-z0-9]+", name):
                if word in refused:
                    found["glossary"].places.append(
                        f"{path.relative_to(root)}: {name}: not '{word}' but {refused[word]}"
                    )
    for (_, name), several in sorted(places.items(), key=lambda item: item[0][1]):
        if len(several) > 1:
            found["glossary"].places.append(f"{name}: {len(several)} types: {', '.join(several)}")


def check_pipes(root: Path, found: dict[str, Rule]) -> None:
    recipes = [*files(root, ".sh"), root / "Makefile", root / ".ci/run"]
    for path in recipes:
        if not path.exists():
            continue
        for number, line in enumerate(path.read_text().split("\n"), 1):
            if EARLY_READER.search(line) and not line.lstrip().startswith("#"):
                found["pipe"].places.append(f"{path.relative_to(root)}:{number}: {line.strip()}")


def check(root: Path) -> dict[str, Rule]:
    found = rules()
    suffixes = (".rs", ".md", ".sh", ".py", ".yaml", ".toml", ".sql", ".json", ".html", ".proto")
    names = {str(path.relative_to(root)) for path in files(root, *suffixes)}
    check_rust(root, found, names)
    check_docs(root, found, names)
    check_glossary(root, found)
    check_pipes(root, found)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dir", nargs="?", type=Path, default=Path(__file__).parent.parent)
    parser.add_argument("--list", choices=rules(), metavar="RULE", help=", ".join(rules()))
    args = parser.parse_args()
    found = check(args.dir.resolve())
    if args.list:
        print("\n".join(found[args.list].places))
        return 0
    for name, rule in found.items():
        verdict = "" if rule.holds() else "   broken"
        figure = f"{rule.figure():8.2f}" if rule.per else f"{rule.figure():8.0f}"
        print(f"{name:13}{rule.meaning:56}{figure}  ≤ {rule.bound:g} {rule.per}{verdict}")
    broken = [name for name, rule in found.items() if not rule.holds()]
    for name in broken:
        print(f"\n{name}:", *found[name].places[:20], sep="\n  ")
    if broken:
        print(f"\ntidy: {len(broken)} rules are broken; all places: scripts/tidy.py --list RULE")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
