//! Clients on every node read and write a few keys while nodes are killed, paused and restarted; what
//! they saw must be linearizable. `make soak` runs it for longer.
//!
//! Every written value is different, so linearizability can be decided in one pass over *zones*
//! (Gibbons and Korach, "Testing shared memories", 1997): each value's operations span a zone from the
//! first end to the last beginning. Where the first end comes earlier, the value must have stood all
//! that time: two such zones must not overlap, nor must one contain the whole zone of another value.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Folder, Node, Over, Tree};
use crate::random::Random;

const KEYS: u64 = 3;

/// An operation that took effect, or may have.
#[derive(Debug, Clone)]
struct Operation {
    key: u64,
    /// 0 stands for "not there": what was before all writes.
    value: u64,
    writes: bool,
    began: Duration,
    /// Never, for a write whose outcome is unknown.
    ended: Duration,
}

const NEVER: Duration = Duration::MAX;

/// What is wrong with a history of one key, if anything.
fn find_violation(history: &[Operation]) -> Option<String> {
    let before_all = Operation { key: 0, value: 0, writes: true, began: Duration::ZERO, ended: Duration::ZERO };
    let mut values: HashMap<u64, Vec<&Operation>> = HashMap::from([(0, vec![&before_all])]);
    for operation in history {
        values.entry(operation.value).or_default().push(operation);
    }
    // (first end, last beginning, value)
    let mut zones = Vec::new();
    for (value, operations) in values {
        let Some(write) = operations.iter().find(|operation| operation.writes) else {
            return Some(format!("value {value} was read and never written"));
        };
        if operations.iter().any(|operation| operation.ended < write.began) {
            return Some(format!("value {value} was read before it was written"));
        }
        let first_end = operations.iter().map(|operation| operation.ended).min()?;
        let last_beginning = operations.iter().map(|operation| operation.began).max()?;
        zones.push((first_end, last_beginning, value));
    }
    zones.sort_unstable();
    let (stood, passed): (Vec<_>, Vec<_>) = zones.into_iter().partition(|(first_end, last, _)| first_end < last);
    if let Some([one, other]) = stood.array_windows().find(|[one, other]| other.0 < one.1) {
        return Some(format!("{one:?} and {other:?} both stood at once"));
    }
    passed.into_iter().find_map(|(first_end, last_beginning, value)| {
        // They are in order and do not overlap, so only one can be around it.
        let before = stood.partition_point(|zone| zone.0 < last_beginning);
        let around = stood[..before].last().filter(|zone| first_end < zone.1)?;
        Some(format!("value {value} was seen from {last_beginning:?} to {first_end:?}, while {around:?} stood"))
    })
}

/// One client of one node, until the end.
fn be_client(url: &str, seed: u64, started: Instant, over: &AtomicBool, last_value: &AtomicU64) -> Vec<Operation> {
    let agent = ureq::Agent::config_builder()
        .proxy(None)
        .http_status_as_error(false)
        .timeout_recv_response(Some(Duration::from_secs(10)))
        .build()
        .new_agent();
    let (mut random, mut history) = (Random(seed), Vec::new());
    while !over.load(Ordering::Relaxed) {
        let (key, writes) = (random.below(KEYS), random.below(10) == 0);
        let url = format!("{url}/store/k{key}");
        let mut value = 0;
        let began = started.elapsed();
        let result = if writes {
            value = last_value.fetch_add(1, Ordering::Relaxed) + 1;
            agent.put(&url).send(format!(r#"{{"value":{value}}}"#))
        } else {
            agent.get(&url).call()
        };
        let status = result.as_ref().map_or(0, |response| response.status().as_u16());
        let body = result.ok().and_then(|mut response| response.body_mut().read_to_string().ok()).unwrap_or_default();
        let ended = started.elapsed();
        match status {
            200 if !writes => {
                let text = body.trim_start_matches(r#"{"value":"#).trim_end_matches('}');
                value = text.parse().unwrap_or_else(|_| panic!("unexpected answer {body:?}"));
                history.push(Operation { key, value, writes, began, ended });
            }
            404 if !writes => history.push(Operation { key, value, writes, began, ended }),
            200 => history.push(Operation { key, value, writes, began, ended }),
            // It may stand or not, now or later: it never ended.
            _ if writes => history.push(Operation { key, value, writes, began, ended: NEVER }),
            _ => thread::sleep(Duration::from_millis(20)),
        }
    }
    history
}

/// How often nodes were killed, were paused and left, and how often that was the root.
#[derive(Debug, Default)]
struct Faults {
    kills: u32,
    pauses: u32,
    leaves: u32,
    of_the_root: u32,
}

/// Kills, pauses or has leave, and restarts, one node after another, for that time. Says ten times what the root takes: in a long run
/// none of it may grow.
fn be_chaos(nodes: &mut [Node], seed: u64, time: Duration) -> Faults {
    let (mut random, mut faults, mut tenth) = (Random(seed), Faults::default(), 1);
    let started = Instant::now();
    let mut rest = |longest_ms| {
        let left = time.saturating_sub(started.elapsed());
        thread::sleep(Duration::from_millis(random.below(longest_ms)).min(left));
        random.below(1000)
    };
    while started.elapsed() < time {
        let chosen = usize::try_from(rest(500)).expect("it is small") % nodes.len();
        // The root early, for a short run.
        let chosen = if faults.kills + faults.pauses == 1 { 0 } else { chosen };
        let node = &mut nodes[chosen];
        match rest(100) % 3 {
            0 => {
                node.kill();
                rest(1000);
                node.restart();
                faults.kills += 1;
            }
            1 => {
                node.leave();
                node.restart();
                faults.leaves += 1;
            }
            _ => {
                node.pause();
                rest(2500);
                node.resume();
                faults.pauses += 1;
            }
        }
        faults.of_the_root += u32::from(chosen == 0);
        if started.elapsed() > time * tenth / 10 {
            let (root, at) = (&nodes[0].process, started.elapsed().as_secs());
            let (threads, descriptors) = (root.entries_of("task"), root.entries_of("fd"));
            println!("after {at} s the root has {} kB, {threads} threads, {descriptors} descriptors", root.memory_kb());
            tenth += 1;
        }
    }
    faults
}

#[test]
fn no_client_sees_the_past_while_nodes_are_killed_paused_and_restarted() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(10, |text| text.parse().expect("SOAK_SECONDS is a number"));
    let folder = Folder::new("data");
    let mut tree = Tree::start(3, &[("LEASE_SECONDS", "1"), ("DATA_DIR", folder.path())]);
    let urls: Vec<String> = tree.nodes.iter().map(|node| node.url.clone()).collect();
    let (started, over, last_value) = (Instant::now(), AtomicBool::new(false), AtomicU64::new(0));
    let seed = u64::from(std::process::id()) + 1;
    let (history, Faults { kills, pauses, leaves, of_the_root }) = thread::scope(|scope| {
        let clients: Vec<_> = urls
            .iter()
            .zip(1..)
            .map(|(url, number)| {
                let (over, last_value) = (&over, &last_value);
                scope.spawn(move || be_client(url, seed * 100 + number, started, over, last_value))
            })
            .collect();
        let over = Over(&over);
        let faults = be_chaos(&mut tree.nodes, seed, Duration::from_secs(seconds));
        drop(over);
        let histories = clients.into_iter().map(|client| client.join().expect("a client goes on to the end"));
        (histories.flatten().collect::<Vec<_>>(), faults)
    });
    let writes = history.iter().filter(|operation| operation.writes).count();
    let unknown = history.iter().filter(|operation| operation.ended == NEVER).count();
    println!(
        "{} reads, {writes} writes ({unknown} with an unknown outcome), {kills} kills, {pauses} pauses and {leaves} times \
         that a node left, {of_the_root} of them the root's, in {seconds} s",
        history.len() - writes
    );
    for key in 0..KEYS {
        let of_key: Vec<Operation> = history.iter().filter(|operation| operation.key == key).cloned().collect();
        assert_eq!(find_violation(&of_key), None, "key {key}, seed {seed}");
    }
    println!("linearizable");
    assert!(writes > unknown && kills + pauses > 0, "something must have happened");
    let from_copy: u64 = tree.nodes.iter().map(|node| node.metric("reads_total{from=\"copy\"}")).sum();
    assert!(from_copy > 0, "copies were read");
}

#[test]
fn the_check_finds_what_is_not_linearizable() {
    let operation = |value, writes, began, ended| {
        let [began, ended] = [began, ended].map(Duration::from_secs);
        Operation { key: 0, value, writes, began, ended }
    };
    let (write, read) = (|v, b, e| operation(v, true, b, e), |v, b, e| operation(v, false, b, e));
    let fine = [write(1, 1, 4), read(0, 2, 3), read(1, 2, 3), read(1, 5, 6), write(2, 5, 9), read(2, 6, 7)];
    assert_eq!(find_violation(&fine), None);
    let stale = [&fine[..], &[read(1, 8, 9)]].concat();
    assert!(find_violation(&stale).is_some(), "2 had been read before 1 was asked for");
    assert!(find_violation(&[write(1, 1, 2), read(0, 3, 4)]).is_some(), "1 was acknowledged");
    assert!(find_violation(&[read(7, 1, 2)]).is_some(), "from nowhere");
    assert!(find_violation(&[read(1, 1, 2), write(1, 3, 4)]).is_some(), "from the future");
    let lost = Operation { ended: NEVER, ..write(1, 1, 1) };
    assert_eq!(find_violation(&[lost.clone(), read(0, 2, 3)]), None, "it need not stand");
    assert_eq!(find_violation(&[lost.clone(), read(1, 2, 3)]), None, "it may");
    assert!(find_violation(&[lost, read(1, 2, 3), read(0, 4, 5)]).is_some(), "but not come and go");
}
