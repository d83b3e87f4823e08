//! Changes of keys at the root: what they are, why one is refused, and who waits to make one.
//!
//! Invariant: the writers of a key have their turns in the order in which they came, and while there are any, nothing
//! of that key is granted (rule 3). Its tests are those of the store.

use std::mem;
use std::time::{Duration, Instant};

use super::leases::{Key, Record};
use super::store::{SLICE_PAUSE, Store, item_bytes, just_after};
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
    fn expect(self, exists: bool) -> Result<(), Refusal> {
        match self {
            Self::Absent if exists => Err(Refusal::Condition("the key exists already")),
            Self::Present if !exists => Err(Refusal::Condition("the key does not exist")),
            Self::Never => Err(Refusal::Condition("no value can meet this condition")),
            _ => Ok(()),
        }
    }
}

/// Why a write is not done, in words, or not yet.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    Condition(&'static str),
    Full(String),
    /// It cannot be done in its time.
    Late(&'static str),
    /// Others are before it, or what it depends on is not durable yet: have the batch committed, wait to be woken, and
    /// ask again. At that time, if there is one, in any case: the root is too young until then (rule 10), or room is made.
    NotYet(Option<Instant>),
}

/// What is to be made durable in one piece.
#[derive(Debug, Default)]
pub struct Batch {
    /// In the order in which they were decided.
    pub changes: Vec<Change>,
    /// What ends until then has ended for good.
    pub ended_until: Option<Instant>,
    /// The longest lease that may be outstanding from here on (rule 10).
    pub lease: Option<Duration>,
}

/// What a key will be; nothing can refuse it any more (rule 12).
#[derive(Debug)]
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

pub(super) struct Writer<W> {
    pub ticket: u64,
    pub who: W,
    pub condition: Condition,
    /// It is not decided later (rule 11).
    pub deadline: Instant,
    /// It is on its way to the disk.
    pub is_decided: bool,
}

impl<W: Clone> Store<W> {
    // -- the root: writes ----------------------------------------------------------------------

    /// Puts a writer in the queue of its key; the returned number is its ticket. From here on
    /// nothing of this key is granted, until the last in the queue is done.
    pub fn queue_write(&mut self, key: &str, condition: Condition, deadline: Instant, who: W) -> u64 {
        let ticket = self.next_number();
        let writer = Writer { ticket, who, condition, deadline, is_decided: false };
        self.writers.entry(key.into()).or_default().push_back(writer);
        ticket
    }

    /// Whom a writer must invalidate first, once it is its turn (rule 4). Nothing has been granted since the ban, which
    /// is older than this list: the list is whole. Whoever is refused must [`Store::abandon`] its write.
    pub fn take_turn(&mut self, key: &str, ticket: u64, now: Instant) -> Result<Vec<Record>, Refusal> {
        self.expect_turn(key, ticket, now)?;
        Ok(self.holders.list(key, now))
    }

    /// Asked until it says `Ok`. First it decides a write whose holders have been told; asked again, it says whether the
    /// change is in place. In memory alone it is at once, else when it is durable: what was seen once must never be
    /// undone. The ban on grants is lifted in the same hold of the lock, or handed on to the next writer, who is returned
    /// and must be woken. If it is refused the old value stands, and the write must be abandoned. All that may refuse it
    /// is looked at here (rule 12), and again what was looked at before: an entry may have ended while holders were told,
    /// and a run may have joined that holds what another root granted.
    pub fn finish_write(&mut self, key: &str, ticket: u64, write: &Write, now: Instant) -> Result<Option<W>, Refusal> {
        // Its change is in place.
        let Some((_, writer)) = self.find_writer(key, ticket) else { return Ok(None) };
        if writer.is_decided {
            return Err(Refusal::NotYet(None));
        }
        let who = writer.who.clone();
        self.expect_turn(key, ticket, now)?;
        let entry = match write {
            Write::Put(value, ttl) => {
                self.expect_room(key, value, &who, now)?;
                Some((value.clone(), ttl.map(|ttl| now + ttl)))
            }
            Write::Delete => None,
        };
        if self.ended_until.is_none() {
            self.put_in_place(key, entry);
            return Ok(self.remove_writer(key, ticket));
        }
        self.reserved_bytes += self.growth(key, entry.as_ref().map(|(value, _)| value));
        self.decided.push(Change { key: key.into(), entry, ticket: Some(ticket) });
        self.find_writer(key, ticket).expect("it was there").1.is_decided = true;
        Err(Refusal::NotYet(None))
    }

    /// Refuses a writer that is too late, be it before its turn (rule 11), and in its turn one whose condition does not
    /// hold.
    fn expect_turn(&mut self, key: &str, ticket: u64, now: Instant) -> Result<(), Refusal> {
        let young_until = self.young_until.filter(|until| now < *until);
        let (before, writer) = self.find_writer(key, ticket).expect("it is in its queue");
        let (condition, deadline, who) = (writer.condition, writer.deadline, writer.who.clone());
        match young_until {
            _ if now >= deadline => Err(TOO_LATE),
            Some(until) if until >= deadline => Err(TOO_YOUNG),
            None if before == 0 && condition != Condition::None && self.waits_for_end(key, &who, now) => {
                Err(Refusal::NotYet(None))
            }
            None if before == 0 => condition.expect(self.find_item(key, now).is_some()),
            _ => Err(Refusal::NotYet(young_until)),
        }
    }

    /// Refuses a value for which there is no room. There may be some once what has ended may be dropped.
    fn expect_room(&mut self, key: &str, value: &Value, who: &W, now: Instant) -> Result<(), Refusal> {
        let needed = |store: &Self| store.bytes() + store.growth(key, Some(value));
        // What has ended needs no room.
        let may_be_more = needed(self) > self.setup.max_bytes && self.sweep(now);
        let (needed_bytes, allowed) = (needed(self), self.setup.max_bytes);
        if needed_bytes <= allowed {
            return Ok(());
        }
        if may_be_more {
            return Err(Refusal::NotYet(Some(now + SLICE_PAUSE)));
        }
        let mut ended = self.ends.iter().take_while(|(ends, _)| *ends <= now);
        if self.ended_until.is_some() && ended.any(|(_, key)| !self.writers.contains_key(key)) {
            self.waiting.push(who.clone());
            return Err(Refusal::NotYet(None));
        }
        Err(Refusal::Full(format!("the store is full: {needed_bytes} bytes are needed, {allowed} are allowed")))
    }

    /// A writer, and how many are before it; none once its change is in place.
    pub(super) fn find_writer(&mut self, key: &str, ticket: u64) -> Option<(usize, &mut Writer<W>)> {
        self.writers.get_mut(key)?.iter_mut().enumerate().find(|(_, writer)| writer.ticket == ticket)
    }

    /// Takes a writer out of the queue; returns who is the next.
    pub(super) fn remove_writer(&mut self, key: &str, ticket: u64) -> Option<W> {
        let queue = self.writers.get_mut(key)?;
        queue.retain(|writer| writer.ticket != ticket);
        let next = queue.front().map(|writer| writer.who.clone());
        if next.is_none() {
            self.writers.remove(key);
        }
        next
    }

    /// What a change adds to the bytes that are held, if it adds any.
    fn growth(&self, key: &str, value: Option<&Value>) -> usize {
        let old = self.items.get(key).map_or(0, |old| item_bytes(key, old.value.as_ref()));
        value.map_or(0, |value| item_bytes(key, Some(value)).saturating_sub(old))
    }

    fn put_in_place(&mut self, key: &str, entry: Option<(Value, Option<Instant>)>) {
        match entry {
            Some((value, ends)) => self.insert(key, Some(value), ends),
            None => self.remove(key),
        }
    }

    // -- the root: what is durable -------------------------------------------------------------

    /// From here on nothing is shown before it is durable: no write, and no end of an entry. What had ended by
    /// `ended_until` has ended for good, and a lease of that length is on record.
    pub fn be_durable(&mut self, ended_until: Instant, lease: Duration) {
        self.ended_until = Some(ended_until);
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
            // Nothing is decided while it is young; but after these were a run may have joined that made it young again.
            return (!changes.is_empty()).then_some(Batch { changes, ..Batch::default() });
        }
        let mut ended = self.ends.range(just_after(self.ended_by(now))..just_after(now));
        let ended_until = ended.next().map(|_| now);
        // Rule 10: after a clean stop nobody need wait.
        let lease = if self.has_nothing_outstanding(now) { Duration::ZERO } else { self.setup.lease };
        let lease = Some(lease).filter(|lease| *lease != self.noted_lease);
        let batch = Batch { changes, ended_until, lease };
        (!batch.changes.is_empty() || ended_until.is_some() || lease.is_some()).then_some(batch)
    }

    /// Puts in place what is durable now; returns whoever must be woken.
    pub fn end_batch(&mut self, batch: Batch) -> Vec<W> {
        let mut woken = mem::take(&mut self.waiting);
        self.ended_until = batch.ended_until.or(self.ended_until);
        self.noted_lease = batch.lease.unwrap_or(self.noted_lease);
        for Change { key, entry, ticket } in batch.changes {
            let Some(ticket) = ticket else { continue };
            self.reserved_bytes -= self.growth(&key, entry.as_ref().map(|(value, _)| value));
            self.put_in_place(&key, entry);
            woken.extend(self.find_writer(&key, ticket).map(|(_, writer)| writer.who.clone()));
            woken.extend(self.remove_writer(&key, ticket));
        }
        woken
    }

    /// What ends by then has ended for good.
    pub(super) fn ended_by(&self, now: Instant) -> Instant {
        self.ended_until.unwrap_or(now)
    }

    /// Whether an entry has ended and that is not durable yet. Then whoever asks must wait until it is.
    pub(super) fn waits_for_end(&mut self, key: &str, who: &W, now: Instant) -> bool {
        let Some(ended_until) = self.ended_until else { return false };
        let ends = self.items.get(key).and_then(|item| item.ends);
        let is_ending = ends.is_some_and(|ends| ended_until < ends && ends <= now) && self.young_for(now).is_zero();
        if is_ending {
            self.waiting.push(who.clone());
        }
        is_ending
    }
}
