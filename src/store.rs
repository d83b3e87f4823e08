//! What a node holds. A plain data structure: no lock, no I/O, no clock of its own.
//!
//! Invariant: `bytes` is the sum of what the entries are counted as, and never above `max_bytes`.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde_json::value::RawValue;

/// A JSON value, byte for byte as it was sent, inside the body that answers a `GET`. Shared, so
/// that a hit copies nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    body: Arc<[u8]>,
}

const BODY_START: &[u8] = br#"{"value":"#;

impl Value {
    /// Keeps the text of `value`.
    #[must_use]
    pub fn from_raw(value: &RawValue) -> Self {
        Self { body: [BODY_START, value.get().as_bytes(), b"}"].concat().into() }
    }

    /// `{"value": …}`, ready to be sent.
    #[must_use]
    pub fn body(&self) -> Arc<[u8]> {
        Arc::clone(&self.body)
    }

    /// The JSON text alone.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        &self.body[BODY_START.len()..self.body.len() - 1]
    }
}

/// There is no room for an entry.
#[derive(Debug, PartialEq, Eq)]
pub struct StoreFull {
    /// What would be held with it.
    pub needed_bytes: usize,
    /// What may be held.
    pub max_bytes: usize,
}

impl fmt::Display for StoreFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store is full: {} bytes are needed, {} are allowed", self.needed_bytes, self.max_bytes)
    }
}

/// What an entry takes beside its key and value.
const ENTRY_BYTES: usize = 128;

/// The entries of a node.
#[derive(Debug)]
pub struct Store {
    max_bytes: usize,
    bytes: usize,
    entries: HashMap<String, Value>,
}

impl Store {
    /// An empty store which may hold `max_bytes`.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, bytes: 0, entries: HashMap::new() }
    }

    /// The value of an entry.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Value> {
        self.entries.get(key).cloned()
    }

    /// Puts a value in place.
    ///
    /// # Errors
    /// There is no room; the old value still stands.
    pub fn put(&mut self, key: &str, value: Value) -> Result<(), StoreFull> {
        let freed = self.entries.get(key).map_or(0, |old| entry_bytes(key, old));
        let needed_bytes = self.bytes - freed + entry_bytes(key, &value);
        if needed_bytes > self.max_bytes {
            return Err(StoreFull { needed_bytes, max_bytes: self.max_bytes });
        }
        self.bytes = needed_bytes;
        self.entries.insert(key.to_owned(), value);
        Ok(())
    }

    /// Removes an entry, if it is there.
    pub fn delete(&mut self, key: &str) {
        if let Some(old) = self.entries.remove(key) {
            self.bytes -= entry_bytes(key, &old);
        }
    }

    /// Some entries: the first that come, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// How many entries there are.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// What all that is held counts.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

fn entry_bytes(key: &str, value: &Value) -> usize {
    ENTRY_BYTES + key.len() + value.body.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Value {
        Value::from_raw(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_value_is_kept_byte_for_byte() {
        for json in ["null", "1e400", "123456789012345678901234567890", r#"{ "a" :  ["\u0000"] }"#] {
            assert_eq!(value(json).raw(), json.as_bytes());
            assert_eq!(*value(json).body(), *format!("{{\"value\":{json}}}").as_bytes());
        }
    }

    #[test]
    fn a_full_store_refuses_and_loses_nothing() {
        let mut store = Store::new(2 * (ENTRY_BYTES + 20));
        store.put("a", value("1")).unwrap();
        store.put("b", value("2")).unwrap();
        let held = store.bytes();
        let refused = store.put("a", value("\"much more than there is room for\"")).unwrap_err();
        assert_eq!(refused.max_bytes, 2 * (ENTRY_BYTES + 20));
        assert_eq!((store.get("a"), store.bytes()), (Some(value("1")), held));
        store.put("a", value("3")).unwrap();
        assert_eq!(store.bytes(), held, "a value of the same length takes the room of the old one");
        store.delete("a");
        store.delete("b");
        store.delete("c");
        assert_eq!((store.entries(), store.bytes()), (0, 0));
    }
}
