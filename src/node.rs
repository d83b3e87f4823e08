//! One node: its place, its store, and how a read climbs and a write jumps.
//!
//! Invariant: no lock is held across a call to another node, and none is taken inside another.
//! Left out: HTTP (`api.rs` speaks it) and how a node gets its place (`join.rs`).

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::error::Error;
use crate::metrics::{Gauges, Metrics};
use crate::peer::{CallError, Peer, RawAnswer};
use crate::store::{Store, Value};
use crate::tree::{ChildTable, Member, NodeRef, Place};

/// What a read may take in all.
pub const READ_LIMIT: Duration = Duration::from_secs(5);

/// What an ancestor's answer needs to come back; the ancestor has so much less time than its asker.
const ANSWER_TIME: Duration = Duration::from_millis(100);

/// What a forwarded write may take beyond a lease, which is how long a lost node can delay it.
const WRITE_SLACK: Duration = Duration::from_secs(1);

/// What asking the root for its child table may take.
const NODES_LIMIT: Duration = Duration::from_secs(2);

/// One node of the tree.
pub struct Node {
    /// What it was told.
    pub config: Config,
    /// Its name and URL.
    pub myself: NodeRef,
    /// The random number of this process.
    pub run: u64,
    /// When it started.
    pub started: Instant,
    /// Its client for the other nodes.
    pub peer: Peer,
    /// What it counts.
    pub metrics: Metrics,
    /// Guards all that is held.
    store: Mutex<Store>,
    /// Guards who has which position; only the root's is ever used.
    table: Mutex<ChildTable>,
    /// Guards where this node stands and how long copies live; only the root does without.
    joined: RwLock<Option<Joined>>,
}

/// What the root told of this node's place.
#[derive(Clone)]
pub struct Joined {
    /// Where it stands.
    pub place: Arc<Place>,
    /// A copy's life.
    pub lease: Duration,
}

/// A change of one key.
pub enum Write {
    /// Put this value in place.
    Put(Value),
    /// Remove the entry.
    Delete,
}

impl Node {
    /// A node that listens on `port` and has no place yet, unless it is the root.
    #[must_use]
    pub fn new(config: Config, port: u16) -> Self {
        let myself = NodeRef { name: config.node_name(), url: config.url_at(port) };
        // Random keys of a hasher are the standard library's only source of randomness. 53 bits, so
        // that a reader of JSON that knows only floating point keeps the number whole.
        let run = RandomState::new().hash_one(std::process::id()) >> 11;
        let root = Member { id: config.node_id, run, url: myself.url.clone(), heard: None };
        Self {
            peer: Peer::new(config.token.as_deref()),
            metrics: Metrics::default(),
            store: Mutex::new(Store::new(config.max_store_bytes)),
            table: Mutex::new(ChildTable::new(config.tree_depth, root)),
            joined: RwLock::new(None),
            started: Instant::now(),
            config,
            myself,
            run,
        }
    }

    /// Reads a key and counts what answered; see [`Node::read`].
    ///
    /// # Errors
    /// No ancestor answered in time, or this node has no place yet.
    pub fn read_for_client(&self, key: &str, deadline: Instant) -> Result<Option<Value>, Error> {
        let result = self.read(key, deadline);
        match &result {
            Ok(Some(_)) if self.config.is_root() => self.metrics.reads_from_entry.count(),
            Ok(Some(_)) => self.metrics.reads_from_fetch.count(),
            _ => self.metrics.reads_from_none.count(),
        }
        result
    }

    /// Reads a key; `None` if there is no such key. It ends soon after `deadline`, whatever happens.
    ///
    /// # Errors
    /// No ancestor answered in time, or this node has no place yet.
    pub fn read(&self, key: &str, deadline: Instant) -> Result<Option<Value>, Error> {
        if self.config.is_root() {
            return Ok(self.store().get(key));
        }
        self.fetch(key, deadline)
    }

    /// Asks the ancestors, nearest first, until one answers.
    fn fetch(&self, key: &str, deadline: Instant) -> Result<Option<Value>, Error> {
        let place = self.joined()?.place;
        let mut causes = Vec::new();
        for (steps, ancestor) in place.ancestors.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let is_root = steps + 1 == place.ancestors.len();
            let limit = if is_root { left } else { left / 2 };
            let wait = if is_root { left } else { limit.saturating_sub(ANSWER_TIME) };
            if wait < ANSWER_TIME {
                continue;
            }
            self.metrics.fetches_sent.count();
            match self.peer.fetch_copy(ancestor, key, (&self.myself, self.run), wait, limit) {
                Ok(value) => return Ok(value),
                Err(cause) => causes.push((format!("{} at {}", ancestor.name, ancestor.url), cause)),
            }
        }
        Err(Error::NoAncestor { key: key.to_owned(), causes })
    }

    /// Changes a key at the root.
    ///
    /// # Errors
    /// There is no room, and nothing has changed; or this node is not the root.
    pub fn write(&self, key: &str, write: Write) -> Result<(), Error> {
        self.expect_root()?;
        let mut store = self.store();
        match write {
            Write::Put(value) => store.put(key, value)?,
            Write::Delete => store.delete(key),
        }
        drop(store);
        self.metrics.writes.count();
        Ok(())
    }

    /// Passes a request on to the root, once.
    ///
    /// # Errors
    /// The root gave no answer; the error says whether the request can have been applied.
    pub fn forward(&self, method: &str, path: &str, body: Option<&[u8]>) -> Result<RawAnswer, Error> {
        let joined = self.joined()?;
        let limit = if method == "GET" { NODES_LIMIT } else { joined.lease * 11 / 10 + WRITE_SLACK };
        let url = format!("{}{path}", self.config.root_url);
        self.peer.forward(method, &url, body, &self.myself.name, limit).map_err(|cause: CallError| Error::NoRoot {
            call: format!("pass {method} {path} on to the root at {}", self.config.root_url),
            writes: method != "GET",
            cause,
        })
    }

    /// Some of what this node holds, at most `limit` keys.
    #[must_use]
    pub fn list(&self, limit: usize) -> Vec<(String, Value)> {
        self.store().iter().take(limit).map(|(key, value)| (key.to_owned(), value.clone())).collect()
    }

    /// How much this node holds.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        let store = self.store();
        Gauges { entries: store.entries(), bytes: store.bytes() }
    }

    /// Where this node stands; `None` before it has joined.
    #[must_use]
    pub fn place(&self) -> Option<Arc<Place>> {
        if self.config.is_root() {
            return Some(Arc::new(self.table().place(0)));
        }
        self.joined.read().expect("nothing panics under this lock").as_ref().map(|joined| Arc::clone(&joined.place))
    }

    /// Takes the place that the root gave.
    pub fn take_place(&self, joined: Joined) {
        *self.joined.write().expect("nothing panics under this lock") = Some(joined);
    }

    /// The root's child table; nobody else's means anything.
    pub fn table(&self) -> MutexGuard<'_, ChildTable> {
        self.table.lock().expect("nothing panics under this lock")
    }

    /// A copy's life, for the nodes that join here.
    #[must_use]
    pub fn lease_ms(&self) -> u64 {
        u64::try_from(self.config.lease.as_millis()).expect("a lease is at most an hour")
    }

    /// Refuses what only the root may do.
    ///
    /// # Errors
    /// This node is not the root.
    pub fn expect_root(&self) -> Result<(), Error> {
        if self.config.is_root() { Ok(()) } else { Err(Error::NotRoot { name: self.myself.name.clone() }) }
    }

    /// Refuses what needs a place.
    ///
    /// # Errors
    /// This node has none yet.
    pub fn joined(&self) -> Result<Joined, Error> {
        self.joined.read().expect("nothing panics under this lock").clone().ok_or(Error::NotJoined)
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().expect("nothing panics under this lock")
    }
}
