//! Equality of JSON that was written and read again. Knows no message.

use serde_json::Value;

/// Equal, where a fraction may differ in its last digit: serde_json reads those to the nearest but one.
pub fn alike(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64().zip(y.as_f64()).is_some_and(|(x, y)| near(x, y)),
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| alike(x, y)),
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(k, x)| y.get(k).is_some_and(|y| alike(x, y)))
        }
        _ => a == b,
    }
}

/// Within some units in the last place.
pub fn near(x: f64, y: f64) -> bool {
    x == y || (x - y).abs() <= x.abs().max(y.abs()) * 1e-14 + f64::MIN_POSITIVE
}
