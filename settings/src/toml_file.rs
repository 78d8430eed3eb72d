//! TOML as the source of a [`Tree`].

use std::fs;
use std::path::Path;

use crate::fault::Faults;
use crate::tree::Tree;

/// Reads and parses a TOML file.
pub fn load(path: &Path) -> Result<Tree, Faults> {
    let text = fs::read_to_string(path)
        .map_err(|error| Faults::of_file(format_args!("cannot be read: {error}")))?;
    parse(&text)
}

/// Parses TOML. The fault of a malformed text shows its place and the expected syntax.
pub fn parse(text: &str) -> Result<Tree, Faults> {
    toml::from_str(text).map_err(|error| Faults::of_file(format_args!("{error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_becomes_a_tree() {
        let tree = parse("a = 1\n[b]\nc = \"x\"\nd = [true, 1.5, -2]\n").unwrap();
        let list = Tree::List(vec![Tree::Flag(true), Tree::Fraction(1.5), Tree::Negative(-2)]);
        let section = vec![("c".to_owned(), Tree::Text("x".to_owned())), ("d".to_owned(), list)];
        let whole = ("a".to_owned(), Tree::Whole(1));
        assert_eq!(tree, Tree::Section(vec![whole, ("b".to_owned(), Tree::Section(section))]));
    }

    #[test]
    fn malformed_toml_and_duplicate_keys_are_refused() {
        let duplicate = parse("a = 1\na = 2\n").unwrap_err().to_string();
        assert!(duplicate.contains("duplicate key"), "{duplicate}");
        assert!(parse("a =").is_err());
    }

    #[test]
    fn missing_file_is_a_fault() {
        let faults = load(Path::new("/does/not/exist")).unwrap_err().to_string();
        assert!(faults.starts_with("cannot be read: "), "{faults}");
    }
}
