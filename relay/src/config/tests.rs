use super::*;

const TLS: &str = "[tls]\ncert = 'c.pem'\nkey = '/k.pem'\nclient_ca = 'ca.pem'\n";

fn read(text: &str) -> Result<Config, String> {
    Config::read(text, Path::new("/etc/relay")).map_err(|e| e.to_string())
}

#[test]
fn the_example_is_the_default_written_out() {
    let example = include_str!("../../relay.example.toml");
    let least = format!("{TLS}[source]\nfile = 'registry.phext'\n")
        .replace("c.pem", "relay.crt")
        .replace("/k.pem", "relay.key")
        .replace("'ca.pem'", "'gateways-ca.crt'");
    assert_eq!(read(example), read(&least));
    // The other source, as the example shows it behind its comments.
    let (head, _) = example.split_once("[source]").unwrap();
    let other: Vec<_> = example.lines().filter_map(|l| l.strip_prefix("#= ")).collect();
    let sq = read(&format!("{head}[source]\n{}", other.join("\n"))).unwrap();
    let SourceConfig::Sq(address) = sq.source else { panic!("{sq:?}") };
    assert_eq!(address.authority, "127.0.0.1:1337");
    assert_eq!(address.poll, Duration::from_millis(POLL_MS.unsigned_abs()));
    assert_eq!(address.phext, "registry");
    assert_eq!(sq.hold, Duration::from_mins(10));
    assert_eq!(sq.last_good, Path::new("/etc/relay/registry.last-good"));
}

#[test]
fn relative_paths_start_at_the_files_folder() {
    let config = read(&format!("{TLS}[source]\nfile = 'r.phext'\n")).unwrap();
    assert_eq!(config.tls.cert, Path::new("/etc/relay/c.pem"));
    assert_eq!(config.tls.key, Path::new("/k.pem"));
    assert_eq!(config.source, SourceConfig::File("/etc/relay/r.phext".into()));
    assert_eq!(config.last_good, Path::new("/etc/relay/r.phext.last-good"));
    let text = format!("{TLS}[source]\nfile = 'r.phext'\nlast_good = 'kept/r'\nhold_s = 0\n");
    let config = read(&text).unwrap();
    assert_eq!((config.last_good, config.hold), ("/etc/relay/kept/r".into(), Duration::ZERO));
}

#[test]
fn every_fault_is_reported_at_once() {
    let faults = read(
        "listen = 'here'\ncolour = 1\n[tls]\ncert = 1\nname = 'x'\nclients = ['a b']\n\
         [connections]\nmax = 0\nidle_s = 'x'\nage_s = 0\n\
         [source]\nurl = 'https://a'\nphext = '../x'\npoll_ms = 1\nhold_s = -1\nlast_good = ''\n",
    )
    .unwrap_err();
    for name in [
        "listen:",
        "colour:",
        "tls.cert:",
        "tls.key:",
        "tls.client_ca:",
        "tls.name:",
        "tls.clients:",
        "connections.max:",
        "connections.idle_s:",
        "connections.age_s:",
        "source.url:",
        "source.phext:",
        "source.key_file:",
        "source.poll_ms:",
        "source.hold_s:",
        "source.last_good:",
    ] {
        assert_eq!(faults.matches(name).count(), 1, "{name} in:\n{faults}");
    }
}

#[test]
fn gateways_can_be_named() {
    let named = TLS.to_owned() + "clients = ['gateway-1', 'gateway-2']\n";
    let config = read(&format!("{named}[source]\nfile = 'r'\n")).unwrap();
    assert_eq!(config.clients.len(), 2);
    for faulty in ["clients = []", "clients = 'gateway-1'", "clients = ['a b']", "clients = [1]"] {
        let faults = read(&format!("{TLS}{faulty}\n[source]\nfile = 'r'\n")).unwrap_err();
        assert!(faults.starts_with("tls.clients: must be names"), "{faults}");
    }
}

#[test]
fn there_is_exactly_one_source() {
    assert!(read(TLS).unwrap_err().contains("file or url is missing"));
    let both = format!("{TLS}[source]\nfile = 'a'\nurl = 'http://b:1'\n");
    assert_eq!(read(&both), Err("source: either file or url, not both".to_owned()));
}
