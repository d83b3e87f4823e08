//! Nodes that leave: no write waits for them, and no request of their clients is lost.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Raw, copy_path, try_call};
use crate::harness::{Folder, Node, Over, PROCESS_LIMIT, Process, Tree, load_alone, poll_until};

const LEASE: Duration = Duration::from_secs(2);

/// A tree with leases of that length, whose root has been young.
fn start_tree(depth: u32) -> Tree {
    let tree = Tree::start(depth, &[("LEASE_SECONDS", "2")]);
    tree.root().write("k", "1");
    tree
}

/// Fails the test if that write waits for anybody.
fn expect_quick_write(root: &Node, value: &str) {
    let (began, waits) = (Instant::now(), root.metric("silent_holder_waits_total"));
    root.write("k", value);
    assert_eq!(root.metric("silent_holder_waits_total"), waits);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

fn expect_between(shortest: Duration, longest: Duration, took: Duration, what: &str) {
    eprintln!("{what}: {took:.2?}");
    assert!((shortest..longest).contains(&took), "{what}: {took:?}");
}

#[test]
fn a_leaf_with_copies_leaves_when_no_write_can_wait_for_it() {
    let mut tree = start_tree(2);
    tree.leaf().expect_value("k", "1");
    let began = tree.leaf().process.begin_leaving();
    let leaf = tree.leaf();
    // Its clients are answered, from a copy and by what it fetches and does not keep.
    leaf.expect_value("k", "1");
    assert_eq!(leaf.metric("reads_total{from=\"copy\"}"), 1);
    for _ in 0..2 {
        leaf.get("/store/absent").expect_error(404, "Key not found");
    }
    assert_eq!((leaf.metric("fetches_sent_total"), leaf.metric("copies")), (3, 1));
    assert_eq!(tree.root().metric("grants_total"), 1);
    leaf.get("/health").expect_retry("NODE-3 is leaving");
    assert_eq!(leaf.get("/").json()["leaving"], true);
    // It can still be told, and its writes are passed on.
    expect_quick_write(tree.root(), "2");
    leaf.expect_value("k", "2");
    leaf.write("k", "3");
    let took = tree.nodes[2].expect_left(began);
    expect_between(LEASE * 9 / 10, LEASE * 11 / 10 + Duration::from_secs(2), took, "a leaf with a copy");
    expect_quick_write(tree.root(), "4");
}

#[test]
fn a_node_without_copies_leaves_at_once() {
    let mut tree = start_tree(2);
    expect_between(Duration::ZERO, Duration::from_secs(1), tree.nodes[2].leave(), "a leaf without copies");
    tree.nodes[1].process.signal("INT");
    let took = tree.nodes[1].expect_left(Instant::now());
    expect_between(Duration::ZERO, Duration::from_secs(1), took, "another, by SIGINT");
    expect_between(Duration::ZERO, Duration::from_secs(1), tree.nodes[0].leave(), "a root that has granted nothing");
}

#[test]
fn an_inner_node_with_holders_leaves_and_its_children_read_on() {
    let mut tree = start_tree(3);
    tree.node(4).expect_value("k", "1");
    let (inner, child) = (tree.node(2), tree.node(4));
    let began = inner.process.begin_leaving();
    // Whoever asks it is sent on at once, to the next ancestor.
    let refused = inner.call("GET", &copy_path(inner.run(), 5, 1, "http://127.0.0.1:9"), b"");
    refused.expect_retry("NODE-2 is leaving");
    child.get("/store/other").expect_error(404, "Key not found");
    assert_eq!((inner.metric("grants_total"), tree.root().metric("grants_total")), (1, 2));
    // Its holders are told through it.
    expect_quick_write(tree.root(), "2");
    assert_eq!(child.metric("invalidations_received_total"), 1);
    child.expect_value("k", "2");
    let took = tree.nodes[1].expect_left(began);
    expect_between(LEASE * 9 / 10, LEASE * 11 / 10 + Duration::from_secs(2), took, "an inner node with holders");
    expect_quick_write(tree.root(), "3");
    tree.node(4).expect_value("k", "3");
}

#[test]
fn a_root_leaves_when_nothing_is_outstanding_and_the_next_one_need_not_wait() {
    let folder = Folder::new("data");
    let mut tree = Tree::start(2, &[("LEASE_SECONDS", "2"), ("DATA_DIR", folder.path())]);
    tree.root().write("k", "1");
    tree.leaf().expect_value("k", "1");
    let began = tree.root().process.begin_leaving();
    let (root, other) = (tree.root(), tree.node(2));
    // Reads go on, and grant nothing.
    for node in [root, other, tree.leaf()] {
        node.expect_value("k", "1");
    }
    assert_eq!((root.metric("grants_total"), other.metric("copies")), (1, 0));
    root.get("/health").expect_retry("NODE-1 is leaving");
    root.put("k", "2").expect_retry("NODE-1 is leaving; not applied");
    other.delete("k").expect_retry("NODE-1 is leaving; not applied");
    // Others are as well as before.
    other.get("/health").expect(200, r#"{"status":"ok"}"#);
    let took = tree.nodes[0].expect_left(began);
    expect_between(LEASE * 9 / 10, LEASE * 11 / 10 + Duration::from_secs(2), took, "the root, with a holder");
    tree.nodes[0].restart();
    assert_eq!(tree.root().young_for_ms(), 0);
    tree.leaf().expect_value("k", "1");
    expect_quick_write(tree.root(), "2");

    // One that is killed is waited for, and so is one that leaves while it waits itself.
    tree.nodes[0].restart();
    assert!(tree.root().young_for_ms() > 1000);
    expect_between(Duration::ZERO, Duration::from_secs(1), tree.nodes[0].leave(), "a young root");
    tree.nodes[0].restart();
    assert!(tree.root().young_for_ms() > 1000);
}

#[test]
fn a_write_waits_for_a_root_that_left_and_came_back_without_its_disk() {
    let mut tree = start_tree(2);
    tree.leaf().expect_value("k", "1");
    tree.root().process.begin_leaving();
    let root = tree.root();
    let heard = || root.get("/nodes").json()["nodes"][2]["seconds_since_heard"].as_f64();
    let before = heard();
    poll_until(PROCESS_LIMIT, "the leaf has joined one that leaves", || heard() < before);
    tree.nodes[0].expect_left(Instant::now());
    tree.nodes[0].restart();
    assert!(tree.root().young_for_ms() > 1000);
    // The leaf may not have joined the new one yet, and what it knows of the old one's lease is nothing.
    tree.leaf().write("k", "2");
}

#[test]
fn without_its_root_a_node_leaves_at_once() {
    let mut tree = Tree::start(3, &[("LEASE_SECONDS", "60"), ("NEW_TREE", "")]);
    for id in [4, 6] {
        tree.node(id).get("/store/k").expect_error(404, "Key not found");
    }
    tree.nodes[0].kill();
    expect_between(Duration::ZERO, Duration::from_secs(3), tree.nodes[3].leave(), "a leaf whose root is dead");
    expect_between(Duration::ZERO, Duration::from_secs(3), tree.nodes[1].leave(), "an inner node whose root is dead");
    tree.nodes[0].restart();
    let node = tree.node(6);
    poll_until(PROCESS_LIMIT, "it has heard the new root", || node.metric("root_last_heard_seconds") == 0);
    node.get("/store/l").expect_error(404, "Key not found");
    // Nor is there anything to wait for when the root leaves as well.
    let began = tree.root().process.begin_leaving();
    expect_between(Duration::ZERO, Duration::from_secs(3), tree.nodes[5].leave(), "a leaf whose root leaves");
    tree.root().process.wait_for_log("leaving: ", 1);
    assert!(tree.nodes[0].process.is_alive() && began.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_second_signal_ends_a_node_at_once() {
    let mut root = Node::start(&[("TREE_DEPTH", "2"), ("LEASE_SECONDS", "60")]);
    let url = "http://127.0.0.1:9";
    let path = copy_path(root.run(), 2, 1, url);
    assert_eq!(root.call("GET", &path, b"").json()["lease_ms"], 60_000);
    let began = root.process.begin_leaving();
    // The same Ctrl-C may come twice.
    root.process.signal("INT");
    poll_until(PROCESS_LIMIT, "the next one is a second one", || began.elapsed() > Duration::from_millis(1200));
    root.process.expect_alive();
    root.process.signal("INT");
    let (code, _, log) = root.process.wait_for_end(Duration::from_secs(5));
    assert_eq!(code, Some(1), "{log}");
    assert!(log.ends_with("tree-cache: ended at once, by a second signal\n"), "{log}");
}

#[test]
fn what_is_in_hand_is_done_and_a_client_that_stalls_is_not_waited_for_long() {
    let mut tree = start_tree(2);
    let root_run = tree.root().run();
    // A holder that never answers, for whom a write waits.
    tree.root().call("GET", &copy_path(root_run, 2, 1, "http://127.0.0.1:9"), b"");
    let mut stalled = Raw::connect(tree.leaf().port).expect("it listens");
    stalled.send(b"PUT /store/s HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\n{").expect("it is taken");
    let mut kept = Raw::connect(tree.leaf().port).expect("it listens");
    kept.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").expect("it is taken");
    assert!(!kept.read_answer().expect("it answers").closes());
    let url = tree.leaf().url.clone();
    let (sender, written) = mpsc::channel();
    thread::spawn(move || sender.send(try_call("PUT", &format!("{url}/store/k"), &[], br#"{"value":2}"#)));
    let root = tree.root();
    poll_until(PROCESS_LIMIT, "the write waits", || root.metric("invalidations_sent_total") > 0);
    let began = tree.leaf().process.begin_leaving();
    let port = tree.leaf().port;
    poll_until(PROCESS_LIMIT, "new connections are refused", || Raw::connect(port).is_err());
    // On those that are there all is answered, with the word that they close.
    kept.send(b"GET /store/k HTTP/1.1\r\nHost: h\r\n\r\n").expect("it is taken");
    let answer = kept.read_answer().expect("it answers");
    assert!(answer.status == 200 && answer.closes(), "{answer:?}");
    let answer = written.recv().expect("it is answered").expect("it is answered");
    answer.expect(200, r#"{"key":"k","value":2}"#);
    let took = tree.nodes[2].expect_left(began);
    // A read may take five seconds, and one more.
    expect_between(Duration::from_secs(6), Duration::from_secs(9), took, "a leaf with a client that stalls");
}

#[test]
fn a_root_waits_for_one_that_leaves() {
    let mut first = Node::start(&[("TREE_DEPTH", "2"), ("LEASE_SECONDS", "2")]);
    first.call("GET", &copy_path(first.run(), 2, 1, "http://127.0.0.1:9"), b"");
    let began = first.process.begin_leaving();
    // Its own name still leads to the first.
    let env = [("TREE_DEPTH", "2"), ("API_PORT", "0"), ("NODE_ID", "1"), ("ROOT_URL", &first.url)];
    let second = Process::spawn(&[], &env);
    let second = Node::wait_for_place(second, &env);
    assert!(began.elapsed() > LEASE / 2, "{:?}", began.elapsed());
    first.expect_left(began);
    second.get("/store/k").expect_error(404, "Key not found");
}

/// What clients have seen of a rolling restart.
#[derive(Debug, Default)]
struct Seen {
    calls: u64,
    writes: u64,
    /// No connection, or one that broke: the same was asked elsewhere.
    retries: u64,
    failures: Vec<String>,
    slowest_read: Duration,
    slowest_write: Duration,
    /// Writes that the root's own restart has touched, and those of them that failed.
    at_root: u64,
    refused_at_root: u64,
}

/// Reads and writes at one node, and where it refuses or breaks the connection at the next one.
fn be_client(urls: &[String], number: usize, over: &AtomicBool, root_restarts: &AtomicU64) -> Seen {
    let agent = ureq::Agent::config_builder().proxy(None).http_status_as_error(false).build().new_agent();
    let mut seen = Seen::default();
    while !over.load(Ordering::SeqCst) {
        seen.calls += 1;
        let writes = seen.calls % 10 == 0;
        let path = format!("/store/k{}", seen.calls % 19);
        let (began, before) = (Instant::now(), root_restarts.load(Ordering::SeqCst));
        let mut tries = (number..number + urls.len()).map(|node| {
            let url = format!("{}{path}", urls[node % urls.len()]);
            let answer = if writes { agent.put(&url).send(r#"{"value":1}"#) } else { agent.get(&url).call() };
            answer.map(|mut answer| (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap_or_default()))
        });
        let answer = tries.find(|answer| {
            answer.is_ok() || {
                seen.retries += 1;
                false
            }
        });
        let took = began.elapsed();
        let failure = match answer {
            Some(Ok((200, _))) => None,
            other => Some(format!("{} {path}: {other:?}", if writes { "PUT" } else { "GET" })),
        };
        seen.writes += u64::from(writes);
        // Odd while it restarts.
        if writes && (before % 2 == 1 || root_restarts.load(Ordering::SeqCst) != before) {
            seen.at_root += 1;
            seen.refused_at_root += u64::from(failure.is_some());
            continue;
        }
        seen.failures.extend(failure);
        let slowest = if writes { &mut seen.slowest_write } else { &mut seen.slowest_read };
        *slowest = took.max(*slowest);
    }
    seen
}

#[test]
fn a_rolling_restart_under_load_is_not_felt_but_for_the_roots_own() {
    let _alone = load_alone();
    let lease = std::env::var("ROLLING_LEASE").unwrap_or_else(|_| "2".to_owned());
    let folder = Folder::new("data");
    let mut tree = Tree::start(3, &[("LEASE_SECONDS", &lease), ("DATA_DIR", folder.path())]);
    let urls: Vec<String> = tree.nodes.iter().map(|node| node.url.clone()).collect();
    for key in 0..19 {
        tree.root().write(&format!("k{key}"), "1");
    }
    let (over, root_restarts) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut at_root = Duration::ZERO;
    // On a busy machine one that lives may be slow, so only that one counts which has just left.
    let waits = |root: &Node, id: usize| root.process.log().matches(&format!("waited for NODE-{id} at")).count();
    let all = thread::scope(|scope| {
        let start = |number| {
            scope.spawn({
                let (urls, over, root_restarts) = (&urls, &over, &root_restarts);
                move || be_client(urls, number, over, root_restarts)
            })
        };
        let clients: Vec<_> = (0..14).map(start).collect();
        let over = Over(&over);
        let mut last = (7, 0);
        for id in [7, 6, 5, 4, 3, 2, 1] {
            let began = Instant::now();
            let before = (id, waits(tree.root(), id));
            root_restarts.fetch_add(u64::from(id == 1), Ordering::SeqCst);
            let left = tree.nodes[id - 1].leave();
            tree.nodes[id - 1].restart();
            if id > 1 {
                let (left, waits_before) = std::mem::replace(&mut last, before);
                assert_eq!(waits(tree.root(), left), waits_before, "no write waits for NODE-{left}, which has left");
            } else {
                tree.root().write("k0", "1");
                at_root = began.elapsed();
                root_restarts.fetch_add(1, Ordering::SeqCst);
            }
            eprintln!("NODE-{id} left in {left:.2?} and was back after {:.2?}", began.elapsed());
        }
        thread::sleep(Duration::from_secs(1));
        drop(over);
        clients.into_iter().map(|client| client.join().expect("a client goes on")).collect::<Vec<_>>()
    });
    let sum = |field: fn(&Seen) -> u64| all.iter().map(field).sum::<u64>();
    let longest = |field: fn(&Seen) -> Duration| all.iter().map(field).max().expect("there are clients");
    let failures: Vec<_> = all.iter().flat_map(|seen| &seen.failures).collect();
    let (slowest_read, slowest_write) = (longest(|seen| seen.slowest_read), longest(|seen| seen.slowest_write));
    eprintln!(
        "{} calls, {} of them writes, {} asked again elsewhere; {} failed; the slowest read took {slowest_read:.2?}, the slowest \
         write {slowest_write:.2?}. At the root's own restart, of {at_root:.2?}, {} of {} writes were refused",
        sum(|seen| seen.calls),
        sum(|seen| seen.writes),
        sum(|seen| seen.retries),
        failures.len(),
        sum(|seen| seen.refused_at_root),
        sum(|seen| seen.at_root),
    );
    assert!(failures.is_empty(), "{} failed: {:?}", failures.len(), &failures[..failures.len().min(5)]);
    assert!(!tree.root().process.log().contains("no write finishes"), "nor for the leases of the root before");
    assert!(sum(|seen| seen.writes) > 500, "there must be a load");
}
