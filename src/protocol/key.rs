//! Keys as one segment of a path: the encoding, and its exact inverse.
//!
//! Invariant: `decode(&encode(key)) == Ok(key)` for every key that is allowed. Two encodings that
//! are not inverses make a key that can be written and never read.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// The longest key, decoded.
pub const MAX_KEY_BYTES: usize = 1024;

/// All but the characters that RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why a path segment is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadKey {
    /// No characters.
    Empty,
    /// More than [`MAX_KEY_BYTES`].
    TooLong(usize),
    /// A percent sign without two hexadecimal digits.
    NotPercentEncoded,
    /// The decoded bytes are no UTF-8.
    NotUtf8,
}

impl fmt::Display for BadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "the key is empty"),
            Self::TooLong(bytes) => write!(f, "the key has {bytes} bytes; at most {MAX_KEY_BYTES} are allowed"),
            Self::NotPercentEncoded => write!(f, "the key has a % without two hexadecimal digits"),
            Self::NotUtf8 => write!(f, "the key is not UTF-8"),
        }
    }
}

/// The key as a path segment, or as a value in a query.
#[must_use]
pub fn encode(key: &str) -> String {
    utf8_percent_encode(key, ENCODED).to_string()
}

/// The key of a path segment.
///
/// # Errors
/// The segment is not percent-encoded UTF-8 of 1 to [`MAX_KEY_BYTES`] bytes.
pub fn decode(segment: &str) -> Result<String, BadKey> {
    // The library lets `%zz` through as it is.
    let bytes = segment.as_bytes();
    let is_hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    if (0..bytes.len()).any(|at| bytes[at] == b'%' && !(is_hex(at + 1) && is_hex(at + 2))) {
        return Err(BadKey::NotPercentEncoded);
    }
    let key = percent_decode_str(segment).decode_utf8().map_err(|_| BadKey::NotUtf8)?;
    match key.len() {
        0 => Err(BadKey::Empty),
        1..=MAX_KEY_BYTES => Ok(key.into_owned()),
        bytes => Err(BadKey::TooLong(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_comes_back() {
        let ascii = (0..128_u8).map(|byte| char::from(byte).to_string());
        let others = ["ř", "漢字", "🦀", "a/b c+d%e\n", "..", "%2F", &"ž".repeat(512)];
        for key in ascii.chain(others.map(str::to_owned)) {
            let segment = encode(&key);
            assert!(segment.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/'), "{segment}");
            assert_eq!(decode(&segment), Ok(key));
        }
    }

    #[test]
    fn every_byte_is_decoded_or_refused() {
        for byte in 0..=255_u8 {
            let expected = if byte < 128 { Ok(char::from(byte).to_string()) } else { Err(BadKey::NotUtf8) };
            assert_eq!(decode(&format!("%{byte:02x}")), expected, "lower case");
            assert_eq!(decode(&format!("%{byte:02X}")), expected, "upper case");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for (segment, error) in [
            ("", BadKey::Empty),
            ("%", BadKey::NotPercentEncoded),
            ("a%2", BadKey::NotPercentEncoded),
            ("%zz", BadKey::NotPercentEncoded),
            ("%+1", BadKey::NotPercentEncoded),
            ("%C5", BadKey::NotUtf8),
            (&"a".repeat(1025), BadKey::TooLong(1025)),
        ] {
            assert_eq!(decode(segment), Err(error), "{segment}");
        }
        assert_eq!(decode("a+b"), Ok("a+b".to_owned()), "a plus is a plus, as in every path");
    }
}
