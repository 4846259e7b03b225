//! The custom resources of the Prometheus Operator, whose schemas are not among those of Kubernetes.
//!
//! Owns the fields that the operator's API reference documents, as far as a chart uses them. Strict: an
//! unknown field is an error, because an API server drops it in silence.

use serde_json::Value;

use super::kubernetes::items;

/// The type of a field.
enum Kind {
    Text,
    Number,
    Duration,
    /// A map of text.
    Labels,
    Texts,
    One(&'static [Field]),
    Many(&'static [Field]),
}

use Kind::{Duration, Labels, Many, Number, One, Text, Texts};

/// Its name, whether it is required, and its type.
type Field = (&'static str, bool, Kind);

const SELECTOR: &[Field] = &[("matchLabels", true, Labels)];

const RELABELING: &[Field] = &[
    ("sourceLabels", false, Texts),
    ("separator", false, Text),
    ("targetLabel", false, Text),
    ("regex", false, Text),
    ("modulus", false, Number),
    ("replacement", false, Text),
    ("action", false, Text),
];

/// A key of a Secret or a ConfigMap.
const KEY: &[Field] = &[("name", true, Text), ("key", true, Text)];

const TLS_CONFIG: &[Field] = &[
    (
        "ca",
        false,
        One(&[("secret", false, One(KEY)), ("configMap", false, One(KEY))]),
    ),
    ("serverName", false, Text),
];

const AUTHORIZATION: &[Field] = &[("type", false, Text), ("credentials", false, One(KEY))];

const ENDPOINT: &[Field] = &[
    ("port", true, Text),
    ("path", false, Text),
    ("scheme", false, Text),
    ("tlsConfig", false, One(TLS_CONFIG)),
    ("authorization", false, One(AUTHORIZATION)),
    ("interval", false, Duration),
    ("scrapeTimeout", false, Duration),
    ("relabelings", false, Many(RELABELING)),
    ("metricRelabelings", false, Many(RELABELING)),
];

const SERVICE_MONITOR: &[Field] = &[
    ("jobLabel", false, Text),
    ("selector", true, One(SELECTOR)),
    ("endpoints", true, Many(ENDPOINT)),
];

const POD_MONITOR: &[Field] = &[
    ("jobLabel", false, Text),
    ("selector", true, One(SELECTOR)),
    ("podMetricsEndpoints", true, Many(ENDPOINT)),
];

const RULE: &[Field] = &[
    ("record", false, Text),
    ("alert", false, Text),
    ("expr", true, Text),
    ("for", false, Duration),
    ("keep_firing_for", false, Duration),
    ("labels", false, Labels),
    ("annotations", false, Labels),
];

const GROUP: &[Field] = &[
    ("name", true, Text),
    ("interval", false, Duration),
    ("limit", false, Number),
    ("rules", true, Many(RULE)),
];

const PROMETHEUS_RULE: &[Field] = &[("groups", true, Many(GROUP))];

/// Fails if an object is none of the known custom resources, or not of the documented form.
pub(super) fn check(origin: &str, object: &Value) {
    let kind = object["kind"].as_str().expect("an object has a kind");
    let spec = match kind {
        "ServiceMonitor" => SERVICE_MONITOR,
        "PodMonitor" => POD_MONITOR,
        "PrometheusRule" => PROMETHEUS_RULE,
        _ => panic!("{origin}: {kind} is not known"),
    };
    assert_eq!(object["apiVersion"], "monitoring.coreos.com/v1", "{origin}");
    let known = ["apiVersion", "kind", "metadata", "spec"];
    for field in object.as_object().expect("it is an object").keys() {
        assert!(known.contains(&&**field), "{origin}: {kind}: {field}");
    }
    fields(&format!("{origin}: {kind}"), &object["spec"], spec);
}

fn fields(place: &str, value: &Value, wanted: &[Field]) {
    let found = value.as_object();
    let found = found.unwrap_or_else(|| panic!("{place} is not an object: {value}"));
    for (name, required, _) in wanted {
        assert!(!required || found.contains_key(*name), "{place}: no {name}");
    }
    for (name, value) in found {
        let field = wanted.iter().find(|(known, _, _)| known == name);
        let (_, _, kind) = field.unwrap_or_else(|| panic!("{place}: unknown field {name}"));
        let place = format!("{place}.{name}");
        match kind {
            Text => assert!(value.is_string(), "{place}: {value}"),
            Number => assert!(value.is_u64(), "{place}: {value}"),
            Duration => assert!(is_duration(value), "{place}: {value}"),
            Labels => {
                let labels = value
                    .as_object()
                    .unwrap_or_else(|| panic!("{place}: {value}"));
                assert!(labels.values().all(Value::is_string), "{place}: {value}");
            }
            Texts => assert!(items(value).iter().all(Value::is_string), "{place}"),
            One(inner) => fields(&place, value, inner),
            Many(inner) => {
                assert!(!items(value).is_empty(), "{place}: {value}");
                for item in items(value) {
                    fields(&place, item, inner);
                }
            }
        }
    }
}

/// The operator's pattern, without its rarer units.
fn is_duration(value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    text.len() > unit.len() && ["ms", "s", "m", "h", "d"].contains(&unit)
}
