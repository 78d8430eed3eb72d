use serde_json::Value;

use super::*;
use crate::sockets::AllowedUsers;

const EXAMPLE: &str = include_str!("../../orchestrator.example.toml");
const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/orchestrator.schema.json");

/// The faults of a file, one per line.
fn faults(text: &str) -> String {
    Config::parse(text).unwrap_err().to_string()
}

/// The example with the keys that it shows in comments.
fn complete_example() -> String {
    EXAMPLE.replace("#= ", "")
}

#[test]
fn empty_file_is_the_default() {
    assert_eq!(Config::parse(""), Ok(Config::default()));
}

#[test]
fn example_shows_every_key_with_its_default() {
    // The comments' examples: one default depends on the host, the others are absent.
    let mut expected = Config::default();
    expected.lifecycle.max_starts = 2;
    expected.listen.envoy_uid = Some(101);
    expected.listen.group = Some(101);
    assert_eq!(Config::parse(&complete_example()), Ok(expected));
    let shown: Value = toml::from_str(&complete_example()).unwrap();
    let all = serde_json::to_value(RawConfig::default()).unwrap();
    assert_eq!(names(&shown), names(&all));
}

/// Full names of all keys.
fn names(value: &Value) -> Vec<String> {
    let mut names = Vec::new();
    for (name, value) in value.as_object().into_iter().flatten() {
        names.push(name.clone());
        names.extend(self::names(value).iter().map(|inner| format!("{name}.{inner}")));
    }
    names.sort();
    names
}

#[test]
fn committed_schema_is_up_to_date() {
    settings::schema::check_committed::<RawConfig>(Path::new(SCHEMA)).unwrap();
}

#[test]
fn example_fulfils_the_schema() {
    let schema: Value = serde_json::from_str(&settings::schema::generate::<RawConfig>()).unwrap();
    for text in [EXAMPLE, &complete_example()] {
        let instance: Value = toml::from_str(text).unwrap();
        assert_eq!(settings::schema::violations(&schema, &instance), [""; 0]);
    }
}

#[test]
fn all_faults_are_reported_at_once() {
    let faults = faults(
        "data_root = 3\nwhat = 1\nsq_version = \"six\"\n[listen]\ngate = \"127.0.0.1:1\"\n\
         metrics = \"0.0.0.0:1\"\n[runtime]\nkind = \"podman\"\n[lifecycle]\nlease = \"1ms\"\n\
         sleep_after = -1.0\nleese = 2\n[host]\ndisk_floor = \"1 MiX\"\n",
    );
    for start in [
        "data_root: `3` is not a text",
        "what: unknown key",
        "sq_version: `six` is not a supported version of SQ",
        "listen.gate: `127.0.0.1:1` is not an absolute path of a socket",
        "listen.metrics: `0.0.0.0:1` is not a loopback address",
        "runtime.kind: `podman` is not one of `docker`, `process`",
        "lifecycle.lease: `1ms` is out of bounds: write `50ms` to `10min`",
        "lifecycle.sleep_after: `-1` is not a duration",
        "lifecycle.leese: unknown key: write one of `lease`, `grace`",
        "host.disk_floor: `1 MiX` is not a size",
    ] {
        assert!(faults.lines().any(|line| line.starts_with(start)), "{start} in:\n{faults}");
    }
    assert_eq!(faults.lines().count(), 10, "{faults}");
}

#[test]
fn contradicting_keys_are_faults() {
    let faults = faults(
        "data_root = \"/d\"\nstate_dir = \"/d/state\"\n[lifecycle]\nbackoff = \"2s\"\n\
         backoff_max = \"1s\"\n",
    );
    assert_eq!(
        faults,
        "state_dir: `/d/state` is inside `data_root`, where each folder belongs to a tenant\n\
         lifecycle.backoff_max: `1s` is shorter than `backoff`, `2s`"
    );
}

#[test]
fn socket_path_beyond_107_bytes_is_a_fault() {
    let path = |bytes: usize| format!("/{}", "x".repeat(bytes - 1));
    let text = |bytes| format!("[listen]\nadmin = \"{}\"\n", path(bytes));
    assert_eq!(Config::parse(&text(107)).unwrap().listen.admin, Path::new(&path(107)));
    let faults = faults(&text(108));
    assert!(faults.contains("has 108 bytes, and a socket's path may have 107"), "{faults}");
}

#[test]
fn servers_cannot_share_a_socket() {
    let faults = faults("[listen]\ngate = \"/run/a.sock\"\nadmin = \"/run/a.sock\"\n");
    assert_eq!(faults, "listen.admin: `/run/a.sock` is another server's socket");
}

#[test]
fn listed_users_may_use_their_sockets() {
    let text = "[listen]\nenvoy_uid = 101\noperator_uids = [1000, 1001]\ngroup = 0\n";
    let listen = Config::parse(text).unwrap().listen;
    assert_eq!(listen.envoy_access().users, AllowedUsers::own_and([101]));
    assert_eq!(listen.operator_access().users, AllowedUsers::own_and([1000, 1001]));
    let modes = [listen.envoy_access().mode, listen.operator_access().mode];
    assert_eq!(modes, [0o660, 0o660]);
    assert_eq!(Config::default().listen.operator_access().mode, 0o600);
}

#[test]
fn users_of_tenants_may_use_no_socket() {
    let text = "[runtime]\nuid = 100\nuids = 3\n[listen]\nenvoy_uid = 101\ngroup = 102\n\
                operator_uids = [99, 103]\n";
    assert_eq!(
        faults(text),
        ["101", "102"]
            .map(|id| format!(
                "runtime.uid: tenants have the ids `100` to `102`, and `listen` has `{id}`: choose \
             others by `uid` and `uids`"
            ))
            .join("\n")
    );
    let faults = faults("[runtime]\nuid = 4294967290\nuids = 6\n");
    assert!(
        faults.starts_with("runtime.uids: `6` ids from `4294967290` on are too many"),
        "{faults}"
    );
    assert!(Config::parse("[runtime]\nuid = 4294967290\nuids = 5\n").is_ok());
}

#[test]
fn seccomp_profile_is_a_word_or_a_path() {
    let profile = |text| Config::parse(text).map(|config| config.docker.seccomp);
    for (text, expected) in [
        ("", SeccompProfile::BuiltIn),
        ("[docker]\nseccomp = \"docker\"\n", SeccompProfile::Docker),
        ("[docker]\nseccomp = \"/etc/sq.json\"\n", SeccompProfile::File("/etc/sq.json".into())),
    ] {
        assert_eq!(profile(text), Ok(expected));
    }
    let faults = faults("[docker]\nseccomp = \"off\"\n");
    assert!(faults.starts_with("docker.seccomp: `off` is neither"), "{faults}");
}

#[test]
fn risky_settings_are_warned_about() {
    assert_eq!(Config::default().warnings(), [""; 0]);
    let text = "sq_version = \"0.5.0\"\n[lifecycle]\ngrace = \"29999ms\"\nlease = \"500ms\"\n\
                patience = \"10s\"\n";
    assert_eq!(Config::parse(text).unwrap().warnings().len(), 4);
}

#[test]
fn durations_have_units() {
    let text = "[lifecycle]\nsleep_after = \"250ms\"\ndoze_after = \"0s\"\nstable_after = \"2h\"\n";
    let lifecycle = Config::parse(text).unwrap().lifecycle;
    assert_eq!(lifecycle.sleep_after_ms, 250);
    assert_eq!(lifecycle.doze_after_ms, 0);
    assert_eq!(lifecycle.stable_ms, 7_200_000);
}
