//! The only HTTP client: one pooled `ureq` agent, and the calls that nodes make to each other.
//!
//! Invariant: every call ends. Each has a limit, given to every phase (connect, send, answer, body);
//! `ureq`'s limits for a whole call would start a thread each time, which costs ten times the call.
//! So a call can overrun its limit by a phase or two: whoever must not wait longer waits by the
//! clock (`node.rs`). Nothing is ever sent twice here.
//!
//! Invariant: the token is shown only to the root that the configuration names, and to URLs that were stated by
//! somebody who had shown it. Whoever asks who a process is cannot know that yet, and asks without.

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use ureq::http::{Method, Request, Uri};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Timeout};

use crate::cache::leases::Holder;
use crate::cache::store::Answered;
use crate::cache::value::Value;
use crate::protocol::error::KEY_NOT_FOUND;
use crate::protocol::key;
use crate::tree::{NodeRef, Place};

/// A connection that is not open after this time will not be.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// How long the address of a name is believed. A look-up before each call is what `ureq` does alone.
const NAME_LIFE: Duration = Duration::from_secs(1);

/// Connections kept for reuse, in all and to one node; with `ureq`'s 3 a busy leaf opens new ones all the time.
const IDLE_CONNECTIONS: usize = 64;

/// Buffer of a connection, each way. `ureq`'s 128 KiB would make the buffers outweigh a small store.
const BUFFER_BYTES: usize = 16 << 10;

/// The longest answer that is read, but for what has a value or the tree in it: that only stops a stranger.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// The longest answer with a value or the tree in it: more than any configuration allows.
const MAX_LONG_ANSWER_BYTES: u64 = 2 << 30;

/// Why a call to another node gave no usable answer.
#[derive(Debug)]
pub enum CallError {
    /// Nobody was reached, so nothing was applied.
    NotReached(String),
    /// The call was sent and no answer came: it may have been applied, or may be yet.
    NoAnswer(String),
    /// An answer, but not one that the call is about.
    Refused {
        /// Its HTTP status.
        status: u16,
        /// What it said.
        detail: String,
    },
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReached(cause) | Self::NoAnswer(cause) => f.write_str(cause),
            // What it could not do for its own reasons, and those of all above it, would fill a page.
            Self::Refused { status: 503, detail } if detail.len() > 100 => write!(f, "answered 503"),
            Self::Refused { status, detail } => write!(f, "answered {status} {detail:?}"),
        }
    }
}

impl std::error::Error for CallError {}

/// What a node says to the root when it joins.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Its id.
    pub id: u32,
    /// Its run.
    pub run: u64,
    /// Where it answers.
    pub url: String,
    /// The position that it holds, if it has one.
    pub position: Option<u32>,
}

/// What the root answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// Where the node stands.
    #[serde(flatten)]
    pub place: Place,
    /// The life of a copy, in milliseconds.
    pub lease_ms: u64,
}

/// What a node says of itself to another: the part of `GET /` that nodes look at.
#[derive(Debug, Deserialize)]
pub struct Identity {
    /// Its run.
    pub run: u64,
    /// Whether it has its place.
    pub joined: bool,
}

/// An answer that is passed on as it is.
#[derive(Debug)]
pub struct RawAnswer {
    /// Its HTTP status.
    pub status: u16,
    /// Its body.
    pub body: Vec<u8>,
}

/// The client.
pub struct Peer {
    agent: Agent,
    bearer: Option<String>,
}

impl Peer {
    /// A client which shows `token`, if there is one, in the calls that only nodes may make.
    #[must_use]
    pub fn new(token: Option<&str>) -> Self {
        let config = Agent::config_builder()
            // Otherwise `http_proxy` is obeyed, even for 127.0.0.1.
            .proxy(None)
            // Otherwise a 404 is an error without its body, and its connection is lost.
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(IDLE_CONNECTIONS)
            .max_idle_connections_per_host(IDLE_CONNECTIONS)
            .input_buffer_size(BUFFER_BYTES)
            .output_buffer_size(BUFFER_BYTES)
            .user_agent("")
            .accept("")
            .accept_encoding("")
            .build();
        Self {
            agent: Agent::with_parts(config, DefaultConnector::default(), Names::default()),
            bearer: token.map(|token| format!("Bearer {token}")),
        }
    }

    /// Who the node at `url` is. Anybody may have stated that URL, so it is not shown the token.
    ///
    /// # Errors
    /// No node answers there.
    pub fn ask_identity(&self, url: &str, limit: Duration) -> Result<Identity, CallError> {
        self.call(Call::get(&format!("{url}/"), limit))?.expect_json()
    }

    /// The tree, as the node at `url` gives it.
    ///
    /// # Errors
    /// No node answers there, or it does not know its tree.
    pub fn ask_tree<T: DeserializeOwned>(&self, url: &str, limit: Duration) -> Result<T, CallError> {
        self.call(Call::get_long(&format!("{url}/nodes"), limit))?.expect_json()
    }

    /// Asks the root for a place.
    ///
    /// # Errors
    /// The root was not reached or refused; a 4xx is final.
    pub fn join_root(&self, root_url: &str, join: &JoinRequest, limit: Duration) -> Result<JoinAnswer, CallError> {
        let body = serde_json::to_vec(join).expect("numbers and strings are JSON");
        let url = format!("{root_url}/nodes");
        let call = Call { method: Method::POST, body: Some(&body), ..Call::get(&url, limit) };
        self.call(call.between_nodes())?.expect_json()
    }

    /// Fetches `key` for `holder` from an ancestor, which may take `wait` over it; `None` if the root
    /// says that there is no such key.
    ///
    /// # Errors
    /// Anything but a 200 or the root's 404.
    pub fn fetch_copy(
        &self,
        ancestor: &NodeRef,
        key: &str,
        holder: (&NodeRef, u64),
        wait: Duration,
        limit: Duration,
    ) -> Result<Answered, CallError> {
        let (NodeRef { name, url }, run) = holder;
        let (key, holder_url) = (key::encode(key), key::encode(url));
        let target = format!(
            "{}/copies/{key}?holder={name}&url={holder_url}&run={run}&wait_ms={}",
            ancestor.url,
            wait.as_millis()
        );
        let answer = self.call(Call::get_long(&target, limit).between_nodes())?;
        if answer.status == 404 && answer.error().is_some_and(|error| error.detail == KEY_NOT_FOUND) {
            return Ok(Answered { value: None, lease: Duration::ZERO });
        }
        let copy: CopyAnswer = answer.expect_json()?;
        Ok(Answered { value: Some(Value::from_raw(copy.value)), lease: Duration::from_millis(copy.lease_ms) })
    }

    /// Tells a holder that its copy, and those below it, must go.
    ///
    /// # Errors
    /// Anything but its acknowledgement, which names its run: a stranger on a reused port says 200 to anything.
    pub fn invalidate_copy(&self, holder: &Holder, key: &str, level: u32, limit: Duration) -> Result<(), CallError> {
        let url = format!("{}/copies/{}?run={}&level={level}", holder.url, key::encode(key), holder.run);
        let answer = self.call(Call { method: Method::DELETE, ..Call::get(&url, limit) }.between_nodes())?;
        let Acknowledgement { run } = answer.expect_json()?;
        let refused = || CallError::Refused { status: answer.status, detail: answer.detail() };
        if run == holder.run { Ok(()) } else { Err(refused()) }
    }

    /// Passes a request on to the root as it came to the node `via`.
    ///
    /// # Errors
    /// No answer came. What the root refuses is an answer.
    pub fn forward(
        &self,
        method: &str,
        url: &str,
        body: Option<&[u8]>,
        via: &str,
        limit: Duration,
    ) -> Result<RawAnswer, CallError> {
        let method = method.parse().expect("only PUT, DELETE and GET are forwarded");
        self.call(Call { method, body, via: Some(via), ..Call::get_long(url, limit) }.between_nodes())
    }

    fn call(&self, call: Call) -> Result<RawAnswer, CallError> {
        let mut request = Request::builder().method(call.method).uri(call.url);
        if let Some(bearer) = self.bearer.as_ref().filter(|_| call.shows_token) {
            request = request.header("Authorization", bearer);
        }
        if let Some(via) = call.via {
            request = request.header("Via", format!("1.1 {via}"));
        }
        let result = match call.body {
            Some(body) => self.run(request.body(body), call.limit),
            None => self.run(request.body(()), call.limit),
        };
        let mut response = result.map_err(|error| call_error(error, call.limit))?;
        let body = response.body_mut().with_config().limit(call.max_answer_bytes).read_to_vec();
        let body = body.map_err(|error| CallError::NoAnswer(error.to_string()))?;
        Ok(RawAnswer { status: response.status().as_u16(), body })
    }

    fn run<B: ureq::AsSendBody>(
        &self,
        request: Result<Request<B>, ureq::http::Error>,
        limit: Duration,
    ) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let request = self
            .agent
            .configure_request(request?)
            .timeout_connect(Some(limit.min(CONNECT_LIMIT)))
            .timeout_send_request(Some(limit))
            .timeout_send_body(Some(limit))
            .timeout_recv_response(Some(limit))
            .timeout_recv_body(Some(limit))
            .build();
        self.agent.run(request)
    }
}

struct Call<'a> {
    method: Method,
    url: &'a str,
    body: Option<&'a [u8]>,
    via: Option<&'a str>,
    shows_token: bool,
    limit: Duration,
    max_answer_bytes: u64,
}

impl<'a> Call<'a> {
    fn get(url: &'a str, limit: Duration) -> Self {
        Self {
            method: Method::GET,
            url,
            body: None,
            via: None,
            shows_token: false,
            limit,
            max_answer_bytes: MAX_ANSWER_BYTES,
        }
    }

    fn get_long(url: &'a str, limit: Duration) -> Self {
        Self { max_answer_bytes: MAX_LONG_ANSWER_BYTES, ..Self::get(url, limit) }
    }

    fn between_nodes(self) -> Self {
        Self { shows_token: true, ..self }
    }
}

#[derive(Deserialize)]
struct CopyAnswer<'a> {
    lease_ms: u64,
    #[serde(borrow)]
    value: &'a RawValue,
}

#[derive(Deserialize)]
struct Acknowledgement {
    run: u64,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    detail: String,
}

impl RawAnswer {
    fn error(&self) -> Option<ErrorAnswer> {
        serde_json::from_slice(&self.body).ok()
    }

    fn detail(&self) -> String {
        let raw = || String::from_utf8_lossy(&self.body).chars().take(100).collect();
        self.error().map_or_else(raw, |error| error.detail)
    }

    fn expect_json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, CallError> {
        match serde_json::from_slice(&self.body) {
            Ok(answer) if self.status == 200 => Ok(answer),
            _ => Err(CallError::Refused { status: self.status, detail: self.detail() }),
        }
    }
}

fn call_error(error: ureq::Error, limit: Duration) -> CallError {
    use ureq::Error::{BadUri, ConnectionFailed, HostNotFound, Http, Io};
    match error {
        ureq::Error::Timeout(Timeout::Connect) => {
            CallError::NotReached(format!("no connection within {:.1?}", limit.min(CONNECT_LIMIT)))
        }
        ureq::Error::Timeout(_) => CallError::NoAnswer(format!("no answer within {limit:.1?}")),
        Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            CallError::NotReached("connection refused".to_owned())
        }
        BadUri(_) | ConnectionFailed | HostNotFound | Http(_) => CallError::NotReached(error.to_string()),
        error => CallError::NoAnswer(error.to_string()),
    }
}

/// Finds the addresses of names, and believes them for [`NAME_LIFE`].
#[derive(Debug, Default)]
struct Names {
    found: Mutex<HashMap<String, (Instant, ResolvedSocketAddrs)>>,
}

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let name = uri.authority().ok_or(ureq::Error::HostNotFound)?.as_str();
        if let Some((found, addresses)) = self.lock().get(name)
            && found.elapsed() < NAME_LIFE
        {
            return Ok(addresses.clone());
        }
        // Whatever goes wrong here, nobody was reached.
        let addresses =
            DefaultResolver::default().resolve(uri, config, timeout).map_err(|_| ureq::Error::HostNotFound)?;
        let mut found = self.lock();
        found.retain(|_, (found, _)| found.elapsed() < NAME_LIFE);
        found.insert(name.to_owned(), (Instant::now(), addresses.clone()));
        Ok(addresses)
    }
}

impl Names {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Instant, ResolvedSocketAddrs)>> {
        self.found.lock().expect("nothing panics under this lock")
    }
}
