//! To the run, and in time: what strangers on a node's port, other roots and late packets could do.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Folder, Node, PROCESS_LIMIT, Tree, poll_until};
use crate::impostor::{Stranger, answer};
use crate::network::Network;

#[test]
fn fifty_reads_of_an_absent_key_cost_one_fetch_and_all_see_it_created() {
    let tree = Tree::start(3, &[("LEASE_SECONDS", "4")]);
    // When it has been young.
    tree.root().write("other", "1");
    for node in [tree.node(4), tree.node(5)] {
        for _ in 0..50 {
            node.get("/store/k").expect_error(404, "Key not found");
        }
        assert_eq!(node.metric("fetches_sent_total"), 1);
    }
    assert_eq!((tree.node(2).metric("fetches_sent_total"), tree.root().metric("grants_total")), (1, 1));
    tree.node(7).write("k", "1");
    for node in &tree.nodes {
        node.expect_value("k", "1");
    }
    tree.node(6).delete("k").expect(200, r#"{"key":"k"}"#);
    for node in &tree.nodes {
        node.get("/store/k").expect_error(404, "Key not found");
    }
    assert_eq!(tree.root().metric("silent_holder_waits_total"), 0);
}

#[test]
fn another_tree_on_a_dead_nodes_port_answers_for_nobody() {
    let mut tree = Tree::start(3, &[]);
    tree.root().write("k", "1");
    let start_other = |port: u16| {
        let other = Node::start(&[("TREE_DEPTH", "1"), ("API_PORT", &port.to_string())]);
        other.write("k", "\"of another tree\"");
        other
    };
    tree.nodes[1].kill();
    let _other = start_other(tree.node(2).port);
    for id in [4, 5] {
        tree.node(id).expect_value("k", "1");
        tree.node(id).write("k", "1");
    }

    tree.nodes[0].kill();
    let other = start_other(tree.root().port);
    let leaf = tree.leaf();
    poll_until(PROCESS_LIMIT, "its copies have ended", || leaf.get("/store").text() == "{}");
    for _ in 0..3 {
        let (read, written) = (leaf.get("/store/k"), leaf.put("k", "2"));
        assert_eq!((read.status, written.status), (503, 503), "{}", read.text());
        let detail = written.detail();
        assert!(detail.ends_with("; it was not applied"), "{detail}");
    }
    other.expect_value("k", "\"of another tree\"");
    assert_eq!(other.metric("writes_total"), 1);
}

#[test]
fn a_root_that_comes_back_otherwise_lets_nobody_read_the_past() {
    const TOKEN: (&str, &str) = ("TREE_TOKEN", "s3cret");
    for other in [("TREE_TOKEN", "another"), ("TREE_DEPTH", "1"), ("TREE_TOKEN_FILE", "")] {
        let mut tree = Tree::start(2, &[("LEASE_SECONDS", "3"), TOKEN]);
        tree.root().write("k", "1");
        tree.leaf().expect_value("k", "1");
        let port = tree.root().port.to_string();
        tree.nodes[0].kill();
        let mut env = vec![("LEASE_SECONDS", "3"), ("TREE_DEPTH", "2"), ("API_PORT", port.as_str()), TOKEN];
        // With none at all, for an empty file is none.
        env.retain(|(name, _)| *name != other.0 && (*name != TOKEN.0 || other.0 == "TREE_DEPTH"));
        env.push(other);
        tree.nodes[0] = Node::start(&env);
        let young_for_ms = tree.root().young_for_ms();
        assert!((2000..=3300).contains(&young_for_ms), "{young_for_ms}");
        // It knows nothing of the copy that the leaf still answers.
        tree.root().write("k", "2");
        let read = tree.leaf().get("/store/k");
        assert!(read.text() != r#"{"value":1}"#, "{other:?}: {}", read.text());
        assert_eq!(tree.root().young_for_ms(), 0);
    }
}

#[test]
fn a_write_that_cannot_wait_for_a_young_root_is_refused_at_once() {
    // What a node says that it holds of another root's, this one waits for.
    let root = Node::start(&[("TREE_DEPTH", "2")]);
    let join = serde_json::json!({
        "protocol": 3, "id": 2, "run": 1, "url": "http://127.0.0.1:9", "position": 1, "root": 7, "holds_ms": 60_000,
    });
    root.call("POST", "/nodes", join.to_string().as_bytes()).expect_retry("cannot reach you at http://127.0.0.1:9");
    let begun = Instant::now();
    root.put("k", "1").expect_retry("this root is too young to finish a write in its time; not applied");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let young_for_ms = root.young_for_ms();
    assert!((60_000..=66_000).contains(&young_for_ms), "{young_for_ms}");
    root.get("/store/k").expect_error(404, "Key not found");
}

#[test]
fn a_write_that_comes_too_late_is_refused() {
    let root = Node::alone();
    root.write("k", "1");
    let via = [("Via", "1.1 NODE-2")];
    let put = |query: &str| root.call_with("PUT", &format!("/store/k?{query}"), &via, br#"{"value":2}"#);
    let run = root.run();
    put(&format!("to={run}&until_ms=1")).expect_retry("too late; not applied");
    let refused = format!("NODE-1 is run {run} now, and not {}", run + 1);
    put(&format!("to={}&until_ms=9999999", run + 1)).expect_error(409, &refused);
    root.expect_value("k", "1");
    put(&format!("to={run}&until_ms=9999999")).expect(200, r#"{"key":"k","value":2}"#);
    // What only a node may say is nothing to a client.
    let answer = root.call("PUT", "/store/k?to=1&until_ms=1", br#"{"value":3}"#);
    answer.expect(200, r#"{"key":"k","value":3}"#);
    assert_eq!(answer.header("tree-cache-run"), Some(run.to_string().as_str()));
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_write_that_was_given_up_on_in_a_cut_is_not_applied_when_it_heals() {
    let seconds = std::env::var("CUT_SECONDS").map_or(12, |text| text.parse().expect("CUT_SECONDS is a number"));
    let network = Network::new(2);
    let _root = network.start(1, &[]);
    let _leaf = network.start(2, &[]);
    network.put(2, "k", 1).expect_put("k", 1);
    network.cut(1, 2);
    let cut = Instant::now();
    let told = network.put(2, "k", 2);
    let text = &told.text;
    assert!(text.contains("no answer within") && text.contains("whether it was applied is unknown"), "{told:?}");
    // Now or never: its time is over.
    network.put(1, "k", 3).expect_put("k", 3);
    std::thread::sleep(Duration::from_secs(seconds).saturating_sub(cut.elapsed()));
    network.mend(1, 2);
    let metrics = || network.ask(1, "GET", "/metrics", "").text;
    let came = || metrics().contains("tree_cache_refused_total{status=\"503\"} 1");
    poll_until(Duration::from_secs(2 * seconds + 20), "the kernel delivers it", came);
    eprintln!("the write was delivered {:?} after the cut", cut.elapsed());
    for host in [1, 2] {
        network.get(host, "k").expect_value(3);
    }
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_silent_name_server_stops_nobody_whose_addresses_are_known() {
    let network = Network::new(2);
    network.tell_names(2, "10.77.0.1 root.internal\n");
    let root = network.start(1, &[]);
    let _leaf = network.start(2, &[("ROOT_URL", "http://root.internal:5000")]);
    let expect_quick = |what: &str| {
        // When the root has been young.
        network.put(2, "k", 0).expect_put("k", 0);
        let (mut slowest, mut calls) = (Duration::ZERO, 0);
        let began = Instant::now();
        // Longer than the resolver itself goes on asking.
        while began.elapsed() < Duration::from_secs(12) {
            let key = format!("k{calls}");
            let put = network.put(2, &key, calls).expect_put(&key, calls);
            let got = network.get(2, &key).expect_value(calls);
            slowest = slowest.max(put.took).max(got.took);
            calls += 1;
        }
        eprintln!("{what}: {calls} writes and as many reads, the slowest call {slowest:?}");
        assert!(slowest < Duration::from_millis(800), "{what}: {slowest:?}");
    };
    network.tell_names(2, "");
    expect_quick("silent");
    // Nor does it keep the leaf from joining another run of its root.
    drop(root);
    let _root = network.start(1, &[]);
    let nodes = || network.ask(1, "GET", "/nodes", "").text;
    poll_until(PROCESS_LIMIT, "the leaf joins", || nodes().contains("NODE-2"));
    expect_quick("silent, and another run");
}

#[test]
#[ignore = "needs root, ip, curl and ZooKeeper: run make test-page"]
fn of_two_roots_that_a_cut_has_made_one_is_left_when_it_heals() {
    let (network, folder) = (Network::new(2), Folder::new("zookeeper"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/zookeeper/server.sh");
    let serve = [script, "serve", folder.path(), "2181"];
    let _server = network.run_on(2, &serve, &[("ZOO_CFG", "clientPortAddress=10.77.0.2")]);
    let env = [("NODE_ID", "1"), ("TREE_TOKEN", "s3cret"), ("ZOOKEEPER", "10.77.0.2:2181")];
    let mut first = network.start(1, &env);
    first.wait_for_log("registered in ZooKeeper at", 1);
    network.cut(1, 2);
    // The first is alive, and cut off from ZooKeeper; its URL is the second's ROOT_URL, too.
    let cut = Instant::now();
    let second = network.start(2, &env);
    second.wait_for_log("registered in ZooKeeper at", 1);
    eprintln!("the second root was registered {:?} after the cut", cut.elapsed());
    first.expect_alive();
    network.mend(1, 2);
    let healed = Instant::now();
    let (code, _, log) = first.wait_for_end(PROCESS_LIMIT);
    let line = "tree-cache: another root of this tree is registered in ZooKeeper, at http://10.77.0.2:5000\n";
    assert!(code == Some(1) && log.ends_with(line), "{log}");
    eprintln!("the first ended {:?} after the cut was healed", healed.elapsed());
    network.put(2, "k", 1).expect_put("k", 1);
}

#[test]
fn a_read_ends_in_its_time_though_each_join_finds_another_root() {
    let fetches = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&fetches);
    // Another root at each join, which refuses what is meant for the ones before.
    let roots = Stranger::start(move |mut stream, request| {
        let (status, body) = if request.starts_with("POST /nodes ") {
            let run = 1000 + counted.load(Relaxed);
            let url = format!("http://{}", stream.local_addr().expect("it is connected"));
            let root = json!({ "name": "NODE-1", "url": url, "run": run });
            let place = json!({ "run": run, "root_ms": 0, "lease_ms": 1000, "position": 1, "ancestors": [root],
                "children": [] });
            (200, place)
        } else {
            counted.fetch_add(1, Relaxed);
            (409, json!({ "detail": "another run" }))
        };
        // Who asked may have gone.
        let _ = stream.write_all(answer(status, "", &body.to_string()).as_bytes());
    });
    let root_url = roots.url();
    let mut node = Node::start(&[("NODE_ID", "2"), ("ROOT_URL", &root_url), ("TREE_DEPTH", "2")]);
    let began = Instant::now();
    let read = node.get("/store/k");
    let sent = fetches.load(Relaxed);
    node.process.expect_alive();
    assert_eq!(read.status, 503, "{}", read.text());
    assert!(began.elapsed() < PROCESS_LIMIT, "{:.1?}", began.elapsed());
    // Two, and then after each pause of 50 ms.
    assert!((2..=250).contains(&sent), "{sent} fetches");
}
