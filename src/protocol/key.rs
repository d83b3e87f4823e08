//! Keys as one segment of a path: the encoding, and its exact inverse.
//!
//! Invariant: `decode(&encode(key)) == Ok(key)` for every key that is allowed. Two encodings that
//! are not inverses make a key that can be written and never read.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::error::{Error, Kind};

/// The longest key, decoded.
pub const MAX_KEY_BYTES: usize = 1024;

/// All but the characters that RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The key as a path segment, or as a value in a query.
pub fn encode(key: &str) -> String {
    utf8_percent_encode(key, ENCODED).to_string()
}

/// The key of a path segment: percent-encoded UTF-8 of 1 to [`MAX_KEY_BYTES`] bytes.
pub fn decode(segment: &str) -> Result<String, Error> {
    // The library lets `%zz` through as it is.
    let has_digits = |rest: &str| rest.as_bytes().get(..2).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit));
    if !segment.split('%').skip(1).all(has_digits) {
        return Err(Kind::BadRequest.error("the key has a % without two hexadecimal digits"));
    }
    let key = percent_decode_str(segment).decode_utf8().map_err(|_| Kind::BadRequest.error("the key is not UTF-8"))?;
    match key.len() {
        0 => Err(Kind::BadRequest.error("the key is empty")),
        1..=MAX_KEY_BYTES => Ok(key.into_owned()),
        bytes => Err(Kind::BadRequest.error(format!("the key has {bytes} bytes; at most {MAX_KEY_BYTES} are allowed"))),
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
            let not_utf8 = || Kind::BadRequest.error("the key is not UTF-8");
            let expected = if byte < 128 { Ok(char::from(byte).to_string()) } else { Err(not_utf8()) };
            assert_eq!(decode(&format!("%{byte:02x}")), expected, "lower case");
            assert_eq!(decode(&format!("%{byte:02X}")), expected, "upper case");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for (segment, text) in [
            ("", "the key is empty"),
            ("%", "the key has a % without two hexadecimal digits"),
            ("a%2", "the key has a % without two hexadecimal digits"),
            ("%zz", "the key has a % without two hexadecimal digits"),
            ("%+1", "the key has a % without two hexadecimal digits"),
            ("%C5", "the key is not UTF-8"),
            (&"a".repeat(1025), "the key has 1025 bytes; at most 1024 are allowed"),
        ] {
            assert_eq!(decode(segment), Err(Kind::BadRequest.error(text)), "{segment}");
        }
        assert_eq!(decode("a+b"), Ok("a+b".to_owned()), "a plus is a plus, as in every path");
    }
}
