//! Entries, copies and fetches of one node: every decision of the lease rules is one method here, or for writes in
//! `writes.rs`.
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
use super::writes::{Change, Writer};

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
pub struct Reading<'a, W> {
    key: &'a str,
    /// The other node that reads, if one does.
    holder: Option<&'a Holder>,
    reader: W,
    /// When it came, in the sequence in which fetches are numbered: those with a higher number were sent later.
    came: Option<u64>,
    /// The fetch of another reader, while this one waits for it.
    shared: Option<(u64, Arc<OnceLock<Fetched>>)>,
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
type Fetched = Option<Option<Value>>;

/// What an entry or a copy takes beside its text. Measured: 160 bytes, and a little more just after the
/// map has grown.
const ITEM_BYTES: usize = 176;

/// Copies and records of absent keys take at most this part of what is held.
const ABSENT_SHARE: usize = 16;

/// What one sweep drops while others wait for the lock: a third of a millisecond's work.
const SWEEP_ITEMS: usize = 256;

/// The same where it is committed: each is on another page of the file.
const COMMIT_ITEMS: usize = 64;

/// A listing looks at so many items in search of those that last: a millisecond's work.
const LISTED_ITEMS: usize = 20_000;

/// Between two sweeps that follow each other: a lock that is given back and taken at once is not free for others.
pub const SLICE_PAUSE: Duration = Duration::from_millis(1);

/// How much is held, in numbers.
#[derive(Debug, Clone, Copy)]
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
pub(super) struct Item {
    pub(super) value: Option<Value>,
    /// When the copy's lease ends, or the entry expires, if it does.
    pub(super) ends: Option<Instant>,
}

struct Fetch<W> {
    number: u64,
    /// An invalidation came while it was under way (rule 5).
    marked: bool,
    outcome: Arc<OnceLock<Fetched>>,
    waiting: Vec<W>,
}

/// What a store is told at its start.
pub struct Setup {
    pub is_root: bool,
    pub max_bytes: usize,
    /// The root's own; another node does not know it before it has joined.
    pub lease: Duration,
}

/// All that a node holds.
pub struct Store<W> {
    pub(super) setup: Setup,
    /// What the items count, and what those of absent keys do.
    pub(super) text_bytes: usize,
    absent_bytes: usize,
    /// Reads, fetches and writers are numbered in one sequence.
    last_number: u64,
    pub(super) items: HashMap<Key, Item>,
    /// Who was granted a copy of them.
    pub(super) holders: Holders,
    fetches: HashMap<Key, Vec<Fetch<W>>>,
    /// The queues of those who write a key, or wait to.
    pub(super) writers: HashMap<Key, VecDeque<Writer<W>>>,
    /// What is to be made durable next, and the room that it needs until it is in place.
    pub(super) decided: Vec<Change>,
    pub(super) reserved_bytes: usize,
    /// What has ended by then has ended for good. None: the root is in memory alone, and all ends by the clock.
    pub(super) ended_until: Option<Instant>,
    /// Those who wait until an end is durable.
    pub(super) waiting: Vec<W>,
    /// The longest lease that may be outstanding, as it is on record (rule 10).
    pub(super) noted_lease: Duration,
    /// The root finishes no write before (rule 10).
    pub(super) young_until: Option<Instant>,
    /// Until when a node above may have this one on record.
    on_record_until: Option<Instant>,
    /// Nothing is granted or kept any more, and fetches with a higher number name no holder.
    leaving: Option<u64>,
    /// When items end.
    pub(super) ends: BTreeSet<(Instant, Key)>,
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
            decided: Vec::new(),
            reserved_bytes: 0,
            ended_until: None,
            waiting: Vec::new(),
            noted_lease: Duration::ZERO,
            young_until: None,
            on_record_until: None,
            leaving: None,
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
        if self.waits_for_end(key, &reading.reader, now) {
            return Step::Wait;
        }
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
        if self.leaving.is_none_or(|leaving| number < leaving) {
            // Whether an answer came or not.
            self.on_record_until = self.on_record_until.max(Some(now + record_life(self.setup.lease)));
        }
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
    pub fn abandon(&mut self, key: &str, number: u64) -> Vec<W> {
        match self.take_fetch(key, number) {
            // What is decided will be in place, whoever waits for that.
            None if self.find_writer(key, number).is_none_or(|(_, writer)| writer.is_decided) => Vec::new(),
            None => self.remove_writer(key, number).into_iter().collect(),
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
    pub fn invalidate(&mut self, key: &str, now: Instant) -> Vec<Record> {
        self.remove(key);
        for fetch in self.fetches.get_mut(key).into_iter().flatten() {
            fetch.marked = true;
        }
        self.holders.list(key, now)
    }

    /// Answers a read from what is here, for a holder with a lease; `None` if another node must be asked. That a key is
    /// absent is answered like a value: nobody reads it as absent after a write has created it.
    fn answer_here(&mut self, key: &str, holder: Option<&Holder>, now: Instant) -> Option<Leased> {
        let (value, ends) = match self.find_item(key, now) {
            Some(item) => (item.value.clone(), item.ends),
            None if self.setup.is_root => (None, None),
            None => return None,
        };
        // Rule 3: nothing is granted while writers queue. Else:
        // 1. A write lists the holders, and begins to invalidate them.
        // 2. A node fetches, and gets a lease on the old value.
        // 3. The write ends. Nobody has told that node.
        let is_banned = self.is_leaving() || self.writers.contains_key(key);
        let Some(holder) = holder.filter(|_| !is_banned) else { return Some(Leased::once(value)) };
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
        if now < ends && !self.is_leaving() && item_bytes(key, value) <= self.room_bytes(value.is_none()) {
            self.insert(key, value.cloned(), Some(ends));
        }
    }

    /// What is known of a key, unless that has ended.
    pub(super) fn find_item(&self, key: &str, now: Instant) -> Option<&Item> {
        self.items.get(key).filter(|item| item.ends.is_none_or(|ends| self.ended_by(now) < ends))
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

    // -- leaving -------------------------------------------------------------------------------

    /// Grants nothing and keeps nothing from here on.
    pub fn leave(&mut self) {
        let number = self.next_number();
        self.leaving.get_or_insert(number);
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// Whether a node that leaves may end: no write waits for it then, nor for what it has granted, and on the root's disk
    /// nothing is noted as outstanding any more.
    pub fn may_end(&self, now: Instant) -> bool {
        let leaving = self.leaving.unwrap_or(0);
        let names_us = self.fetches.values().flatten().any(|fetch| fetch.number < leaving);
        let is_to_note = self.ended_until.is_some() && !self.noted_lease.is_zero() && self.young_for(now).is_zero();
        self.has_nothing_outstanding(now) && self.on_record_until <= Some(now) && !names_us && !is_to_note
    }

    /// Whether it grants nothing any more, and what it has granted is over.
    pub(super) fn has_nothing_outstanding(&self, now: Instant) -> bool {
        self.is_leaving() && self.holders.last_end() <= Some(now)
    }

    // -- holders -------------------------------------------------------------------------------

    /// A holder has been told: it has acknowledged (rule 7), or its record has run out before it did (rule 6).
    pub fn end_telling(&mut self, key: &str, told: &Record, acknowledged: bool, now: Instant) {
        if acknowledged {
            self.holders.drop_record(key, told.number);
        } else {
            self.holders.note_silence(told, now + self.setup.lease);
        }
    }

    // -- looking and sweeping ------------------------------------------------------------------

    /// What can be read here now without asking anybody, in no order.
    pub fn list(&self, now: Instant) -> impl Iterator<Item = (&str, &Value)> {
        // Nobody is to wait for the lock while very many are looked at that have ended and were not swept yet. Copies all
        // end.
        let ending =
            self.ends.range(just_after(self.ended_by(now))..).filter_map(|(_, key)| self.items.get_key_value(key));
        let looked_at = if self.setup.is_root { LISTED_ITEMS } else { 0 };
        let lasting = self.items.iter().take(looked_at).filter(|(_, item)| item.ends.is_none());
        ending.chain(lasting).filter_map(|(key, item)| Some((&**key, item.value.as_ref()?)))
    }

    pub fn gauges(&self) -> Gauges {
        let (entries, copies) = if self.setup.is_root { (self.items.len(), 0) } else { (0, self.items.len()) };
        Gauges { entries, copies, holders: self.holders.count(), bytes: self.bytes() }
    }

    /// Drops some of what has ended. Nothing depends on it but memory, since every use looks at the
    /// clock. Returns whether there may be more; then let others have the lock, and call again.
    pub fn sweep(&mut self, now: Instant) -> bool {
        // What is swept must be committed, and no write is to wait long behind that.
        let at_most = if self.ended_until.is_some() { COMMIT_ITEMS } else { SWEEP_ITEMS };
        if self.decided.len() >= at_most {
            return true;
        }
        // The last first: the allocator gives memory back bit by bit then. Else it does so when the last piece of all is
        // free, and that took 200 ms for a million copies.
        let ended = self.ends.range(..just_after(self.ended_by(now))).rev();
        // What is being written is written over, and a change on its way to the disk must not be followed by this one.
        let ended = ended.filter(|(_, key)| !self.writers.contains_key(key)).take(at_most);
        let ended: Vec<Key> = ended.map(|(_, key)| Arc::clone(key)).collect();
        for key in &ended {
            self.remove(key);
            if self.ended_until.is_some() {
                self.decided.push(Change { key: Arc::clone(key), entry: None, ticket: None });
            }
        }
        if ended.len() == at_most {
            return true;
        }
        shrink(&mut self.items);
        self.holders.sweep(now, SWEEP_ITEMS)
    }

    pub(super) fn insert(&mut self, key: &str, value: Option<Value>, ends: Option<Instant>) {
        self.remove(key);
        let bytes = item_bytes(key, value.as_ref());
        self.text_bytes += bytes;
        self.absent_bytes += if value.is_none() { bytes } else { 0 };
        let key = Key::from(key);
        self.ends.extend(ends.map(|ends| (ends, Arc::clone(&key))));
        self.items.insert(key, Item { value, ends });
    }

    pub(super) fn remove(&mut self, key: &str) {
        if let Some((key, old)) = self.items.remove_entry(key) {
            let bytes = item_bytes(&key, old.value.as_ref());
            self.text_bytes -= bytes;
            self.absent_bytes -= if old.value.is_none() { bytes } else { 0 };
            old.ends.map(|ends| self.ends.remove(&(ends, key)));
        }
    }

    /// What may still be held. Nothing is evicted: what has no room is answered and not kept. Of absent keys there are
    /// as many as anybody cares to ask for, so they have a bound of their own.
    fn room_bytes(&self, of_absent: bool) -> usize {
        let room_bytes = self.setup.max_bytes.saturating_sub(self.bytes());
        if !of_absent {
            return room_bytes;
        }
        let absent_bytes = self.absent_bytes + self.holders.absent_bytes;
        room_bytes.min((self.setup.max_bytes / ABSENT_SHARE).saturating_sub(absent_bytes))
    }

    pub(super) fn bytes(&self) -> usize {
        self.text_bytes + self.reserved_bytes + self.holders.bytes
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}

/// In the order of their ends, between what ends until that time and what ends later.
pub(super) fn just_after(time: Instant) -> (Instant, Key) {
    (time + Duration::from_nanos(1), Key::from(""))
}

pub(super) fn item_bytes(key: &str, value: Option<&Value>) -> usize {
    ITEM_BYTES + key.len() + value.map_or(0, Value::bytes)
}

#[cfg(test)]
mod tests;
