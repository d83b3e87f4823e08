//! The records of a node, rule by rule.

use super::*;

const LEASE: Duration = Duration::from_secs(5);
const ROOM: (bool, usize) = (false, usize::MAX);

fn holder(number: u64) -> Holder {
    Holder { name: format!("NODE-{number}"), url: format!("http://h:{number}"), run: number }
}

#[test]
fn a_record_ends_a_tenth_after_the_lease() {
    let (mut holders, now) = (Holders::default(), Instant::now());
    assert_eq!(holders.grant("k", &holder(1), LEASE, ROOM, now), LEASE);
    assert_eq!(holders.list("k", now)[0].ends, now + LEASE * 11 / 10);
    assert_eq!(holders.list("k", now + LEASE * 11 / 10).len(), 0);
    assert_eq!(holders.list("other", now).len(), 0);
    let odd = Duration::from_micros(1999);
    assert_eq!(holders.grant("k", &holder(2), odd, ROOM, now), Duration::from_millis(1), "as it travels");
    assert_eq!(holders.grant("k", &holder(3), odd / 2, ROOM, now), Duration::ZERO);
    assert_eq!(holders.count(), 2, "what is not granted is not recorded");
}

#[test]
fn rule_1_a_record_is_only_ever_extended() {
    let (mut holders, now) = (Holders::default(), Instant::now());
    holders.grant("k", &holder(1), LEASE, ROOM, now);
    holders.grant("k", &holder(1), LEASE / 5, ROOM, now);
    assert_eq!(holders.list("k", now)[0].ends, now + LEASE * 11 / 10);
    holders.grant("k", &holder(1), LEASE, ROOM, now + LEASE);
    assert_eq!(holders.list("k", now)[0].ends, now + LEASE + LEASE * 11 / 10);
    assert_eq!(holders.count(), 1);
}

#[test]
fn rule_7_an_acknowledgement_forgets_no_later_grant() {
    let (mut holders, now) = (Holders::default(), Instant::now());
    holders.grant("k", &holder(1), LEASE, ROOM, now);
    let (first, second) = (holders.list("k", now).remove(0), holders.list("k", now).remove(0));
    holders.drop_record("k", first.number);
    assert_eq!(holders.count(), 0);
    // The same lease at the same moment: only the number tells it from the first.
    holders.grant("k", &holder(1), LEASE, ROOM, now);
    holders.drop_record("k", second.number);
    assert_eq!(holders.list("k", now).len(), 1);
}

#[test]
fn rule_6_a_silent_holder_is_granted_nothing_for_a_while() {
    let (mut holders, now) = (Holders::default(), Instant::now());
    holders.grant("k", &holder(1), LEASE, ROOM, now);
    let record = holders.list("k", now).remove(0);
    holders.note_silence(&record, now + LEASE);
    assert_eq!(holders.grant("other", &holder(1), LEASE, ROOM, now), Duration::ZERO);
    let restarted = Holder { run: 2, ..holder(1) };
    assert_eq!(holders.grant("other", &restarted, LEASE, ROOM, now), LEASE, "another run is another holder");
    assert_eq!(holders.grant("other", &holder(1), LEASE, ROOM, now + LEASE), LEASE);
}

#[test]
fn records_are_counted_bounded_and_swept() {
    let (mut holders, now) = (Holders::default(), Instant::now());
    for number in 0..10 {
        holders.grant("k", &holder(number), LEASE, ROOM, now);
    }
    let bytes = holders.bytes;
    assert_eq!(bytes, 10 * record_bytes("k", &holder(0)));
    assert_eq!(
        holders.grant("k", &holder(10), LEASE, (false, record_bytes("k", &holder(10)) - 1), now),
        Duration::ZERO
    );
    assert_eq!(holders.grant("k", &holder(9), LEASE, (false, 0), now), LEASE, "extending one takes no room");
    assert!(!holders.sweep(now + LEASE, 100), "nothing has ended");
    assert_eq!((holders.count(), holders.bytes), (10, bytes));
    assert!(holders.sweep(now + 2 * LEASE, 1), "more is due");
    assert!(!holders.sweep(now + 2 * LEASE, 100));
    assert_eq!((holders.count(), holders.bytes, holders.known.len()), (0, 0, 0));
}
