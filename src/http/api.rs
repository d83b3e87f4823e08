//! The HTTP API: the [`Call`] that a request is, is done, and its result becomes an answer.
//!
//! The one `match` in [`respond`] shows everything that a node can be asked. Errors are values until
//! [`answer_error`], which picks the status.
//!
//! Left out: sockets and threads (`server.rs`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::cache::leases::Holder;
use crate::cache::store::{Answered, Write};
use crate::cache::value::Value;
use crate::config::base_url;
use crate::http::client::{JoinRequest, RawAnswer};
use crate::http::page;
use crate::http::server::{Answer, Incoming};
use crate::node::join;
use crate::node::{Node, READ_LIMIT, Source};
use crate::protocol::call::{Call, Request};
use crate::protocol::error::Error;
use crate::protocol::key;
use crate::tree::{self, NodeRef};

/// A listing ends at this length.
const MAX_LISTING_BYTES: usize = 1 << 20;

/// The longest ttl: 31 years. What the clock itself can count depends on when the machine started, and a
/// limit that nobody can be told is none.
const MAX_TTL: Duration = Duration::from_secs(1_000_000_000);

/// Answers one request.
#[must_use]
pub fn handle(node: &Arc<Node>, incoming: &Incoming) -> Answer {
    respond(node, incoming).unwrap_or_else(|error| answer_error(&error))
}

fn respond(node: &Arc<Node>, incoming: &Incoming) -> Result<Answer, Error> {
    match Request::read(incoming.method(), incoming.target()).open(|| expect_node(node, incoming))? {
        // The same URL has two answers, and a cache in between must know.
        Call::Describe if page::is_wanted(incoming.header("Accept")) => Ok(page::page().with_header("Vary", "Accept")),
        Call::Describe => Ok(describe(node).with_header("Vary", "Accept")),
        Call::DescribeApi => Ok(page::description()),
        Call::Metrics => Ok(metrics(node)),
        // Also before it has its place: a node that is told to join here, perhaps itself, would wait in vain.
        Call::Join if !node.config.is_root() => Err(Error::JoinElsewhere { name: node.myself.name.clone() }),
        _ if !node.is_joined() => Err(Error::NotJoined),
        Call::Get { key } => get(node, &key),
        Call::List { limit } => Ok(list(node, limit)),
        call @ (Call::Put { .. } | Call::Delete { .. } | Call::Nodes) if !node.config.is_root() => {
            pass_on(node, &call, incoming)
        }
        Call::Put { key } => put(node, &key, &incoming.body),
        Call::Delete { key } => delete(node, &key),
        Call::Nodes => Ok(nodes(node)),
        Call::Join => join_node(node, &incoming.body),
        Call::Fetch { key, holder, wait } => fetch(node, &key, &holder, wait),
        Call::Invalidate { key, run, level } => invalidate(node, &key, run, level),
    }
}

// -- reading a request's rest ------------------------------------------------------------------

/// Reads a body that must be a JSON object; a struct would be read from an array as well.
fn read_object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Error> {
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Error::BadBody("the body is not a JSON object".to_owned()));
    }
    serde_json::from_slice(body).map_err(|error| Error::BadBody(format!("the body is not what is asked for: {error}")))
}

/// Refuses whoever is not a node of this tree, as far as that can be told.
fn expect_node(node: &Node, incoming: &Incoming) -> Result<(), Error> {
    // A page on any site can make a browser send such a call to localhost, without a token to be stopped by.
    // Browsers say that they are one.
    if incoming.header("Origin").is_some() || incoming.header("Sec-Fetch-Site").is_some() {
        return Err(Error::FromBrowser);
    }
    match (node.config.token.as_deref(), incoming.header("Authorization")) {
        (None, None) => Ok(()),
        // A root that lost its token would let anybody in, and those who have it would show it to them.
        (None, Some(_)) => Err(Error::TokenUnknown),
        (Some(token), header) if is_token(token, header) => Ok(()),
        (Some(_), _) => Err(Error::Unauthorized),
    }
}

fn is_token(token: &str, header: Option<&str>) -> bool {
    let given = header.and_then(|header| header.strip_prefix("Bearer ")).unwrap_or_default();
    // Every byte is looked at, whichever differs, so that the time taken tells nothing of the token.
    let differing = token.bytes().zip(given.bytes()).fold(0, |bits, (left, right)| bits | (left ^ right));
    std::hint::black_box(differing) == 0 && token.len() == given.len()
}

// -- for clients -------------------------------------------------------------------------------

fn get(node: &Node, key: &str) -> Result<Answer, Error> {
    let metrics = &node.metrics;
    let (value, source) = match node.read(key, None, Instant::now() + READ_LIMIT) {
        Ok((Answered { value: Some(value), .. }, source)) => (value, source),
        nothing => {
            metrics.reads_from_none.count();
            return nothing.and(Err(Error::KeyNotFound));
        }
    };
    // RFC 9211: what answered this one reader. The counters cannot say it, for others read meanwhile.
    let (counter, status) = match source {
        Source::Entry => (&metrics.reads_from_entry, "tree-cache; hit; detail=entry"),
        Source::Copy => (&metrics.reads_from_copy, "tree-cache; hit; detail=copy"),
        Source::Fetch => (&metrics.reads_from_fetch, "tree-cache; fwd=uri-miss; detail=fetch"),
    };
    counter.count();
    Ok(Answer::json(200, value.body()).with_header("Cache-Status", status))
}

#[derive(Deserialize)]
struct PutBody<'a> {
    #[serde(borrow)]
    value: &'a RawValue,
    ttl: Option<f64>,
}

fn put(node: &Arc<Node>, key: &str, body: &[u8]) -> Result<Answer, Error> {
    let PutBody { value, ttl } = read_object(body)?;
    let ttl = ttl.map(read_ttl).transpose()?;
    node.write(key, Write::Put(Value::from_raw(value), ttl))?;
    Ok(answer_json(&PutAnswer { key, value }))
}

fn read_ttl(seconds: f64) -> Result<Duration, Error> {
    let ttl = Duration::try_from_secs_f64(seconds).ok().filter(|ttl| !ttl.is_zero() && *ttl <= MAX_TTL);
    // In the short form: 1e300 has 301 digits otherwise.
    ttl.ok_or_else(|| {
        Error::BadBody(format!("ttl={seconds:?} is not a number of seconds over 0 and at most {}", MAX_TTL.as_secs()))
    })
}

#[derive(Serialize)]
struct PutAnswer<'a> {
    key: &'a str,
    value: &'a RawValue,
}

fn delete(node: &Arc<Node>, key: &str) -> Result<Answer, Error> {
    node.write(key, Write::Delete)?;
    Ok(answer_json(&serde_json::json!({ "key": key })))
}

/// Passes a write, or the question for the child table, on to the root. Whoever gets it with `Via`
/// must be the root: else two nodes that take each other for it would pass it on for ever.
fn pass_on(node: &Node, call: &Call, incoming: &Incoming) -> Result<Answer, Error> {
    if incoming.header("Via").is_some() {
        node.expect_root()?;
    }
    let RawAnswer { status, body } = match call {
        Call::Put { key } => node.forward("PUT", &format!("/store/{}", key::encode(key)), Some(&incoming.body))?,
        Call::Delete { key } => node.forward("DELETE", &format!("/store/{}", key::encode(key)), None)?,
        _ => node.forward("GET", "/nodes", None)?,
    };
    let answer = Answer::json(status, body);
    Ok(if status == 503 { answer.with_header("Retry-After", "1") } else { answer })
}

fn list(node: &Node, limit: usize) -> Answer {
    let mut body = vec![b'{'];
    for (key, value) in node.list(limit) {
        let name = serde_json::to_string(&key).expect("a string is JSON");
        if body.len() + name.len() + value.raw().len() + 3 > MAX_LISTING_BYTES {
            // A shorter one may still fit.
            continue;
        }
        if body.len() > 1 {
            body.push(b',');
        }
        body.extend_from_slice(name.as_bytes());
        body.push(b':');
        body.extend_from_slice(value.raw());
    }
    body.push(b'}');
    Answer::json(200, body)
}

#[derive(Serialize)]
struct Description<'a> {
    node: &'a str,
    id: u32,
    role: &'a str,
    run: u64,
    joined: bool,
    position: Option<u32>,
    depth: Option<u32>,
    url: &'a str,
    path: Option<&'a Vec<String>>,
    parent: Option<&'a NodeRef>,
    ancestors: &'a [NodeRef],
    children: &'a [NodeRef],
    zookeeper: &'a str,
    entries: usize,
    copies: usize,
    bytes: usize,
    uptime_seconds: u64,
}

fn describe(node: &Node) -> Answer {
    let (place, gauges) = (node.place(), node.gauges());
    let place = place.as_deref();
    answer_json(&Description {
        node: &node.myself.name,
        id: node.config.node_id,
        role: if node.config.is_root() { "root" } else { "node" },
        run: node.run,
        joined: place.is_some(),
        position: place.map(|place| place.position),
        depth: place.map(|place| tree::level(place.position)),
        url: &node.myself.url,
        path: place.and_then(|place| place.path.as_ref()),
        parent: place.and_then(|place| place.ancestors.first()),
        ancestors: place.map_or(&[], |place| &place.ancestors),
        children: place.map_or(&[], |place| &place.children),
        zookeeper: node.zookeeper(),
        entries: gauges.entries,
        copies: gauges.copies,
        bytes: gauges.bytes,
        uptime_seconds: node.started.elapsed().as_secs(),
    })
}

fn nodes(node: &Node) -> Answer {
    answer_json(&node.table().listing(Instant::now()))
}

fn metrics(node: &Node) -> Answer {
    let text = node.metrics.render(node.gauges());
    Answer { content_type: "text/plain; version=0.0.4", ..Answer::json(200, text.into_bytes()) }
}

// -- for nodes ---------------------------------------------------------------------------------

fn join_node(node: &Node, body: &[u8]) -> Result<Answer, Error> {
    let join: JoinRequest = read_object(body)?;
    if base_url(&join.url).as_ref() != Some(&join.url) {
        return Err(Error::BadBody(format!("url={:?} is not a URL of the form http://host:port", join.url)));
    }
    join::admit(node, join).map(|answer| answer_json(&answer))
}

fn fetch(node: &Node, key: &str, holder: &Holder, wait: Duration) -> Result<Answer, Error> {
    let (Answered { value, lease }, _) = node.read(key, Some(holder), Instant::now() + wait.min(READ_LIMIT))?;
    let value = value.ok_or(Error::KeyNotFound)?;
    if !lease.is_zero() {
        node.metrics.grants.count();
    }
    let head = format!(r#"{{"lease_ms":{},"value":"#, lease.as_millis());
    Ok(Answer::json(200, [head.as_bytes(), value.raw(), b"}"].concat()))
}

fn invalidate(node: &Arc<Node>, key: &str, run: u64, level: u32) -> Result<Answer, Error> {
    node.invalidate(key, run, level)?;
    Ok(answer_json(&serde_json::json!({ "run": run })))
}

// -- answers -----------------------------------------------------------------------------------

fn answer_json(value: &impl Serialize) -> Answer {
    Answer::json(200, serde_json::to_vec(value).expect("our own types are JSON"))
}

fn answer_error(error: &Error) -> Answer {
    let status = match error {
        Error::BadTarget(_) | Error::BadKey(_) | Error::BadQuery(_) | Error::NoSuchPlace { .. } => 400,
        Error::Unauthorized | Error::TokenUnknown => 401,
        Error::FromBrowser => 403,
        Error::KeyNotFound | Error::NoSuchPath(_) => 404,
        Error::NoSuchMethod { .. } => 405,
        Error::PlaceTaken { .. } | Error::JoinElsewhere { .. } | Error::WrongRun { .. } | Error::NotBelow { .. } => 409,
        Error::BadBody(_) => 422,
        Error::StoreFull(_) => 507,
        Error::NotRoot { .. }
        | Error::NotJoined
        | Error::NoAncestor { .. }
        | Error::NoRoot { .. }
        | Error::CannotReach { .. }
        | Error::TwoJoins { .. } => 503,
    };
    log::debug!("{status}: {error}");
    let answer = Answer::error(status, &error.to_string());
    match error {
        Error::Unauthorized | Error::TokenUnknown => answer.with_header("WWW-Authenticate", "Bearer"),
        Error::NoSuchMethod { allow, .. } => answer.with_header("Allow", allow),
        _ if status == 503 => answer.with_header("Retry-After", "1"),
        _ => answer,
    }
}
