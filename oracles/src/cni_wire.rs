//! Frames of the agent's socket, as either end reads them.

use cni::wire::{self, ToAgent, ToClient};
use cni::{Error, Verb};
use serde_json::Value;

use crate::json::alike;

pub fn check(data: &[u8]) {
    if let Some(head) = data.first_chunk::<4>() {
        match wire::body_len(*head) {
            Ok(len) => assert!(len <= wire::MAX_FRAME),
            Err(_) => assert!(u32::from_be_bytes(*head) as usize > wire::MAX_FRAME),
        }
    }
    // The fuzzer need not find lengths.
    if let Ok(message) = wire::decode::<ToAgent>(data) {
        again(&message);
        match message {
            ToAgent::Call(call) => {
                if let Ok(request) = call.request() {
                    assert_eq!(request.verb, call.verb);
                    assert!(request.verb == Verb::Version || call.stdin.is_object());
                    assert_eq!(request.ifname.is_some(), matches!(call.verb, Verb::Add | Verb::Del | Verb::Check));
                }
            }
            ToAgent::ExecDone(done) => {
                for verb in [Verb::Add, Verb::Del] {
                    match done.result("x", verb) {
                        Ok(result) => {
                            assert!(done.ok && !done.missing);
                            assert_eq!(result.is_some(), verb == Verb::Add, "ADD has a result and nothing else has");
                        }
                        Err(e) => assert!(verb == Verb::Add || !done.ok || done.missing, "{e:?}"),
                    }
                }
            }
        }
    }
    if let Ok(message) = wire::decode::<ToClient>(data) {
        again(&message);
        if let ToClient::Reply(reply) = message {
            let failed = matches!(reply, wire::Reply::Failed { .. });
            assert_eq!(reply.clone().into_result().is_err(), failed);
            if let Err(e) = reply.into_result() {
                let again = wire::Reply::failed(&e).into_result();
                assert_eq!(again, Err(e));
            }
        }
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(e) = Error::from_stdout(text)
    {
        assert_eq!(Error::from_stdout(&e.to_value("1.0.0").to_string()), Some(e));
    }
}

/// Written and read once more it says the same.
fn again<T: serde::Serialize + serde::de::DeserializeOwned>(message: &T) {
    let value = |m: &T| serde_json::to_value(m).unwrap_or(Value::Null);
    let Ok(frame) = wire::encode(message) else { return };
    let back: T = wire::decode(&frame[4..]).expect("what was encoded is a message");
    assert!(alike(&value(message), &value(&back)), "{} became {}", value(message), value(&back));
}
