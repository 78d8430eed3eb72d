use serde_json::Value;

use super::*;

const TLS: &str = "[tls]\ncert = 'c.pem'\nkey = '/k.pem'\nclient_ca = 'ca.pem'\n";
const EXAMPLE: &str = include_str!("../../relay.example.toml");
const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/relay.schema.json");

fn read(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("/etc/relay")).map_err(|faults| faults.to_string())
}

/// The faults of a file whose `[tls]` is complete.
fn faults(text: &str) -> String {
    read(&format!("{TLS}{text}")).unwrap_err()
}

/// The example with its other source: an SQ server.
fn example_with_sq() -> String {
    let (head, _) = EXAMPLE.split_once("[source]").unwrap();
    let source: Vec<_> = EXAMPLE.lines().filter_map(|line| line.strip_prefix("#= ")).collect();
    format!("{head}[source]\n{}", source.join("\n"))
}

#[test]
fn example_shows_the_defaults_of_a_file() {
    let minimal = "[tls]\ncert = 'relay.crt'\nkey = 'relay.key'\nclient_ca = 'gateways-ca.crt'\n\
                   [source]\nfile = 'registry.phext'\n";
    assert_eq!(read(EXAMPLE), read(minimal));
}

#[test]
fn example_shows_the_defaults_of_a_server() {
    let sq = read(&example_with_sq()).unwrap();
    let minimal = "[tls]\ncert = 'relay.crt'\nkey = 'relay.key'\nclient_ca = 'gateways-ca.crt'\n\
                   [source]\nurl = 'http://127.0.0.1:1337'\nkey_file = 'sq.key'\n";
    assert_eq!(Ok(&sq), read(minimal).as_ref());
    let SourceConfig::Sq(address) = sq.source else { panic!("{sq:?}") };
    assert_eq!(address.authority, "127.0.0.1:1337");
    assert_eq!(address.poll, Duration::from_millis(250));
    assert_eq!(address.phext, "registry");
    assert_eq!(sq.hold, Duration::from_mins(10));
    assert_eq!(sq.last_good, Path::new("/etc/relay/registry.last-good"));
}

#[test]
fn committed_schema_is_up_to_date() {
    settings::schema::check_committed::<RawConfig>(Path::new(SCHEMA)).unwrap();
}

#[test]
fn examples_fulfil_the_schema() {
    let schema: Value = serde_json::from_str(&settings::schema::generate::<RawConfig>()).unwrap();
    for text in [EXAMPLE, &example_with_sq()] {
        let instance: Value = toml::from_str(text).unwrap();
        assert_eq!(settings::schema::violations(&schema, &instance), [""; 0]);
    }
}

#[test]
fn relative_paths_start_at_the_files_folder() {
    let config = read(&format!("{TLS}[source]\nfile = 'r.phext'\n")).unwrap();
    assert_eq!(config.tls.cert, Path::new("/etc/relay/c.pem"));
    assert_eq!(config.tls.key, Path::new("/k.pem"));
    assert_eq!(config.source, SourceConfig::File("/etc/relay/r.phext".into()));
    assert_eq!(config.last_good, Path::new("/etc/relay/r.phext.last-good"));
    let source = "[source]\nfile = 'r.phext'\nlast_good = 'kept/r'\nhold_time = '0s'\n";
    let config = read(&format!("{TLS}{source}")).unwrap();
    assert_eq!(config.last_good, Path::new("/etc/relay/kept/r"));
    assert_eq!(config.hold, Duration::ZERO);
}

#[test]
fn all_faults_are_reported_at_once() {
    let faults = read(
        "listen = 'here'\ncolour = 1\n[tls]\ncert = 1\nname = 'x'\nclients = ['a b', 'c', 'd e']\n\
         [connections]\nmax = 0\nidle_timeout = 'x'\nmax_age = '0s'\n\
         [source]\nurl = 'https://a'\nphext = '../x'\npoll_interval = '1ms'\nhold_time = -1\n\
         last_good = ''\n",
    )
    .unwrap_err();
    for start in [
        "listen: `here` is not an address",
        "colour: unknown key",
        "tls.cert: `1` is not a text",
        "tls.key: missing: write the path of a file",
        "tls.client_ca: missing: write the path of a file",
        "tls.name: unknown key: write one of `cert`, `key`, `client_ca`, `clients`",
        "tls.clients: `a b` is not a DNS name",
        "tls.clients: `d e` is not a DNS name",
        "connections.max: `0` is out of bounds: write `1` to `100000`",
        "connections.idle_timeout: `x` is not a duration",
        "connections.max_age: `0s` is out of bounds: write `1s` to `1d`",
        "source.url: `https://a` is not the address of an SQ server",
        "source.phext: `../x` is not a name",
        "source.key_file: missing: write the path of a file",
        "source.poll_interval: `1ms` is out of bounds: write `20ms` to `1min`",
        "source.hold_time: `-1` is not a duration",
        "source.last_good: `` is empty",
    ] {
        let count = faults.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(count, 1, "{start} in:\n{faults}");
    }
    assert_eq!(faults.lines().count(), 17, "{faults}");
}

#[test]
fn gateways_can_be_named() {
    let named = format!("{TLS}clients = ['gateway-1', 'gateway-2']\n[source]\nfile = 'r'\n");
    assert_eq!(read(&named).unwrap().clients.len(), 2);
    for faulty in ["clients = []", "clients = 'gateway-1'", "clients = ['a b']", "clients = [1]"] {
        let faults = faults(&format!("{faulty}\n[source]\nfile = 'r'\n"));
        assert!(faults.starts_with("tls.clients: "), "{faults}");
        assert_eq!(faults.lines().count(), 1, "{faults}");
    }
}

#[test]
fn exactly_one_source_is_required() {
    assert_eq!(faults(""), "source: missing: write `file` or `url`");
    let both = "[source]\nfile = 'a'\nurl = 'http://b:1'\n";
    assert_eq!(faults(both), "source: `file` and `url` exclude each other: keep one of them");
    let unused = "[source]\nfile = 'a'\nphext = 'b'\n";
    assert_eq!(faults(unused), "source.phext: without effect beside `file`: it belongs to `url`");
}
