//! Who was granted a copy of which key, and until when: the records of one node.
//!
//! Invariant: a record ends after the copy that it stands for, while the two clocks differ by less than a tenth
//! (rules 1 and 2). A clock that stands still for a while, as in suspend, breaks it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A process that was granted a copy. Another run at the same URL is another holder (rule 8).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder {
    /// For people.
    pub name: String,
    pub url: String,
    pub run: u64,
}

/// One grant on record: a holder that must be told of a write, and how long it must be waited for.
#[derive(Debug, Clone)]
pub struct Record {
    pub holder: Arc<Holder>,
    /// When it counts as gone by itself.
    pub ends: Instant,
    /// Which grant this is, for a holder is granted again and again (rule 7).
    pub number: u64,
    /// Whether the first of these grants was of an absent key.
    is_absent: bool,
}

/// What a record takes beside its texts. Measured: 280 bytes for the first of a key, 80 for the second, 150 for a
/// third, for which the list grows.
const RECORD_BYTES: usize = 256;

/// Most keys have two holders, the children; a `Vec` alone would begin with room for four.
const USUAL_HOLDERS: usize = 2;

/// A key, shared by all that is kept of it.
pub type Key = Arc<str>;

/// The records of all keys.
#[derive(Default)]
pub(super) struct Holders {
    /// Apart from copies: a copy that is dropped leaves its records where they are (rule 7).
    records: HashMap<Key, Vec<Record>>,
    pub bytes: usize,
    /// What of that is records of absent keys.
    pub absent_bytes: usize,
    last_number: u64,
    /// Every holder once, however many records it has, and until when it is granted nothing, if it did not acknowledge
    /// (rule 6).
    known: HashMap<Arc<Holder>, Option<Instant>>,
    /// Each record by its end, and by its number where several end at once.
    ends: BTreeMap<(Instant, u64), Key>,
}

impl Holders {
    /// Records that `holder` is granted `lease`, and returns what it is granted: whole milliseconds,
    /// as leases travel, and zero if there is no room or the holder was silent lately.
    pub fn grant(
        &mut self,
        key: &str,
        holder: &Holder,
        lease: Duration,
        (is_absent, room_bytes): (bool, usize),
        now: Instant,
    ) -> Duration {
        let lease = Duration::from_millis(u64::try_from(lease.as_millis()).unwrap_or(u64::MAX));
        let known = self.known.get_key_value(holder);
        // Rule 6: it was silent lately.
        if lease.is_zero() || known.is_some_and(|(_, silent_until)| *silent_until > Some(now)) {
            return Duration::ZERO;
        }
        let ends = now + record_life(lease);
        self.last_number += 1;
        let number = self.last_number;
        let mut records = self.records.get_mut(key).into_iter().flatten();
        if let Some(record) = records.find(|record| *record.holder == *holder) {
            // Rule 1: only ever extended, since what is granted now may end before what was granted then:
            // 1. A holder has a full lease. 2. It has dropped its copy, fetches again, and gets what is left of
            // another. 3. With the shorter end on record, a write does not wait for the longer one.
            let key = self.ends.remove(&(record.ends, record.number)).expect("each record has its end");
            record.ends = record.ends.max(ends);
            record.number = number;
            self.ends.insert((record.ends, number), key);
            return lease;
        }
        let bytes = record_bytes(key, holder);
        // No record is dropped to make room: the next write would not tell its holder.
        if bytes > room_bytes {
            return Duration::ZERO;
        }
        let holder = known.map_or_else(|| Arc::new(holder.clone()), |(known, _)| Arc::clone(known));
        self.known.entry(Arc::clone(&holder)).or_default();
        let key = self.records.get_key_value(key).map_or_else(|| Key::from(key), |(key, _)| Arc::clone(key));
        self.ends.insert((ends, number), Arc::clone(&key));
        let record = Record { holder, ends, number, is_absent };
        self.absent_bytes += if is_absent { bytes } else { 0 };
        self.records.entry(key).or_insert_with(|| Vec::with_capacity(USUAL_HOLDERS)).push(record);
        self.bytes += bytes;
        lease
    }

    /// The holders that must be told of a write.
    pub fn list(&self, key: &str, now: Instant) -> Vec<Record> {
        self.records.get(key).into_iter().flatten().filter(|record| now < record.ends).cloned().collect()
    }

    /// That holder did not acknowledge, and its record has run out. It is granted nothing until `until`,
    /// or the next write would have to wait for it again (rule 6).
    pub fn note_silence(&mut self, told: &Record, until: Instant) {
        self.known.insert(Arc::clone(&told.holder), Some(until));
    }

    /// Drops some of what has ended; returns whether there may be more.
    pub fn sweep(&mut self, now: Instant, at_most: usize) -> bool {
        for _ in 0..at_most {
            let last = self.ends.range(..=(now, u64::MAX)).next_back();
            let Some((&(_, number), key)) = last else {
                self.known.retain(|holder, silent_until| *silent_until > Some(now) || Arc::strong_count(holder) > 1);
                shrink(&mut self.records);
                return false;
            };
            let key = Arc::clone(key);
            self.drop_record(&key, number);
        }
        true
    }

    /// How many records there are, those among them that have ended and were not swept yet.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// When the last record ends.
    pub fn last_end(&self) -> Option<Instant> {
        self.ends.last_key_value().map(|((ends, _), _)| *ends)
    }

    /// Drops the record of a grant. When the holder has acknowledged, it holds nothing any more, nor does anybody below
    /// it; but its record stays if there was another grant meanwhile, which has another number (rule 7):
    /// 1. Two invalidations of a key meet at a node, and list the same holder.
    /// 2. The first is acknowledged. The holder fetches again, and is granted again.
    /// 3. The second is acknowledged, by an answer sent before that. It must not forget the new grant.
    pub fn drop_record(&mut self, key: &str, number: u64) {
        let Some(records) = self.records.get_mut(key) else { return };
        let Some(position) = records.iter().position(|record| record.number == number) else { return };
        let record = records.swap_remove(position);
        if records.is_empty() {
            self.records.remove(key);
        }
        self.ends.remove(&(record.ends, number));
        let bytes = record_bytes(key, &record.holder);
        self.bytes -= bytes;
        self.absent_bytes -= if record.is_absent { bytes } else { 0 };
    }
}

/// How long a grant of that lease stays on record. The tenth makes up for clocks of different speed.
pub fn record_life(lease: Duration) -> Duration {
    lease * 11 / 10
}

/// Gives memory back, which a map does not do by itself when what was in it is gone. Not before little is left: all of that
/// must move, and others wait for the lock.
pub fn shrink<V>(map: &mut HashMap<Key, V>) {
    if map.len() * 16 < map.capacity() {
        map.shrink_to(map.len() * 2);
    }
}

fn record_bytes(key: &str, holder: &Holder) -> usize {
    RECORD_BYTES + key.len() + holder.name.len() + holder.url.len()
}

#[cfg(test)]
mod tests;
