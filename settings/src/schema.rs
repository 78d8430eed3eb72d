//! JSON Schemas of the settings files, for editors and deployment tools.
//!
//! They are generated from the types that read the files. The committed copies are compared with
//! them by tests; `UPDATE_SCHEMAS=1 cargo test` rewrites them.

use std::borrow::Cow;
use std::{env, fs, path::Path};

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use crate::units::{DURATIONS_MS, SIZES, Unit};
use crate::value::{Duration, Integer, Kind, Size, Text};

/// The schema of the settings type `T`, as it is committed.
pub fn generate<T: JsonSchema>() -> String {
    let schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>();
    let json = serde_json::to_string_pretty(&schema).unwrap_or_default();
    format!("{json}\n")
}

/// Compares the committed schema at `path` with the generated one, or rewrites it if the environment
/// sets `UPDATE_SCHEMAS`. The error says what to do.
pub fn check_committed<T: JsonSchema>(path: &Path) -> Result<(), String> {
    let generated = generate::<T>();
    if env::var_os("UPDATE_SCHEMAS").is_some() {
        return fs::write(path, generated).map_err(|e| format!("{}: {e}", path.display()));
    }
    let committed = fs::read_to_string(path).unwrap_or_default();
    if committed == generated {
        return Ok(());
    }
    Err(format!("{} is out of date: run `UPDATE_SCHEMAS=1 cargo test`", path.display()))
}

/// Reports where `instance` contradicts `schema`, one line each.
///
/// Covers the keywords that the generated schemas use, except `pattern`: the reader's own tests
/// cover the syntax of values. An unfamiliar keyword is reported, so that it cannot pass unnoticed.
pub fn violations(schema: &Value, instance: &Value) -> Vec<String> {
    let mut checker = Checker { root: schema, violations: Vec::new() };
    checker.check(schema, instance, "");
    checker.violations
}

struct Checker<'s> {
    root: &'s Value,
    violations: Vec<String>,
}

impl Checker<'_> {
    fn check(&mut self, schema: &Value, instance: &Value, key: &str) {
        if schema["additionalProperties"] == false {
            self.check_names(&schema["properties"], instance, key);
        }
        for (keyword, rule) in schema.as_object().into_iter().flatten() {
            if !self.keyword_holds(keyword, rule, instance, key) {
                self.violations.push(format!("{key}: `{instance}` violates `{keyword}`: {rule}"));
            }
        }
    }

    fn check_names(&mut self, properties: &Value, instance: &Value, key: &str) {
        for name in instance.as_object().into_iter().flatten().map(|(name, _)| name) {
            if properties.get(name).is_none() {
                self.violations.push(format!("{key}/{name}: unknown key"));
            }
        }
    }

    fn keyword_holds(&mut self, keyword: &str, rule: &Value, instance: &Value, key: &str) -> bool {
        match keyword {
            "$schema" | "$defs" | "title" | "description" | "default" | "pattern" => true,
            "additionalProperties" => rule == false,
            "$ref" => {
                let path = rule.as_str().and_then(|text| text.strip_prefix('#'));
                let target = path.and_then(|path| self.root.pointer(path)).cloned();
                target.is_some_and(|target| {
                    self.check(&target, instance, key);
                    true
                })
            }
            "type" => match rule {
                Value::Array(types) => types.iter().any(|name| has_type(instance, name)),
                name => has_type(instance, name),
            },
            "properties" => {
                for (name, value) in instance.as_object().into_iter().flatten() {
                    if let Some(schema) = rule.get(name) {
                        self.check(schema, value, &format!("{key}/{name}"));
                    }
                }
                true
            }
            "items" => {
                for value in instance.as_array().into_iter().flatten() {
                    self.check(rule, value, key);
                }
                true
            }
            "required" => {
                let names = rule.as_array().into_iter().flatten().filter_map(Value::as_str);
                names.into_iter().all(|name| instance.get(name).is_some())
            }
            "minimum" => !instance.is_number() || instance.as_u64() >= rule.as_u64(),
            "maximum" => !instance.is_number() || instance.as_u64() <= rule.as_u64(),
            "minLength" => instance.as_str().is_none_or(|text| !text.is_empty()),
            "enum" => rule.as_array().is_some_and(|values| values.contains(instance)),
            "const" => rule == instance,
            "oneOf" | "anyOf" => {
                let mut schemas = rule.as_array().into_iter().flatten();
                schemas.any(|schema| {
                    let mut inner = Checker { root: self.root, violations: Vec::new() };
                    inner.check(schema, instance, key);
                    inner.violations.is_empty()
                })
            }
            _ => false,
        }
    }
}

fn has_type(instance: &Value, name: &Value) -> bool {
    match name.as_str() {
        Some("object") => instance.is_object(),
        Some("array") => instance.is_array(),
        Some("string") => instance.is_string(),
        Some("integer") => instance.is_u64() || instance.is_i64(),
        Some("number") => instance.is_number(),
        Some("boolean") => instance.is_boolean(),
        Some("null") => instance.is_null(),
        _ => false,
    }
}

/// A pattern for whole numbers with one of `units`.
fn pattern(units: &[Unit]) -> String {
    let names: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
    format!("^(0|[0-9]+(_[0-9]+)* *({}))$", names.join("|"))
}

/// Bounds as a title, for JSON Schema has none for texts.
fn title(kind: Kind, min: u64, max: u64) -> String {
    format!("From {} to {}.", kind.format(min), kind.format(max))
}

impl<const MIN_MS: u64, const MAX_MS: u64> JsonSchema for Duration<MIN_MS, MAX_MS> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let title = title(Kind::Duration, MIN_MS, MAX_MS);
        json_schema!({ "type": "string", "pattern": pattern(DURATIONS_MS), "title": title })
    }
}

impl<const MIN: u64, const MAX: u64> JsonSchema for Size<MIN, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let title = title(Kind::Size, MIN, MAX);
        json_schema!({ "type": ["string", "integer"], "pattern": pattern(SIZES), "title": title })
    }
}

impl<const MIN: u64, const MAX: u64> JsonSchema for Integer<MIN, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Integer".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

impl JsonSchema for Text {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Text".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1 })
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use serde_json::json;

    use super::*;

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    struct Raw {
        /// Duration of a lease.
        lease: Duration<50, 600_000>,
        floor: Size<0, 1_000_000>,
        starts: Option<Integer<1, 64>>,
        name: Text,
        clients: Vec<String>,
        inner: Inner,
    }

    #[derive(Default, Serialize, Deserialize, JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        is_on: bool,
    }

    impl Default for Raw {
        fn default() -> Self {
            Self {
                lease: Duration::from_ms(30_000),
                floor: Size::from_bytes(1_000),
                starts: None,
                name: "x".into(),
                clients: Vec::new(),
                inner: Inner::default(),
            }
        }
    }

    fn schema() -> Value {
        serde_json::from_str(&generate::<Raw>()).unwrap()
    }

    #[test]
    fn schema_states_defaults_bounds_and_descriptions() {
        let schema = schema();
        let lease = &schema["properties"]["lease"];
        assert_eq!(lease["default"], "30s");
        assert_eq!(lease["title"], "From 50ms to 10min.");
        assert_eq!(lease["description"], "Duration of a lease.");
        assert_eq!(schema["additionalProperties"], false);
    }

    #[test]
    fn default_is_valid() {
        let instance = serde_json::to_value(Raw::default()).unwrap();
        assert_eq!(violations(&schema(), &instance), [""; 0]);
    }

    #[test]
    fn contradictions_are_reported() {
        for instance in [
            json!([]),
            json!({ "lease": 5 }),
            json!({ "floor": 1.5 }),
            json!({ "starts": 65 }),
            json!({ "name": "" }),
            json!({ "clients": [1] }),
            json!({ "inner": { "is_on": 1 } }),
            json!({ "inner": { "what": true } }),
            json!({ "what": 1 }),
        ] {
            assert_eq!(violations(&schema(), &instance).len(), 1, "{instance}");
        }
    }
}
