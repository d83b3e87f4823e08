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
    /// The root is too young to finish a write (rule 10): try again then.
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

/// Why a write is not done, in words.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    Condition(&'static str),
    Full(String),
    /// It cannot be done in its time.
    Late(&'static str),
}

const TOO_LATE: Refusal = Refusal::Late("too late; not applied");
const TOO_YOUNG: Refusal = Refusal::Late("this root is too young to finish a write in its time; not applied");

/// What came of a write, and the next writer, who must be woken.
type Finished<W> = (Result<(), Refusal>, Option<W>);

/// What an entry or a copy takes beside its text. Measured: 160 bytes, and a little more just after the
/// map has grown.
const ITEM_BYTES: usize = 176;

/// Copies and records of absent keys take at most this part of what is held.
const ABSENT_SHARE: usize = 16;

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

/// What is known of a key here: an entry at the root; elsewhere a copy, be it of a value or of the root's word that there
/// is none.
#[derive(Debug)]
struct Item {
    value: Option<Value>,
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
    /// It is not done later (rule 11).
    deadline: Instant,
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
}

/// All that a node holds.
#[derive(Debug)]
pub struct Store<W> {
    setup: Setup,
    /// What the items count, and what those of absent keys do.
    text_bytes: usize,
    absent_bytes: usize,
    /// Reads, fetches and writers are numbered in one sequence.
    last_number: u64,
    items: HashMap<Key, Item>,
    /// Who was granted a copy of them.
    holders: Holders,
    fetches: HashMap<Key, Vec<Fetch<W>>>,
    /// The writers of a key, first come first served. While there are any, nothing is granted (rule 3).
    writers: HashMap<Key, VecDeque<Writer<W>>>,
    /// The root finishes no write before (rule 10).
    young_until: Option<Instant>,
    /// When items end.
    ends: BTreeSet<(Instant, Key)>,
}

impl<W: Clone> Store<W> {
    pub fn new(setup: Setup) -> Self {
        Self {
            setup,
            text_bytes: 0,
            absent_bytes: 0,
            last_number: 0,
            items: HashMap::new(),
            holders: Holders::default(),
            fetches: HashMap::new(),
            writers: HashMap::new(),
            young_until: None,
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
            if !fetch.marked {
                self.keep_copy(key, value.as_ref(), *asked_at + *lease, now);
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

    /// Answers a read from what is here, for a holder with a lease; `None` if another node must be asked. That a key is
    /// absent is answered like a value: nobody reads it as absent after a write has created it.
    fn answer_here(&mut self, key: &str, holder: Option<&Holder>, now: Instant) -> Option<Leased> {
        let item = self.items.get(key).filter(|item| item.is_valid(now));
        let (value, ends) = match item {
            Some(item) => (item.value.clone(), item.ends),
            None if self.setup.is_root => (None, None),
            None => return None,
        };
        // Rule 3: nothing is granted while writers queue. Else:
        // 1. A write lists the holders, and begins to invalidate them.
        // 2. A node fetches, and gets a lease on the old value.
        // 3. The write ends. Nobody has told that node.
        let Some(holder) = holder.filter(|_| !self.writers.contains_key(key)) else { return Some(Leased::once(value)) };
        let full = self.setup.lease;
        let lease = match ends.map(|ends| ends - now) {
            // Rule 1: what is left of this copy's lease, so that no copy outlives its source, but for a twentieth, so
            // that this node, when it waits for a silent holder, is not taken for silent itself.
            Some(left) if !self.setup.is_root => left * 19 / 20,
            // The copy must be gone when the entry expires, even where the clock is a tenth slower.
            Some(left) => full.min(left * 10 / 11),
            None => full,
        };
        let (is_absent, room_bytes) = (value.is_none(), self.room_bytes(value.is_none()));
        Some(Leased { value, lease: self.holders.grant(key, holder, lease, (is_absent, room_bytes), now) })
    }

    fn keep_copy(&mut self, key: &str, value: Option<&Value>, ends: Instant, now: Instant) {
        self.remove(key);
        if now < ends && item_bytes(key, value) <= self.room_bytes(value.is_none()) {
            self.insert(key, value.cloned(), Some(ends));
        }
    }

    // -- the root: writes ----------------------------------------------------------------------

    /// Puts a writer in the queue of its key; the returned number is its ticket. From here on
    /// nothing of this key is granted, until [`Store::finish_write`] of the last in the queue.
    pub fn queue_write(&mut self, key: &str, condition: Condition, deadline: Instant, who: W) -> u64 {
        let ticket = self.next_number();
        self.writers.entry(key.into()).or_default().push_back(Writer { ticket, who, condition, deadline });
        ticket
    }

    /// Whether it is that writer's turn and, if so, whom it must invalidate first (rule 4). One that is too late is
    /// refused before its turn (rule 11), and one whose condition does not hold before anybody is told.
    pub fn take_turn(&mut self, key: &str, ticket: u64, now: Instant) -> Turn {
        let queue = self.writers.get(key).into_iter().flatten();
        let (place, writer) =
            queue.enumerate().find(|(_, writer)| writer.ticket == ticket).expect("it is in its queue");
        match self.young_until.filter(|until| now < *until) {
            _ if now >= writer.deadline => Turn::Refused(TOO_LATE),
            Some(until) if until >= writer.deadline => Turn::Refused(TOO_YOUNG),
            _ if place > 0 => Turn::Wait,
            Some(until) => Turn::NotBefore(until),
            None => match writer.condition.expect(self.has(key, now)) {
                Err(refusal) => Turn::Refused(refusal),
                // Nothing has been granted since the ban, which is older than this list: the list is whole (rule 4).
                Ok(()) => Turn::Go(self.holders.list(key, now)),
            },
        }
    }

    /// Ends a writer's turn: puts its change in place, or none if it gives up. The ban on grants is
    /// lifted in the same hold of the lock, or handed on to the next writer, who must be woken. If it is refused
    /// the old value stands. All that may refuse it is looked at here (rule 12), and again what was looked at before:
    /// an entry may have ended while holders were told, and a run may have joined that holds what another root granted.
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
            Some(_) if now >= writer.deadline => Err(TOO_LATE),
            Some(_) if self.young_for(now) > Duration::ZERO => Err(TOO_YOUNG),
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

    /// Lets no write finish while nodes may hold what another root granted (rule 10): a lease of that length, counted
    /// from now.
    pub fn wait_for_leases(&mut self, lease: Duration, now: Instant) {
        self.young_until = self.young_until.max(Some(now + record_life(lease)));
    }

    /// For how long no write can finish.
    pub fn young_for(&self, now: Instant) -> Duration {
        self.young_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// The longest life left of what is held and recorded here.
    pub fn holds_for(&self, now: Instant) -> Duration {
        let last = self.ends.last().map(|(ends, _)| *ends).max(self.holders.last_end());
        last.map_or(Duration::ZERO, |ends| ends.saturating_duration_since(now))
    }

    fn put(&mut self, key: &str, value: Value, ttl: Option<Duration>, now: Instant) -> Result<(), Refusal> {
        let needed = |store: &Self| {
            let freed = store.items.get(key).map_or(0, |old| item_bytes(key, old.value.as_ref()));
            store.bytes() - freed + item_bytes(key, Some(&value))
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
        self.insert(key, Some(value), ttl.map(|ttl| now + ttl));
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
        valid.filter_map(|(key, item)| Some((&**key, item.value.as_ref()?)))
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

    fn insert(&mut self, key: &str, value: Option<Value>, ends: Option<Instant>) {
        self.remove(key);
        let bytes = item_bytes(key, value.as_ref());
        self.text_bytes += bytes;
        self.absent_bytes += if value.is_none() { bytes } else { 0 };
        let key = Key::from(key);
        self.ends.extend(ends.map(|ends| (ends, Arc::clone(&key))));
        self.items.insert(key, Item { value, ends });
    }

    fn remove(&mut self, key: &str) {
        if let Some((key, old)) = self.items.remove_entry(key) {
            let bytes = item_bytes(&key, old.value.as_ref());
            self.text_bytes -= bytes;
            self.absent_bytes -= if old.value.is_none() { bytes } else { 0 };
            old.ends.map(|ends| self.ends.remove(&(ends, key)));
        }
    }

    /// What may still be held. Of absent keys there are as many as anybody cares to ask for, so they have a bound of
    /// their own.
    fn room_bytes(&self, of_absent: bool) -> usize {
        let room_bytes = self.setup.max_bytes.saturating_sub(self.bytes());
        if !of_absent {
            return room_bytes;
        }
        let absent_bytes = self.absent_bytes + self.holders.absent_bytes();
        room_bytes.min((self.setup.max_bytes / ABSENT_SHARE).saturating_sub(absent_bytes))
    }

    fn bytes(&self) -> usize {
        self.text_bytes + self.holders.bytes()
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}

fn item_bytes(key: &str, value: Option<&Value>) -> usize {
    ITEM_BYTES + key.len() + value.map_or(0, Value::bytes)
}

#[cfg(test)]
mod tests;
