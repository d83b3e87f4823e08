//! A request, read and written, and who may ask it. Pure.
//!
//! Invariant: a target is read here, once, and nowhere else. When two readers of one path disagreed,
//! `POST x/nodes` was a join that needed no token.
//! What [`Call::write`] writes, [`Request::read`] reads.
//!
//! Left out: bodies (`messages.rs`), telling whether a caller is a node, and carrying the call out (`http/api.rs`).

use std::str::FromStr;
use std::time::Duration;

use super::error::{Error, Kind};
use super::key;
use crate::cache::leases::Holder;
use crate::config::base_url;
use crate::tree;

/// What can be asked of some path or other.
const ALL_METHODS: &str = "GET, HEAD, PUT, POST, DELETE, OPTIONS";

/// Keys in one listing.
pub const MAX_LISTED: usize = 1000;

/// A request as it was read: what is asked, which only [`Request::open`] gives away, and who may ask it.
pub struct Request<'a> {
    who: Who,
    /// Whom the target itself asks, in place of the one that the header `Host` names (RFC 9112, 3.2.2).
    pub host: Option<&'a str>,
    call: Result<Call, Error>,
}

/// Who may ask something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Anybody,
    /// Only the nodes of this tree.
    Nodes,
}

/// One thing that a node can be asked. Keys are decoded.
#[derive(Debug, PartialEq)]
pub enum Call {
    /// Who and where this node is.
    Describe,
    /// Whether clients should come to this node.
    Health,
    /// The tree.
    Nodes,
    Metrics,
    /// What clients can ask.
    DescribeApi,
    /// With what methods the path can be asked: these.
    Options(&'static str),
    /// Some of what this node holds, at most so many keys.
    List(usize),
    Get(String),
    /// A write, and what a node says that passes it on.
    Put(String, Option<PassedOn>),
    Delete(String, Option<PassedOn>),
    /// Give a node its place.
    Join,
    /// Read a key for another node, which waits for so long and, if it says who it is, will hold a copy. It is meant for
    /// the run `to`.
    Fetch {
        key: String,
        to: u64,
        holder: Option<Holder>,
        wait: Duration,
    },
    /// Drop the copies of a key, here and below. It is meant for the run `to`, and comes from a node above: `level` is
    /// the sender's.
    Invalidate {
        key: String,
        to: u64,
        level: u32,
    },
}

/// What a node adds to a write that it passes on: the run of the root that it is meant for, and until when, by that
/// root's clock, it may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassedOn {
    pub to: u64,
    pub until_ms: u64,
}

impl Call {
    /// Method and target. No node sends another the calls that only clients make; a test does.
    pub fn write(&self) -> (&'static str, String) {
        let store = |key| format!("/store/{}", key::encode(key));
        let write = |key, passed_on: &Option<PassedOn>| match passed_on {
            None => store(key),
            Some(PassedOn { to, until_ms }) => format!("{}?to={to}&until_ms={until_ms}", store(key)),
        };
        match self {
            Self::Describe => ("GET", "/".to_owned()),
            Self::Health => ("GET", "/health".to_owned()),
            Self::Nodes => ("GET", "/nodes".to_owned()),
            Self::Metrics => ("GET", "/metrics".to_owned()),
            Self::DescribeApi => ("GET", "/openapi.json".to_owned()),
            Self::Options(_) => ("OPTIONS", "*".to_owned()),
            Self::List(limit) => ("GET", format!("/store?limit={limit}")),
            Self::Get(key) => ("GET", store(key)),
            Self::Put(key, passed_on) => ("PUT", write(key, passed_on)),
            Self::Delete(key, passed_on) => ("DELETE", write(key, passed_on)),
            Self::Join => ("POST", "/nodes".to_owned()),
            Self::Fetch { key, to, holder, wait } => {
                let holder = holder.as_ref().map_or_else(String::new, |Holder { name, url, run }| {
                    format!("&holder={name}&url={}&run={run}", key::encode(url))
                });
                ("GET", format!("/copies/{}?to={to}&wait_ms={}{holder}", key::encode(key), wait.as_millis()))
            }
            Self::Invalidate { key, to, level } => {
                ("DELETE", format!("/copies/{}?to={to}&level={level}", key::encode(key)))
            }
        }
    }

    /// Adds to a write what a node says that passes it on.
    pub fn say_passed_on(&mut self, what: PassedOn) {
        if let Self::Put(_, passed_on) | Self::Delete(_, passed_on) = self {
            *passed_on = Some(what);
        }
    }

    /// Whether a node that sends this shows the token: where only nodes may ask, and in a write that is passed on.
    /// Whoever is asked who he is, or for the tree, has not shown it himself yet.
    pub fn shows_token(&self) -> bool {
        matches!(self, Self::Join | Self::Fetch { .. } | Self::Invalidate { .. } | Self::Put(..) | Self::Delete(..))
    }
}

impl<'a> Request<'a> {
    pub fn read(method: &str, target: &'a str) -> Self {
        if (method, target) == ("OPTIONS", "*") {
            return Self { who: Who::Anybody, host: None, call: Ok(Call::Options(ALL_METHODS)) };
        }
        let Some((host, path, query)) = split_target(target) else {
            let text = format!("the target {:?} is neither a path nor an http:// URL", shorten(target));
            return Self { who: Who::Anybody, host: None, call: Err(Kind::BadRequest.error(text)) };
        };
        let segments: Vec<&str> = path.split('/').collect();
        let reads = method == "GET" || method == "HEAD";
        let no_path = || Kind::NotFound.error(format!("there is no path {:?}", format!("/{}", shorten(path))));
        let (who, call) = match segments[..] {
            ["nodes"] if method == "POST" => (Who::Nodes, Ok(Call::Join)),
            // Also when it is wrong: a stranger need not know in which way.
            ["copies", segment] => (Who::Nodes, read_copies(method, segment, query)),
            ["copies", _, _, ..] => (Who::Nodes, Err(no_path())),
            ["store", segment] => (Who::Anybody, read_store(method, segment, query)),
            ["store"] if reads => (Who::Anybody, read_limit(query).map(Call::List)),
            [""] if reads => (Who::Anybody, Ok(Call::Describe)),
            ["health"] if reads => (Who::Anybody, Ok(Call::Health)),
            ["nodes"] if reads => (Who::Anybody, Ok(Call::Nodes)),
            ["metrics"] if reads => (Who::Anybody, Ok(Call::Metrics)),
            ["openapi.json"] if reads => (Who::Anybody, Ok(Call::DescribeApi)),
            ["nodes"] => (Who::Anybody, read_other(method, "GET, HEAD, POST, OPTIONS")),
            ["" | "health" | "metrics" | "openapi.json" | "store"] => {
                (Who::Anybody, read_other(method, "GET, HEAD, OPTIONS"))
            }
            _ => (Who::Anybody, Err(no_path())),
        };
        Self { who, host, call }
    }

    /// What is asked. Where only nodes may ask it, `expect_node` has the first word.
    pub fn open(self, expect_node: impl FnOnce() -> Result<(), Error>) -> Result<Call, Error> {
        if self.who == Who::Nodes {
            expect_node()?;
        }
        self.call
    }
}

/// Host, path without the slash that it begins with, and query of a target: `/path` or `http://host/path`.
fn split_target(target: &str) -> Option<(Option<&str>, &str, &str)> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if let Some(path) = path.strip_prefix('/') {
        return Some((None, path, query));
    }
    let absolute = path.strip_prefix("http://")?;
    // `http://host` alone is its `/`.
    let (host, path) = absolute.split_once('/').unwrap_or((absolute, ""));
    (!host.is_empty()).then_some((Some(host), path, query))
}

fn read_store(method: &str, segment: &str, query: &str) -> Result<Call, Error> {
    let key = key::decode(segment);
    // To a client neither means anything.
    let number = |name| find_parameter(query, name).and_then(read_digits);
    let passed_on = || Some(PassedOn { to: number("to")?, until_ms: number("until_ms")? });
    match method {
        "GET" | "HEAD" => Ok(Call::Get(key?)),
        "PUT" => Ok(Call::Put(key?, passed_on())),
        "DELETE" => Ok(Call::Delete(key?, passed_on())),
        _ => read_other(method, "GET, HEAD, PUT, DELETE, OPTIONS"),
    }
}

fn read_copies(method: &str, segment: &str, query: &str) -> Result<Call, Error> {
    let key = key::decode(segment);
    let number = |name| read_parameter(query, name, "a whole number", read_digits);
    let holder = |_| {
        Ok(Holder {
            name: read_parameter(query, "holder", "the name of a node", |name| tree::id_of(name).map(tree::name))?,
            url: read_parameter(query, "url", "a URL of the form http://host:port", |url| {
                base_url(&key::decode(url).ok()?)
            })?,
            run: number("run")?,
        })
    };
    match method {
        "GET" => Ok(Call::Fetch {
            key: key?,
            to: number("to")?,
            holder: find_parameter(query, "holder").map(holder).transpose()?,
            wait: Duration::from_millis(number("wait_ms")?),
        }),
        "DELETE" => Ok(Call::Invalidate {
            key: key?,
            to: number("to")?,
            level: number("level")?.try_into().unwrap_or(u32::MAX),
        }),
        _ => read_other(method, "GET, DELETE, OPTIONS"),
    }
}

fn read_limit(query: &str) -> Result<usize, Error> {
    let read = |text: &str| read_digits(text).filter(|limit| (1..=MAX_LISTED).contains(limit));
    let what = format!("a whole number from 1 to {MAX_LISTED}");
    find_parameter(query, "limit").map_or(Ok(MAX_LISTED), |_| read_parameter(query, "limit", &what, read))
}

/// Reads a method that is none of those which a path has a call for.
fn read_other(method: &str, allow: &'static str) -> Result<Call, Error> {
    if method == "OPTIONS" {
        return Ok(Call::Options(allow));
    }
    let error = Kind::MethodNotAllowed.error(format!("the method {method:?} is not one of {allow}"));
    Err(Error { allow: Some(allow), ..error })
}

/// So much of a target as an error repeats.
fn shorten(text: &str) -> String {
    text.chars().take(100).collect()
}

fn find_parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// What `read` makes of a parameter, or that it is not `what` it should be.
fn read_parameter<T>(query: &str, name: &str, what: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, Error> {
    let text = find_parameter(query, name).unwrap_or_default();
    read(text).ok_or_else(|| Kind::BadRequest.error(format!("{name}={text:?} is not {what}")))
}

/// A number of digits only; Rust takes a sign for a part of one.
pub fn read_digits<T: FromStr>(text: &str) -> Option<T> {
    Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
}

#[cfg(test)]
mod tests;
