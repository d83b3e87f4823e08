//! One node: its state, and its place in the tree.
//!
//! Invariant: no lock is held across a call to another node, and none is taken inside another.
//! Left out: what is done with it ([`walk`]), how a node gets its place and keeps it ([`join`]), and HTTP
//! (`http/api.rs`).

pub mod join;
mod walk;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::cache::store::{Gauges, Setup, Store};
use crate::cache::value::Value;
use crate::config::Config;
use crate::http::client::Client;
use crate::metrics::Metrics;
use crate::protocol::error::{Error, Kind};
use crate::tree::{self, ALIVE, ChildTable, FormerTree, Member, NodeRef, Place, Process};

pub use walk::READ_LIMIT;

/// Within this time nodes that outlived a former root join again: they repeat their joins every second.
pub const JOINS_TAKE: Duration = Duration::from_secs(3);

/// Between two sweeps.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

pub struct Node {
    pub config: Config,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its name, and the URL at which others reach it.
    pub myself: NodeRef,
    /// The random number of this process.
    pub run: u64,
    pub started: Instant,
    pub client: Client,
    pub metrics: Metrics,
    /// Guards all that is held.
    store: Mutex<Store<Thread>>,
    role: Role,
    /// Guards whether ZooKeeper has this node's znodes; nobody knows before the first attempt.
    registered: Mutex<Option<bool>>,
}

/// What only the root has, and what only the others have.
enum Role {
    Root {
        /// Guards who has which position; there once the root has looked for it in ZooKeeper.
        table: OnceLock<Mutex<ChildTable>>,
    },
    Other {
        /// Guards what the root said of this node's place, once it has.
        joined: Mutex<Option<Joined>>,
        /// Guards which ancestors gave no answer lately, by URL, and until when they are not asked.
        passed_over: Mutex<HashMap<String, Instant>>,
    },
}

/// What the root said of this node's place.
#[derive(Clone)]
struct Joined {
    place: Arc<Place>,
    /// When the root said so.
    heard: Instant,
    /// A copy's life.
    lease: Duration,
}

/// Refuses what needs a place.
pub fn not_joined() -> Error {
    Kind::ServiceUnavailable.error("not joined yet")
}

/// No thread panics while it has one of a node's locks; if one did, nothing could be said of what it guards.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics under this lock")
}

impl Node {
    /// A node that listens on `address` and has no place yet.
    pub fn new(config: Config, address: SocketAddr) -> Self {
        let started = Instant::now();
        // Random keys of a hasher are the standard library's only source of randomness. 53 bits, so
        // that a reader of JSON that knows only floating point keeps the number whole.
        let run = RandomState::new().hash_one(std::process::id()) >> 11;
        let (is_root, max_bytes, lease) = (config.is_root(), config.max_store_bytes, config.lease);
        let role = if is_root {
            Role::Root { table: OnceLock::new() }
        } else {
            Role::Other { joined: Mutex::default(), passed_over: Mutex::default() }
        };
        Self {
            address,
            myself: NodeRef { name: config.node_name(), url: config.url_at(address.port()) },
            run,
            started,
            client: Client::new(config.token.as_deref()),
            metrics: Metrics::default(),
            store: Mutex::new(Store::new(Setup { is_root, run, max_bytes, lease, started })),
            role,
            registered: Mutex::default(),
            config,
        }
    }

    // -- the place -----------------------------------------------------------------------------

    /// Gives the root its table: with the places that its former self gave, as far as it knows them.
    pub fn take_table(&self, former: FormerTree) {
        let Role::Root { table } = &self.role else { return };
        let process = Process { run: self.run, url: self.myself.url.clone(), heard: self.started };
        let depth = self.config.tree_depth;
        let mut new_table = ChildTable::new(depth, Member { id: self.config.node_id, process: Some(process) });
        if depth > 1 {
            self.expect_former_holders(false);
            if former != FormerTree::None {
                self.expect_former_holders(true);
            }
        }
        if let FormerTree::Places(places) = former {
            for (position, id) in places {
                new_table.admit(Member { id, process: None }, Some(position));
            }
        }
        table.get_or_init(|| Mutex::new(new_table));
    }

    /// Lets no write finish while copies may be held that a former run of this root granted (rule 8).
    fn expect_former_holders(&self, known: bool) {
        self.store().expect_former_holders(known, JOINS_TAKE, Instant::now());
    }

    /// The root's child table, once it has it; nobody else has one.
    pub fn table(&self) -> Option<MutexGuard<'_, ChildTable>> {
        match &self.role {
            Role::Root { table } => table.get().map(lock),
            Role::Other { .. } => None,
        }
    }

    /// Where this node stands; `None` before it has joined.
    pub fn place(&self) -> Option<Arc<Place>> {
        match &self.role {
            Role::Root { .. } => self.table().map(|table| Arc::new(table.place(0))),
            Role::Other { joined, .. } => lock(joined).as_ref().map(|joined| Arc::clone(&joined.place)),
        }
    }

    pub fn is_joined(&self) -> bool {
        match &self.role {
            Role::Root { table } => table.get().is_some(),
            Role::Other { joined, .. } => lock(joined).is_some(),
        }
    }

    /// Refuses clients that could go to another node: this one has no place yet, or has lost its root.
    pub fn expect_ready(&self) -> Result<(), Error> {
        let silence = match &self.role {
            Role::Root { table } => table.get().map(|_| Duration::ZERO),
            Role::Other { joined, .. } => lock(joined).as_ref().map(|joined| joined.heard.elapsed()),
        };
        let silence = silence.ok_or_else(not_joined)?;
        if silence > ALIVE {
            return Err(Kind::ServiceUnavailable.error(format!("the root was last heard {silence:.1?} ago")));
        }
        Ok(())
    }

    /// How deep this node stands, the root's level being 1; 0 before it has its place.
    fn level(&self) -> u32 {
        match &self.role {
            Role::Root { .. } => 1,
            Role::Other { joined, .. } => lock(joined).as_ref().map_or(0, |joined| tree::level(joined.place.position)),
        }
    }

    /// Takes the place that the root gave, and its lease.
    fn take_place(&self, place: Place, lease: Duration) {
        if let Role::Other { joined, .. } = &self.role {
            self.store().set_lease(lease);
            *lock(joined) = Some(Joined { place: place.into(), heard: Instant::now(), lease });
        }
    }

    /// Refuses what only the root may be asked.
    pub fn not_root(&self, kind: Kind) -> Error {
        kind.error(format!("{} is not the root", self.myself.name))
    }

    // -- ZooKeeper -----------------------------------------------------------------------------

    /// Says whether ZooKeeper has this node's znodes; returns whether that is new.
    pub fn set_registered(&self, registered: bool) -> bool {
        lock(&self.registered).replace(registered) != Some(registered)
    }

    /// How this node stands with ZooKeeper, in the words of `GET /`.
    pub fn zookeeper(&self) -> &'static str {
        match *lock(&self.registered) {
            _ if self.config.zookeeper.is_empty() => "off",
            Some(true) => "registered",
            _ => "not registered",
        }
    }

    // -- what is held --------------------------------------------------------------------------

    /// Some of what can be read here without asking anybody, at most `limit` keys.
    pub fn list(&self, limit: usize) -> Vec<(String, Value)> {
        let now = Instant::now();
        self.store().list(now).take(limit).map(|(key, value)| (key.to_owned(), value.clone())).collect()
    }

    pub fn gauges(&self) -> Gauges {
        self.store().gauges()
    }

    /// Drops what has ended, once a second, for ever.
    pub fn keep_swept(&self) {
        loop {
            thread::sleep(SWEEP_PAUSE);
            // The lock is free between two slices.
            while self.store().sweep(Instant::now()) {}
        }
    }

    fn store(&self) -> MutexGuard<'_, Store<Thread>> {
        lock(&self.store)
    }
}

#[cfg(test)]
mod tests;
