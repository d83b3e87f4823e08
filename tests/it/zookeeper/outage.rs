//! What becomes of ZooKeeper is not felt by those who read and write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::server::{Server, all, expect_lines, standing, wait_for_standing};
use crate::client::try_call;
use crate::harness::{Node, Tree, poll_until};
use crate::relay::Relay;

/// No answer may take longer. All waits for ZooKeeper are longer, so any of them would show; what is
/// left is room for a busy machine, for without it an answer takes a few milliseconds.
const ANSWER_LIMIT: Duration = Duration::from_millis(1500);

/// A client that writes at one leaf and reads at another, one after the other, until it is stopped.
struct Load {
    stopped: Arc<AtomicBool>,
    thread: JoinHandle<(u32, Duration)>,
}

impl Load {
    fn start(tree: &Tree) -> Self {
        let stopped = Arc::<AtomicBool>::default();
        let (writes, reads) = (tree.node(7).url.clone(), tree.node(4).url.clone());
        let until = Arc::clone(&stopped);
        let work = move || {
            let (mut rounds, mut slowest) = (0, Duration::ZERO);
            while !until.load(Ordering::Relaxed) {
                let key = rounds % 20;
                for (method, url, body, expected) in [
                    (
                        "PUT",
                        &writes,
                        format!(r#"{{"value":{rounds}}}"#),
                        format!(r#"{{"key":"k{key}","value":{rounds}}}"#),
                    ),
                    ("GET", &reads, String::new(), format!(r#"{{"value":{rounds}}}"#)),
                ] {
                    let asked = Instant::now();
                    let answer = try_call(method, &format!("{url}/store/k{key}"), &[], body.as_bytes());
                    slowest = slowest.max(asked.elapsed());
                    answer.expect("an answer").expect(200, &expected);
                }
                rounds += 1;
            }
            (rounds, slowest)
        };
        Self { stopped, thread: thread::spawn(work) }
    }

    /// Stops, and fails the test if an answer was slow.
    fn expect_good(self) {
        self.stopped.store(true, Ordering::Relaxed);
        let (rounds, slowest) = self.thread.join().expect("every answer was right");
        println!("{rounds} writes and reads, the slowest {slowest:?}");
        assert!(rounds > 20 && slowest < ANSWER_LIMIT, "{rounds} rounds, the slowest took {slowest:?}");
    }
}

fn start_tree(server: &Server) -> Tree {
    Tree::start(3, &[("ZOOKEEPER", &server.address()), ("LEASE_SECONDS", "1")])
}

/// The root finishes no write in its first seconds; after this one it does.
fn expect_writable(tree: &Tree) {
    tree.root().write("first", "1");
}

/// Seven registered nodes under load; `happen` is what happens to ZooKeeper, and ends when it serves again.
fn outage(settings: &'static str, happen: impl FnOnce(&mut Server, &Tree)) {
    let mut server = Server::new(settings);
    server.run();
    let tree = start_tree(&server);
    expect_writable(&tree);
    wait_for_standing(&all(&tree), "registered");
    let load = Load::start(&tree);
    happen(&mut server, &tree);
    let back = Instant::now();
    wait_for_standing(&all(&tree), "registered");
    println!("all registered again after {:?}", back.elapsed());
    load.expect_good();
    server.expect_tree(&all(&tree));
    for node in &tree.nodes {
        expect_lines(node, "registered in ZooKeeper at ", 2);
        expect_lines(node, "not registered in ZooKeeper", 1);
        expect_lines(node, "ERROR", 0);
        expect_one_session(node);
    }
}

/// A session that was given up on must not live on beside the new one. Each has a thread of ours and three of
/// the client.
fn expect_one_session(node: &Node) {
    poll_until(Duration::from_secs(5), "one session's threads", || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", node.process.id())).expect("it lives");
        let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let mut names: Vec<_> = tasks
            .flatten()
            .map(name)
            .filter(|name| ["event\n", "io\n", "zookeeper\n"].contains(&name.as_str()))
            .collect();
        names.sort_unstable();
        names == ["event\n", "io\n", "io\n", "zookeeper\n"]
    });
}

/// Lets `length` pass from now on, once all nodes have noticed.
fn stay_away(tree: &Tree, length: Duration) {
    let begin = Instant::now();
    wait_for_standing(&all(tree), "not registered");
    poll_until(length, "the end of the outage", || begin.elapsed() + Duration::from_millis(20) > length);
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn a_zookeeper_killed_for_three_seconds_is_not_felt() {
    outage("", |server, tree| {
        server.kill();
        stay_away(tree, Duration::from_secs(3));
        server.run();
    });
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn a_zookeeper_killed_for_longer_than_its_sessions_is_not_felt() {
    outage("maxSessionTimeout=2000", |server, tree| {
        server.kill();
        stay_away(tree, Duration::from_secs(8));
        server.run();
    });
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn a_zookeeper_that_hangs_for_twelve_seconds_is_not_felt() {
    outage("", |server, tree| {
        server.pause();
        stay_away(tree, Duration::from_secs(12));
        server.resume();
    });
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn a_zookeeper_that_comes_back_empty_is_not_felt() {
    outage("", |server, tree| {
        server.kill();
        stay_away(tree, Duration::from_secs(1));
        server.wipe();
        server.run();
    });
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn a_zookeeper_that_is_absent_at_the_start_is_not_felt() {
    let mut server = Server::new("");
    let tree = start_tree(&server);
    expect_writable(&tree);
    let load = Load::start(&tree);
    wait_for_standing(&all(&tree), "not registered");
    expect_lines(tree.root(), "starting without the tree that ZooKeeper may have", 1);
    server.run();
    wait_for_standing(&all(&tree), "registered");
    load.expect_good();
    server.expect_tree(&all(&tree));
    for node in &tree.nodes {
        expect_lines(node, "not registered in ZooKeeper", 1);
    }
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn a_zookeeper_that_is_lost_costs_no_processor_time() {
    let mut server = Server::start();
    let node = Node::start(&[("TREE_DEPTH", "1"), ("ZOOKEEPER", &server.address())]);
    // At once: a young session is the one that the client would try to save, 17,000 times a second.
    wait_for_standing(&[&node], "registered");
    server.kill();
    let begin = (Instant::now(), processor_ticks(&node));
    let length = Duration::from_secs(8);
    poll_until(length + length, "eight seconds", || begin.0.elapsed() > length);
    let ticks = processor_ticks(&node) - begin.1;
    assert!(ticks < 50, "{ticks} hundredths of a second in {length:?}");
    assert_eq!(standing(&node), "not registered");
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn a_connection_to_zookeeper_that_is_cut_without_a_word_is_replaced() {
    let server = Server::start();
    let relay = Relay::start(server.port);
    let address = format!("127.0.0.1:{}", relay.port);
    let node = Node::start(&[("TREE_DEPTH", "1"), ("ZOOKEEPER", &address)]);
    wait_for_standing(&[&node], "registered");
    relay.cut();
    wait_for_standing(&[&node], "not registered");
    expect_lines(&node, "not registered in ZooKeeper, trying again and again: no answer within 8 s", 1);
    wait_for_standing(&[&node], "registered");
    server.expect_tree(&[&node]);
}

/// The processor time of a node so far, in hundredths of a second.
fn processor_ticks(node: &Node) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.process.id())).expect("it lives");
    let (_, fields) = stat.rsplit_once(')').expect("its name is in parentheses");
    let fields: Vec<u64> = fields.split(' ').skip(12).take(2).map(|field| field.parse().expect("a number")).collect();
    fields.iter().sum()
}
