//! What a node holds, who was granted a copy of it, and until when: the lease rules.
//!
//! A plain data structure. No lock, no I/O, no clock of its own: what a rule says must happen in
//! one hold of the lock is one method here, and `node.rs` only calls them in turn. So a test can
//! run the rules under a clock that it makes up (`simulation.rs`). The rules are numbered as in
//! the README; each number stands beside the line that keeps it.
//!
//! `W` is whoever waits and must be woken: a thread, or a process of the simulation.
//!
//! Invariants: a copy's record, at the node that granted it, ends after the copy does. `bytes` is
//! what all that is held counts, and never above `max_bytes`.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::cache::leases::{Holder, Holders, Key, Record, shrink};
use crate::cache::value::Value;

/// An answer to a read: the value, `None` if there is no such key, and how long it may be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The value.
    pub value: Option<Value>,
    /// Zero: answer it, keep nothing.
    pub lease: Duration,
}

/// How far a read has come; see [`Store::step_read`].
#[derive(Debug, Default)]
pub struct Reading {
    /// Fetches with a higher number were sent after this reader asked.
    asked: Option<u64>,
    /// The fetch of another reader, while this one waits for it.
    shared: Option<(u64, Arc<OnceLock<Outcome>>)>,
}

/// What a reader does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Answer this; a valid copy was here.
    Hit(Answered),
    /// Answer this; another reader has fetched it.
    Shared(Answered),
    /// Fetch, and call [`Store::end_fetch`] with this number, whatever comes of it.
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
    /// Invalidate these, then finish.
    Go(Vec<Record>),
}

/// A change of one key.
#[derive(Debug, Clone)]
pub enum Write {
    /// Put this value in place, if given for so long.
    Put(Value, Option<Duration>),
    /// Remove the entry.
    Delete,
}

/// There is no room for an entry.
#[derive(Debug, PartialEq, Eq)]
pub struct StoreFull {
    /// What would be held with it.
    pub needed_bytes: usize,
    /// What may be held.
    pub max_bytes: usize,
}

impl fmt::Display for StoreFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store is full: {} bytes are needed, {} are allowed", self.needed_bytes, self.max_bytes)
    }
}

/// What an entry or a copy takes beside its text. Measured: 160 bytes, and a little more just after the
/// map has grown.
const ITEM_BYTES: usize = 176;

/// What one sweep looks at while others wait for the lock.
const SWEEP_ITEMS: usize = 1000;

/// How much is held, in numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gauges {
    /// Keys at the root.
    pub entries: usize,
    /// Copies, ended ones that were not swept yet among them.
    pub copies: usize,
    /// Records of holders, likewise.
    pub holders: usize,
    /// What all that is held counts.
    pub bytes: usize,
}

#[derive(Debug)]
struct Entry {
    value: Value,
    expires: Option<Instant>,
}

#[derive(Debug)]
struct Copy {
    value: Value,
    ends: Instant,
}

#[derive(Debug)]
struct Fetch<W> {
    number: u64,
    /// An invalidation came while it was under way (rule 5).
    marked: bool,
    outcome: Arc<OnceLock<Outcome>>,
    waiting: Vec<W>,
}

/// All that a node holds.
#[derive(Debug)]
pub struct Store<W> {
    max_bytes: usize,
    /// What entries and copies count.
    text_bytes: usize,
    lease: Duration,
    /// Reads, fetches and writers are numbered in one sequence.
    last_number: u64,
    /// The truth; only at the root.
    entries: HashMap<Key, Entry>,
    /// Only at other nodes.
    copies: HashMap<Key, Copy>,
    /// Who was granted a copy of an entry or of a copy.
    holders: Holders,
    fetches: HashMap<Key, Vec<Fetch<W>>>,
    /// The writers of a key, first come first served. While there are any, nothing is granted (rule 3).
    writers: HashMap<Key, VecDeque<(u64, W)>>,
    /// The root finishes no write before (rule 8).
    quiet_until: Option<Instant>,
    /// When copies end and entries expire.
    ends: BTreeSet<(Instant, Key)>,
}

impl<W: Clone> Store<W> {
    /// An empty store which may hold `max_bytes` and grants for `lease`.
    #[must_use]
    pub fn new(max_bytes: usize, lease: Duration) -> Self {
        Self {
            max_bytes,
            text_bytes: 0,
            lease,
            last_number: 0,
            entries: HashMap::new(),
            copies: HashMap::new(),
            holders: Holders::default(),
            fetches: HashMap::new(),
            writers: HashMap::new(),
            quiet_until: None,
            ends: BTreeSet::new(),
        }
    }

    /// Takes over the root's lease.
    pub fn set_lease(&mut self, lease: Duration) {
        self.lease = lease;
    }

    // -- the root: entries and writes ----------------------------------------------------------

    /// The value of an entry.
    #[must_use]
    pub fn read_entry(&self, key: &str, now: Instant) -> Option<Value> {
        let entry = self.entries.get(key)?;
        entry.expires.is_none_or(|expires| now < expires).then(|| entry.value.clone())
    }

    /// Answers a fetch of `holder` at the root.
    pub fn grant_entry(&mut self, key: &str, holder: &Holder, now: Instant) -> Answered {
        let Some(value) = self.read_entry(key, now) else {
            return Answered { value: None, lease: Duration::ZERO };
        };
        // Rule 3. Without it:
        // 1. A write lists the holders, and begins to invalidate them.
        // 2. A node fetches, and gets a lease on the old value.
        // 3. The write ends. Nobody has told that node.
        if self.writers.contains_key(key) {
            return Answered { value: Some(value), lease: Duration::ZERO };
        }
        // The copy must be gone when the entry expires, even where the clock is a tenth slower.
        let lease = match self.entries[key].expires {
            Some(expires) => self.lease.min((expires - now).min(2 * self.lease) * 10 / 11),
            None => self.lease,
        };
        Answered { value: Some(value), lease: self.grant(key, holder, lease, now) }
    }

    /// Puts a writer in the queue of its key; the returned number is its ticket. From here on
    /// nothing of this key is granted, until [`Store::finish_write`] of the last in the queue.
    pub fn queue_write(&mut self, key: &str, writer: W) -> u64 {
        let ticket = self.next_number();
        match self.writers.get_mut(key) {
            Some(queue) => queue.push_back((ticket, writer)),
            None => drop(self.writers.insert(key.into(), VecDeque::from([(ticket, writer)]))),
        }
        ticket
    }

    /// Whether it is that writer's turn and, if so, whom it must invalidate first (rule 4).
    pub fn take_turn(&mut self, key: &str, ticket: u64, now: Instant) -> Turn {
        let first = self.writers.get(key).and_then(VecDeque::front).map(|(first, _)| *first);
        match self.quiet_until {
            _ if first != Some(ticket) => Turn::Wait,
            Some(quiet_until) if now < quiet_until => Turn::NotBefore(quiet_until),
            // The ban on grants is older than this list, so the list is whole.
            _ => Turn::Go(self.holders.list(key, now)),
        }
    }

    /// Ends a writer's turn: puts its change in place, or none if it gives up. The ban on grants is
    /// lifted in the same hold of the lock, or handed on to the next writer, who must be woken.
    ///
    /// # Errors
    /// There is no room; the old value still stands.
    pub fn finish_write(
        &mut self,
        key: &str,
        ticket: u64,
        change: Option<Write>,
        now: Instant,
    ) -> (Result<(), StoreFull>, Option<W>) {
        let result = match change {
            Some(Write::Put(value, ttl)) => self.put(key, value, ttl, now),
            Some(Write::Delete) => {
                self.remove_entry(key);
                Ok(())
            }
            None => Ok(()),
        };
        let queue = self.writers.get_mut(key).expect("a writer stays in its queue until it is finished");
        queue.retain(|(queued, _)| *queued != ticket);
        let next = queue.front().map(|(_, writer)| writer.clone());
        if next.is_none() {
            self.writers.remove(key);
        }
        (result, next)
    }

    /// Lets no write finish before `until` (rule 8).
    pub fn be_quiet_until(&mut self, until: Instant) {
        self.quiet_until = self.quiet_until.max(Some(until));
    }

    fn put(&mut self, key: &str, value: Value, ttl: Option<Duration>, now: Instant) -> Result<(), StoreFull> {
        let added = item_bytes(key, &value);
        let needed = |store: &Self| {
            let freed = store.entries.get(key).map_or(0, |old| item_bytes(key, &old.value));
            store.bytes() - freed + added
        };
        if needed(self) > self.max_bytes {
            // What has ended needs no room.
            while self.sweep(now) {}
        }
        let needed_bytes = needed(self);
        if needed_bytes > self.max_bytes {
            return Err(StoreFull { needed_bytes, max_bytes: self.max_bytes });
        }
        self.remove_entry(key);
        self.text_bytes += added;
        let key = Key::from(key);
        let expires = ttl.map(|ttl| now + ttl);
        self.ends.extend(expires.map(|expires| (expires, Arc::clone(&key))));
        self.entries.insert(key, Entry { value, expires });
        Ok(())
    }

    fn remove_entry(&mut self, key: &str) {
        if let Some((key, old)) = self.entries.remove_entry(key) {
            self.text_bytes -= item_bytes(&key, &old.value);
            if let Some(expires) = old.expires {
                self.ends.remove(&(expires, key));
            }
        }
    }

    // -- the other nodes: copies and fetches ---------------------------------------------------

    /// Takes a read one step further; called first with a fresh [`Reading`], and again whenever
    /// the reader is woken. A read for another node names it as `holder`, and is granted a lease.
    pub fn step_read(
        &mut self,
        reading: &mut Reading,
        key: &str,
        holder: Option<&Holder>,
        reader: &W,
        now: Instant,
    ) -> Step {
        if let Some(answered) = self.answer_from_copy(key, holder, now) {
            return Step::Hit(answered);
        }
        let asked = *reading.asked.get_or_insert_with(|| self.next_number());
        if let Some((number, outcome)) = &reading.shared {
            match outcome.get() {
                None => return Step::Wait,
                // Rule 9: an older answer may be from before a write that ended before this reader asked.
                Some(Some(value)) if *number > asked => {
                    return Step::Shared(Answered { value: value.clone(), lease: Duration::ZERO });
                }
                Some(_) => reading.shared = None,
            }
        }
        let under_way = self.fetches.get_mut(key).into_iter().flatten().find(|fetch| !fetch.marked);
        if let Some(fetch) = under_way {
            fetch.waiting.push(reader.clone());
            reading.shared = Some((fetch.number, Arc::clone(&fetch.outcome)));
            return Step::Wait;
        }
        let number = self.next_number();
        let fetch = Fetch { number, marked: false, outcome: Arc::default(), waiting: Vec::new() };
        match self.fetches.get_mut(key) {
            Some(fetches) => fetches.push(fetch),
            None => drop(self.fetches.insert(key.into(), vec![fetch])),
        }
        Step::Fetch(number)
    }

    /// Ends a fetch: keeps a copy if it may. `fetched` is what an ancestor said and when it was asked,
    /// or `None` if no ancestor answered. Returns what the reader is answered, with a lease if it reads
    /// for `holder`, and whoever waited for this fetch.
    pub fn end_fetch(
        &mut self,
        key: &str,
        number: u64,
        fetched: Option<(Answered, Instant)>,
        holder: Option<&Holder>,
        now: Instant,
    ) -> (Option<Answered>, Vec<W>) {
        let under_way = self.fetches.get_mut(key).expect("a fetch is under way until it is ended");
        let position = under_way.iter().position(|fetch| fetch.number == number).expect("it is ended once");
        let fetch = under_way.swap_remove(position);
        if under_way.is_empty() {
            self.fetches.remove(key);
        }
        let outcome = fetched.map(|(answered, asked)| {
            // Rule 2: the ancestor recorded us later than we asked, so its record outlives this copy.
            if let Some(value) = &answered.value
                && !fetch.marked
            {
                self.keep_copy(key, value, asked + answered.lease, now);
            }
            answered.value
        });
        fetch.outcome.set(outcome.clone()).expect("it is ended once");
        // Value and lease belong together (rule 1): a lease is granted only on the copy that is here,
        // which need not be what this fetch brought.
        let from_copy = self.answer_from_copy(key, holder, now);
        let answered = from_copy.or(outcome.map(|value| Answered { value, lease: Duration::ZERO }));
        (answered, fetch.waiting)
    }

    /// Drops the copy, marks what is under way, and lists the holders that must be told: one hold of
    /// the lock (rule 5). With the mark in a second one:
    /// 1. The copy is dropped; a fetch of the old value is under way.
    /// 2. The fetch ends, unmarked, and its old value is kept.
    /// 3. The mark comes too late.
    pub fn invalidate(&mut self, key: &str, now: Instant) -> Vec<Record> {
        self.drop_copy(key);
        for fetch in self.fetches.get_mut(key).into_iter().flatten() {
            fetch.marked = true;
        }
        self.holders.list(key, now)
    }

    fn answer_from_copy(&mut self, key: &str, holder: Option<&Holder>, now: Instant) -> Option<Answered> {
        let copy = self.copies.get(key).filter(|copy| now < copy.ends)?;
        let (value, left) = (copy.value.clone(), copy.ends - now);
        // Rule 1: what is left of this copy's lease, so that no copy outlives its source.
        let lease = holder.map_or(Duration::ZERO, |holder| self.grant(key, holder, left, now));
        Some(Answered { value: Some(value), lease })
    }

    fn keep_copy(&mut self, key: &str, value: &Value, ends: Instant, now: Instant) {
        self.drop_copy(key);
        let bytes = item_bytes(key, value);
        if now < ends && self.bytes() + bytes <= self.max_bytes {
            let key = Key::from(key);
            self.text_bytes += bytes;
            self.ends.insert((ends, Arc::clone(&key)));
            self.copies.insert(key, Copy { value: value.clone(), ends });
        }
    }

    fn drop_copy(&mut self, key: &str) {
        if let Some((key, copy)) = self.copies.remove_entry(key) {
            self.text_bytes -= item_bytes(&key, &copy.value);
            self.ends.remove(&(copy.ends, key));
        }
    }

    // -- holders -------------------------------------------------------------------------------

    /// That holder has acknowledged; see [`Holders::acknowledge`].
    pub fn acknowledge(&mut self, key: &str, told: &Record) {
        self.holders.acknowledge(key, told);
    }

    /// That holder has not, and its record has run out: nothing is granted to it for one lease (rule 6).
    pub fn note_silence(&mut self, told: &Record, now: Instant) {
        self.holders.note_silence(told, now + self.lease);
    }

    fn grant(&mut self, key: &str, holder: &Holder, lease: Duration, now: Instant) -> Duration {
        let room_bytes = self.max_bytes.saturating_sub(self.bytes());
        self.holders.grant(key, holder, lease, room_bytes, now)
    }

    // -- looking and sweeping ------------------------------------------------------------------

    /// What can be read here now without asking anybody: entries or copies, in no order.
    pub fn list(&self, now: Instant) -> impl Iterator<Item = (&str, &Value)> {
        let entries = self.entries.iter().filter(move |(_, entry)| entry.expires.is_none_or(|expires| now < expires));
        let copies = self.copies.iter().filter(move |(_, copy)| now < copy.ends);
        let entries = entries.map(|(key, entry)| (&**key, &entry.value));
        entries.chain(copies.map(|(key, copy)| (&**key, &copy.value)))
    }

    /// How much is held.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        Gauges {
            entries: self.entries.len(),
            copies: self.copies.len(),
            holders: self.holders.count(),
            bytes: self.bytes(),
        }
    }

    /// Drops some of what has ended. Nothing depends on it but memory, since every use looks at the
    /// clock. Returns whether there may be more; then call again, and let others have the lock between.
    pub fn sweep(&mut self, now: Instant) -> bool {
        for _ in 0..SWEEP_ITEMS {
            let Some((_, key)) = self.ends.first().filter(|(ends, _)| *ends <= now).cloned() else {
                shrink(&mut self.copies);
                return self.holders.sweep(now, SWEEP_ITEMS);
            };
            self.drop_copy(&key);
            self.remove_entry(&key);
        }
        true
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
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(5);
    const SECOND: Duration = Duration::from_secs(1);

    fn value(json: &str) -> Value {
        Value::from_raw(serde_json::from_str(json).unwrap())
    }

    fn answered(json: &str, lease: Duration) -> Answered {
        Answered { value: Some(value(json)), lease }
    }

    fn holder(number: u64) -> Holder {
        Holder { name: format!("NODE-{number}"), url: format!("http://h:{number}"), run: number }
    }

    fn store() -> (Store<u64>, Instant) {
        (Store::new(1 << 20, LEASE), Instant::now())
    }

    /// Writes without waiting for anybody.
    fn write(store: &mut Store<u64>, key: &str, change: Write, now: Instant) -> Result<(), StoreFull> {
        let ticket = store.queue_write(key, 0);
        store.finish_write(key, ticket, Some(change), now).0
    }

    fn put(store: &mut Store<u64>, json: &str, now: Instant) {
        write(store, "k", Write::Put(value(json), None), now).unwrap();
    }

    fn begin_fetch(store: &mut Store<u64>, reader: u64, now: Instant) -> u64 {
        match store.step_read(&mut Reading::default(), "k", None, &reader, now) {
            Step::Fetch(number) => number,
            step => panic!("{step:?} in place of a fetch"),
        }
    }

    fn read_copy(store: &mut Store<u64>, now: Instant) -> Option<Answered> {
        store.answer_from_copy("k", None, now)
    }

    #[test]
    fn rule_1_a_node_passes_on_what_is_left_of_its_own_lease() {
        let (mut store, now) = store();
        let number = begin_fetch(&mut store, 1, now);
        store.end_fetch("k", number, Some((answered("1", LEASE), now)), None, now + SECOND);
        let step = store.step_read(&mut Reading::default(), "k", Some(&holder(2)), &2, now + 2 * SECOND);
        assert_eq!(step, Step::Hit(answered("1", 3 * SECOND)));
        assert_eq!(store.invalidate("k", now + 2 * SECOND)[0].ends, now + 2 * SECOND + 3 * SECOND * 11 / 10);
    }

    #[test]
    fn rule_1_value_and_lease_belong_together() {
        let (mut store, now) = store();
        // 1. A fetch of the old value is marked. 2. Another brings the new one, and it is kept.
        let old = begin_fetch(&mut store, 1, now);
        store.invalidate("k", now);
        let new = begin_fetch(&mut store, 2, now);
        store.end_fetch("k", new, Some((answered("2", LEASE), now)), None, now);
        // 3. The first ends: whoever asked for it gets no lease on the old value.
        let (granted, _) = store.end_fetch("k", old, Some((answered("1", LEASE), now)), Some(&holder(3)), now);
        assert_eq!(granted, Some(answered("2", LEASE)));
    }

    #[test]
    fn rule_2_a_copy_lives_from_the_asking() {
        let (mut store, now) = store();
        let number = begin_fetch(&mut store, 1, now);
        store.end_fetch("k", number, Some((answered("1", LEASE), now)), None, now + 4 * SECOND);
        assert!(read_copy(&mut store, now + 4 * SECOND).is_some());
        assert_eq!(read_copy(&mut store, now + LEASE), None);
        let number = begin_fetch(&mut store, 1, now + LEASE);
        store.end_fetch("k", number, Some((answered("1", Duration::ZERO), now + LEASE)), None, now + LEASE);
        assert_eq!(store.gauges().copies, 0, "a lease of zero: keep nothing");
    }

    #[test]
    fn rule_3_nothing_is_granted_while_writers_are_in_the_queue() {
        let (mut store, now) = store();
        put(&mut store, "1", now);
        assert_eq!(store.grant_entry("k", &holder(1), now), answered("1", LEASE));
        let (first, second) = (store.queue_write("k", 10), store.queue_write("k", 20));
        assert!(matches!(store.take_turn("k", second, now), Turn::Wait));
        assert!(matches!(store.take_turn("k", first, now), Turn::Go(holders) if holders.len() == 1));
        assert_eq!(store.grant_entry("k", &holder(2), now), answered("1", Duration::ZERO));
        let (_, next) = store.finish_write("k", first, Some(Write::Put(value("2"), None)), now);
        assert_eq!(next, Some(20), "the ban is handed on");
        assert_eq!(store.grant_entry("k", &holder(2), now), answered("2", Duration::ZERO));
        let (_, next) = store.finish_write("k", second, None, now);
        assert_eq!(next, None);
        assert_eq!(store.grant_entry("k", &holder(2), now), answered("2", LEASE), "who gave up changed nothing");
    }

    #[test]
    fn rule_5_a_fetch_under_way_is_marked_and_not_kept() {
        let (mut store, now) = store();
        let number = begin_fetch(&mut store, 1, now);
        store.invalidate("k", now);
        let (answer, _) = store.end_fetch("k", number, Some((answered("1", LEASE), now)), Some(&holder(2)), now);
        assert_eq!(answer, Some(answered("1", Duration::ZERO)));
        assert_eq!(store.gauges().copies + store.gauges().holders, 0);
    }

    #[test]
    fn rule_7_a_dropped_copy_leaves_its_records() {
        let (mut store, now) = store();
        let number = begin_fetch(&mut store, 1, now);
        store.end_fetch("k", number, Some((answered("1", LEASE), now)), Some(&holder(2)), now);
        assert_eq!(store.invalidate("k", now).len(), 1);
        // A second invalidation meets the first, which is not acknowledged yet.
        assert_eq!(store.invalidate("k", now).len(), 1);
        store.sweep(now + LEASE);
        assert_eq!(store.invalidate("k", now + LEASE).len(), 1, "the record outlives the copy by a tenth");
        store.sweep(now + 2 * LEASE);
        assert_eq!(store.gauges().holders, 0);
    }

    #[test]
    fn rule_8_a_young_root_finishes_no_write() {
        let (mut store, now) = store();
        store.be_quiet_until(now + 2 * SECOND);
        store.be_quiet_until(now + SECOND);
        let ticket = store.queue_write("k", 1);
        assert!(matches!(store.take_turn("k", ticket, now), Turn::NotBefore(then) if then == now + 2 * SECOND));
        assert!(matches!(store.take_turn("k", ticket, now + 2 * SECOND), Turn::Go(_)));
    }

    #[test]
    fn rule_9_readers_share_what_was_sent_after_they_asked() {
        let (mut store, now) = store();
        let first = begin_fetch(&mut store, 1, now);
        let (mut early, mut late) = (Reading::default(), Reading::default());
        assert_eq!(store.step_read(&mut early, "k", None, &2, now), Step::Wait);
        let (_, woken) = store.end_fetch("k", first, Some((answered("1", Duration::ZERO), now)), None, now);
        assert_eq!(woken, [2]);
        // It was sent before the reader asked, so its answer may be too old for it: it fetches anew.
        let Step::Fetch(second) = store.step_read(&mut early, "k", None, &2, now) else { panic!("no fetch") };
        assert_eq!(store.step_read(&mut late, "k", None, &3, now), Step::Wait);
        let mut waiting = Reading { asked: Some(0), shared: None };
        assert_eq!(store.step_read(&mut waiting, "k", None, &4, now), Step::Wait);
        store.end_fetch("k", second, Some((answered("2", Duration::ZERO), now)), None, now);
        assert_eq!(
            store.step_read(&mut waiting, "k", None, &4, now),
            Step::Shared(answered("2", Duration::ZERO)),
            "sent after this one asked"
        );
        assert!(matches!(store.step_read(&mut late, "k", None, &3, now), Step::Fetch(_)));
    }

    #[test]
    fn rule_9_a_failed_or_marked_fetch_is_not_shared() {
        let (mut store, now) = store();
        let number = begin_fetch(&mut store, 1, now);
        let mut reading = Reading::default();
        assert_eq!(store.step_read(&mut reading, "k", None, &2, now), Step::Wait);
        assert_eq!(store.end_fetch("k", number, None, None, now), (None, vec![2]));
        assert!(matches!(store.step_read(&mut reading, "k", None, &2, now), Step::Fetch(_)));
        store.invalidate("k", now);
        begin_fetch(&mut store, 3, now);
    }

    #[test]
    fn no_copy_outlives_a_ttl_even_on_a_slow_clock() {
        let (mut store, now) = store();
        write(&mut store, "k", Write::Put(value("1"), Some(11 * SECOND / 10)), now).unwrap();
        assert_eq!(store.grant_entry("k", &holder(1), now), answered("1", SECOND));
        let expiry = now + 11 * SECOND / 10;
        assert!(store.read_entry("k", now + SECOND).is_some());
        assert_eq!(store.read_entry("k", expiry), None);
        assert_eq!(store.list(expiry).count(), 0);
        store.sweep(expiry);
        assert_eq!((store.gauges().entries, store.ends.len()), (0, 0));
        // A value that replaces another has its own ttl, or none.
        write(&mut store, "k", Write::Put(value("1"), Some(SECOND)), now).unwrap();
        put(&mut store, "2", now);
        store.sweep(now + 2 * SECOND);
        assert_eq!(store.read_entry("k", now + 2 * SECOND), Some(value("2")));
        let for_years = Some(Duration::from_secs(1_000_000_000));
        write(&mut store, "k", Write::Put(value("1"), for_years), now).unwrap();
        assert_eq!(store.grant_entry("k", &holder(1), now), answered("1", LEASE));
    }

    #[test]
    fn a_full_store_refuses_and_loses_nothing() {
        let now = Instant::now();
        let mut store = Store::<u64>::new(2 * (ITEM_BYTES + 20), LEASE);
        put(&mut store, "1", now);
        write(&mut store, "b", Write::Put(value("2"), Some(SECOND)), now).unwrap();
        let held = store.gauges().bytes;
        let long = Write::Put(value("\"much more than there is room for\""), None);
        let refused = write(&mut store, "k", long.clone(), now).unwrap_err();
        assert_eq!(refused.max_bytes, 2 * (ITEM_BYTES + 20));
        assert_eq!((store.read_entry("k", now), store.gauges().bytes), (Some(value("1")), held));
        assert_eq!(store.grant_entry("k", &holder(1), now), answered("1", Duration::ZERO), "no room for a record");
        put(&mut store, "3", now);
        assert_eq!(store.gauges().bytes, held, "a value of the same length takes the room of the old one");
        write(&mut store, "k", long, now + SECOND).expect("the other entry has expired");
        for key in ["k", "b", "c"] {
            write(&mut store, key, Write::Delete, now).unwrap();
        }
        assert_eq!((store.gauges().entries, store.gauges().bytes), (0, 0));
    }

    #[test]
    fn a_full_node_keeps_no_copy_and_a_sweep_makes_room() {
        let now = Instant::now();
        let mut store = Store::<u64>::new(ITEM_BYTES + 20, LEASE);
        for key in ["k", "l"] {
            let Step::Fetch(number) = store.step_read(&mut Reading::default(), key, None, &1, now) else { panic!() };
            store.end_fetch(key, number, Some((answered("1", LEASE), now)), None, now);
        }
        assert_eq!((store.gauges().copies, store.list(now).count()), (1, 1));
        assert!(!store.sweep(now + LEASE));
        assert_eq!((store.gauges().copies, store.gauges().bytes), (0, 0));
    }
}
