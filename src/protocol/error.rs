//! Everything that can go wrong with a request, each with its operand and its cause.
//!
//! `api.rs` picks the status; here are only the words.

use std::fmt;

use crate::cache::store::StoreFull;
use crate::http::client::CallError;
use crate::protocol::key::BadKey;

/// What the root says of a key that it does not have. A stranger's 404 says something else.
pub const KEY_NOT_FOUND: &str = "Key not found";

/// Why a request was not done.
#[derive(Debug)]
pub enum Error {
    /// The target is neither a path nor a URL.
    BadTarget(String),
    /// The path segment is no key.
    BadKey(BadKey),
    /// A parameter in the query is missing or wrong.
    BadQuery(String),
    /// The body is not what is asked for.
    BadBody(String),
    /// There is no such key.
    KeyNotFound,
    /// There is no such path.
    NoSuchPath(String),
    /// The path is known, the method is not.
    NoSuchMethod {
        /// What was asked.
        method: String,
        /// What may be asked.
        allow: &'static str,
    },
    /// The token is missing or wrong.
    Unauthorized,
    /// A call shows a token, and this node was given none.
    TokenUnknown,
    /// The call is for the root alone.
    NotRoot {
        /// This node.
        name: String,
    },
    /// A join at a node that is not the root.
    JoinElsewhere {
        /// This node.
        name: String,
    },
    /// An invalidation for another run of this node.
    WrongRun {
        /// This node.
        name: String,
    },
    /// An invalidation from a node that is not above this one.
    NotBelow {
        /// This node.
        name: String,
    },
    /// A call between nodes that a browser makes for some web page.
    FromBrowser,
    /// This node has no place yet.
    NotJoined,
    /// Nobody above could answer a read.
    NoAncestor {
        /// The key that was read.
        key: String,
        /// Who was asked, and what went wrong.
        causes: Vec<(String, CallError)>,
    },
    /// The root gave no answer to what was passed on to it.
    NoRoot {
        /// What was passed on, and where to.
        call: String,
        /// Whether it changes anything.
        writes: bool,
        /// What went wrong.
        cause: CallError,
    },
    /// The root has no room.
    StoreFull(StoreFull),
    /// A joining node's id is not in the tree.
    NoSuchPlace {
        /// Its name.
        name: String,
        /// The last id.
        last_id: u32,
    },
    /// A living node has the id of the joining one.
    PlaceTaken {
        /// The name that both have.
        name: String,
        /// Where the living one answers.
        url: String,
    },
    /// The root cannot reach a joining node. Only the root's log says why: else whoever may join could have the
    /// root ask any URL, and would be told what answers there.
    CannotReach {
        /// Where the node says that it is.
        url: String,
    },
    /// Another join of the same id came while the root was asking who is where.
    TwoJoins {
        /// The name that both have.
        name: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadTarget(target) => write!(f, "the target {target:?} is neither a path nor an http:// URL"),
            Self::BadKey(cause) => cause.fmt(f),
            Self::BadQuery(detail) | Self::BadBody(detail) => f.write_str(detail),
            Self::KeyNotFound => f.write_str(KEY_NOT_FOUND),
            Self::NoSuchPath(path) => write!(f, "there is no path {path:?}"),
            Self::NoSuchMethod { method, allow } => write!(f, "the method {method:?} is not one of {allow}"),
            Self::Unauthorized => write!(f, "this call needs the token of the nodes"),
            Self::TokenUnknown => write!(f, "this call shows a token, and this node has no TREE_TOKEN"),
            Self::NotRoot { name } | Self::JoinElsewhere { name } => write!(f, "{name} is not the root"),
            Self::WrongRun { name } => write!(f, "{name} is another process now"),
            Self::NotBelow { name } => write!(f, "{name} is not below the node that sends this"),
            Self::FromBrowser => write!(f, "this call is for nodes, and no web page may make it"),
            Self::NotJoined => write!(f, "not joined yet"),
            Self::NoAncestor { key, causes } => {
                write!(f, "could not fetch {key:?}")?;
                if causes.is_empty() {
                    return write!(f, ": no ancestor answered in time");
                }
                for (position, (ancestor, cause)) in causes.iter().enumerate() {
                    write!(f, "{} from {ancestor}: {cause}", if position == 0 { "" } else { ";" })?;
                }
                Ok(())
            }
            Self::NoRoot { call, writes, cause } => {
                write!(f, "could not {call}: {cause}")?;
                match cause {
                    CallError::NoAnswer(_) if *writes => write!(f, "; whether it was applied is unknown"),
                    _ if *writes => write!(f, "; it was not applied"),
                    _ => Ok(()),
                }
            }
            Self::StoreFull(cause) => cause.fmt(f),
            Self::NoSuchPlace { name, last_id } => {
                write!(f, "no place for {name}: the ids of this tree are 1 to {last_id}")
            }
            Self::PlaceTaken { name, url } => write!(f, "another {name} is alive at {url}"),
            Self::CannotReach { url } => write!(f, "cannot reach you at {url}"),
            Self::TwoJoins { name } => write!(f, "two joins of {name} at once"),
        }
    }
}

impl std::error::Error for Error {}

impl From<StoreFull> for Error {
    fn from(cause: StoreFull) -> Self {
        Self::StoreFull(cause)
    }
}
