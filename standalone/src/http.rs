//! One HTTP request to one verb and back: paths, queries, bodies, content types and `Status` objects. It does not know
//! connections, nor the rules of any verb.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use http::header::{ACCEPT, CONTENT_TYPE, WARNING};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::Frame;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::client::ACCOUNT_HEADER;
use crate::discovery;
use crate::gc::Deleted;
use crate::kinds::{KindId, Shape};
use crate::route::{Query, Route, Target};
use crate::selector::{self, Selector};
use crate::server::Inner;
use crate::status::ApiError;
use crate::store::Key;
use crate::verbs::{Call, DeleteOptions, FieldValidation, Part, Written};
use crate::watch::{Scope, Start, Watch, stream};

/// Bound of a request's body, that of the API server.
const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// A watch that names no timeout; the API server picks 30 to 60 minutes.
const WATCH_TIMEOUT_S: u64 = 1800;

const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";

/// A response's body: whole, or a watch.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

struct Asked {
    method: Method,
    target: Target,
    kind: KindId,
    query: Query,
    call: Call,
    content_type: String,
    metadata_only: bool,
    body: Bytes,
}

/// Answers one request; every failure becomes a `Status`.
pub(crate) async fn serve<B>(inner: Arc<Inner>, request: Request<B>) -> Response<Body>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return failure(&ApiError::too_large(BODY_BYTES_MAX));
        }
        Err(error) => return failure(&ApiError::bad_request(format!("failed to read the body: {error}"))),
    };
    let method = parts.method.clone();
    let path = parts.uri.path().to_owned();
    let response = answer(&inner, parts, body).unwrap_or_else(|error| failure(&error));
    tracing::debug!(%method, path, code = response.status().as_u16(), "request");
    response
}

fn answer(inner: &Arc<Inner>, parts: http::request::Parts, body: Bytes) -> Result<Response<Body>, ApiError> {
    let target = match Route::parse(parts.uri.path()).ok_or_else(ApiError::no_such_resource)? {
        Route::Document(path) => return document(inner, &parts.method, &path),
        Route::Resource(target) => target,
    };
    let kind = inner.kinds.at_path(&target.group, &target.version, &target.plural);
    let kind = kind.ok_or_else(ApiError::no_such_resource)?;
    let described = inner.kinds.get(kind);
    let header = |name: http::HeaderName| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    if described.namespaced != target.namespace.is_some() && (target.name.is_some() || !described.namespaced) {
        return Err(ApiError::no_such_resource());
    }
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let fields = match query.get("fieldValidation") {
        "Strict" => FieldValidation::Strict,
        "Ignore" => FieldValidation::Ignore,
        "" | "Warn" => FieldValidation::Warn,
        other => {
            let text =
                format!("fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\"");
            return Err(ApiError::bad_request(text));
        }
    };
    let account = header(ACCOUNT_HEADER);
    let call = Call {
        account: if account.is_empty() { "anonymous".to_owned() } else { account },
        kind,
        namespace: target.namespace.clone().unwrap_or_default(),
        dry_run: query.get("dryRun") == "All",
        fields,
        now: Timestamp::now(),
    };
    let content_type = header(CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_owned();
    let metadata_only = header(ACCEPT).contains("as=PartialObjectMetadata");
    Asked { method: parts.method, target, kind, query, call, content_type, metadata_only, body }.answer(inner)
}

impl Asked {
    fn answer(&self, inner: &Arc<Inner>) -> Result<Response<Body>, ApiError> {
        match (self.target.name.as_deref(), self.target.subresource.as_deref()) {
            (None, _) => self.collection(inner),
            (Some(name), None) => self.object(inner, name, Part::Main),
            (Some(name), Some("status")) if inner.kinds.get(self.kind).status => self.object(inner, name, Part::Status),
            (Some(name), Some("binding")) if self.target.plural == "pods" && self.method == Method::POST => {
                let binding = self.json()?;
                inner.with_api(|api| api.bind(&self.call, name, &binding))?;
                Ok(respond(StatusCode::CREATED, &success(json!({}))))
            }
            _ => Err(ApiError::no_such_resource()),
        }
    }

    fn collection(&self, inner: &Arc<Inner>) -> Result<Response<Body>, ApiError> {
        match self.method {
            Method::GET if self.query.is_true("watch") => self.watch(inner),
            Method::GET => self.list(inner),
            Method::POST => {
                // A create in "all namespaces" has no place to go.
                if inner.kinds.get(self.kind).namespaced && self.target.namespace.is_none() {
                    return Err(ApiError::method_not_allowed());
                }
                let value = self.json()?;
                let written = inner.with_api(|api| api.create(&self.call, value))?;
                Ok(self.written(inner, StatusCode::CREATED, &written))
            }
            Method::DELETE => {
                let selector = self.selector(inner)?;
                let options = self.delete_options()?;
                let all = self.target.namespace.is_none();
                let deleted = inner.with_api(|api| api.delete_collection(&self.call, all, &selector, &options))?;
                let items: Vec<Bytes> = deleted.iter().map(|object| object.json().clone()).collect();
                Ok(self.list_response(inner, inner.store().version(), &items))
            }
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    fn object(&self, inner: &Arc<Inner>, name: &str, part: Part) -> Result<Response<Body>, ApiError> {
        match self.method {
            Method::GET => {
                let found = inner.store().get(self.kind, &Key::new(self.call.namespace.clone(), name)).cloned();
                let object = found.ok_or_else(|| ApiError::not_found(inner.kinds.get(self.kind), name))?;
                Ok(raw(StatusCode::OK, self.scope(inner, Selector::default()).encode(&object)))
            }
            Method::PUT => {
                let value = self.json()?;
                let written = inner.with_api(|api| api.update(&self.call, name, part, value))?;
                Ok(self.written(inner, StatusCode::OK, &written))
            }
            Method::PATCH => {
                if self.content_type != MERGE_PATCH {
                    return Err(ApiError::unsupported_media(&self.content_type, MERGE_PATCH));
                }
                let change = parse(&self.body)?;
                let written = inner.with_api(|api| api.merge_patch(&self.call, name, part, &change))?;
                Ok(self.written(inner, StatusCode::OK, &written))
            }
            Method::DELETE if part == Part::Main => {
                let options = self.delete_options()?;
                let deleted = inner.with_api(|api| api.delete(&self.call, name, &options))?;
                let kind = inner.kinds.get(self.kind);
                Ok(match deleted {
                    // Of pods and services the API server returns the last state, of all else only that it is done.
                    Deleted::Gone(object) if !(kind.is("", "Pod") || kind.is("", "Service")) => {
                        let details = json!({
                            "name": name, "group": kind.group, "kind": kind.plural, "uid": object.meta("uid"),
                        });
                        respond(StatusCode::OK, &success(details))
                    }
                    Deleted::Gone(object) | Deleted::Marked(object) => raw(StatusCode::OK, object.json().clone()),
                })
            }
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    fn list(&self, inner: &Arc<Inner>) -> Result<Response<Body>, ApiError> {
        let scope = self.scope(inner, self.selector(inner)?);
        if !self.query.get("continue").is_empty() {
            // This server always answers with everything, so it never gave out a token.
            return Err(ApiError::bad_request("continue: this server gives out no continue tokens"));
        }
        let store = inner.store();
        let current = store.version();
        let wanted = version_of(self.query.get("resourceVersion"))?.unwrap_or(0);
        if wanted > current {
            return Err(ApiError::too_large_version(wanted, current));
        }
        if self.query.get("resourceVersionMatch") == "Exact" && wanted != current {
            return Err(ApiError::expired(wanted, current));
        }
        let objects = scope.list(&store);
        drop(store);
        let items: Vec<Bytes> = objects.iter().map(|object| scope.encode(object)).collect();
        Ok(self.list_response(inner, current, &items))
    }

    fn list_response(&self, inner: &Inner, version: u64, items: &[Bytes]) -> Response<Body> {
        let kind = inner.kinds.get(self.kind);
        let (api_version, list_kind) = if self.metadata_only {
            ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadataList".to_owned())
        } else {
            (kind.api_version(), format!("{}List", kind.kind))
        };
        let mut out = BytesMut::with_capacity(256 + items.iter().map(|item| item.len() + 1).sum::<usize>());
        let head = format!(
            "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{{\"resourceVersion\":\"{version}\"}},\"items\":[",
            Value::from(list_kind),
            Value::from(api_version)
        );
        out.put_slice(head.as_bytes());
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.put_u8(b',');
            }
            out.put_slice(item);
        }
        out.put_slice(b"]}");
        raw(StatusCode::OK, out.freeze())
    }

    fn watch(&self, inner: &Arc<Inner>) -> Result<Response<Body>, ApiError> {
        let scope = self.scope(inner, self.selector(inner)?);
        let version = version_of(self.query.get("resourceVersion"))?.unwrap_or(0);
        let start = match version {
            _ if self.query.is_true("sendInitialEvents") => Start::EverythingThenBookmark,
            0 => Start::Everything,
            version => Start::After(version),
        };
        let timeout_s = self.query.get("timeoutSeconds").parse().unwrap_or(WATCH_TIMEOUT_S);
        let bookmarks = self.query.is_true("allowWatchBookmarks");
        let watch = Watch { scope, start, bookmarks, timeout: Duration::from_secs(timeout_s) };
        let lines = stream(inner.clone(), watch).map(|bytes| Ok(Frame::data(bytes)));
        let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(lines)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        Ok(response)
    }

    fn scope(&self, inner: &Inner, selector: Selector) -> Scope {
        Scope {
            kind: self.kind,
            namespace: self.target.namespace.clone(),
            only_namespace: (!inner.kinds.get(self.kind).namespaced).then_some(""),
            selector,
            metadata_only: self.metadata_only,
        }
    }

    fn selector(&self, inner: &Inner) -> Result<Selector, ApiError> {
        let kind = inner.kinds.get(self.kind);
        let selector = Selector::parse(self.query.get("labelSelector"), self.query.get("fieldSelector"), &kind.fields);
        selector.map_err(|error| match error {
            // A built-in kind without fields of its own answers in other words (apimachinery's default conversion).
            selector::Error::UnknownField(field) if kind.fields.is_empty() && matches!(kind.shape, Shape::Typed(_)) => {
                let known = r#"only "metadata.name", "metadata.namespace""#;
                ApiError::bad_request(format!("{field:?} is not a known field selector: {known}"))
            }
            error => ApiError::bad_request(error.to_string()),
        })
    }

    fn json(&self) -> Result<Value, ApiError> {
        if self.content_type != JSON && !self.content_type.is_empty() {
            return Err(ApiError::unsupported_media(&self.content_type, JSON));
        }
        parse(&self.body)
    }

    fn delete_options(&self) -> Result<DeleteOptions, ApiError> {
        let mut options = match self.body.is_empty() {
            true => DeleteOptions::default(),
            false => serde_json::from_slice(&self.body)
                .map_err(|e| ApiError::bad_request(format!("unable to read DeleteOptions: {e}")))?,
        };
        if let Ok(seconds) = self.query.get("gracePeriodSeconds").parse() {
            options.grace_period_seconds = Some(seconds);
        }
        if !self.query.get("propagationPolicy").is_empty() {
            options.propagation_policy = Some(self.query.get("propagationPolicy").to_owned());
        }
        Ok(options)
    }

    fn written(&self, inner: &Inner, code: StatusCode, written: &Written) -> Response<Body> {
        let mut response = raw(code, self.scope(inner, Selector::default()).encode(&written.object));
        for text in &written.warnings {
            // RFC 7234 5.5: code 299, no agent, quoted text.
            let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
            if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
                response.headers_mut().append(WARNING, value);
            }
        }
        response
    }
}

fn document(inner: &Inner, method: &Method, path: &str) -> Result<Response<Body>, ApiError> {
    if method != Method::GET {
        return Err(ApiError::method_not_allowed());
    }
    if matches!(path, "/healthz" | "/livez" | "/readyz") {
        let mut response = raw(StatusCode::OK, Bytes::from_static(b"ok"));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        return Ok(response);
    }
    let document = discovery::document(&inner.kinds, path).ok_or_else(ApiError::no_such_resource)?;
    Ok(respond(StatusCode::OK, &document))
}

fn parse(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body).map_err(|e| ApiError::bad_request(format!("the body of the request is not JSON: {e}")))
}

/// `None` for an absent version; the API server's text for one that is no number.
fn version_of(text: &str) -> Result<Option<u64>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.parse().map_err(|_| {
        ApiError::bad_request(format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })?;
    Ok(Some(parsed))
}

fn success(details: Value) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

fn failure(error: &ApiError) -> Response<Body> {
    respond(StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &error.status())
}

fn respond(code: StatusCode, value: &Value) -> Response<Body> {
    raw(code, Bytes::from(value.to_string()))
}

fn raw(code: StatusCode, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(BodyExt::boxed_unsync(Full::new(bytes)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}
