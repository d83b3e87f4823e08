//! The HTTP API: carries out a [`Call`], and turns the result into an answer.
//!
//! The one `match` in [`respond`] shows everything that a node can be asked. Errors are values until
//! [`handle`], where each becomes an answer.
//!
//! Left out: sockets and threads (`server.rs`).

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::client::Reply;
use super::page;
use super::server::{Answer, Incoming};
use crate::cache::leases::Holder;
use crate::cache::store::{Leased, Source};
use crate::cache::value::{self, Value};
use crate::cache::writes::{Condition, Write};
use crate::config::{base_url, host_of};
use crate::node::{Node, READ_LIMIT, join, not_joined, write_limit};
use crate::protocol::call::{Call, PassedOn, Request};
use crate::protocol::error::{Error, Kind};
use crate::protocol::messages::{self, Acknowledgement, JoinRequest, RUN_HEADER};
use crate::tree;

/// A listing has at most this length; a value for which there is no room any more is left out.
const MAX_LISTING_BYTES: usize = 1 << 20;

/// The longest ttl: 31 years. What the clock itself can count depends on when the machine started, and a
/// limit that nobody can be told is none.
const MAX_TTL: Duration = Duration::from_secs(1_000_000_000);

/// Answers one request, or says what was wrong with it.
pub fn handle(node: &Arc<Node>, incoming: Result<Incoming, Error>) -> Answer {
    let answer = incoming.and_then(|incoming| respond(node, incoming)).unwrap_or_else(|error| {
        log::debug!("{}: {}", error.kind as u16, error.text);
        error.into()
    });
    if answer.status >= 400 {
        node.metrics.count_refused(answer.status);
    }
    answer.with_header(RUN_HEADER, node.run_text)
}

fn respond(node: &Arc<Node>, incoming: Incoming) -> Result<Answer, Error> {
    let request = Request::read(incoming.request.method().as_str(), incoming.request.url());
    expect_host(node, request.host, &incoming)?;
    match request.open(|| expect_node(node, &incoming))? {
        // The same URL has two answers, and a cache in between must know.
        Call::Describe => {
            let wants_page = page::is_wanted(incoming.header("Accept"), incoming.header("Sec-Fetch-Mode"));
            let answer = if wants_page { page::page() } else { describe(node) };
            Ok(answer.with_header("Vary", "Accept, Sec-Fetch-Mode"))
        }
        Call::DescribeApi => Ok(page::description()),
        Call::Metrics => Ok(metrics(node)),
        Call::Options(allow) => Ok(Answer::empty(204).with_header("Allow", allow)),
        Call::Health => node.expect_ready().map(|()| answer_json(&json!({ "status": "ok" }))),
        // Also before it has its place: a node that is told to join here, perhaps itself, would wait in vain.
        Call::Join if !node.config.is_root() => Err(node.not_root(Kind::MisdirectedRequest)),
        Call::Put(..) | Call::Delete(..) if !node.is_joined_soon() => {
            Err(Kind::ServiceUnavailable.error("not joined yet; not applied"))
        }
        _ if !node.is_joined_soon() => Err(not_joined()),
        Call::Get(key) => get(node, &key),
        Call::List(limit) => Ok(list(node, limit)),
        call @ (Call::Put(..) | Call::Delete(..) | Call::Nodes) if !node.config.is_root() => {
            pass_on(node, call, &incoming)
        }
        Call::Put(key, passed_on) => put(node, &key, passed_on, incoming),
        Call::Delete(key, passed_on) => delete(node, &key, passed_on, &incoming),
        Call::Nodes => Ok(answer_json(&node.table().ok_or_else(not_joined)?.listing(Instant::now()))),
        Call::Join => join_node(node, &incoming.body),
        Call::Fetch { key, to, holder, wait } => {
            expect_run(node, to)?;
            if !node.config.is_root() {
                // The next ancestor is asked at once then.
                node.expect_stays("")?;
            }
            fetch(node, &key, holder.as_ref(), wait)
        }
        Call::Invalidate { key, to, level } => {
            node.invalidate(&key, to, level)?;
            Ok(answer_json(&Acknowledgement { run: to }))
        }
    }
}

fn read_body<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Error> {
    messages::from_json(body).map_err(|text| Kind::UnprocessableContent.error(text))
}

/// Refuses whoever asks for a host that is not this one. Only this tells a page whose name was resolved to this address
/// from our own: a browser sends no `Origin` with a GET of the same origin, and no `Sec-Fetch-Site` over plain HTTP.
fn expect_host(node: &Node, target: Option<&str>, incoming: &Incoming) -> Result<(), Error> {
    let mut hosts = incoming.headers("Host");
    match (target.or(hosts.next()), hosts.next()) {
        (None | Some(""), None) => Ok(()),
        (Some(text), None) => {
            let host = host_of(text).ok_or_else(|| Kind::BadRequest.error(format!("Host {text:?} is no host")))?;
            if node.config.allows_host(&host) || shows_token(node, incoming) {
                return Ok(());
            }
            let text = format!("Host {host:?} is not known as a name of {}; if it is one, set", node.myself.name);
            Err(Kind::Forbidden.error(format!("{text} ALLOWED_HOSTS={host}")))
        }
        (_, Some(_)) => Err(Kind::BadRequest.error("there is more than one Host")),
    }
}

/// Refuses whoever is not a node of this tree, as far as that can be told.
fn expect_node(node: &Node, incoming: &Incoming) -> Result<(), Error> {
    // A page on any site can make a browser send such a call to localhost, without a token to be stopped by.
    // Browsers say that they are one.
    if incoming.header("Origin").is_some() || incoming.header("Sec-Fetch-Site").is_some() {
        return Err(Kind::Forbidden.error("this call is for nodes, and no web page may make it"));
    }
    match (node.config.token.as_deref(), incoming.header("Authorization")) {
        (None, None) => Ok(()),
        // A root that lost its token would let anybody in, and those who have it would show it to them.
        (None, Some(_)) => Err(Kind::Unauthorized.error("this call shows a token, and this node has no TREE_TOKEN")),
        (Some(_), _) if shows_token(node, incoming) => Ok(()),
        (Some(_), _) => Err(Kind::Unauthorized.error("this call needs the token of the nodes")),
    }
}

fn shows_token(node: &Node, incoming: &Incoming) -> bool {
    let Some(token) = &node.config.token else { return false };
    let given = incoming.header("Authorization").and_then(|header| header.strip_prefix("Bearer ")).unwrap_or_default();
    // Every byte is looked at, whichever differs, so that the time taken tells nothing of the token.
    let differing = token.bytes().zip(given.bytes()).fold(0, |bits, (left, right)| bits | (left ^ right));
    std::hint::black_box(differing) == 0 && token.len() == given.len()
}

// -- for clients -------------------------------------------------------------------------------

fn get(node: &Node, key: &str) -> Result<Answer, Error> {
    let metrics = &node.metrics;
    let (value, source) = match node.read(key, None, Instant::now() + READ_LIMIT) {
        Ok((Leased { value: Some(value), .. }, source)) => (value, source),
        nothing => {
            metrics.reads_from_none.count();
            nothing?;
            return Err(Kind::NotFound.error("Key not found"));
        }
    };
    // RFC 9211: what answered this one reader. The counters cannot say it, for others read meanwhile.
    let (counter, status) = match source {
        Source::Entry => (&metrics.reads_from_entry, "tree-cache; hit; detail=entry"),
        Source::Copy => (&metrics.reads_from_copy, "tree-cache; hit; detail=copy"),
        Source::Fetch => (&metrics.reads_from_fetch, "tree-cache; fwd=uri-miss; detail=fetch"),
    };
    counter.count();
    Ok(answer_with(b"{", &value).with_header("Cache-Status", status))
}

#[derive(Deserialize)]
struct PutBody<'a> {
    #[serde(borrow)]
    value: &'a RawValue,
    ttl: Option<f64>,
}

fn put(node: &Arc<Node>, key: &str, passed_on: Option<PassedOn>, mut incoming: Incoming) -> Result<Answer, Error> {
    let deadline = read_deadline(node, passed_on, &incoming)?;
    let condition = read_condition(&incoming)?;
    let body = mem::take(&mut incoming.body);
    let PutBody { value, ttl } = read_body(&body)?;
    let ttl = ttl.map(read_ttl).transpose()?;
    if !value::is_unicode(value) {
        let text = "a string of the value has half a surrogate pair, which is no Unicode";
        return Err(Kind::UnprocessableContent.error(text));
    }
    let range = value::find(value, &body);
    let value = Value::cut_out(body, range);
    node.write(key, &Write::Put(value.clone(), ttl), condition, deadline)?;
    let start = format!(r#"{{"key":{},"#, serde_json::to_string(key).expect("a string is JSON"));
    Ok(answer_with(start.as_bytes(), &value))
}

fn read_ttl(seconds: f64) -> Result<Duration, Error> {
    let ttl = Duration::try_from_secs_f64(seconds).ok().filter(|ttl| !ttl.is_zero() && *ttl <= MAX_TTL);
    // In the short form: 1e300 has 301 digits otherwise.
    let wrong = || format!("ttl={seconds:?} is not a number of seconds over 0 and at most {}", MAX_TTL.as_secs());
    ttl.ok_or_else(|| Kind::UnprocessableContent.error(wrong()))
}

fn delete(node: &Arc<Node>, key: &str, passed_on: Option<PassedOn>, incoming: &Incoming) -> Result<Answer, Error> {
    let deadline = read_deadline(node, passed_on, incoming)?;
    node.write(key, &Write::Delete, read_condition(incoming)?, deadline)?;
    Ok(answer_json(&json!({ "key": key })))
}

/// Until when a write may be done. What it says itself counts if a node has passed it on.
fn read_deadline(node: &Node, passed_on: Option<PassedOn>, incoming: &Incoming) -> Result<Instant, Error> {
    let is_node = is_passed_on(incoming) && (node.config.token.is_none() || shows_token(node, incoming));
    let passed_on = passed_on.filter(|_| is_node);
    passed_on.map_or(Ok(()), |passed_on| expect_run(node, passed_on.to))?;
    let until = passed_on.and_then(|passed_on| node.started.checked_add(Duration::from_millis(passed_on.until_ms)));
    Ok(until.unwrap_or_else(|| Instant::now() + write_limit(node.config.lease)))
}

/// Rule 8: what is meant for another process is not answered by this one.
fn expect_run(node: &Node, to: u64) -> Result<(), Error> {
    if to == node.myself.run {
        return Ok(());
    }
    Err(Kind::Conflict.error(format!("{} is run {} now, and not {to}", node.myself.name, node.myself.run)))
}

/// Whether a node has passed it on. What proxies say counts for nothing.
fn is_passed_on(incoming: &Incoming) -> bool {
    let is_node = |via: &str| via.trim().strip_prefix("1.1 ").and_then(tree::id_of).is_some();
    incoming.headers("Via").flat_map(|vias| vias.split(',')).any(is_node)
}

/// The headers by which a write is conditional.
const CONDITIONS: [&str; 2] = ["If-Match", "If-None-Match"];

/// Reads the condition of a write. No value has an entity tag, so one in `If-Match` matches nothing, and one in
/// `If-None-Match` asks for nothing. Both must hold if there are two (RFC 9110, 13.2.2).
fn read_condition(incoming: &Incoming) -> Result<Condition, Error> {
    if incoming.header("Content-Range").is_some() {
        return Err(Kind::BadRequest.error("a value is written whole: Content-Range is not known here"));
    }
    if let Some(coding) = incoming.header("Content-Encoding") {
        return Err(Kind::UnsupportedMediaType.error(format!("Content-Encoding {coding:?} is not kept")));
    }
    Ok(match CONDITIONS.map(|name| incoming.header(name)) {
        [Some("*"), Some("*")] => Condition::Never,
        [Some("*"), _] => Condition::Present,
        [Some(_), _] => Condition::Never,
        [None, Some("*")] => Condition::Absent,
        [None, _] => Condition::None,
    })
}

/// Passes a write, or the question for the tree, on to the root. Whoever gets it from a node must be the
/// root: else two nodes that take each other for it would pass it on for ever.
fn pass_on(node: &Node, call: Call, incoming: &Incoming) -> Result<Answer, Error> {
    if is_passed_on(incoming) {
        return Err(node.not_root(Kind::MisdirectedRequest));
    }
    let via = format!("1.1 {}", node.myself.name);
    let mut headers = vec![("Via", &*via)];
    let Reply { status, body, .. } = if call == Call::Nodes {
        node.ask_for_tree(&headers)?
    } else {
        read_condition(incoming)?;
        headers.extend(CONDITIONS.iter().filter_map(|name| Some((*name, incoming.header(name)?))));
        node.forward(call, &headers, &incoming.body)?
    };
    Ok(Answer::json(status, body))
}

fn list(node: &Node, limit: usize) -> Answer {
    let mut body = vec![b'{'];
    for (key, value) in node.list(limit) {
        let (name, comma) = (messages::to_json(&key), if body.len() > 1 { &b","[..] } else { b"" });
        if body.len() + name.len() + value.raw().len() + 3 <= MAX_LISTING_BYTES {
            body.extend([comma, &name, b":", value.raw()].concat());
        }
    }
    body.push(b'}');
    Answer::json(200, body)
}

fn describe(node: &Node) -> Answer {
    let (place, gauges) = (node.place(), node.gauges());
    let place = place.as_ref();
    answer_json(&json!({
        "node": node.myself.name,
        "id": node.config.node_id,
        "role": if node.config.is_root() { messages::ROOT } else { "node" },
        "run": node.myself.run,
        "joined": place.is_some(),
        "leaving": node.is_leaving(),
        "position": place.map(|place| place.position),
        "depth": place.map(|place| tree::level(place.position)),
        "url": node.myself.url,
        "path": place.and_then(|place| place.path.as_ref()),
        "parent": place.and_then(|place| place.ancestors.first()),
        "ancestors": place.map_or(&[][..], |place| &place.ancestors),
        "children": place.map_or(&[][..], |place| &place.children),
        "zookeeper": node.zookeeper(),
        "entries": gauges.entries,
        "copies": gauges.copies,
        "bytes": gauges.bytes,
        "uptime_seconds": node.started.elapsed().as_secs(),
        "version": env!("CARGO_PKG_VERSION"),
        "young_for_ms": (node.config.is_root() && place.is_some()).then(|| messages::whole_ms(node.young_for())),
    }))
}

fn metrics(node: &Node) -> Answer {
    let text = node.metrics.render(node.gauges(), node.root_silence());
    Answer::new(200, "text/plain; version=0.0.4", text.into_bytes())
}

// -- for nodes ---------------------------------------------------------------------------------

fn join_node(node: &Node, body: &[u8]) -> Result<Answer, Error> {
    let join: JoinRequest = read_body(body)?;
    if base_url(&join.url).as_ref() != Some(&join.url) {
        let text = format!("url={:?} is not a URL of the form http://host:port", join.url);
        return Err(Kind::UnprocessableContent.error(text));
    }
    join::admit(node, join).map(|answer| answer_json(&answer))
}

fn fetch(node: &Node, key: &str, holder: Option<&Holder>, wait: Duration) -> Result<Answer, Error> {
    let (Leased { value, lease }, _) = node.read(key, holder, Instant::now() + wait.min(READ_LIMIT))?;
    if !lease.is_zero() {
        node.metrics.grants.count();
    }
    let start = messages::start_copy(node.myself.run, node.root_run(), lease);
    Ok(match value {
        Some(value) => answer_with((start + ",").as_bytes(), &value),
        None => Answer::json(200, (start + "}").into_bytes()),
    })
}

/// An answer that ends with a value.
fn answer_with(start: &[u8], value: &Value) -> Answer {
    Answer { value: value.last_field(), ..Answer::json(200, start.to_vec()) }
}

fn answer_json(value: &impl Serialize) -> Answer {
    Answer::json(200, messages::to_json(value))
}
