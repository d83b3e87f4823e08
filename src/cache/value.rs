//! A JSON value as it is kept and sent: byte for byte as it came.

use std::ops::Range;
use std::sync::Arc;

use serde_json::value::RawValue;

/// A JSON value as the last field of an object: all bodies in which it is sent end so. Shared, so that sending it
/// copies and renders nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    last_field: Arc<Vec<u8>>,
}

const NAME: &[u8] = br#""value":"#;

impl Value {
    /// Keeps of `body`, an object, what lies in `range`: its field `value`. A value may be as large as memory allows
    /// once, so it stays where it is.
    pub fn cut_out(mut body: Vec<u8>, range: Range<usize>) -> Self {
        // The name stands before it, in whatever way it was written.
        let start = range.start - NAME.len();
        body[start..range.start].copy_from_slice(NAME);
        body.truncate(range.end);
        body.push(b'}');
        body.drain(..start);
        body.shrink_to_fit();
        Self { last_field: Arc::new(body) }
    }

    /// Keeps that JSON text.
    pub fn from_raw(json: &[u8]) -> Self {
        Self { last_field: Arc::new([NAME, json, b"}"].concat()) }
    }

    /// `"value":…}`: what follows `{`, or other fields and a comma.
    pub fn last_field(&self) -> Arc<Vec<u8>> {
        Arc::clone(&self.last_field)
    }

    /// The JSON text alone.
    pub fn raw(&self) -> &[u8] {
        &self.last_field[NAME.len()..self.last_field.len() - 1]
    }

    /// What it counts.
    pub fn bytes(&self) -> usize {
        self.last_field.len()
    }
}

/// Where in `body` a value lies that was read from it.
pub fn find(value: &RawValue, body: &[u8]) -> Range<usize> {
    let start = value.get().as_ptr().addr() - body.as_ptr().addr();
    start..start + value.get().len()
}

/// Whether all strings in a value are Unicode: JSON's grammar lets an escape name one half of a surrogate pair, and many
/// a client cannot read that.
pub fn is_unicode(value: &RawValue) -> bool {
    let unit = |escape: &str| u32::from_str_radix(escape.strip_prefix("\\u")?.get(..4)?, 16).ok();
    let mut rest = value.get();
    // Only strings have backslashes, and an escape is whole, for the text is JSON.
    while let Some(start) = rest.find('\\') {
        let escape = &rest[start..];
        rest = match unit(escape) {
            None => &escape[2..],
            Some(0xD800..=0xDBFF) if matches!(unit(&escape[6..]), Some(0xDC00..=0xDFFF)) => &escape[12..],
            Some(0xD800..=0xDFFF) => return false,
            Some(_) => &escape[6..],
        };
    }
    true
}

#[cfg(test)]
impl From<&str> for Value {
    fn from(json: &str) -> Self {
        Self::from_raw(json.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_kept_byte_for_byte() {
        for json in ["null", "1e400", "123456789012345678901234567890", r#"{ "a" :  ["\u0000"] }"#] {
            for (before, after) in [("{\"value\":", "}"), ("{ \"ttl\":5, \"\\u0076alue\" : ", " , \"x\":[1] } ")] {
                let body = format!("{before}{json}{after}").into_bytes();
                let value = Value::cut_out(body, before.len()..before.len() + json.len());
                assert_eq!(value.raw(), json.as_bytes());
                assert_eq!(*value.last_field(), format!("\"value\":{json}}}").as_bytes());
            }
        }
    }
    #[test]
    fn half_a_surrogate_pair_is_no_unicode() {
        for (json, expected) in [
            (r#""\ud83d\ude00 \u0041\\ud800 \"""#, true),
            (r#"{"\uD83D\uDE00":["\uFFFF\uE000"]}"#, true),
            (r#""\ud800""#, false),
            (r#""\udc00\ud800""#, false),
            (r#""\ud800\n\udc00""#, false),
            (r#""\ud800udc00""#, false),
            (r#""\ud800\ud800\udc00""#, false),
            (r#"[1, {"\\\uDFFF": null}]"#, false),
        ] {
            assert_eq!(is_unicode(serde_json::from_str(json).unwrap()), expected, "{json}");
        }
    }
}
