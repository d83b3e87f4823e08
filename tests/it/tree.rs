//! How a tree comes to be, what each node does when another is lost.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Answer, copy_path, join_body, try_call};
use crate::harness::{Node, PROCESS_LIMIT, Process, Tree, free_ports, poll_until};

/// Position and name of every node that the root knows.
pub fn places(root: &Node) -> Vec<(u64, String)> {
    let listing = root.get("/nodes").json();
    let place = |node: &Value| Some((node["position"].as_u64()?, node["name"].as_str()?.to_owned()));
    listing["nodes"].as_array().expect("a list").iter().filter_map(place).collect()
}

/// A join that no node sent.
fn join(root: &Node, id: u32, run: u64, url: &str) -> Answer {
    root.call("POST", "/nodes", join_body(id, run, url, None).as_bytes())
}

#[test]
fn the_order_of_joining_is_the_order_of_places() {
    let tree = Tree::start(1, &[("TREE_DEPTH", "3")]);
    let others = [5, 3, 7, 2].map(|id| tree.start_node(id, &[("TREE_DEPTH", "3")]));
    let expected = [(0, 1), (1, 5), (2, 3), (3, 7), (4, 2)].map(|(position, id)| (position, format!("NODE-{id}")));
    assert_eq!(places(tree.root()), expected);
    for (node, position) in others.iter().zip(1..) {
        assert_eq!(node.get("/").json()["position"], position);
        assert_eq!(places(node), expected, "{} passes the question on", node.name);
    }
}

#[test]
fn another_id_may_be_the_root() {
    let env = [("TREE_DEPTH", "2"), ("ROOT_NODE_ID", "3")];
    let root = Node::start(&env);
    let leaf = Node::start(&[&env[..], &[("NODE_ID", "1"), ("ROOT_URL", &root.url)]].concat());
    assert_eq!((root.name.as_str(), leaf.name.as_str()), ("NODE-3", "NODE-1"));
    assert_eq!(places(&root), [(0, "NODE-3".to_owned()), (1, "NODE-1".to_owned())]);
    leaf.get("/store/k").expect_error(404, "Key not found");
    assert_eq!(leaf.metric("fetches_sent_total"), 1);
}

#[test]
fn a_node_that_is_started_before_the_root_waits_for_it() {
    let port = free_ports(2);
    let (root_port, node_port) = (port.to_string(), (port + 1).to_string());
    let (root_url, node_url) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", port + 1));
    let env = [("NODE_ID", "2"), ("API_PORT", node_port.as_str()), ("ROOT_URL", root_url.as_str())];
    let mut process = Process::spawn(&[], &env);
    poll_until(PROCESS_LIMIT, "the node says what it waits for", || {
        process.expect_alive();
        process.log().contains(&format!("waiting: no place from the root at {root_url}: connection refused"))
    });

    let call = |method, path: &str| try_call(method, &format!("{node_url}{path}"), &[], b"").expect("it answers");
    let described = call("GET", "/").json();
    assert_eq!((&described["joined"], &described["position"]), (&json!(false), &json!(null)));
    assert_eq!((call("GET", "/metrics").status, call("OPTIONS", "/store/k").status), (200, 204));
    for (method, path) in [
        ("GET", "/health"),
        ("GET", "/store"),
        ("GET", "/store/k"),
        ("PUT", "/store/k"),
        ("DELETE", "/store/k"),
        ("GET", "/nodes"),
        ("GET", &copy_path(1, 3, 3, "http://127.0.0.1:9")),
    ] {
        let is_write = method == "PUT" || method == "DELETE";
        call(method, path).expect_retry(if is_write { "not joined yet; not applied" } else { "not joined yet" });
    }
    // Whoever was told to join here, perhaps by a name that is just being switched, hears that this is not the root.
    let lost = Process::spawn(&[], &[("NODE_ID", "3"), ("ROOT_URL", node_url.as_str()), ("API_PORT", "0")]);
    let line = format!("waiting: no place from the root at {node_url}: answered 421 \"NODE-2 is not the root\"");
    lost.wait_for_log(&line, 1);
    drop(lost);
    Process::expect_failure(&["health"], &env, &format!("the node at {node_url} has not joined yet"));

    assert_eq!(process.printed(), "", "nothing is said before there is a place");
    let root = Node::start(&[("API_PORT", &root_port)]);
    let node = Node::wait_for_place(process, &env);
    assert_eq!((node.name.as_str(), node.url.as_str()), ("NODE-2", node_url.as_str()));
    assert_eq!(Process::run_to_end(&["health"], &env), (Some(0), String::new(), String::new()));
    assert_eq!(places(&root).len(), 2);
}

#[test]
fn a_node_that_comes_again_has_its_old_place() {
    let mut tree = Tree::start(2, &[("NODE_ID", "1")]);
    let (root_url, url, run) = (tree.root().url.clone(), tree.node(2).url.clone(), tree.node(2).run());
    // The same process: a repeat.
    let mut answer = join(tree.root(), 2, run, &url).json();
    let root_run = tree.root().run();
    assert!(answer["root_ms"].take().as_u64().is_some_and(|root_ms| root_ms < 60_000));
    let ancestors = json!([{ "name": "NODE-1", "url": root_url, "run": root_run }]);
    let place = json!({ "position": 1, "path": ["NODE-1", "NODE-2"], "ancestors": ancestors, "children": [] });
    let mut expected = json!({ "run": root_run, "root_ms": null, "lease_ms": 1000 });
    expected.as_object_mut().expect("an object").extend(place.as_object().expect("an object").clone());
    assert_eq!(answer, expected);
    let expected = places(tree.root());
    // Another process, elsewhere, after the first has gone.
    tree.nodes[1].kill();
    let reborn = tree.start_node(2, &[("TREE_DEPTH", "2"), ("API_PORT", &free_ports(1).to_string())]);
    assert_ne!(reborn.url, url);
    assert_ne!(reborn.run(), run);
    assert_eq!(reborn.get("/").json()["position"], 1);
    assert_eq!(places(tree.root()), expected);
    tree.nodes[1] = reborn;
    // And once more, at the same place.
    tree.nodes[1].restart();
    assert_eq!(tree.node(2).get("/").json()["position"], 1);
    assert_eq!(places(tree.root()), expected);
}

#[test]
fn a_second_process_with_a_living_nodes_id_ends_and_the_first_goes_on() {
    let tree = Tree::start(2, &[]);
    let (root, first) = (tree.root(), tree.node(2));
    let env = [("TREE_DEPTH", "2"), ("NODE_ID", "2"), ("API_PORT", "0"), ("ROOT_URL", &root.url)];
    let refused = format!("another NODE-2 is alive at {}", first.url);
    Process::expect_failure(&[], &env, &format!("NODE-2 cannot join at {}: {refused} (409)", root.url));
    join(root, 2, 1, "http://127.0.0.1:9").expect_error(409, &refused);
    first.get("/store/k").expect_error(404, "Key not found");
    assert_eq!(root.get("/nodes").json()["nodes"][1]["url"], first.url);
}

#[test]
fn an_id_beyond_the_tree_ends_the_node_with_one_line() {
    let tree = Tree::start(2, &[]);
    let root = tree.root();
    // Its own configuration allows the id; the root's does not.
    let env = [("TREE_DEPTH", "3"), ("NODE_ID", "4"), ("API_PORT", "0"), ("ROOT_URL", &root.url)];
    let refused = "no place for NODE-4: the ids of this tree are 1 to 3";
    Process::expect_failure(&[], &env, &format!("NODE-4 cannot join at {}: {refused} (400)", root.url));
    join(root, 4, 1, "http://127.0.0.1:9").expect_error(400, refused);
    assert_eq!(places(root).len(), 3);
}

#[test]
fn a_node_that_the_root_cannot_reach_gets_no_place() {
    let tree = Tree::start(1, &[("TREE_DEPTH", "2")]);
    let nobody = format!("http://127.0.0.1:{}", free_ports(1));
    join(tree.root(), 2, 1, &nobody).expect_retry(&format!("cannot reach you at {nobody}"));
    let stranger = Node::start(&[]);
    join(tree.root(), 2, 1, &stranger.url).expect_retry(&format!("cannot reach you at {}", stranger.url));
    assert_eq!(places(tree.root()).len(), 1);
    // Why, only the root's log says: else whoever may join could have the root look at any URL.
    for (url, cause) in [(&nobody, "connection refused"), (&stranger.url, "another process answers there")] {
        let line = format!("INFO: NODE-2 gets no place, since it cannot be reached at {url}: {cause}");
        tree.root().process.wait_for_log(&line, 1);
    }
}

#[test]
fn a_root_that_comes_back_learns_its_tree_from_those_who_live() {
    let mut tree = Tree::start(3, &[]);
    let before = places(tree.root());
    assert_eq!(before.len(), 7);
    tree.root().write("k", "1");
    tree.nodes[0].restart();
    poll_until(Duration::from_secs(5), "the root knows all seven at their old places", || {
        places(tree.root()) == before
    });
    let listing = tree.root().get("/nodes").json();
    assert!(listing["nodes"].as_array().expect("a list").iter().all(|node| node["alive"] == true), "{listing}");
    // What it held is gone: that is what a cache's root does.
    tree.root().get("/store/k").expect_error(404, "Key not found");
    tree.leaf().write("k", "2");
    tree.node(4).expect_value("k", "2");
}

#[test]
fn a_lost_node_is_listed_as_lost_and_passed_over_by_reads() {
    let mut tree = Tree::start(3, &[]);
    tree.root().write("k", "1");
    tree.nodes[1].kill();
    tree.node(4).expect_value("k", "1");
    assert_eq!(tree.node(4).metric("fetches_sent_total"), 2, "one to its dead parent, one to the root");
    poll_until(Duration::from_secs(8), "NODE-2 is lost", || {
        tree.root().get("/nodes").json()["nodes"][1]["alive"] == false
    });
    let (_, shown, _) = Process::run_to_end(&["show", &tree.root().url], &[]);
    let line = shown.lines().find(|line| line.contains("NODE-2")).expect("NODE-2 is shown");
    assert!(line.contains("  lost for "), "{line}");
    assert_eq!(shown.matches("lost").count(), 1, "{shown}");
}

#[test]
fn with_the_root_paused_nothing_hangs() {
    let tree = Tree::start(3, &[("LEASE_SECONDS", "1")]);
    tree.root().write("k", "1");
    let root_url = &tree.root().url;
    tree.root().pause();
    thread::scope(|scope| {
        scope.spawn(|| {
            let begun = Instant::now();
            let answer = tree.leaf().get("/store/unread");
            let took = begun.elapsed();
            let detail = answer.detail();
            assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
            assert!(detail.starts_with(&format!("could not fetch \"unread\" from NODE-3 at {}: ", tree.node(3).url)));
            assert!(detail.contains(&format!("; from NODE-1 at {root_url}: no answer within ")), "{detail}");
            assert!(took < Duration::from_secs(6), "a read took {took:?}");
        });
        for (method, body) in [("PUT", &br#"{"value":2}"#[..]), ("DELETE", b"")] {
            let (tree, root_url) = (&tree, &root_url);
            scope.spawn(move || {
                let begun = Instant::now();
                let answer = tree.leaf().call(method, "/store/k", body);
                let took = begun.elapsed();
                answer.expect_retry(&format!(
                    "could not pass {method} /store/k on to the root at {root_url}: no answer within 3.2s; whether it was applied is unknown"
                ));
                // 1.21 leases and two seconds.
                assert!(took < Duration::from_secs(4), "a {method} took {took:?}");
            });
        }
        // Whom the question does not concern is not kept waiting.
        scope.spawn(|| assert_eq!(tree.leaf().get("/").status, 200));
    });
    tree.root().resume();
    // Of another key: the writes that were given up on may still be applied, in any order.
    poll_until(Duration::from_secs(5), "the tree works again", || tree.leaf().put("other", "3").status == 200);
    tree.node(4).expect_value("other", "3");
}

#[test]
fn with_the_root_dead_reads_and_writes_say_so() {
    let mut tree = Tree::start(3, &[]);
    tree.nodes[0].kill();
    // It may be starting again, so it is waited for, until it was silent for three seconds; then nobody waits.
    let (begun, answer) = (Instant::now(), tree.node(6).get("/store/k"));
    assert_eq!(answer.status, 503);
    assert!(begun.elapsed() < Duration::from_secs(4), "a read took {:?}", begun.elapsed());
    let leaf = tree.leaf();
    poll_until(PROCESS_LIMIT, "the leaf has lost its root", || leaf.get("/health").status == 503);
    let root_url = &tree.root().url;
    for node in [tree.node(2), tree.leaf()] {
        let begun = Instant::now();
        let answer = node.get("/store/k");
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
        let detail = answer.detail();
        assert!(detail.starts_with("could not fetch \"k\" from "), "{detail}");
        assert!(detail.ends_with(&format!("from NODE-1 at {root_url}: connection refused")), "{detail}");
        assert!(begun.elapsed() < Duration::from_secs(2), "a read took {:?}", begun.elapsed());
        for (method, body) in [("PUT", &br#"{"value":2}"#[..]), ("DELETE", b"")] {
            let begun = Instant::now();
            let answer = node.call(method, "/store/k", body);
            answer.expect_retry(&format!(
                "could not pass {method} /store/k on to the root at {root_url}: connection refused; it was not applied"
            ));
            assert!(begun.elapsed() < Duration::from_secs(2), "a {method} took {:?}", begun.elapsed());
        }
        let answer = node.get("/nodes");
        answer
            .expect_error(503, &format!("could not pass GET /nodes on to the root at {root_url}: connection refused"));
    }
}

#[test]
fn sixteen_clients_write_at_a_leaf_without_an_error() {
    let tree = Tree::start(2, &[]);
    thread::scope(|scope| {
        for client in 0..16 {
            let tree = &tree;
            scope.spawn(move || {
                for number in 0..40 {
                    let key = format!("{client}-{number}");
                    tree.leaf().write(&key, "1");
                }
            });
        }
    });
    assert_eq!((tree.root().metric("writes_total"), tree.root().metric("entries")), (640, 640));
}

#[test]
fn only_the_root_takes_a_join() {
    let tree = Tree::start(2, &[]);
    join(tree.leaf(), 3, 1, "http://127.0.0.1:9").expect_error(421, "NODE-3 is not the root");
    join(tree.root(), 2, 1, "file:///etc/passwd")
        .expect_error(422, "url=\"file:///etc/passwd\" is not a URL of the form http://host:port");
}
