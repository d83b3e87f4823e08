//! One node: its place, its store, and how a read climbs and a write jumps.
//!
//! Invariant: no lock is held across a call to another node, and none is taken inside another.
//! Left out: HTTP (`api.rs` speaks it) and how a node gets its place (`join.rs`).

pub mod join;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, mpsc};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::cache::leases::{Holder, Record, record_life};
use crate::cache::store::{Answered, Gauges, Reading, Step, Store, StoreFull, Turn, Write};
use crate::cache::value::Value;
use crate::config::Config;
use crate::http::client::{CallError, Peer, RawAnswer};
use crate::http::pool::Pool;
use crate::metrics::Metrics;
use crate::protocol::error::Error;
use crate::tree::{self, ALIVE, ChildTable, Member, NodeRef, Place, Process};
use crate::zookeeper::recovery::Recovery;

/// What a read may take in all.
pub const READ_LIMIT: Duration = Duration::from_secs(5);

/// What an ancestor's answer needs to come back; the ancestor has so much less time than its asker.
const ANSWER_TIME: Duration = Duration::from_millis(100);

/// What a forwarded write may take beyond what the root may have to wait for.
const WRITE_SLACK: Duration = Duration::from_secs(1);

/// What asking the root for its child table may take.
const NODES_LIMIT: Duration = Duration::from_secs(2);

/// Between two attempts to tell a holder that gave no answer.
const REPEAT_PAUSE: Duration = Duration::from_millis(100);

/// Between two sweeps.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// One node of the tree.
pub struct Node {
    /// What it was told.
    pub config: Config,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its name, and the URL at which others reach it.
    pub myself: NodeRef,
    /// The random number of this process.
    pub run: u64,
    /// When it started.
    pub started: Instant,
    /// Its client for the other nodes.
    pub peer: Peer,
    /// What it counts.
    pub metrics: Metrics,
    /// The threads that serve; those that invalidate are taken from the same ones.
    pool: Arc<Pool>,
    /// Guards all that is held.
    store: Mutex<Store<Thread>>,
    /// Guards which ancestors did not answer lately, by URL, and until when they are not asked.
    passed_over: Mutex<HashMap<String, Instant>>,
    /// Guards who has which position; only the root's is ever used.
    table: Mutex<ChildTable>,
    /// Guards where this node stands and how long copies live; only the root does without.
    joined: RwLock<Option<Joined>>,
    /// Whether the root has its child table; never at another node.
    has_table: AtomicBool,
    /// Guards whether ZooKeeper has this node's znodes; nobody knows before the first attempt.
    registered: Mutex<Option<bool>>,
}

/// What the root told of this node's place.
#[derive(Clone)]
pub struct Joined {
    /// Where it stands.
    pub place: Arc<Place>,
    /// A copy's life.
    pub lease: Duration,
}

/// What answered a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The root's own entry.
    Entry,
    /// A copy that was here.
    Copy,
    /// An ancestor.
    Fetch,
}

impl Node {
    /// A node that listens on `address` and has no place yet.
    #[must_use]
    pub fn new(config: Config, address: SocketAddr, pool: Arc<Pool>) -> Self {
        let started = Instant::now();
        let myself = NodeRef { name: config.node_name(), url: config.url_at(address.port()) };
        // Random keys of a hasher are the standard library's only source of randomness. 53 bits, so
        // that a reader of JSON that knows only floating point keeps the number whole.
        let run = RandomState::new().hash_one(std::process::id()) >> 11;
        let store = Store::new(config.max_store_bytes, config.lease);
        let process = Process { run, url: myself.url.clone(), heard: started };
        let root = Member { id: config.node_id, process: Some(process) };
        Self {
            peer: Peer::new(config.token.as_deref()),
            metrics: Metrics::default(),
            store: Mutex::new(store),
            passed_over: Mutex::default(),
            pool,
            table: Mutex::new(ChildTable::new(config.tree_depth, root)),
            joined: RwLock::new(None),
            has_table: AtomicBool::new(false),
            registered: Mutex::default(),
            started,
            config,
            address,
            myself,
            run,
        }
    }

    // -- the walk up ---------------------------------------------------------------------------

    /// Reads a key, for a client or for another node that becomes its `holder`. It ends soon after
    /// `deadline`, whatever happens.
    ///
    /// # Errors
    /// No ancestor answered in time, or this node has no place yet.
    pub fn read(&self, key: &str, holder: Option<&Holder>, deadline: Instant) -> Result<(Answered, Source), Error> {
        if self.config.is_root() {
            let (mut store, now) = (self.store(), Instant::now());
            let answered = match holder {
                Some(holder) => store.grant_entry(key, holder, now),
                None => Answered { value: store.read_entry(key, now), lease: Duration::ZERO },
            };
            return Ok((answered, Source::Entry));
        }
        let mut reading = Reading::default();
        loop {
            let now = Instant::now();
            let step = self.store().step_read(&mut reading, key, holder, &thread::current(), now);
            match step {
                Step::Hit(answered) => return Ok((answered, Source::Copy)),
                Step::Shared(answered) => return Ok((answered, Source::Fetch)),
                Step::Fetch(number) => {
                    return self.fetch(key, number, holder, deadline).map(|answered| (answered, Source::Fetch));
                }
                Step::Wait if now >= deadline => return Err(no_answer(key)),
                Step::Wait => thread::park_timeout(deadline - now),
            }
        }
    }

    fn fetch(&self, key: &str, number: u64, holder: Option<&Holder>, deadline: Instant) -> Result<Answered, Error> {
        // A fetch that was never ended would make every later reader of its key wait for it.
        let result = catch_unwind(AssertUnwindSafe(|| self.ask_ancestors(key, deadline)));
        let (fetched, error) = match result.unwrap_or_else(|_| Err(no_answer(key))) {
            Ok(fetched) => (Some(fetched), None),
            Err(error) => (None, Some(error)),
        };
        let (answered, waiting) = self.store().end_fetch(key, number, fetched, holder, Instant::now());
        waiting.iter().for_each(Thread::unpark);
        answered.ok_or_else(|| error.expect("what an ancestor answered is an answer"))
    }

    /// Asks the ancestors, nearest first, until one answers; says when that one was asked.
    fn ask_ancestors(&self, key: &str, deadline: Instant) -> Result<(Answered, Instant), Error> {
        let Joined { place, lease } = self.joined()?;
        let mut causes = Vec::new();
        let mut above_asked = false;
        for (steps, ancestor) in place.ancestors.iter().enumerate() {
            let is_root = steps + 1 == place.ancestors.len();
            let asked = Instant::now();
            let left = deadline.saturating_duration_since(asked);
            let limit = if is_root { left } else { left / 2 };
            let wait = if is_root { left } else { limit.saturating_sub(ANSWER_TIME) };
            if wait < ANSWER_TIME || (!is_root && (above_asked || self.is_passed_over(&ancestor.url, asked))) {
                continue;
            }
            self.metrics.fetches_sent.count();
            let cause = match self.peer.fetch_copy(ancestor, key, (&self.myself, self.run), wait, limit) {
                Ok(answered) => return Ok((answered, asked)),
                Err(cause) => cause,
            };
            if !is_root && !matches!(cause, CallError::Refused { .. }) {
                // It costs one reader its time limit, and not every reader after it.
                self.passed_over().insert(ancestor.url.clone(), Instant::now() + lease);
            }
            // That one has asked all above it. If each node asked them all again, a read at depth d would cost
            // 2^(d-1) fetches while the root is dead; so only the root is asked once more.
            above_asked |= matches!(cause, CallError::Refused { status: 503, .. });
            causes.push((format!("{} at {}", ancestor.name, ancestor.url), cause));
        }
        Err(Error::NoAncestor { key: key.to_owned(), causes })
    }

    fn is_passed_over(&self, url: &str, now: Instant) -> bool {
        let mut passed_over = self.passed_over();
        passed_over.retain(|_, until| now < *until);
        passed_over.contains_key(url)
    }

    // -- the write -----------------------------------------------------------------------------

    /// Changes a key at the root: invalidates first, then puts the change in place (rule 4).
    ///
    /// # Errors
    /// There is no room, and the old value stands; or this node is not the root.
    pub fn write(self: &Arc<Self>, key: &str, change: Write) -> Result<(), Error> {
        self.expect_root()?;
        let mut turn =
            WriteTurn { node: self, key, ticket: self.store().queue_write(key, thread::current()), over: false };
        let holders = turn.wait();
        self.invalidate_holders(key, holders);
        turn.finish(Some(change))?;
        self.metrics.writes.count();
        Ok(())
    }

    /// Passes a request on to the root, once.
    ///
    /// # Errors
    /// The root gave no answer; the error says whether the request can have been applied.
    pub fn forward(&self, method: &str, path: &str, body: Option<&[u8]>) -> Result<RawAnswer, Error> {
        let joined = self.joined()?;
        // A young root waits with its first write (rule 8), a lost holder is waited for (rule 6).
        let wait = record_life(joined.lease).max(ALIVE);
        let limit = if method == "GET" { NODES_LIMIT } else { wait + WRITE_SLACK };
        let url = format!("{}{path}", self.config.root_url);
        self.peer.forward(method, &url, body, &self.myself.name, limit).map_err(|cause: CallError| Error::NoRoot {
            call: format!("pass {method} {path} on to the root at {}", self.config.root_url),
            writes: method != "GET",
            cause,
        })
    }

    // -- the walk down -------------------------------------------------------------------------

    /// Makes sure that this node and all below it hold no copy of `key` (rule 5).
    ///
    /// # Errors
    /// It is meant for another run (rule 8), or comes from a node that is not above this one.
    pub fn invalidate(self: &Arc<Self>, key: &str, run: u64, sender_level: u32) -> Result<(), Error> {
        self.metrics.invalidations_received.count();
        if run != self.run {
            return Err(Error::WrongRun { name: self.myself.name.clone() });
        }
        // Down only: two nodes that hold copies of each other's would tell each other for ever. That takes a
        // tree whose places were reversed, or a stranger; either way the record runs out by itself.
        if self.level() <= sender_level {
            return Err(Error::NotBelow { name: self.myself.name.clone() });
        }
        let holders = self.store().invalidate(key, Instant::now());
        self.invalidate_holders(key, holders);
        Ok(())
    }

    /// Tells all these holders at the same time, and returns when each has acknowledged or its record
    /// has run out. It waits by the clock: a call may return later, and its answer counts for nothing then.
    fn invalidate_holders(self: &Arc<Self>, key: &str, mut waiting: Vec<Record>) {
        let (sender, acknowledged) = mpsc::channel();
        for record in waiting.clone() {
            let (node, told_key, sender) = (Arc::clone(self), key.to_owned(), sender.clone());
            let tell = move || {
                if node.tell_holder(&told_key, &record) {
                    // Nobody listens any more once the record has run out.
                    let _ = sender.send(record);
                }
            };
            if let Err(error) = self.pool.run(Box::new(tell)) {
                log::error!("could not start a thread to invalidate {key:?}: {error}");
            }
        }
        // So that the channel closes when all have been told.
        drop(sender);
        let left = |waiting: &[Record]| {
            let last_end = waiting.iter().map(|record| record.ends).max();
            last_end.map(|end| end.saturating_duration_since(Instant::now()))
        };
        while let Some(Ok(record)) = left(&waiting).map(|left| acknowledged.recv_timeout(left)) {
            self.store().acknowledge(key, &record);
            waiting.retain(|other| other.holder != record.holder);
        }
        // Rule 6: who did not acknowledge holds its copy until its record has run out.
        let Some(left) = left(&waiting) else { return };
        self.metrics.silent_holder_waits.count();
        thread::sleep(left);
        for record in waiting {
            log::info!("waited for {} at {} to let go of {key:?}", record.holder.name, record.holder.url);
            self.store().note_silence(&record, Instant::now());
        }
    }

    /// Tells one holder until it answers, or until its record has run out; whether it acknowledged.
    fn tell_holder(&self, key: &str, record: &Record) -> bool {
        loop {
            let left = record.ends.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.metrics.invalidations_sent.count();
            match self.peer.invalidate_copy(&record.holder, key, self.level(), left) {
                Ok(()) => return true,
                Err(CallError::Refused { .. }) => return false,
                Err(_) => thread::sleep(left.min(REPEAT_PAUSE)),
            }
        }
    }

    // -- looking and sweeping ------------------------------------------------------------------

    /// Some of what can be read here without asking anybody, at most `limit` keys.
    #[must_use]
    pub fn list(&self, limit: usize) -> Vec<(String, Value)> {
        let now = Instant::now();
        self.store().list(now).take(limit).map(|(key, value)| (key.to_owned(), value.clone())).collect()
    }

    /// How much this node holds.
    #[must_use]
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

    // -- the place -----------------------------------------------------------------------------

    /// Where this node stands; `None` before it has joined.
    #[must_use]
    pub fn place(&self) -> Option<Arc<Place>> {
        if self.config.is_root() {
            return self.is_joined().then(|| Arc::new(self.table().place(0)));
        }
        self.joined.read().expect("nothing panics under this lock").as_ref().map(|joined| Arc::clone(&joined.place))
    }

    /// How deep this node stands, the root's level being 1; 0 before it has its place.
    fn level(&self) -> u32 {
        if self.config.is_root() { 1 } else { self.place().map_or(0, |place| tree::level(place.position)) }
    }

    /// Whether this node has its place.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        if self.config.is_root() { self.has_table.load(Ordering::Acquire) } else { self.joined().is_ok() }
    }

    /// Makes the root a root: with the child table that it found in ZooKeeper, or with an empty one.
    pub fn take_table(&self, recovery: Recovery) {
        if !matches!(recovery, Recovery::Off | Recovery::Empty) && self.config.tree_depth > 1 {
            self.expect_former_holders();
        }
        if let Recovery::Restored(places) = recovery {
            for (position, id) in places {
                self.table().admit(Member { id, process: None }, Some(position));
            }
        }
        if self.config.tree_depth > 1 {
            // Rule 8: nodes that outlived a former root come back within this time, and say so. It counts from
            // now, since no join is answered before.
            self.store().be_quiet_until(Instant::now() + ALIVE);
        }
        self.has_table.store(true, Ordering::Release);
    }

    /// Says whether ZooKeeper has this node's znodes; returns whether that is new.
    pub fn set_registered(&self, registered: bool) -> bool {
        self.registered.lock().expect("nothing panics under this lock").replace(registered) != Some(registered)
    }

    /// How this node stands with ZooKeeper, in the words of `GET /`.
    #[must_use]
    pub fn zookeeper(&self) -> &'static str {
        match *self.registered.lock().expect("nothing panics under this lock") {
            _ if self.config.zookeeper.is_empty() => "off",
            Some(true) => "registered",
            _ => "not registered",
        }
    }

    /// Takes the place that the root gave.
    pub fn take_place(&self, joined: Joined) {
        self.store().set_lease(joined.lease);
        *self.joined.write().expect("nothing panics under this lock") = Some(joined);
    }

    /// The root's child table; nobody else's means anything.
    pub fn table(&self) -> MutexGuard<'_, ChildTable> {
        self.table.lock().expect("nothing panics under this lock")
    }

    /// Lets no write finish before one lease and a tenth after the start (rule 8): a node may hold a copy
    /// that a former run of this root granted.
    pub fn expect_former_holders(&self) {
        self.store().be_quiet_until(self.started + record_life(self.config.lease));
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

    fn store(&self) -> MutexGuard<'_, Store<Thread>> {
        self.store.lock().expect("nothing panics under this lock")
    }

    fn passed_over(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.passed_over.lock().expect("nothing panics under this lock")
    }
}

/// A read that has nobody's failure to tell of but its own.
fn no_answer(key: &str) -> Error {
    Error::NoAncestor { key: key.to_owned(), causes: Vec::new() }
}

/// A writer in the queue of its key; dropped, it leaves the queue, so that a panic stops nobody else.
struct WriteTurn<'a> {
    node: &'a Node,
    key: &'a str,
    ticket: u64,
    over: bool,
}

impl WriteTurn<'_> {
    /// Waits for its turn, and returns the holders that must be invalidated. Whoever is before it ends:
    /// no writer waits longer than the longest record.
    fn wait(&self) -> Vec<Record> {
        loop {
            let now = Instant::now();
            let turn = self.node.store().take_turn(self.key, self.ticket, now);
            match turn {
                Turn::Go(holders) => return holders,
                Turn::NotBefore(then) => thread::park_timeout(then - now),
                Turn::Wait => thread::park_timeout(READ_LIMIT),
            }
        }
    }

    fn finish(&mut self, change: Option<Write>) -> Result<(), StoreFull> {
        self.over = true;
        let (result, next) = self.node.store().finish_write(self.key, self.ticket, change, Instant::now());
        if let Some(next) = next {
            next.unpark();
        }
        result
    }
}

impl Drop for WriteTurn<'_> {
    fn drop(&mut self) {
        if !self.over {
            let _ = self.finish(None);
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A root that has not joined yet, of a tree of depth 2 with a lease of a minute.
    pub fn young_root() -> Arc<Node> {
        let variables = |name| match name {
            "TREE_DEPTH" => Some("2".to_owned()),
            "LEASE_SECONDS" => Some("60".to_owned()),
            _ => None,
        };
        let config = Config::from_lookup(variables).expect("these are allowed");
        Arc::new(Node::new(config, "127.0.0.1:9".parse().expect("an address"), Pool::new()))
    }

    /// When the root will finish a write.
    pub fn quiet_until(root: &Node) -> Option<Instant> {
        let mut store = root.store();
        let ticket = store.queue_write("key", thread::current());
        let turn = store.take_turn("key", ticket, Instant::now());
        store.finish_write("key", ticket, None, Instant::now()).0.expect("nothing is put");
        if let Turn::NotBefore(then) = turn { Some(then) } else { None }
    }

    #[test]
    fn rule_8_a_young_root_waits_from_when_nodes_can_join() {
        let root = young_root();
        let before = Instant::now();
        root.take_table(Recovery::Empty);
        assert!(quiet_until(&root).expect("it waits") >= before + ALIVE);
        for recovery in [Recovery::NoAnswer, Recovery::Unfit, Recovery::Restored(Vec::new())] {
            let root = young_root();
            root.take_table(recovery);
            assert_eq!(quiet_until(&root), Some(root.started + Duration::from_secs(66)));
        }
    }
}
