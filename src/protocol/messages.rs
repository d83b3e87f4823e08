//! The bodies that nodes send each other, each with the two ends that write and read it. All is JSON.
//!
//! Unknown fields are ignored, so a node can be told more than it knows of. A field that an older node does not
//! send must be an `Option`.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::cache::store::Leased;
use crate::cache::value::{self, Value};
use crate::tree::{NodeRef, Place};

/// The JSON of one of our own types.
pub fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own types are JSON")
}

/// Reads what must be a JSON object; a struct would be read from an array as well.
pub fn from_json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err("the body is not a JSON object".to_owned());
    }
    serde_json::from_slice(body).map_err(|error| format!("the body is not what is asked for: {error}"))
}

/// Any answer but a 200.
#[derive(Serialize, Deserialize)]
pub struct ErrorAnswer<'a> {
    #[serde(borrow)]
    pub detail: Cow<'a, str>,
}

/// `POST /nodes`: what a node says to the root.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    pub id: u32,
    pub run: u64,
    pub url: String,
    /// The position that it holds, if it has one.
    pub position: Option<u32>,
}

/// `POST /nodes`: what the root answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct JoinAnswer {
    #[serde(flatten)]
    pub place: Place,
    /// The life of a copy.
    pub lease_ms: u64,
}

/// `GET /copies/{key}`: the answer where the key has a value.
#[derive(Deserialize)]
struct CopyAnswer<'a> {
    lease_ms: u64,
    #[serde(borrow)]
    value: &'a RawValue,
}

/// Writes a [`CopyAnswer`] up to its last field, which is the value.
pub fn start_copy(lease: Duration) -> String {
    format!(r#"{{"lease_ms":{},"#, lease.as_millis())
}

pub fn read_copy(body: Vec<u8>) -> Result<Leased, String> {
    let CopyAnswer { lease_ms, value } = from_json(&body)?;
    let place = value::find(value, &body);
    Ok(Leased { value: Some(Value::cut_out(body, place)), lease: Duration::from_millis(lease_ms) })
}

/// `DELETE /copies/{key}`: nothing is held any more by the process of this run, nor below it.
#[derive(Serialize, Deserialize)]
pub struct Acknowledgement {
    pub run: u64,
}

/// `GET /`: who and where a node is.
#[derive(Serialize)]
pub struct Description<'a> {
    pub node: &'a str,
    pub id: u32,
    pub role: &'a str,
    pub run: u64,
    pub joined: bool,
    pub position: Option<u32>,
    pub depth: Option<u32>,
    pub url: &'a str,
    pub path: Option<&'a Vec<String>>,
    pub parent: Option<&'a NodeRef>,
    pub ancestors: &'a [NodeRef],
    pub children: &'a [NodeRef],
    pub zookeeper: &'a str,
    pub entries: usize,
    pub copies: usize,
    pub bytes: usize,
    pub uptime_seconds: u64,
    pub version: &'a str,
}

/// What another node reads of a [`Description`].
#[derive(Debug, Deserialize)]
pub struct Identity {
    pub run: u64,
    pub joined: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_comes_as_it_was_sent() {
        for json in ["null", "1e400", r#"{ "a" :  ["\u0000"] }"#] {
            let value = Value::from(json);
            let lease = Duration::from_millis(4998);
            let sent = [start_copy(lease).as_bytes(), &value.last_field()].concat();
            assert_eq!(read_copy(sent), Ok(Leased { value: Some(value), lease }), "{json}");
        }
        for wrong in ["", "[1,2]", r#"{"lease_ms":-1,"value":2}"#, r#"{"lease_ms":1}"#] {
            assert!(read_copy(wrong.into()).is_err(), "{wrong}");
        }
    }
}
