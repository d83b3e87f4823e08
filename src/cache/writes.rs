//! Changes of keys at the root: what they are, why one is refused, and who waits to make one.
//!
//! Invariant: the writers of a key have their turns in the order in which they came, and while there are any, nothing
//! of that key is granted (rule 3).

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::time::{Duration, Instant};

use super::leases::{Key, Record};
use super::store::{Store, item_bytes};
use super::value::Value;

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
    pub fn expect(self, exists: bool) -> Result<(), Refusal> {
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

/// Whether a writer may go on.
#[derive(Debug)]
pub enum Turn {
    /// Others are before it: wait to be woken.
    Wait,
    /// The root is too young to finish a write (rule 10): try again then.
    NotBefore(Instant),
    /// Give up: it would be refused.
    Refused(Refusal),
    /// Invalidate these, then decide.
    Go(Vec<Record>),
}

/// What came of a write.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<W> {
    /// It, or an expiry that it depends on, is not durable yet: have the batch committed, wait to be woken, and ask again.
    Wait,
    /// It stands, or is refused; and the next writer must be woken.
    Done(Result<(), Refusal>, Option<W>),
}

/// What is to be made durable in one piece.
#[derive(Debug, Default)]
pub struct Batch {
    /// In the order in which they were decided.
    pub changes: Vec<Change>,
    /// What ends until then has ended for good.
    pub mark: Option<Instant>,
    /// The longest lease that may be outstanding from here on (rule 10).
    pub lease: Option<Duration>,
}

/// What a key will be; nothing can refuse it any more (rule 12).
#[derive(Debug, Clone)]
pub struct Change {
    pub key: Key,
    /// The value, and when it ends, if it does; none: there is none.
    pub entry: Option<(Value, Option<Instant>)>,
    /// The writer's; none: what has ended is swept, and nobody waits.
    pub ticket: Option<u64>,
}

pub(super) const TOO_LATE: Refusal = Refusal::Late("too late; not applied");
pub(super) const TOO_YOUNG: Refusal =
    Refusal::Late("this root is too young to finish a write in its time; not applied");

#[derive(Debug)]
pub struct Writer<W> {
    pub ticket: u64,
    pub who: W,
    pub condition: Condition,
    /// It is not decided later (rule 11).
    pub deadline: Instant,
    /// It is on its way to the disk.
    pub is_decided: bool,
}

/// The writers of all keys.
#[derive(Debug)]
pub struct Writers<W>(HashMap<Key, VecDeque<Writer<W>>>);

impl<W: Clone> Writers<W> {
    pub fn new() -> Self {
        Self(HashMap::new())
    }

    /// Whether anybody writes this key, or waits to.
    pub fn have(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    pub fn add(&mut self, key: &str, writer: Writer<W>) {
        self.0.entry(key.into()).or_default().push_back(writer);
    }

    /// A writer, and how many are before it; none once its change is in place.
    pub fn find(&mut self, key: &str, ticket: u64) -> Option<(usize, &mut Writer<W>)> {
        self.0.get_mut(key)?.iter_mut().enumerate().find(|(_, writer)| writer.ticket == ticket)
    }

    /// Takes a writer out of the queue; returns it, and who is the next.
    pub fn remove(&mut self, key: &str, ticket: u64) -> (Option<W>, Option<W>) {
        let Some(queue) = self.0.get_mut(key) else { return (None, None) };
        let position = queue.iter().position(|writer| writer.ticket == ticket);
        let left = position.and_then(|position| queue.remove(position)).map(|writer| writer.who);
        let next = queue.front().map(|writer| writer.who.clone());
        if next.is_none() {
            self.0.remove(key);
        }
        (left, next)
    }
}

impl<W: Clone> Store<W> {
    // -- the root: writes ----------------------------------------------------------------------

    /// Puts a writer in the queue of its key; the returned number is its ticket. From here on
    /// nothing of this key is granted, until the last in the queue is done.
    pub fn queue_write(&mut self, key: &str, condition: Condition, deadline: Instant, who: W) -> u64 {
        let ticket = self.next_number();
        self.writers.add(key, Writer { ticket, who, condition, deadline, is_decided: false });
        ticket
    }

    /// Whether it is that writer's turn and, if so, whom it must invalidate first (rule 4). One that is too late is
    /// refused before its turn (rule 11), and one whose condition does not hold before anybody is told.
    pub fn take_turn(&mut self, key: &str, ticket: u64, now: Instant) -> Turn {
        let young_until = self.young_until.filter(|until| now < *until);
        let (place, writer) = self.writers.find(key, ticket).expect("it is in its queue");
        let (condition, deadline, who) = (writer.condition, writer.deadline, writer.who.clone());
        match young_until {
            _ if now >= deadline => Turn::Refused(TOO_LATE),
            Some(until) if until >= deadline => Turn::Refused(TOO_YOUNG),
            _ if place > 0 => Turn::Wait,
            Some(until) => Turn::NotBefore(until),
            None => match self.expect(key, condition, &who, now) {
                None => Turn::Wait,
                Some(Err(refusal)) => Turn::Refused(refusal),
                // Nothing has been granted since the ban, which is older than this list: the list is whole (rule 4).
                Some(Ok(())) => Turn::Go(self.holders.list(key, now)),
            },
        }
    }

    /// Decides a write whose holders have been told, and puts it in place: at once in memory alone, else when it is
    /// durable, for what was seen once must never be undone. The ban on grants is lifted in the same hold of the lock,
    /// or handed on to the next writer. If it is refused the old value stands. All that may refuse it is looked at here
    /// (rule 12), and again what was looked at before: an entry may have ended while holders were told, and a run may
    /// have joined that holds what another root granted.
    pub fn finish_write(&mut self, key: &str, ticket: u64, change: &Write, now: Instant) -> Outcome<W> {
        let Some((_, writer)) = self.writers.find(key, ticket) else { return Outcome::Done(Ok(()), None) };
        if writer.is_decided {
            return Outcome::Wait;
        }
        let (condition, deadline, who) = (writer.condition, writer.deadline, writer.who.clone());
        let refusal = match self.young_for(now) {
            _ if now >= deadline => Some(Err(TOO_LATE)),
            Duration::ZERO => match self.expect(key, condition, &who, now) {
                Some(Ok(())) => self.find_room(key, change, &who, now),
                other => other,
            },
            _ => Some(Err(TOO_YOUNG)),
        };
        match refusal {
            None => return Outcome::Wait,
            Some(Err(refusal)) => return Outcome::Done(Err(refusal), self.writers.remove(key, ticket).1),
            Some(Ok(())) => {}
        }
        let entry = match change {
            Write::Put(value, ttl) => Some((value.clone(), ttl.map(|ttl| now + ttl))),
            Write::Delete => None,
        };
        if self.mark.is_none() {
            self.place(key, entry);
            return Outcome::Done(Ok(()), self.writers.remove(key, ticket).1);
        }
        self.reserved_bytes += self.growth(key, entry.as_ref().map(|(value, _)| value));
        self.decided.push(Change { key: key.into(), entry, ticket: Some(ticket) });
        self.writers.find(key, ticket).expect("it was there").1.is_decided = true;
        Outcome::Wait
    }

    /// Whether what a write depends on holds. None: the entry has ended, and nobody may be told so yet.
    fn expect(&mut self, key: &str, condition: Condition, who: &W, now: Instant) -> Option<Result<(), Refusal>> {
        if condition != Condition::None && self.is_ending(key, who, now) {
            return None;
        }
        Some(condition.expect(self.has(key, now)))
    }

    /// Whether there is room for a change. None: there may be, once what has ended may be dropped.
    fn find_room(&mut self, key: &str, change: &Write, who: &W, now: Instant) -> Option<Result<(), Refusal>> {
        let Write::Put(value, _) = change else { return Some(Ok(())) };
        let needed = |store: &Self| store.bytes() + store.growth(key, Some(value));
        if needed(self) > self.setup.max_bytes {
            // What has ended needs no room.
            while self.sweep(now) {}
        }
        let (needed_bytes, allowed) = (needed(self), self.setup.max_bytes);
        if needed_bytes <= allowed {
            return Some(Ok(()));
        }
        let mut ended = self.ends.iter().take_while(|(ends, _)| *ends <= now);
        if self.mark.is_some() && ended.any(|(_, key)| !self.writers.have(key)) {
            self.waiting.push(who.clone());
            return None;
        }
        let text = format!("the store is full: {needed_bytes} bytes are needed, {allowed} are allowed");
        Some(Err(Refusal::Full(text)))
    }

    /// What a change adds to the bytes that are held, if it adds any.
    fn growth(&self, key: &str, value: Option<&Value>) -> usize {
        let old = self.items.get(key).map_or(0, |old| item_bytes(key, old.value.as_ref()));
        value.map_or(0, |value| item_bytes(key, Some(value)).saturating_sub(old))
    }

    fn place(&mut self, key: &str, entry: Option<(Value, Option<Instant>)>) {
        match entry {
            Some((value, ends)) => self.insert(key, Some(value), ends),
            None => self.remove(key),
        }
    }

    // -- the root: what is durable -------------------------------------------------------------

    /// From here on nothing is shown before it is durable: no write, and no end of an entry. What had ended by `mark` has
    /// ended for good, and a lease of that length is on record.
    pub fn be_durable(&mut self, mark: Instant, lease: Duration) {
        self.mark = Some(mark);
        self.noted_lease = lease;
    }

    /// Takes over an entry that was found on disk.
    pub fn restore(&mut self, key: &str, value: Value, ends: Option<Instant>) -> Result<(), String> {
        self.insert(key, Some(value), ends);
        let (bytes, allowed) = (self.bytes(), self.setup.max_bytes);
        if bytes <= allowed { Ok(()) } else { Err(format!("over {bytes} bytes are there, {allowed} are allowed")) }
    }

    /// What is to be committed, if anything; call [`Store::end_batch`] when it is durable.
    ///
    /// That entries have ended is one number, a mark on the clock: what ends until then has ended for good. So a
    /// restarted root, whose clock begins no earlier, shows nothing again that was gone. While it is young nothing ends:
    /// its clock may be ahead of its former self's, by which copies live.
    pub fn take_batch(&mut self, now: Instant) -> Option<Batch> {
        let changes = mem::take(&mut self.decided);
        if self.young_for(now) > Duration::ZERO {
            // None of them was decided now, but a run may have joined since that makes the root wait.
            return (!changes.is_empty()).then_some(Batch { changes, ..Batch::default() });
        }
        let mark = self.next_end(self.marked(now)).filter(|ends| *ends <= now).map(|_| now);
        let lease = Some(self.setup.lease).filter(|lease| *lease != self.noted_lease);
        let batch = Batch { changes, mark, lease };
        (!batch.changes.is_empty() || mark.is_some() || lease.is_some()).then_some(batch)
    }

    /// Puts in place what is durable now; returns whoever must be woken.
    pub fn end_batch(&mut self, batch: Batch) -> Vec<W> {
        let mut woken = mem::take(&mut self.waiting);
        self.mark = batch.mark.or(self.mark);
        self.noted_lease = batch.lease.unwrap_or(self.noted_lease);
        for Change { key, entry, ticket } in batch.changes {
            let Some(ticket) = ticket else { continue };
            self.reserved_bytes -= self.growth(&key, entry.as_ref().map(|(value, _)| value));
            self.place(&key, entry);
            let (writer, next) = self.writers.remove(&key, ticket);
            woken.extend(writer.into_iter().chain(next));
        }
        woken
    }

    /// What ends until then has ended for good.
    pub(super) fn marked(&self, now: Instant) -> Instant {
        self.mark.unwrap_or(now)
    }

    /// Whether an entry has ended and that is not durable yet. Then whoever asks must wait until it is.
    pub(super) fn is_ending(&mut self, key: &str, who: &W, now: Instant) -> bool {
        let Some(mark) = self.mark else { return false };
        let ends = self.items.get(key).and_then(|item| item.ends);
        let is_ending = ends.is_some_and(|ends| mark < ends && ends <= now) && self.young_for(now).is_zero();
        if is_ending {
            self.waiting.push(who.clone());
        }
        is_ending
    }

    /// When the first of those items ends that end after `time`.
    fn next_end(&self, time: Instant) -> Option<Instant> {
        let from = (time + Duration::from_nanos(1), Key::from(""));
        self.ends.range(from..).next().map(|(ends, _)| *ends)
    }
}
