//! Paths and query strings of the Kubernetes API as values. It does not know which kinds exist.

/// What a path names.
#[derive(Debug, Clone, PartialEq)]
pub enum Route {
    /// `/version`, `/healthz`, `/api`, `/apis/apps` and the like.
    Document(String),
    /// Objects of one kind.
    Resource(Target),
}

/// A kind, and how much of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Target {
    /// Empty for core.
    pub group: String,
    /// `v1`
    pub version: String,
    /// `pods`
    pub plural: String,
    /// Absent for cluster-scoped kinds and for lists over all namespaces.
    pub namespace: Option<String>,
    /// Absent for collections.
    pub name: Option<String>,
    /// `status`, `binding`.
    pub subresource: Option<String>,
}

impl Route {
    /// `None`: too many parts for any resource.
    pub fn parse(path: &str) -> Option<Self> {
        let parts: Vec<String> = path.split('/').filter(|p| !p.is_empty()).map(|p| decode(p, false)).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return Some(Self::Document(format!("/{}", parts.join("/")))),
        };
        let target = |namespace: Option<&str>, plural: &str, name: Option<&str>, subresource: Option<&str>| {
            Some(Self::Resource(Target {
                group: group.to_owned(),
                version: version.to_owned(),
                plural: plural.to_owned(),
                namespace: namespace.map(str::to_owned),
                name: name.map(str::to_owned),
                subresource: subresource.map(str::to_owned),
            }))
        };
        match rest {
            // The one ambiguity: a namespace's own subresources against the kinds within it.
            ["namespaces", name, sub @ ("status" | "finalize")] if group.is_empty() => {
                target(None, "namespaces", Some(name), Some(sub))
            }
            ["namespaces", namespace, plural] => target(Some(namespace), plural, None, None),
            ["namespaces", namespace, plural, name] => target(Some(namespace), plural, Some(name), None),
            ["namespaces", namespace, plural, name, sub] => target(Some(namespace), plural, Some(name), Some(sub)),
            [plural] => target(None, plural, None, None),
            [plural, name] => target(None, plural, Some(name), None),
            [plural, name, sub] => target(None, plural, Some(name), Some(sub)),
            _ => None,
        }
    }
}

/// The parameters of a query string.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Never fails: what cannot be decoded stays as it is.
    pub fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(k, v)| (decode(k, true), decode(v, true)))
                .collect(),
        )
    }

    /// The first value of a parameter, empty when it is absent.
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str())
    }

    /// Whether a parameter is switched on.
    pub fn is_true(&self, name: &str) -> bool {
        matches!(self.get(name), "true" | "1")
    }
}

/// Percent-decoding (RFC 3986 2.1); in forms a plus is a space.
fn decode(text: &str, form: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'%').then(|| tail.get(..2)).flatten();
        let byte = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok());
        match byte {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(if form && first == b'+' { b' ' } else { first });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str) -> Target {
        match Route::parse(path) {
            Some(Route::Resource(target)) => target,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn paths_of_every_shape_are_told_apart() {
        assert_eq!(target("/api/v1/nodes").plural, "nodes");
        let pod = target("/api/v1/namespaces/a/pods/p/status");
        assert_eq!(
            (pod.namespace.as_deref(), pod.name.as_deref(), pod.subresource.as_deref()),
            (Some("a"), Some("p"), Some("status"))
        );
        let namespace = target("/api/v1/namespaces/a");
        assert_eq!((namespace.plural.as_str(), namespace.name.as_deref(), namespace.namespace), ("namespaces", Some("a"), None));
        let status = target("/api/v1/namespaces/a/status");
        assert_eq!((status.plural.as_str(), status.subresource.as_deref()), ("namespaces", Some("status")));
        let lease = target("/apis/mooring.dev/v1alpha1/addressleases/default.v4-10-0-0-1");
        assert_eq!((lease.group.as_str(), lease.name.as_deref()), ("mooring.dev", Some("default.v4-10-0-0-1")));
        assert_eq!(Route::parse("/apis"), Some(Route::Document("/apis".to_owned())));
        assert_eq!(Route::parse("/apis/apps/v1/"), Some(Route::Document("/apis/apps/v1".to_owned())));
        assert_eq!(Route::parse("/api/v1/a/b/c/d/e/f"), None);
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("?&watch=true&labelSelector=a%3Db%2Cc+in+%28d%29&x=%zz".trim_start_matches('?'));
        assert!(query.is_true("watch"));
        assert_eq!(query.get("labelSelector"), "a=b,c in (d)");
        assert_eq!(query.get("x"), "%zz");
        assert_eq!(query.get("none"), "");
    }
}
