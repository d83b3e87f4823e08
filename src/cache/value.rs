//! A JSON value as it is kept and sent: byte for byte as it came.

use std::sync::Arc;

use serde_json::value::RawValue;

/// A JSON value inside the body that answers a `GET`. Shared, so that a hit copies and renders nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    body: Arc<[u8]>,
}

const BODY_START: &[u8] = br#"{"value":"#;

impl Value {
    pub fn from_raw(value: &RawValue) -> Self {
        Self { body: [BODY_START, value.get().as_bytes(), b"}"].concat().into() }
    }

    /// `{"value": …}`, ready to be sent.
    pub fn body(&self) -> Arc<[u8]> {
        Arc::clone(&self.body)
    }

    /// The JSON text alone.
    pub fn raw(&self) -> &[u8] {
        &self.body[BODY_START.len()..self.body.len() - 1]
    }

    /// What it counts.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_kept_byte_for_byte() {
        for json in ["null", "1e400", "123456789012345678901234567890", r#"{ "a" :  ["\u0000"] }"#] {
            let value = Value::from_raw(serde_json::from_str(json).unwrap());
            assert_eq!(value.raw(), json.as_bytes());
            assert_eq!(*value.body(), *format!("{{\"value\":{json}}}").as_bytes());
        }
    }
}
