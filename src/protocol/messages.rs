//! The bodies that nodes send each other, each with the two ends that write and read it. All is JSON.
//!
//! Unknown fields are ignored, so a node can be told more than it knows of. A field that an older node does not
//! send must be an `Option`, or have a default.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::cache::store::Leased;
use crate::cache::value::{self, Value};
use crate::tree::Place;

/// The JSON of one of our own types.
pub fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own types are JSON")
}

/// Reads what must be a JSON object; a struct would be read from an array as well.
pub fn from_json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err("the body is not a JSON object".to_owned());
    }
    // What is skipped would not be looked at.
    let text = str::from_utf8(body).map_err(|error| format!("the body is not UTF-8: {error}"))?;
    serde_json::from_str(text).map_err(|error| format!("the body is not what is asked for: {error}"))
}

/// A time as it travels.
pub fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// In every answer: the run of the process that gave it (rule 8).
pub const RUN_HEADER: &str = "Tree-Cache-Run";

/// Any answer but a 200.
#[derive(Serialize, Deserialize)]
pub struct ErrorAnswer {
    pub detail: String,
}

/// What nodes say to each other has this number; it grows with each change that an older node would not understand.
pub const PROTOCOL: u32 = 3;

/// `POST /nodes`: what a node says to the root.
#[derive(Debug, Serialize, Deserialize)]
pub struct JoinRequest {
    /// None: the first, which did not say so.
    pub protocol: Option<u32>,
    pub id: u32,
    pub run: u64,
    pub url: String,
    /// The position that it holds, if it has one.
    pub position: Option<u32>,
    /// The run of the root that gave it its place, if it has one.
    pub root: Option<u64>,
    /// The longest life left of the copies and records that it holds (rule 10).
    #[serde(default)]
    pub holds_ms: u64,
}

/// `POST /nodes`: what the root answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// The root's.
    pub run: u64,
    /// The root's clock: milliseconds since it started.
    pub root_ms: u64,
    #[serde(flatten)]
    pub place: Place,
    /// The life of a copy.
    pub lease_ms: u64,
}

/// `GET /copies/{key}`: the answer, without a value if the root says that the key is absent.
#[derive(Deserialize)]
struct CopyAnswer<'a> {
    run: u64,
    /// The run of the root from which whoever answers has its place.
    root: Option<u64>,
    lease_ms: u64,
    #[serde(borrow, default, deserialize_with = "read_present")]
    value: Option<&'a RawValue>,
}

/// `null` is a value, and not an absent one.
fn read_present<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

/// Writes a [`CopyAnswer`] up to its value.
pub fn start_copy(run: u64, root: u64, lease: Duration) -> String {
    format!(r#"{{"run":{run},"root":{root},"lease_ms":{}"#, lease.as_millis())
}

/// Reads a [`CopyAnswer`]: the run that gave it, and what it says. From below another root than `root` it is answered once
/// and not kept: whoever joins that one states what it holds of the root before, which must not be more than that, or the
/// new root would wait for it (rule 10).
pub fn read_copy(body: Vec<u8>, root: u64) -> Result<(u64, Leased), String> {
    let CopyAnswer { run, root: by_root, lease_ms, value } = from_json(&body)?;
    let lease_ms = if by_root == Some(root) { lease_ms } else { 0 };
    let range = value.map(|value| value::find(value, &body));
    let value = range.map(|range| Value::cut_out(body, range));
    Ok((run, Leased { value, lease: Duration::from_millis(lease_ms) }))
}

/// `DELETE /copies/{key}`: nothing is held any more by the process of this run, nor below it.
#[derive(Serialize, Deserialize)]
pub struct Acknowledgement {
    pub run: u64,
}

/// The role of a root.
pub const ROOT: &str = "root";

/// `GET /`: what another node reads of it. What clients do stands where it is written, in `http/api.rs`.
#[derive(Debug, Deserialize)]
pub struct Identity {
    #[serde(default)]
    pub leaving: bool,
    #[serde(default)]
    pub role: String,
    pub run: u64,
    pub joined: bool,
}

impl Identity {
    pub fn is_root(&self) -> bool {
        self.role == ROOT
    }

    /// Whether it has its place, and will go on to.
    pub fn stays(&self) -> bool {
        self.joined && !self.leaving
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_comes_as_it_was_sent() {
        for json in ["null", "1e400", r#"{ "a" :  ["\u0000"] }"#] {
            let value = Value::from(json);
            let lease = Duration::from_millis(4998);
            let sent = || [start_copy(7, 3, lease).as_bytes(), b",", &value.last_field()[..]].concat();
            assert_eq!(read_copy(sent(), 3), Ok((7, Leased { value: Some(value.clone()), lease })), "{json}");
            assert_eq!(read_copy(sent(), 4), Ok((7, Leased::once(Some(value.clone())))), "below another root");
        }
        assert_eq!(read_copy(br#"{"run":7,"lease_ms":9}"#.to_vec(), 3), Ok((7, Leased::once(None))));
        for wrong in
            ["", "[1,2]", r#"{"run":7,"lease_ms":-1,"value":2}"#, r#"{"run":7}"#, r#"{"lease_ms":1,"value":2}"#]
        {
            assert!(read_copy(wrong.into(), 3).is_err(), "{wrong}");
        }
    }
}
