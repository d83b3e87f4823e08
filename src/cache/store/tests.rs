//! The rules, one decision at a time.

use super::*;
use crate::cache::writes::{Batch, Condition, Refusal, TOO_LATE, TOO_YOUNG, Write};

const LEASE: Duration = Duration::from_secs(5);
const SECOND: Duration = Duration::from_secs(1);
/// What a writer is told who waits to be woken.
const WAIT: Refusal = Refusal::NotYet(None);
/// Of a write.
const LIMIT: Duration = Duration::from_secs(8);

fn value(json: &str) -> Value {
    Value::from(json)
}

fn leased(json: &str, lease: Duration) -> Leased {
    Leased { value: Some(value(json)), lease }
}

fn holder(number: u64) -> Holder {
    Holder { name: format!("NODE-{number}"), url: format!("http://h:{number}"), run: number }
}

fn store_of(is_root: bool, max_bytes: usize) -> (Store<u64>, Instant) {
    let now = Instant::now();
    (Store::new(Setup { is_root, max_bytes, lease: LEASE }), now)
}

fn root() -> (Store<u64>, Instant) {
    store_of(true, 1 << 20)
}

fn node() -> (Store<u64>, Instant) {
    store_of(false, 1 << 20)
}

/// Writes without waiting for anybody.
fn write(store: &mut Store<u64>, key: &str, change: &Write, now: Instant) -> Result<(), Refusal> {
    let ticket = store.queue_write(key, Condition::None, now + LIMIT, 0);
    finish(store, key, ticket, change, now).0
}

/// Ends a write that waits for no disk: what came of it, and the next writer.
fn finish(
    store: &mut Store<u64>,
    key: &str,
    ticket: u64,
    change: &Write,
    now: Instant,
) -> (Result<(), Refusal>, Option<u64>) {
    match store.finish_write(key, ticket, change, now) {
        Ok(next) => (Ok(()), next),
        Err(Refusal::NotYet(_)) => panic!("nothing is to be waited for"),
        Err(refusal) => (Err(refusal), store.abandon(key, ticket).pop()),
    }
}

fn put(store: &mut Store<u64>, json: &str, now: Instant) {
    write(store, "k", &Write::Put(value(json), None), now).unwrap();
}

fn reading(reader: u64) -> Reading<'static, u64> {
    Reading::new("k", None, reader)
}

fn begin_fetch(store: &mut Store<u64>, reader: u64, now: Instant) -> u64 {
    match store.step_read(&mut reading(reader), now) {
        Step::Fetch(number) => number,
        step => panic!("{step:?} in place of a fetch"),
    }
}

fn read_entry(store: &mut Store<u64>, now: Instant) -> Option<Value> {
    store.answer_here("k", None, now).expect("the root's word").value
}

fn grant(store: &mut Store<u64>, number: u64, now: Instant) -> Leased {
    store.answer_here("k", Some(&holder(number)), now).expect("the root's word")
}

fn read_copy(store: &mut Store<u64>, now: Instant) -> Option<Leased> {
    store.answer_here("k", None, now)
}

/// Tells the node, and lists whom it has to tell.
fn invalidate(store: &mut Store<u64>, now: Instant) -> Vec<Record> {
    store.invalidate("k", now)
}

#[test]
fn rule_1_a_node_passes_on_what_is_left_of_its_own_lease() {
    let (mut store, now) = node();
    let number = begin_fetch(&mut store, 1, now);
    store.end_fetch(&reading(0), number, Some(&(leased("1", LEASE), now)), now + SECOND);
    let other = holder(2);
    let step = store.step_read(&mut Reading::new("k", Some(&other), 2), now + 2 * SECOND);
    // A twentieth less, so that this node, waiting for that one, is not taken for silent itself.
    let granted = 3 * SECOND * 19 / 20;
    assert_eq!(step, Step::Answer(leased("1", granted), Source::Copy));
    assert_eq!(invalidate(&mut store, now + 2 * SECOND)[0].ends, now + 2 * SECOND + granted * 11 / 10);
}

#[test]
fn rule_1_a_node_that_waits_for_a_silent_holder_is_in_time() {
    // Whenever it grants, its record of that ends by a twentieth of a lease before the root's record of itself does.
    let twentieth = LEASE / 20;
    for asks_after in [Duration::ZERO, SECOND, 4 * SECOND, 499 * LEASE / 500] {
        let (mut root, now) = root();
        let (mut node, _) = node();
        let number = begin_fetch(&mut node, 1, now);
        let granted = grant(&mut root, 1, now);
        node.end_fetch(&reading(1), number, Some(&(granted, now)), now);
        node.step_read(&mut Reading::new("k", Some(&holder(2)), 2), now + asks_after);
        let (of_node, of_leaf) = (root.holders.list("k", now), invalidate(&mut node, now + asks_after));
        assert!(of_leaf[0].ends + twentieth <= of_node[0].ends, "{asks_after:?}");
    }
}

#[test]
fn rule_1_value_and_lease_belong_together() {
    let (mut store, now) = node();
    // 1. A fetch of the old value is marked. 2. Another brings the new one, and it is kept.
    let old = begin_fetch(&mut store, 1, now);
    invalidate(&mut store, now);
    let new = begin_fetch(&mut store, 2, now);
    store.end_fetch(&reading(0), new, Some(&(leased("2", LEASE), now)), now);
    // 3. The first ends: whoever asked for it gets no lease on the old value.
    let (granted, _) =
        store.end_fetch(&Reading::new("k", Some(&holder(3)), 0), old, Some(&(leased("1", LEASE), now)), now);
    assert_eq!(granted, Some(leased("2", LEASE * 19 / 20)));
}

#[test]
fn rule_2_a_copy_lives_from_the_asking() {
    let (mut store, now) = node();
    let number = begin_fetch(&mut store, 1, now);
    store.end_fetch(&reading(0), number, Some(&(leased("1", LEASE), now)), now + 4 * SECOND);
    assert!(read_copy(&mut store, now + 4 * SECOND).is_some());
    assert_eq!(read_copy(&mut store, now + LEASE), None);
    let number = begin_fetch(&mut store, 1, now + LEASE);
    store.end_fetch(&reading(0), number, Some(&(leased("1", Duration::ZERO), now + LEASE)), now + LEASE);
    assert_eq!(store.gauges().copies, 0, "a lease of zero: keep nothing");
}

#[test]
fn rule_3_nothing_is_granted_while_writers_are_in_the_queue() {
    let (mut store, now) = root();
    put(&mut store, "1", now);
    assert_eq!(grant(&mut store, 1, now), leased("1", LEASE));
    let mut queue = |who| store.queue_write("k", Condition::None, now + LIMIT, who);
    let (first, second) = (queue(10), queue(20));
    assert!(matches!(store.take_turn("k", second, now), Err(WAIT)));
    assert!(matches!(store.take_turn("k", first, now), Ok(holders) if holders.len() == 1));
    assert_eq!(grant(&mut store, 2, now), leased("1", Duration::ZERO));
    let (_, next) = finish(&mut store, "k", first, &Write::Put(value("2"), None), now);
    assert_eq!(next, Some(20), "the ban is handed on");
    assert_eq!(grant(&mut store, 2, now), leased("2", Duration::ZERO));
    assert_eq!(store.abandon("k", second), [0; 0]);
    assert_eq!(grant(&mut store, 2, now), leased("2", LEASE), "who gave up changed nothing");
}

#[test]
fn rule_5_a_fetch_under_way_is_marked_and_not_kept() {
    let (mut store, now) = node();
    let number = begin_fetch(&mut store, 1, now);
    invalidate(&mut store, now);
    let (answer, _) =
        store.end_fetch(&Reading::new("k", Some(&holder(2)), 0), number, Some(&(leased("1", LEASE), now)), now);
    assert_eq!(answer, Some(leased("1", Duration::ZERO)));
    assert_eq!(store.gauges().copies + store.gauges().holders, 0);
}

#[test]
fn rule_7_a_dropped_copy_leaves_its_records() {
    let (mut store, now) = node();
    let number = begin_fetch(&mut store, 1, now);
    store.end_fetch(&Reading::new("k", Some(&holder(2)), 0), number, Some(&(leased("1", LEASE), now)), now);
    assert_eq!(invalidate(&mut store, now).len(), 1);
    // A second invalidation meets the first, which is not acknowledged yet.
    assert_eq!(invalidate(&mut store, now).len(), 1);
    store.sweep(now + LEASE);
    assert_eq!(invalidate(&mut store, now + LEASE).len(), 1, "the record outlives the copy by a tenth");
    store.sweep(now + 2 * LEASE);
    assert_eq!(store.gauges().holders, 0);
}

#[test]
fn rule_10_a_young_root_finishes_no_write_and_refuses_what_would_be_too_late() {
    let (mut store, now) = root();
    store.wait_for_leases(LEASE, now);
    let until = now + LEASE * 11 / 10;
    // What is waited for later lengthens the wait, and never shortens it.
    store.wait_for_leases(SECOND, now);
    assert_eq!(store.young_for(now), until - now);
    let mut queue = |deadline| store.queue_write("k", Condition::None, deadline, 1);
    let (patient, hasty) = (queue(now + LIMIT), queue(until));
    assert!(matches!(store.take_turn("k", patient, now), Err(Refusal::NotYet(then)) if then == Some(until)));
    assert!(matches!(store.take_turn("k", hasty, now), Err(TOO_YOUNG)), "at once, though others are before it");
    assert!(store.take_turn("k", patient, until).is_ok());
    // Runs join meanwhile that hold what another root has granted: this waits, unless it would be too late.
    store.wait_for_leases(SECOND, until);
    let put = Write::Put(value("1"), None);
    let waits = Err(Refusal::NotYet(Some(until + SECOND * 11 / 10)));
    assert_eq!(store.finish_write("k", patient, &put, until), waits);
    store.wait_for_leases(LEASE, until);
    let (result, _) = finish(&mut store, "k", patient, &put, until);
    assert_eq!((result, read_entry(&mut store, until)), (Err(TOO_YOUNG), None));
}

#[test]
fn rule_11_a_late_write_is_refused_wherever_it_waits() {
    let (mut store, now) = root();
    let change = Write::Put(value("1"), None);
    let mut queue = |who, seconds: u32| store.queue_write("k", Condition::None, now + seconds * SECOND, who);
    let (first, late, second) = (queue(1, 3), queue(2, 1), queue(3, 3));
    assert!(matches!(store.take_turn("k", late, now), Err(WAIT)));
    assert!(matches!(store.take_turn("k", late, now + SECOND), Err(TOO_LATE)), "before its turn");
    assert_eq!(store.abandon("k", late), [1], "the first is told again, which harms nobody");
    assert!(store.take_turn("k", first, now + 2 * SECOND).is_ok());
    // It waited for a holder.
    let (result, next) = finish(&mut store, "k", first, &change, now + 3 * SECOND);
    assert_eq!((result, next), (Err(TOO_LATE), Some(3)));
    assert!(matches!(store.take_turn("k", second, now + 3 * SECOND), Err(TOO_LATE)));
    store.abandon("k", second);
    assert_eq!(read_entry(&mut store, now), None);
}

#[test]
fn an_absent_key_is_granted_kept_and_invalidated_like_a_value() {
    let absent = |lease| Leased { value: None, lease };
    let (mut store, now) = root();
    assert_eq!(grant(&mut store, 1, now), absent(LEASE));
    let ticket = store.queue_write("k", Condition::None, now + LIMIT, 0);
    assert!(matches!(store.take_turn("k", ticket, now), Ok(holders) if holders.len() == 1));
    assert_eq!(grant(&mut store, 2, now), absent(Duration::ZERO), "rule 3");
    finish(&mut store, "k", ticket, &Write::Put(value("null"), None), now).0.unwrap();
    assert_eq!(grant(&mut store, 2, now), leased("null", LEASE));

    let (mut store, now) = node();
    let number = begin_fetch(&mut store, 1, now);
    let (granted, _) =
        store.end_fetch(&Reading::new("k", Some(&holder(2)), 0), number, Some(&(absent(LEASE), now)), now);
    assert_eq!((granted, store.list(now).count()), (Some(absent(LEASE * 19 / 20)), 0));
    assert_eq!(store.step_read(&mut reading(3), now), Step::Answer(absent(Duration::ZERO), Source::Copy));
    assert_eq!(invalidate(&mut store, now).len(), 1);
    begin_fetch(&mut store, 3, now);
}

#[test]
fn absent_keys_take_a_sixteenth_of_the_room_and_leave_the_rest() {
    let max_bytes = 1 << 20;
    for is_root in [true, false] {
        let (mut store, now) = store_of(is_root, max_bytes);
        let mut granted = 0;
        for number in 0..2000 {
            let (key, holder) = (format!("absent {number}"), holder(1));
            let mut reading = Reading::new(&key, Some(&holder), 1);
            let lease = match store.step_read(&mut reading, now) {
                Step::Answer(Leased { lease, .. }, _) => lease,
                Step::Fetch(fetch) => {
                    let fetched = (Leased { value: None, lease: LEASE }, now);
                    store.end_fetch(&reading, fetch, Some(&fetched), now).0.expect("it was answered").lease
                }
                Step::Wait => panic!("nobody else reads"),
            };
            granted += usize::from(!lease.is_zero());
        }
        let bytes = store.gauges().bytes;
        assert!(
            granted > 100 && bytes <= max_bytes / ABSENT_SHARE && bytes > max_bytes / ABSENT_SHARE - 1000,
            "{bytes}"
        );
        while store.sweep(now + 2 * LEASE) {}
        assert_eq!((store.gauges().bytes, store.absent_bytes, store.holders.absent_bytes), (0, 0, 0));
    }
}

#[test]
fn what_is_abandoned_keeps_nobody_waiting() {
    let (mut store, now) = node();
    let number = begin_fetch(&mut store, 1, now);
    let mut waits = reading(2);
    assert_eq!(store.step_read(&mut waits, now), Step::Wait);
    assert_eq!(store.abandon("k", number), [2]);
    assert!(matches!(store.step_read(&mut waits, now), Step::Fetch(_)));

    let (mut store, now) = root();
    put(&mut store, "1", now);
    let mut queue = |who| store.queue_write("k", Condition::None, now + LIMIT, who);
    let (first, second) = (queue(10), queue(20));
    assert_eq!(store.abandon("k", first), [20]);
    assert!(store.take_turn("k", second, now).is_ok());
    assert_eq!(store.abandon("k", second), [0; 0]);
    assert_eq!(grant(&mut store, 1, now), leased("1", LEASE), "nothing was changed, and the ban is lifted");
}

#[test]
fn rule_9_readers_share_what_was_sent_after_they_asked() {
    let (mut store, now) = node();
    let first = begin_fetch(&mut store, 1, now);
    let (mut early, mut late) = (reading(2), reading(3));
    assert_eq!(store.step_read(&mut early, now), Step::Wait);
    let (_, woken) = store.end_fetch(&reading(0), first, Some(&(leased("1", Duration::ZERO), now)), now);
    assert_eq!(woken, [2]);
    // It was sent before the reader asked, so its answer may be too old for it: it fetches anew.
    let Step::Fetch(second) = store.step_read(&mut early, now) else { panic!("no fetch") };
    assert_eq!(store.step_read(&mut late, now), Step::Wait);
    let mut waiting = Reading { came: Some(0), ..reading(4) };
    assert_eq!(store.step_read(&mut waiting, now), Step::Wait);
    store.end_fetch(&reading(0), second, Some(&(leased("2", Duration::ZERO), now)), now);
    assert_eq!(
        store.step_read(&mut waiting, now),
        Step::Answer(leased("2", Duration::ZERO), Source::Fetch),
        "sent after this one asked"
    );
    assert!(matches!(store.step_read(&mut late, now), Step::Fetch(_)));
}

#[test]
fn rule_9_a_failed_or_marked_fetch_is_not_shared() {
    let (mut store, now) = node();
    let number = begin_fetch(&mut store, 1, now);
    let mut waits = reading(2);
    assert_eq!(store.step_read(&mut waits, now), Step::Wait);
    assert_eq!(store.end_fetch(&reading(0), number, None, now), (None, vec![2]));
    assert!(matches!(store.step_read(&mut waits, now), Step::Fetch(_)));
    invalidate(&mut store, now);
    begin_fetch(&mut store, 3, now);
}

#[test]
fn no_copy_outlives_a_ttl_even_on_a_slow_clock() {
    let (mut store, now) = root();
    write(&mut store, "k", &Write::Put(value("1"), Some(11 * SECOND / 10)), now).unwrap();
    assert_eq!(grant(&mut store, 1, now), leased("1", SECOND));
    let expiry = now + 11 * SECOND / 10;
    assert!(read_entry(&mut store, now + SECOND).is_some());
    assert_eq!(read_entry(&mut store, expiry), None);
    assert_eq!(store.list(expiry).count(), 0);
    store.sweep(expiry);
    assert_eq!((store.gauges().entries, store.ends.len()), (0, 0));
    // A value that replaces another has its own ttl, or none.
    write(&mut store, "k", &Write::Put(value("1"), Some(SECOND)), now).unwrap();
    put(&mut store, "2", now);
    store.sweep(now + 2 * SECOND);
    assert_eq!(read_entry(&mut store, now + 2 * SECOND), Some(value("2")));
    let for_years = Some(Duration::from_secs(1_000_000_000));
    write(&mut store, "k", &Write::Put(value("1"), for_years), now).unwrap();
    assert_eq!(grant(&mut store, 1, now), leased("1", LEASE));
}

#[test]
fn a_full_store_refuses_and_loses_nothing() {
    let (mut store, now) = store_of(true, 2 * (ITEM_BYTES + 20));
    put(&mut store, "1", now);
    write(&mut store, "b", &Write::Put(value("2"), Some(SECOND)), now).unwrap();
    let held = store.gauges().bytes;
    let long = Write::Put(value("\"much more than there is room for\""), None);
    let refused = write(&mut store, "k", &long, now).unwrap_err();
    let needed = held + "\"much more than there is room for\"".len() - 1;
    let text = format!("the store is full: {needed} bytes are needed, {} are allowed", 2 * (ITEM_BYTES + 20));
    assert_eq!(refused, Refusal::Full(text));
    assert_eq!((read_entry(&mut store, now), store.gauges().bytes), (Some(value("1")), held));
    assert_eq!(grant(&mut store, 1, now), leased("1", Duration::ZERO), "no room for a record");
    put(&mut store, "3", now);
    assert_eq!(store.gauges().bytes, held, "a value of the same length takes the room of the old one");
    write(&mut store, "k", &long, now + SECOND).expect("the other entry has expired");
    for key in ["k", "b", "c"] {
        write(&mut store, key, &Write::Delete, now).unwrap();
    }
    assert_eq!((store.gauges().entries, store.gauges().bytes), (0, 0));
}

#[test]
fn a_full_node_keeps_no_copy_and_a_sweep_makes_room() {
    let (mut store, now) = store_of(false, ITEM_BYTES + 20);
    for key in ["k", "l"] {
        let mut reading = Reading::new(key, None, 1);
        let Step::Fetch(number) = store.step_read(&mut reading, now) else { panic!() };
        store.end_fetch(&reading, number, Some(&(leased("1", LEASE), now)), now);
    }
    assert_eq!((store.gauges().copies, store.list(now).count()), (1, 1));
    assert!(!store.sweep(now + LEASE));
    assert_eq!((store.gauges().copies, store.gauges().bytes), (0, 0));
}

#[test]
fn a_condition_is_looked_at_when_its_turn_comes_and_when_the_value_is_put() {
    use Condition::{Absent, Never, None, Present};
    let change = Write::Put(value("2"), Option::None);
    for (condition, exists, refused) in [
        (None, false, Option::None),
        (None, true, Option::None),
        (Absent, false, Option::None),
        (Absent, true, Some("the key exists already")),
        (Present, false, Some("the key does not exist")),
        (Present, true, Option::None),
        (Never, true, Some("no value can meet this condition")),
    ] {
        let (mut store, now) = root();
        if exists {
            write(&mut store, "k", &Write::Put(value("1"), Some(SECOND)), now).unwrap();
        }
        let ticket = store.queue_write("k", condition, now + LIMIT, 1);
        let turn = store.take_turn("k", ticket, now);
        assert_eq!(turn.err(), refused.map(Refusal::Condition), "{condition:?} {exists}");
        let (result, _) = finish(&mut store, "k", ticket, &change, now);
        assert_eq!(result.err(), refused.map(Refusal::Condition), "{condition:?} {exists}");
        let stands = if refused.is_none() { Some("2") } else { exists.then_some("1") };
        assert_eq!(read_entry(&mut store, now), stands.map(value), "{condition:?} {exists}");
    }
    // The entry ends while a holder is waited for.
    let (mut store, now) = root();
    write(&mut store, "k", &Write::Put(value("1"), Some(SECOND)), now).unwrap();
    let ticket = store.queue_write("k", Present, now + LIMIT, 1);
    assert!(store.take_turn("k", ticket, now).is_ok());
    let (result, _) = finish(&mut store, "k", ticket, &change, now + SECOND);
    assert_eq!(result, Err(Refusal::Condition("the key does not exist")));
    // A refused writer hands the ban on.
    let mut queue = |condition, who| store.queue_write("k", condition, now + LIMIT, who);
    let (first, second) = (queue(Present, 1), queue(Absent, 2));
    assert!(matches!(store.take_turn("k", first, now + SECOND), Err(Refusal::Condition(_))));
    assert_eq!(store.abandon("k", first), [2]);
    assert!(store.take_turn("k", second, now + SECOND).is_ok());
}

/// A root whose entries are kept on disk, which has waited for its former selves.
fn durable_root(max_bytes: usize) -> (Store<u64>, Instant) {
    let (mut store, now) = store_of(true, max_bytes);
    store.be_durable(now, LEASE);
    (store, now)
}

/// Decides a write that nobody has to be told of; it is not durable yet.
fn decide(store: &mut Store<u64>, key: &str, change: &Write, who: u64, now: Instant) -> u64 {
    let ticket = store.queue_write(key, Condition::None, now + LIMIT, who);
    assert!(store.take_turn(key, ticket, now).is_ok());
    assert_eq!(store.finish_write(key, ticket, change, now), Err(WAIT));
    ticket
}

/// Makes all durable that is decided; who is woken by that.
fn commit(store: &mut Store<u64>, now: Instant) -> Vec<u64> {
    let batch = store.take_batch(now).expect("there is something to be committed");
    store.end_batch(batch)
}

#[test]
fn rule_12_nothing_is_seen_before_it_is_durable() {
    let (mut store, now) = durable_root(1 << 20);
    let first = decide(&mut store, "k", &Write::Put(value("1"), None), 1, now);
    let second = store.queue_write("k", Condition::None, now + LIMIT, 2);
    assert!(store.abandon("k", first).is_empty(), "what is decided is in nobody's hands any more");
    assert_eq!(store.finish_write("k", first, &Write::Delete, now), Err(WAIT));
    assert_eq!(grant(&mut store, 1, now), Leased::once(None), "the old value, and nothing is granted");
    let batch = store.take_batch(now).expect("one write");
    assert_eq!(batch.changes.len(), 1);
    assert_eq!(read_entry(&mut store, now), None);
    assert!(matches!(store.take_turn("k", second, now), Err(WAIT)));
    assert_eq!(store.end_batch(batch), [1, 2]);
    assert_eq!(read_entry(&mut store, now), Some(value("1")));
    assert_eq!(store.finish_write("k", first, &Write::Delete, now), Ok(None));
    assert!(store.take_batch(now).is_none());
}

#[test]
fn rule_12_room_is_reserved_for_what_is_decided() {
    let (mut store, now) = durable_root(2 * (ITEM_BYTES + 20));
    let long = Write::Put(value("\"much more than a number\""), None);
    decide(&mut store, "k", &long, 1, now);
    let ticket = store.queue_write("l", Condition::None, now + LIMIT, 2);
    let refused = finish(&mut store, "l", ticket, &long, now);
    assert!(matches!(refused, (Err(Refusal::Full(_)), None)), "{refused:?}");
    let held = store.gauges().bytes;
    commit(&mut store, now);
    assert_eq!((store.gauges().bytes, store.reserved_bytes), (held, 0));
}

#[test]
fn an_entry_ends_when_that_is_durable() {
    let (mut store, now) = durable_root(1 << 20);
    decide(&mut store, "k", &Write::Put(value("1"), Some(SECOND)), 1, now);
    commit(&mut store, now);
    let end = now + SECOND;
    assert!(store.take_batch(now + SECOND * 999 / 1000).is_none());
    // Whoever meets it waits; a write on a condition, too.
    assert_eq!(store.step_read(&mut reading(7), end), Step::Wait);
    let ticket = store.queue_write("k", Condition::Absent, end + LIMIT, 8);
    assert!(matches!(store.take_turn("k", ticket, end), Err(WAIT)));
    assert_eq!(store.finish_write("k", ticket, &Write::Delete, end), Err(WAIT));
    assert!(!store.sweep(end));
    assert_eq!(store.gauges().entries, 1);
    let batch = store.take_batch(end).expect("it has ended");
    assert_eq!((batch.changes.len(), batch.ended_until), (0, Some(end)));
    assert_eq!(store.end_batch(batch), [7, 8, 8]);
    let absent = Step::Answer(Leased::once(None), Source::Entry);
    assert_eq!(store.step_read(&mut reading(7), end), absent);
    assert!(store.take_turn("k", ticket, end).is_ok());
    // It is swept from the disk as well, but never behind a write of its key.
    store.sweep(end);
    assert_eq!(store.gauges().entries, 1);
    store.abandon("k", ticket);
    store.sweep(end);
    let batch = store.take_batch(end).expect("it is swept");
    assert!(matches!(&batch.changes[..], [Change { entry: None, ticket: None, .. }]), "{batch:?}");
}

#[test]
fn nothing_ends_while_a_root_is_young() {
    let (mut store, now) = store_of(true, 1 << 20);
    store.be_durable(now, 2 * LEASE);
    store.restore("k", value("1"), Some(now + SECOND)).unwrap();
    store.wait_for_leases(2 * LEASE, now);
    assert!(store.take_batch(now + 10 * SECOND).is_none());
    let step = Step::Answer(leased("1", Duration::ZERO), Source::Entry);
    assert_eq!(store.step_read(&mut reading(7), now + 10 * SECOND), step);
    let Some(Batch { ended_until, lease, .. }) = store.take_batch(now + 11 * SECOND) else {
        panic!("it is not young now")
    };
    assert_eq!(
        (ended_until, lease),
        (Some(now + 11 * SECOND), Some(LEASE)),
        "its own lease alone is outstanding from here on"
    );
}

#[test]
fn a_full_store_waits_for_the_end_of_what_has_ended() {
    let (mut store, now) = durable_root(ITEM_BYTES + 20);
    decide(&mut store, "k", &Write::Put(value("1"), Some(SECOND)), 1, now);
    commit(&mut store, now);
    let ticket = store.queue_write("l", Condition::None, now + LIMIT, 2);
    let put = Write::Put(value("2"), None);
    assert_eq!(store.finish_write("l", ticket, &put, now + SECOND), Err(WAIT));
    assert_eq!(commit(&mut store, now + SECOND), [2]);
    assert_eq!(store.finish_write("l", ticket, &put, now + SECOND), Err(WAIT));
    assert_eq!(commit(&mut store, now + SECOND), [2]);
    assert_eq!(store.list(now + SECOND).map(|(key, _)| key).collect::<Vec<_>>(), ["l"]);
}

#[test]
fn what_ends_at_once_is_dropped_in_slices_and_a_write_has_dropped_what_it_needs() {
    let number = 8 * SWEEP_ITEMS;
    let (mut store, now) = store_of(true, number * (ITEM_BYTES + 14));
    for key in 0..number {
        write(&mut store, &key.to_string(), &Write::Put(value("1"), Some(SECOND)), now).unwrap();
    }
    let end = now + SECOND;
    let dropped = |store: &mut Store<u64>, look: &mut dyn FnMut(&mut Store<u64>) -> bool| {
        let before = store.gauges().entries;
        let is_done = look(store);
        let dropped = before - store.gauges().entries.min(before);
        assert!(dropped <= SWEEP_ITEMS, "{dropped} in one hold of the lock");
        is_done
    };
    // It needs the room of some three slices.
    let long = Write::Put(value(&format!("\"{}\"", "x".repeat(5 * SWEEP_ITEMS * ITEM_BYTES / 2))), None);
    let ticket = store.queue_write("long", Condition::None, end + LIMIT, 1);
    let pause = Refusal::NotYet(Some(end + SLICE_PAUSE));
    let mut tries = 0;
    let mut finish = |store: &mut Store<u64>| {
        tries += 1;
        store.finish_write("long", ticket, &long, end).inspect_err(|refusal| assert_eq!(*refusal, pause)).is_ok()
    };
    while !dropped(&mut store, &mut finish) {}
    assert!(tries > 2 && store.gauges().entries > 4 * SWEEP_ITEMS, "{tries}, {:?}", store.gauges());
    while dropped(&mut store, &mut |store| store.sweep(end)) {}
    assert_eq!(store.gauges().entries, 1);
}

#[test]
fn more_on_disk_than_there_is_room_for_is_refused() {
    let (mut store, now) = durable_root(ITEM_BYTES + 20);
    store.restore("k", value("1"), None).unwrap();
    let refused = store.restore("l", value("1"), Some(now)).unwrap_err();
    let (bytes, allowed) = (store.gauges().bytes, ITEM_BYTES + 20);
    assert_eq!(refused, format!("over {bytes} bytes are there, {allowed} are allowed"));
}
