//! To the run, and in time: what strangers on a node's port, other roots and late packets could do.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Folder, Node, PROCESS_LIMIT, Process, Tree, command, poll_until, run};

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
        "protocol": 2, "id": 2, "run": 1, "url": "http://127.0.0.1:9", "position": 1, "holds_ms": 60_000,
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

/// Two network namespaces with a cable between them; gone when dropped.
struct Cable {
    names: [String; 2],
}

impl Cable {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let names = ["a", "b"].map(|end| format!("tc{}-{number}{end}", std::process::id()));
        let cable = Self { names };
        let [one, other] = &cable.names;
        run(&["ip", "netns", "add", one]);
        run(&["ip", "netns", "add", other]);
        run(&["ip", "-n", one, "link", "add", "tree", "type", "veth", "peer", "name", "tree", "netns", other]);
        for (name, address) in [(one, "10.77.0.1/24"), (other, "10.77.0.2/24")] {
            run(&["ip", "-n", name, "address", "add", address, "dev", "tree"]);
            run(&["ip", "-n", name, "link", "set", "tree", "up"]);
            run(&["ip", "-n", name, "link", "set", "lo", "up"]);
        }
        cable
    }

    /// From now on each end sends to an address that the other has not, and so all packets are lost.
    fn cut(&self) {
        for (name, other) in self.names.iter().zip(["10.77.0.2", "10.77.0.1"]) {
            run(&["ip", "-n", name, "neigh", "replace", other, "lladdr", "02:00:00:00:00:99", "dev", "tree"]);
        }
    }

    fn mend(&self) {
        for (name, other) in self.names.iter().zip(["10.77.0.2", "10.77.0.1"]) {
            run(&["ip", "-n", name, "neigh", "delete", other, "dev", "tree"]);
        }
    }

    /// Starts a node at one end.
    fn start(&self, end: usize, env: &[(&str, &str)]) -> Process {
        let mut process = Process::spawn_command(
            command("ip").args(["netns", "exec", &self.names[end], crate::harness::PROGRAM]),
            &[&[("LEASE_SECONDS", "1"), ("TREE_DEPTH", "2"), ("ROOT_URL", "http://10.77.0.1:5000")], env].concat(),
        );
        process.wait_for_output(" listening on ");
        process
    }

    /// What the processes at one end are told of names that they look up: these lines of `hosts`, and else nothing, by a
    /// server that never answers. `ip netns exec` shows it to those that it starts.
    fn tell_names(&self, end: usize, hosts: &str) {
        let folder = format!("/etc/netns/{}", self.names[end]);
        std::fs::create_dir_all(&folder).expect("root may make it");
        std::fs::write(format!("{folder}/hosts"), hosts).expect("it is ours");
        std::fs::write(format!("{folder}/resolv.conf"), "nameserver 10.77.0.99\n").expect("it is ours");
        run(&[
            "ip",
            "-n",
            &self.names[end],
            "neigh",
            "replace",
            "10.77.0.99",
            "lladdr",
            "02:00:00:00:00:99",
            "dev",
            "tree",
        ]);
    }

    /// What a client at one end gets from the node there.
    fn ask(&self, end: usize, arguments: &[&str], path: &str) -> String {
        let url = format!("http://10.77.0.{}:5000{path}", end + 1);
        let curl = ["netns", "exec", &self.names[end], "curl", "-s", "--max-time", "10", &url];
        let mut process = Process::spawn_command(command("ip").args(curl).args(arguments), &[]);
        process.wait_for_end(PROCESS_LIMIT).1.trim_end().to_owned()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = command("ip").args(["netns", "delete", name]).status();
            let _ = std::fs::remove_dir_all(format!("/etc/netns/{name}"));
        }
    }
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_write_that_was_given_up_on_in_a_cut_is_not_applied_when_it_heals() {
    let seconds = std::env::var("CUT_SECONDS").map_or(12, |text| text.parse().expect("CUT_SECONDS is a number"));
    let cable = Cable::new();
    let _root = cable.start(0, &[("NODE_ID", "1"), ("BIND_ADDR", "10.77.0.1")]);
    let _leaf = cable.start(1, &[("NODE_ID", "2"), ("BIND_ADDR", "10.77.0.2")]);
    assert_eq!(cable.ask(1, &["-X", "PUT", "-d", r#"{"value":1}"#], "/store/k"), r#"{"key":"k","value":1}"#);
    cable.cut();
    let cut = Instant::now();
    let answer = cable.ask(1, &["-X", "PUT", "-d", r#"{"value":2}"#], "/store/k");
    assert!(answer.contains("no answer within") && answer.contains("whether it was applied is unknown"), "{answer}");
    // Now or never: its time is over.
    assert_eq!(cable.ask(0, &["-X", "PUT", "-d", r#"{"value":3}"#], "/store/k"), r#"{"key":"k","value":3}"#);
    std::thread::sleep(Duration::from_secs(seconds).saturating_sub(cut.elapsed()));
    cable.mend();
    let came = || cable.ask(0, &[], "/metrics").contains("tree_cache_refused_total{status=\"503\"} 1");
    poll_until(Duration::from_secs(2 * seconds + 20), "the kernel delivers it", came);
    eprintln!("the write was delivered {:?} after the cut", cut.elapsed());
    for end in [0, 1] {
        assert_eq!(cable.ask(end, &[], "/store/k"), r#"{"value":3}"#);
    }
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_silent_name_server_stops_nobody_whose_addresses_are_known() {
    let cable = Cable::new();
    cable.tell_names(1, "10.77.0.1 root.internal\n");
    let root_env = [("NODE_ID", "1"), ("BIND_ADDR", "10.77.0.1")];
    let root = cable.start(0, &root_env);
    let leaf_env = [("NODE_ID", "2"), ("BIND_ADDR", "10.77.0.2"), ("ROOT_URL", "http://root.internal:5000")];
    let _leaf = cable.start(1, &leaf_env);
    let expect_quick = |what: &str| {
        // When the root has been young.
        assert_eq!(cable.ask(1, &["-X", "PUT", "-d", r#"{"value":0}"#], "/store/k"), r#"{"key":"k","value":0}"#);
        let (mut slowest, mut calls) = (Duration::ZERO, 0);
        let began = Instant::now();
        // Longer than the resolver itself goes on asking.
        while began.elapsed() < Duration::from_secs(12) {
            let (value, path) = (format!(r#"{{"value":{calls}}}"#), format!("/store/k{calls}"));
            for (arguments, expected) in [
                (&["-X", "PUT", "-d", &value][..], format!(r#"{{"key":"k{calls}","value":{calls}}}"#)),
                (&[], format!(r#"{{"value":{calls}}}"#)),
            ] {
                let asked = Instant::now();
                assert_eq!(cable.ask(1, arguments, &path), expected, "{what}");
                slowest = slowest.max(asked.elapsed());
            }
            calls += 1;
        }
        eprintln!("{what}: {calls} writes and as many reads, the slowest call {slowest:?}");
        assert!(slowest < Duration::from_millis(800), "{what}: {slowest:?}");
    };
    cable.tell_names(1, "");
    expect_quick("silent");
    // Nor does it keep the leaf from joining another run of its root.
    drop(root);
    let _root = cable.start(0, &root_env);
    poll_until(PROCESS_LIMIT, "the leaf joins", || cable.ask(0, &[], "/nodes").contains("NODE-2"));
    expect_quick("silent, and another run");
}

#[test]
#[ignore = "needs root, ip, curl and ZooKeeper: run make test-page"]
fn of_two_roots_that_a_cut_has_made_one_is_left_when_it_heals() {
    let (cable, folder) = (Cable::new(), Folder::new("zookeeper"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/zookeeper/server.sh");
    let serve = ["netns", "exec", &cable.names[1], script, "serve", folder.path(), "2181"];
    let _server = Process::spawn_command(command("ip").args(serve), &[("ZOO_CFG", "clientPortAddress=10.77.0.2")]);
    let env = [("NODE_ID", "1"), ("TREE_TOKEN", "s3cret"), ("ZOOKEEPER", "10.77.0.2:2181")];
    let mut first = cable.start(0, &[&env[..], &[("BIND_ADDR", "10.77.0.1")]].concat());
    first.wait_for_log("registered in ZooKeeper at", 1);
    cable.cut();
    // The first is alive, and cut off from ZooKeeper; its URL is the second's ROOT_URL, too.
    let cut = Instant::now();
    let second = cable.start(1, &[&env[..], &[("BIND_ADDR", "10.77.0.2")]].concat());
    second.wait_for_log("registered in ZooKeeper at", 1);
    eprintln!("the second root was registered {:?} after the cut", cut.elapsed());
    first.expect_alive();
    cable.mend();
    let healed = Instant::now();
    let (code, _, log) = first.wait_for_end(PROCESS_LIMIT);
    let line = "tree-cache: another root of this tree is registered in ZooKeeper, at http://10.77.0.2:5000\n";
    assert!(code == Some(1) && log.ends_with(line), "{log}");
    eprintln!("the first ended {:?} after the cut was healed", healed.elapsed());
    assert_eq!(cable.ask(1, &["-X", "PUT", "-d", r#"{"value":1}"#], "/store/k"), r#"{"key":"k","value":1}"#);
}
