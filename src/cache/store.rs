//! Entries, copies, fetches and writers of one node: every decision of the lease rules is one method here.
//!
//! `W` is whoever waits and must be woken: a thread, or a process of the simulation.
//!
//! Invariants: a copy's record, at the node that granted it, ends after the copy does. `bytes` is
//! what all that is held counts, and never above `max_bytes`.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::leases::{Holder, Holders, Key, Record, record_life, shrink};
use super::value::Value;

/// A value, `None` if there is no such key, and how long it may be kept; zero: answer it, keep nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leased {
    pub value: Option<Value>,
    pub lease: Duration,
}

impl Leased {
    /// What may be answered and not kept.
    pub fn once(value: Option<Value>) -> Self {
        Self { value, lease: Duration::ZERO }
    }
}

/// What answered a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The root's own.
    Entry,
    /// A copy that was here.
    Copy,
    /// An ancestor.
    Fetch,
}

/// A read under way; see [`Store::step_read`].
#[derive(Debug)]
pub struct Reading<'a, W> {
    key: &'a str,
    /// The other node that reads, if one does.
    holder: Option<&'a Holder>,
    reader: W,
    /// When it came, in the sequence in which fetches are numbered: those with a higher number were sent later.
    came: Option<u64>,
    /// The fetch of another reader, while this one waits for it.
    shared: Option<(u64, Arc<OnceLock<Outcome>>)>,
}

impl<'a, W> Reading<'a, W> {
    pub fn new(key: &'a str, holder: Option<&'a Holder>, reader: W) -> Self {
        Self { key, holder, reader, came: None, shared: None }
    }
}

/// What a reader does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Answer(Leased, Source),
    /// Fetch, and call [`Store::end_fetch`] or [`Store::abandon`] with this number, whatever comes of it.
    Fetch(u64),
    /// Wait to be woken, or for the end of your time.
    Wait,
}

/// What a fetch has come to: `None` if no ancestor answered.
type Outcome = Option<Option<Value>>;

/// Whether a writer may go on.
#[derive(Debug)]
pub enum Turn {
    /// Others are before it: wait to be woken.
    Wait,
    /// The root is too young to finish a write (rule 8): try again then.
    NotBefore(Instant),
    /// Give up: it would be refused.
    Refused(Refusal),
    /// Invalidate these, then finish.
    Go(Vec<Record>),
}

/// A change of one key.
#[derive(Debug, Clone)]
pub enum Write {
    /// The value, and for how long if not for ever.
    Put(Value, Option<Duration>),
    Delete,
}

/// What must hold of a key for its write to be done; RFC 9110, section 13.1, calls it a precondition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    None,
    /// Create only.
    Absent,
    /// Replace only.
    Present,
    /// It asks for an entity tag, and no value has one; or for what cannot be.
    Never,
}

impl Condition {
    fn expect(self, exists: bool) -> Result<(), Refusal> {
        match self {
            Self::Absent if exists => Err(Refusal::Condition("the key exists already")),
            Self::Present if !exists => Err(Refusal::Condition("the key does not exist")),
            Self::Never => Err(Refusal::Condition("no value can meet this condition")),
            _ => Ok(()),
        }
    }
}

/// Why a write is not done; both say it in words.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    Condition(&'static str),
    Full(String),
}

/// What came of a write, and the next writer, who must be woken.
type Finished<W> = (Result<(), Refusal>, Option<W>);

/// What an entry or a copy takes beside its text. Measured: 160 bytes, and a little more just after the
/// map has grown.
const ITEM_BYTES: usize = 176;

/// What one sweep looks at while others wait for the lock.
const SWEEP_ITEMS: usize = 1000;

/// How much is held, in numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gauges {
    pub entries: usize,
    /// Those that have ended and were not swept yet among them, here and below.
    pub copies: usize,
    /// Records of holders.
    pub holders: usize,
    pub bytes: usize,
}

/// A key's value here: an entry at the root, a copy elsewhere.
#[derive(Debug)]
struct Item {
    value: Value,
    /// When the copy's lease ends, or the entry expires, if it does.
    ends: Option<Instant>,
}

impl Item {
    fn is_valid(&self, now: Instant) -> bool {
        self.ends.is_none_or(|ends| now < ends)
    }
}

#[derive(Debug)]
struct Writer<W> {
    ticket: u64,
    who: W,
    condition: Condition,
}

#[derive(Debug)]
struct Fetch<W> {
    number: u64,
    /// An invalidation came while it was under way (rule 5).
    marked: bool,
    outcome: Arc<OnceLock<Outcome>>,
    waiting: Vec<W>,
}

/// What a store is told at its start.
#[derive(Debug, Clone)]
pub struct Setup {
    pub is_root: bool,
    /// The run of its process.
    pub run: u64,
    pub max_bytes: usize,
    /// The root's own; another node does not know it before it has joined.
    pub lease: Duration,
    /// When the process started.
    pub started: Instant,
}

/// All that a node holds.
#[derive(Debug)]
pub struct Store<W> {
    setup: Setup,
    /// What the items count.
    text_bytes: usize,
    /// Reads, fetches and writers are numbered in one sequence.
    last_number: u64,
    items: HashMap<Key, Item>,
    /// Who was granted a copy of them.
    holders: Holders,
    fetches: HashMap<Key, Vec<Fetch<W>>>,
    /// The writers of a key, first come first served. While there are any, nothing is granted (rule 3).
    writers: HashMap<Key, VecDeque<Writer<W>>>,
    /// The root finishes no write before (rule 8).
    quiet_until: Option<Instant>,
    /// When items end.
    ends: BTreeSet<(Instant, Key)>,
}

impl<W: Clone> Store<W> {
    pub fn new(setup: Setup) -> Self {
        Self {
            setup,
            text_bytes: 0,
            last_number: 0,
            items: HashMap::new(),
            holders: Holders::default(),
            fetches: HashMap::new(),
            writers: HashMap::new(),
            quiet_until: None,
            ends: BTreeSet::new(),
        }
    }

    /// Takes over the root's lease.
    pub fn set_lease(&mut self, lease: Duration) {
        self.setup.lease = lease;
    }

    // -- reads ---------------------------------------------------------------------------------

    /// Takes a read one step further; called first with a fresh [`Reading`], and again whenever the reader is woken.
    /// A read for another node is granted a lease.
    pub fn step_read(&mut self, reading: &mut Reading<W>, now: Instant) -> Step {
        let Reading { key, holder, .. } = *reading;
        if let Some(answer) = self.answer_here(key, holder, now) {
            return Step::Answer(answer, if self.setup.is_root { Source::Entry } else { Source::Copy });
        }
        let came = *reading.came.get_or_insert_with(|| self.next_number());
        if let Some((number, outcome)) = &reading.shared {
            match outcome.get() {
                None => return Step::Wait,
                // Rule 9: an older answer may be from before a write that ended before this reader came.
                Some(Some(value)) if *number > came => {
                    return Step::Answer(Leased::once(value.clone()), Source::Fetch);
                }
                Some(_) => reading.shared = None,
            }
        }
        let under_way = self.fetches.get_mut(key).into_iter().flatten().find(|fetch| !fetch.marked);
        if let Some(fetch) = under_way {
            fetch.waiting.push(reading.reader.clone());
            reading.shared = Some((fetch.number, Arc::clone(&fetch.outcome)));
            return Step::Wait;
        }
        let number = self.next_number();
        let fetch = Fetch { number, marked: false, outcome: Arc::default(), waiting: Vec::new() };
        self.fetches.entry(key.into()).or_default().push(fetch);
        Step::Fetch(number)
    }

    /// Ends a fetch: keeps a copy if it may. `fetched` is what an ancestor said and when it was asked,
    /// or `None` if no ancestor answered. Returns what the reader is answered, with a lease if it reads
    /// for another node, and whoever waited for this fetch.
    pub fn end_fetch(
        &mut self,
        reading: &Reading<W>,
        number: u64,
        fetched: Option<&(Leased, Instant)>,
        now: Instant,
    ) -> (Option<Leased>, Vec<W>) {
        let Reading { key, holder, .. } = *reading;
        let fetch = self.take_fetch(key, number).expect("a fetch is under way until it is ended");
        let outcome = fetched.map(|(Leased { value, lease }, asked_at)| {
            // Rule 2: the ancestor recorded us later than we asked, so its record outlives this copy.
            if let Some(value) = value.as_ref().filter(|_| !fetch.marked) {
                self.keep_copy(key, value, *asked_at + *lease, now);
            }
            value.clone()
        });
        fetch.outcome.set(outcome.clone()).expect("it is ended once");
        // Value and lease belong together (rule 1): a lease is granted only on the copy that is here,
        // which need not be what this fetch brought.
        let from_copy = self.answer_here(key, holder, now);
        (from_copy.or(outcome.map(Leased::once)), fetch.waiting)
    }

    /// Ends, with nothing to show for it, the fetch or write that bears this number: what was begun and is never
    /// ended would make all wait that come after it. Returns whoever must be woken.
    pub fn abandon(&mut self, key: &str, number: u64, now: Instant) -> Vec<W> {
        match self.take_fetch(key, number) {
            None => self.finish_write(key, number, None, now).1.into_iter().collect(),
            Some(fetch) => {
                fetch.outcome.set(None).expect("it is ended once");
                fetch.waiting
            }
        }
    }

    fn take_fetch(&mut self, key: &str, number: u64) -> Option<Fetch<W>> {
        let fetches = self.fetches.get_mut(key)?;
        let position = fetches.iter().position(|fetch| fetch.number == number)?;
        let fetch = fetches.swap_remove(position);
        if fetches.is_empty() {
            self.fetches.remove(key);
        }
        Some(fetch)
    }

    /// Drops the copy, marks what is under way, and lists the holders that must be told: one hold of
    /// the lock (rule 5). With the mark in a second one:
    /// 1. The copy is dropped; a fetch of the old value is under way.
    /// 2. The fetch ends, unmarked, and its old value is kept.
    /// 3. The mark comes too late.
    ///
    /// `None` if it is meant for another run: that one's holders, which this one does not know, would not be told,
    /// and the sender must not take our word for it (rule 8).
    pub fn invalidate(&mut self, key: &str, run: u64, now: Instant) -> Option<Vec<Record>> {
        if run != self.setup.run {
            return None;
        }
        self.remove(key);
        for fetch in self.fetches.get_mut(key).into_iter().flatten() {
            fetch.marked = true;
        }
        Some(self.holders.list(key, now))
    }

    /// Answers a read from what is here, for a holder with a lease; `None` if another node must be asked.
    fn answer_here(&mut self, key: &str, holder: Option<&Holder>, now: Instant) -> Option<Leased> {
        let Some(item) = self.items.get(key).filter(|item| item.is_valid(now)) else {
            return self.setup.is_root.then(|| Leased::once(None));
        };
        let (value, left, full) = (Some(item.value.clone()), item.ends.map(|ends| ends - now), self.setup.lease);
        // Rule 3: nothing is granted while writers queue. Else:
        // 1. A write lists the holders, and begins to invalidate them.
        // 2. A node fetches, and gets a lease on the old value.
        // 3. The write ends. Nobody has told that node.
        let Some(holder) = holder.filter(|_| !self.writers.contains_key(key)) else { return Some(Leased::once(value)) };
        let lease = match left {
            // Rule 1: what is left of this copy's lease, so that no copy outlives its source.
            Some(left) if !self.setup.is_root => left,
            // The copy must be gone when the entry expires, even where the clock is a tenth slower.
            Some(left) => full.min(left * 10 / 11),
            None => full,
        };
        let room_bytes = self.setup.max_bytes.saturating_sub(self.bytes());
        Some(Leased { value, lease: self.holders.grant(key, holder, lease, room_bytes, now) })
    }

    fn keep_copy(&mut self, key: &str, value: &Value, ends: Instant, now: Instant) {
        self.remove(key);
        if now < ends && self.bytes() + item_bytes(key, value) <= self.setup.max_bytes {
            self.insert(key, value.clone(), Some(ends));
        }
    }

    // -- the root: writes ----------------------------------------------------------------------

    /// Puts a writer in the queue of its key; the returned number is its ticket. From here on
    /// nothing of this key is granted, until [`Store::finish_write`] of the last in the queue.
    pub fn queue_write(&mut self, key: &str, condition: Condition, who: W) -> u64 {
        let ticket = self.next_number();
        self.writers.entry(key.into()).or_default().push_back(Writer { ticket, who, condition });
        ticket
    }

    /// Whether it is that writer's turn and, if so, whom it must invalidate first (rule 4).
    pub fn take_turn(&mut self, key: &str, ticket: u64, now: Instant) -> Turn {
        let first = self.writers.get(key).and_then(VecDeque::front).filter(|first| first.ticket == ticket);
        let Some(first) = first else { return Turn::Wait };
        if let Some(quiet_until) = self.quiet_until.filter(|quiet_until| now < *quiet_until) {
            return Turn::NotBefore(quiet_until);
        }
        match first.condition.expect(self.has(key, now)) {
            // Before anybody is told, since nobody need be.
            Err(refusal) => Turn::Refused(refusal),
            // Nothing has been granted since the ban, which is older than this list: the list is whole (rule 4).
            Ok(()) => Turn::Go(self.holders.list(key, now)),
        }
    }

    /// Ends a writer's turn: puts its change in place, or none if it gives up. The ban on grants is
    /// lifted in the same hold of the lock, or handed on to the next writer, who must be woken. If it is refused
    /// the old value stands. The condition is looked at again: an entry may have ended while holders were told.
    pub fn finish_write(&mut self, key: &str, ticket: u64, change: Option<Write>, now: Instant) -> Finished<W> {
        let exists = self.has(key, now);
        let queue = self.writers.get_mut(key).expect("a writer stays in its queue until it is finished");
        let position = queue.iter().position(|writer| writer.ticket == ticket).expect("it is finished once");
        let writer = queue.remove(position).expect("there is one");
        let next = queue.front().map(|writer| writer.who.clone());
        if next.is_none() {
            self.writers.remove(key);
        }
        let result = match change {
            None => Ok(()),
            Some(change) => writer.condition.expect(exists).and_then(|()| match change {
                Write::Put(value, ttl) => self.put(key, value, ttl, now),
                Write::Delete => {
                    self.remove(key);
                    Ok(())
                }
            }),
        };
        (result, next)
    }

    fn has(&self, key: &str, now: Instant) -> bool {
        self.items.get(key).is_some_and(|item| item.is_valid(now))
    }

    /// Lets no write finish while nodes may hold what a former run of this root granted (rule 8). If one is `known`
    /// to have been there, that is until its last record has run out, which is older than this process. If not, nodes
    /// that outlived it say so when they join, and that takes them `joins_take` from now: no join was answered before.
    pub fn expect_former_holders(&mut self, known: bool, joins_take: Duration, now: Instant) {
        let until = if known { self.setup.started + record_life(self.setup.lease) } else { now + joins_take };
        self.quiet_until = self.quiet_until.max(Some(until));
    }

    fn put(&mut self, key: &str, value: Value, ttl: Option<Duration>, now: Instant) -> Result<(), Refusal> {
        let needed = |store: &Self| {
            let freed = store.items.get(key).map_or(0, |old| item_bytes(key, &old.value));
            store.bytes() - freed + item_bytes(key, &value)
        };
        if needed(self) > self.setup.max_bytes {
            // What has ended needs no room.
            while self.sweep(now) {}
        }
        let (needed_bytes, allowed) = (needed(self), self.setup.max_bytes);
        if needed_bytes > allowed {
            let text = format!("the store is full: {needed_bytes} bytes are needed, {allowed} are allowed");
            return Err(Refusal::Full(text));
        }
        self.insert(key, value, ttl.map(|ttl| now + ttl));
        Ok(())
    }

    // -- holders -------------------------------------------------------------------------------

    /// A holder has been told: it has acknowledged (rule 7), or its record has run out before it did (rule 6).
    pub fn end_telling(&mut self, key: &str, told: &Record, acknowledged: bool, now: Instant) {
        if acknowledged {
            self.holders.acknowledge(key, told);
        } else {
            self.holders.note_silence(told, now + self.setup.lease);
        }
    }

    // -- looking and sweeping ------------------------------------------------------------------

    /// What can be read here now without asking anybody, in no order.
    pub fn list(&self, now: Instant) -> impl Iterator<Item = (&str, &Value)> {
        let valid = self.items.iter().filter(move |(_, item)| item.is_valid(now));
        valid.map(|(key, item)| (&**key, &item.value))
    }

    pub fn gauges(&self) -> Gauges {
        let (entries, copies) = if self.setup.is_root { (self.items.len(), 0) } else { (0, self.items.len()) };
        Gauges { entries, copies, holders: self.holders.count(), bytes: self.bytes() }
    }

    /// Drops some of what has ended. Nothing depends on it but memory, since every use looks at the
    /// clock. Returns whether there may be more; then call again, and let others have the lock between.
    pub fn sweep(&mut self, now: Instant) -> bool {
        for _ in 0..SWEEP_ITEMS {
            let Some((_, key)) = self.ends.first().filter(|(ends, _)| *ends <= now).cloned() else {
                shrink(&mut self.items);
                return self.holders.sweep(now, SWEEP_ITEMS);
            };
            self.remove(&key);
        }
        true
    }

    fn insert(&mut self, key: &str, value: Value, ends: Option<Instant>) {
        self.remove(key);
        self.text_bytes += item_bytes(key, &value);
        let key = Key::from(key);
        self.ends.extend(ends.map(|ends| (ends, Arc::clone(&key))));
        self.items.insert(key, Item { value, ends });
    }

    fn remove(&mut self, key: &str) {
        if let Some((key, old)) = self.items.remove_entry(key) {
            self.text_bytes -= item_bytes(&key, &old.value);
            old.ends.map(|ends| self.ends.remove(&(ends, key)));
        }
    }

    fn bytes(&self) -> usize {
        self.text_bytes + self.holders.bytes()
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}

fn item_bytes(key: &str, value: &Value) -> usize {
    ITEM_BYTES + key.len() + value.bytes()
}

#[cfg(test)]
mod tests;
