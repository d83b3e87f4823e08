//! The only HTTP client: one pooled `ureq` agent, and the calls that nodes make to each other.
//!
//! Invariant: every call ends within its limit. With `ureq`'s own resolver that would start a thread each time, which
//! costs ten times the call; with `names.rs` in its place it does not. Nothing is ever sent twice here.
//!
//! Invariant: the token is shown only to the root that the configuration names, and to URLs that were stated by
//! somebody who had shown it ([`Call::shows_token`]).

use std::fmt;
use std::io::ErrorKind;
use std::time::Duration;

use ureq::http::Request;
use ureq::unversioned::transport::{Connector, TcpConnector};
use ureq::{Agent, Timeout};

use super::names::Names;
use super::one_send::OneSend;
use crate::cache::leases::Holder;
use crate::cache::store::Leased;
use crate::protocol::call::Call;
use crate::protocol::messages::{self, Acknowledgement, ErrorAnswer, Identity, JoinAnswer, JoinRequest, RUN_HEADER};
use crate::tree::{Listing, NodeRef};

/// A connection that is not open after this time will not be.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// Connections kept for reuse, in all and to one node; with `ureq`'s 3 a busy leaf opens new ones all the time.
const IDLE_CONNECTIONS: usize = 64;

/// Buffer of a connection, each way. `ureq`'s 128 KiB would make the buffers outweigh a small store.
const BUFFER_BYTES: usize = 16 << 10;

/// The longest answer that is read, but for what has a value or the tree in it: that only stops a stranger.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// The longest answer with a value or the tree in it: more than any configuration allows.
const MAX_LONG_ANSWER_BYTES: u64 = 2 << 30;

/// Why a call to another node gave no usable answer.
pub enum CallError {
    /// Nobody was reached, so nothing was applied.
    NotReached(String),
    /// The call was sent and no answer came: it may have been applied, or may be yet.
    NoAnswer(String),
    /// An answer, but not one that the call is about.
    Refused { status: u16, detail: String },
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

/// What another node answered.
pub struct Reply {
    pub status: u16,
    /// Of the process that answered, if it says so.
    pub run: Option<u64>,
    pub body: Vec<u8>,
}

pub struct Client {
    agent: Agent,
    bearer: Option<String>,
}

impl Client {
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
            .build();
        Self {
            agent: Agent::with_parts(config, ().chain(TcpConnector::default()).chain(OneSend), Names::default()),
            bearer: token.map(|token| format!("Bearer {token}")),
        }
    }

    /// Who the node at `url` is. Anybody may have stated that URL.
    pub fn ask_identity(&self, url: &str, limit: Duration) -> Result<Identity, CallError> {
        self.send(url, &Call::Describe, &[], b"", limit)?.expect(messages::from_json)
    }

    /// The tree, as the node at `url` gives it.
    pub fn ask_tree(&self, url: &str, limit: Duration) -> Result<Listing, CallError> {
        self.send(url, &Call::Nodes, &[], b"", limit)?.expect(messages::from_json)
    }

    /// Asks the root for a place.
    pub fn join_root(&self, root_url: &str, join: &JoinRequest, limit: Duration) -> Result<JoinAnswer, CallError> {
        self.send(root_url, &Call::Join, &[], &messages::to_json(join), limit)?.expect(messages::from_json)
    }

    /// Sends a [`Call::Fetch`] to a process, for a node below `root`. Any other gives no answer (rule 8): a stranger on a
    /// reused port says 200 to anything.
    pub fn fetch_copy(&self, from: &NodeRef, root: u64, call: &Call, limit: Duration) -> Result<Leased, CallError> {
        let reply = self.send(&from.url, call, &[], b"", limit)?;
        if reply.status != 200 {
            return Err(reply.refused());
        }
        let refused = |detail| CallError::Refused { status: 200, detail };
        let (by, leased) = messages::read_copy(reply.body, root).map_err(refused)?;
        if by == from.run { Ok(leased) } else { Err(refused(format!("by run {by}"))) }
    }

    /// Tells a holder that its copy, and those below it, must go.
    pub fn invalidate_copy(&self, holder: &Holder, key: &str, level: u32, limit: Duration) -> Result<(), CallError> {
        let call = Call::Invalidate { key: key.to_owned(), to: holder.run, level };
        let reply = self.send(&holder.url, &call, &[], b"", limit)?;
        let Acknowledgement { run } = reply.expect(messages::from_json)?;
        if run == holder.run { Ok(()) } else { Err(reply.refused()) }
    }

    /// Sends anything; whatever comes back is an answer. The headers, beside its own, say who passes it on, and on what
    /// condition a write is to be done.
    pub fn send(
        &self,
        url: &str,
        call: &Call,
        headers: &[(&str, &str)],
        body: &[u8],
        limit: Duration,
    ) -> Result<Reply, CallError> {
        let (method, target) = call.write();
        let mut request = Request::builder().method(method).uri(format!("{url}{target}"));
        if let Some(bearer) = self.bearer.as_ref().filter(|_| call.shows_token()) {
            request = request.header("Authorization", bearer);
        }
        if matches!(call, Call::Describe) {
            // Who answers there now, and not where that name led when a connection was kept.
            request = request.header("Connection", "close");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        // Without a body, too: then its length is said to be 0.
        let request = request.body(body).map_err(ureq::Error::from).map(|request| {
            let request = self.agent.configure_request(request).timeout_connect(Some(limit.min(CONNECT_LIMIT)));
            request.timeout_global(Some(limit)).build()
        });
        let result = request.and_then(|request| self.agent.run(request));
        let mut response = result.map_err(|error| call_error(error, limit))?;
        let is_long = matches!(call, Call::Fetch { .. } | Call::Put(..) | Call::Nodes);
        let max_bytes = if is_long { MAX_LONG_ANSWER_BYTES } else { MAX_ANSWER_BYTES };
        let body = response.body_mut().with_config().limit(max_bytes).read_to_vec();
        let body = body.map_err(|error| CallError::NoAnswer(error.to_string()))?;
        let run = response.headers().get(RUN_HEADER).and_then(|run| run.to_str().ok()?.parse().ok());
        Ok(Reply { status: response.status().as_u16(), run, body })
    }
}

impl Reply {
    /// What `read` makes of the body of a 200.
    fn expect<'a, T>(&'a self, read: impl FnOnce(&'a [u8]) -> Result<T, String>) -> Result<T, CallError> {
        if self.status == 200 { read(&self.body).map_err(|_| self.refused()) } else { Err(self.refused()) }
    }

    /// With the text of an error; of anything else, its beginning.
    pub fn refused(&self) -> CallError {
        let detail = match messages::from_json::<ErrorAnswer>(&self.body) {
            Ok(error) => error.detail,
            Err(_) => String::from_utf8_lossy(&self.body).chars().take(100).collect(),
        };
        CallError::Refused { status: self.status, detail }
    }
}

fn call_error(error: ureq::Error, limit: Duration) -> CallError {
    use ureq::Error::{BadUri, ConnectionFailed, HostNotFound, Http, Io};
    match error {
        ureq::Error::Timeout(Timeout::Connect) => {
            CallError::NotReached(format!("no connection within {:.1?}", limit.min(CONNECT_LIMIT)))
        }
        ureq::Error::Timeout(_) => CallError::NoAnswer(format!("no answer within {limit:.1?}")),
        Io(error) if error.kind() == ErrorKind::ConnectionRefused => CallError::NotReached(error.kind().to_string()),
        BadUri(_) | ConnectionFailed | HostNotFound | Http(_) => CallError::NotReached(error.to_string()),
        error => CallError::NoAnswer(error.to_string()),
    }
}
