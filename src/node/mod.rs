//! One node: its state, and its place in the tree.
//!
//! Invariant: no lock is held across a call to another node, and none is taken inside another.
//! Left out: what is done with it ([`walk`]), how a node gets its place and keeps it ([`join`]), and HTTP
//! (`http/api.rs`).

pub mod durable;
pub mod join;
mod walk;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::cache::store::{Gauges, SLICE_PAUSE, Setup, Store};
use crate::cache::value::Value;
use crate::config::Config;
use crate::http::client::Client;
use crate::metrics::Metrics;
use crate::protocol::error::{Error, Kind};
use crate::protocol::messages::JoinAnswer;
use crate::tree::{self, ALIVE, ChildTable, Member, NodeRef, Place, Process};

pub use walk::{READ_LIMIT, write_limit};

/// So often a request that needs the place of a node that starts looks whether it has it: for a second.
const PLACE_LOOKS: u32 = 100;

/// Between two looks whether it has it, and of a node that leaves whether it may end.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// Between two sweeps.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

pub struct Node {
    pub config: Config,
    /// Its name, the URL at which others reach it, and the random number of this process.
    pub myself: NodeRef,
    /// That number as every answer names it.
    pub run_text: &'static str,
    pub started: Instant,
    pub client: Client,
    pub metrics: Metrics,
    /// Guards all that is held.
    store: Mutex<Store<Thread>>,
    /// The thread that commits, where entries are kept on disk.
    committer: OnceLock<Thread>,
    /// Guards who has which position. Only the root has it, once it has looked for it in ZooKeeper.
    table: OnceLock<Mutex<ChildTable>>,
    /// Guards what has come of the joins; the root joins nobody.
    joins: Mutex<Joins>,
    /// Told of each change of that.
    joined: Condvar,
    /// The thread that repeats the join; woken, it does so at once.
    joiner: OnceLock<Thread>,
    /// Guards which ancestors gave no answer lately, by URL, and until when they are not asked.
    passed_over: Mutex<HashMap<String, Instant>>,
    /// Guards whether ZooKeeper has this node's znodes; nobody knows before the first attempt.
    registered: Mutex<Option<bool>>,
}

/// What has come of the joins; they are sent one after another.
#[derive(Default)]
struct Joins {
    last: Option<Joined>,
    /// When the last one was sent that is over.
    asked: Option<Instant>,
    /// Why that one failed, if it did.
    failed: Option<String>,
}

/// What the root said in its last answer to a join. All of it is replaced at once: its clock is its run's.
#[derive(Clone)]
struct Joined {
    answer: Arc<JoinAnswer>,
    /// When it came.
    heard: Instant,
}

impl Joined {
    /// A copy's life; zero while the root leaves.
    fn lease(&self) -> Duration {
        Duration::from_millis(self.answer.lease_ms)
    }
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
        Self {
            myself: NodeRef { name: config.node_name(), url: config.url_at(address.port()), run },
            run_text: run.to_string().leak(),
            started,
            client: Client::new(config.token.as_deref()),
            metrics: Metrics::default(),
            store: Mutex::new(Store::new(Setup { is_root, max_bytes, lease })),
            committer: OnceLock::new(),
            table: OnceLock::new(),
            joins: Mutex::default(),
            joined: Condvar::new(),
            joiner: OnceLock::new(),
            passed_over: Mutex::default(),
            registered: Mutex::default(),
            config,
        }
    }

    // -- the place -----------------------------------------------------------------------------

    /// Gives the root its table: with the places that its former self gave, position and id, as far as it knows them.
    /// What that granted it does not know, and waits for: nodes may hold it for as long as that `lease` (rule 10).
    pub fn take_table(&self, places: Vec<(u32, u32)>, lease: Duration) {
        let process = Process { run: self.myself.run, url: self.myself.url.clone(), heard: self.started };
        let root = Member { id: self.config.node_id, process: Some(process) };
        let mut new_table = ChildTable::new(self.config.tree_depth, root);
        for (position, id) in places {
            new_table.admit(Member { id, process: None }, Some(position));
        }
        self.wait_for_leases(lease);
        self.table.get_or_init(|| Mutex::new(new_table));
    }

    fn wait_for_leases(&self, lease: Duration) {
        let before = self.young_for();
        self.store().wait_for_leases(lease, Instant::now());
        let young_for = self.young_for();
        if young_for > before {
            log::info!("no write finishes for {young_for:.1?}: nodes may hold copies that another root has granted");
        }
    }

    /// For how long this root can finish no write.
    pub fn young_for(&self) -> Duration {
        self.store().young_for(Instant::now())
    }

    /// The root's child table, once it has it; nobody else has one.
    pub fn table(&self) -> Option<MutexGuard<'_, ChildTable>> {
        self.table.get().map(lock)
    }

    /// What the root said last; it says nothing to itself.
    fn last_join(&self) -> Option<Joined> {
        lock(&self.joins).last.clone()
    }

    /// Where this node stands; `None` before it has joined.
    pub fn place(&self) -> Option<Place> {
        let of_root = self.table().map(|table| table.place(0));
        of_root.or_else(|| self.last_join().map(|joined| joined.answer.place.clone()))
    }

    pub fn is_joined(&self) -> bool {
        self.table.get().is_some() || lock(&self.joins).last.is_some()
    }

    /// The same, but whoever asks a node that has just started need not be sent away.
    pub fn is_joined_soon(&self) -> bool {
        let looks_again = |_| {
            thread::sleep(LOOK_PAUSE);
            self.is_joined()
        };
        self.is_joined() || (0..PLACE_LOOKS).any(looks_again)
    }

    /// Since when the root has not been heard; the root hears itself.
    pub fn root_silence(&self) -> Option<Duration> {
        let of_root = self.table.get().map(|_| Duration::ZERO);
        of_root.or_else(|| self.last_join().map(|joined| joined.heard.elapsed()))
    }

    /// Refuses clients that could go to another node: this one has no place yet, has lost its root, or leaves.
    pub fn expect_ready(&self) -> Result<(), Error> {
        self.expect_stays("")?;
        let silence = self.root_silence().ok_or_else(not_joined)?;
        if silence > ALIVE {
            return Err(Kind::ServiceUnavailable.error(format!("the root was last heard {silence:.1?} ago")));
        }
        Ok(())
    }

    pub fn is_leaving(&self) -> bool {
        self.store().is_leaving()
    }

    /// Refuses what a node that leaves takes on no more; the text ends so.
    pub fn expect_stays(&self, ending: &str) -> Result<(), Error> {
        if self.is_leaving() {
            return Err(Kind::ServiceUnavailable.error(format!("{} is leaving{ending}", self.myself.name)));
        }
        Ok(())
    }

    /// How deep this node stands, the root's level being 1; 0 before it has its place.
    fn level(&self) -> u32 {
        let level = |joined: Joined| tree::level(joined.answer.place.position);
        // For each invalidation: the root's place is made anew each time, and it is not needed for that.
        if self.config.is_root() { 1 } else { self.last_join().map_or(0, level) }
    }

    /// Takes the place that the root gave in answer to a join that was sent then, and its lease. What is held and recorded
    /// here stays, also where the place is another: records name processes, not places.
    fn take_place(&self, mut answer: JoinAnswer, asked: Instant) {
        // Where it was reached, whatever it calls itself.
        if let Some(root) = answer.place.ancestors.last_mut() {
            root.url.clone_from(&self.config.root_url);
        }
        let last = Joined { answer: answer.into(), heard: Instant::now() };
        self.store().set_lease(last.lease());
        self.note_join(asked, Ok(last));
    }

    fn note_join(&self, asked: Instant, outcome: Result<Joined, String>) {
        let mut joins = lock(&self.joins);
        joins.asked = Some(asked);
        joins.failed = outcome.as_ref().err().cloned();
        joins.last = outcome.ok().or(joins.last.take());
        self.joined.notify_all();
    }

    /// Whether the root leaves, or has given no answer to the last join, which was sent after that time.
    fn has_lost_root(&self, time: Instant) -> bool {
        let joins = lock(&self.joins);
        let is_silent = joins.failed.is_some() && joins.asked > Some(time);
        is_silent || joins.last.as_ref().is_some_and(|last| last.lease().is_zero())
    }

    /// What the root says to a join that is sent from now on, or why it says nothing. Of many that wait, none joins by
    /// itself: they wake the one thread that does. If that has one under way it sends another as soon as that is over.
    fn join_afresh(&self, deadline: Instant) -> Result<Joined, String> {
        let time = Instant::now();
        self.joiner.get().expect("a node with a place repeats its join").unpark();
        let is_before = |joins: &mut Joins| joins.asked < Some(time);
        let left = deadline.saturating_duration_since(time);
        let waited = self.joined.wait_timeout_while(lock(&self.joins), left, is_before);
        let (joins, waited) = waited.expect("nothing panics under this lock");
        match (&joins.failed, &joins.last) {
            _ if waited.timed_out() => Err("no answer to a join".to_owned()),
            (Some(cause), _) => Err(cause.clone()),
            (None, last) => Ok(last.clone().expect("a join that is over has failed or was answered")),
        }
    }

    /// The run of the root that this node has its place from.
    pub fn root_run(&self) -> u64 {
        self.last_join().map_or(self.myself.run, |joined| joined.answer.run)
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

    /// Whether ZooKeeper has this node's znodes.
    pub fn is_registered(&self) -> bool {
        *lock(&self.registered) == Some(true)
    }

    /// How this node stands with ZooKeeper, in the words of `GET /`.
    pub fn zookeeper(&self) -> &'static str {
        match self.is_registered() {
            _ if self.config.zookeeper.is_empty() => "off",
            true => "registered",
            false => "not registered",
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
    pub fn keep_swept(&self) -> ! {
        loop {
            thread::sleep(SWEEP_PAUSE);
            while self.store().sweep(Instant::now()) {
                self.wake_committer();
                thread::sleep(SLICE_PAUSE);
            }
        }
    }

    fn store(&self) -> MutexGuard<'_, Store<Thread>> {
        lock(&self.store)
    }

    /// Whoever waits for what is not durable yet has it committed.
    fn wake_committer(&self) {
        self.committer.get().into_iter().for_each(Thread::unpark);
    }
}

#[cfg(test)]
mod tests;
