//! For tests only (feature `stop-at-step`): a client whose requests are steps at which the process can be made to end, before
//! they are sent and after they were answered. Knows no object.

use http::Request;
use kube::Client;
use kube::client::Body;

/// The same API, with steps. A watch is none: it is not part of a call.
pub fn client(inner: Client) -> Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let inner = inner.clone();
        async move {
            let what = format!("{} {}", request.method(), request.uri().path());
            let is_step = !request.uri().query().unwrap_or_default().contains("watch=");
            if is_step {
                plumbing::stop::step(&format!("before {what}"));
            }
            let answer = inner.send(request).await;
            if is_step {
                plumbing::stop::step(&format!("after {what}"));
            }
            answer
        }
    });
    Client::new(service, "default")
}
