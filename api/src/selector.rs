//! Label selectors of Kubernetes (`metav1.LabelSelector`): whether one matches a set of labels.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::invalid::Invalid;

/// All of `matchLabels` and `matchExpressions` hold; an empty selector matches everything. An operator that Kubernetes does
/// not have is an error, because "no match" would take nodes away.
pub fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> Result<bool, Invalid> {
    let mut all = selector.match_labels.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    for (i, e) in selector.match_expressions.iter().flatten().enumerate() {
        let field = |name: &str| format!("matchExpressions[{i}].{name}");
        let have = labels.get(&e.key);
        let values = e.values.as_deref().unwrap_or_default();
        let needs_values = matches!(e.operator.as_str(), "In" | "NotIn");
        if needs_values == values.is_empty() {
            let rule = if needs_values { "In and NotIn need values" } else { "Exists and DoesNotExist have no values" };
            return Err(Invalid::new(field("values"), values.join(","), rule));
        }
        all &= match e.operator.as_str() {
            "In" => have.is_some_and(|v| values.contains(v)),
            // As in Kubernetes, a missing label is not in the set.
            "NotIn" => !have.is_some_and(|v| values.contains(v)),
            "Exists" => have.is_some(),
            "DoesNotExist" => have.is_none(),
            other => return Err(Invalid::new(field("operator"), other, "is not In, NotIn, Exists or DoesNotExist")),
        };
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(selector: serde_json::Value, labels: &[(&str, &str)]) -> Result<bool, String> {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        matches(&serde_json::from_value(selector).unwrap(), &labels).map_err(|e| e.to_string())
    }

    #[test]
    fn selectors_match_as_in_kubernetes() {
        assert_eq!(check(json!({}), &[]), Ok(true));
        assert_eq!(check(json!({"matchLabels": {"a": "1"}}), &[("a", "1"), ("b", "2")]), Ok(true));
        assert_eq!(check(json!({"matchLabels": {"a": "1"}}), &[("a", "2")]), Ok(false));
        let e =
            |op: &str, values: serde_json::Value| json!({"matchExpressions": [{"key": "a", "operator": op, "values": values}]});
        assert_eq!(check(e("In", json!(["1", "2"])), &[("a", "2")]), Ok(true));
        assert_eq!(check(e("In", json!(["1"])), &[]), Ok(false));
        assert_eq!(check(e("NotIn", json!(["1"])), &[]), Ok(true));
        assert_eq!(check(e("Exists", json!(null)), &[("a", "")]), Ok(true));
        assert_eq!(check(e("DoesNotExist", json!([])), &[("a", "")]), Ok(false));
    }

    #[test]
    fn what_kubernetes_would_refuse_is_refused() {
        let e = |op: &str, values: serde_json::Value| {
            check(json!({"matchExpressions": [{"key": "a", "operator": op, "values": values}]}), &[])
        };
        assert_eq!(
            e("in", json!([])).unwrap_err(),
            "matchExpressions[0].operator: \"in\": is not In, NotIn, Exists or DoesNotExist"
        );
        assert!(e("In", json!([])).is_err());
        assert!(e("Exists", json!(["x"])).is_err());
    }
}
