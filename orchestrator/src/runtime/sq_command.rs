//! SQ's command line and environment, the same for every runtime: built for a start, and read back
//! from a running instance.

use crate::runtime::instance_key::InstanceKey;

const KEY: &str = "--key";
const KEY_FILE: &str = "--mesh-config";
const DATA_DIR: &str = "--data-dir";

/// Environment of SQ. It makes `malloc` return freed memory and keep a single arena (measured:
/// docs/sq.md).
pub(super) const ENVIRONMENT: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "65536"),
    ("MALLOC_TRIM_THRESHOLD_", "65536"),
];

/// The way in which an SQ gets its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeySource<'a> {
    /// On its command line, which every user of the host can read: before SQ 0.6.0 the only way.
    Argument(&'a InstanceKey),
    /// From the file at this path, as SQ sees it (`key_file.rs`).
    File(&'a str),
}

/// Arguments of SQ; the data folder follows as the last one.
pub(super) fn arguments<'a>(port: &'a str, key: KeySource<'a>) -> [&'a str; 5] {
    match key {
        KeySource::Argument(key) => ["host", port, KEY, key.expose(), DATA_DIR],
        KeySource::File(path) => ["host", port, KEY_FILE, path, DATA_DIR],
    }
}

/// Key on an SQ's command line.
pub(super) fn key<'a>(words: impl IntoIterator<Item = &'a str>) -> Option<InstanceKey> {
    InstanceKey::parse(value_of(KEY, words)?).ok()
}

/// Path of the file from which an SQ reads its key.
pub(super) fn key_file<'a>(words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    value_of(KEY_FILE, words)
}

/// Data folder that an SQ was started with.
pub(super) fn data_dir<'a>(words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    value_of(DATA_DIR, words)
}

fn value_of<'a>(option: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut words = words.into_iter();
    words.find(|word| *word == option)?;
    words.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_back() {
        let generated = InstanceKey::generate().unwrap();
        let with_key = arguments("1337", KeySource::Argument(&generated));
        let words = [&with_key[..], &["/data/a"]].concat();
        assert_eq!(key(words.iter().copied()), Some(generated.clone()));
        assert_eq!(key_file(words.iter().copied()), None);
        assert_eq!(data_dir(words.iter().copied()), Some("/data/a"));

        let words = [&arguments("1337", KeySource::File("/key"))[..], &["/data/a"]].concat();
        assert_eq!(key(words.iter().copied()), None);
        assert_eq!(key_file(words.iter().copied()), Some("/key"));
        assert_eq!(data_dir(words.iter().copied()), Some("/data/a"));
    }

    #[test]
    fn command_line_without_valid_key_has_none() {
        for bad in ["", "/exo/sq host 1337 --key", "/exo/sq --key short --data-dir /data/a"] {
            assert_eq!(key(bad.split_whitespace()), None, "{bad}");
        }
    }
}
