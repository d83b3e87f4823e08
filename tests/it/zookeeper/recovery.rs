//! A root that starts finds its tree in ZooKeeper.

use std::time::{Duration, Instant};

use serde_json::json;

use super::server::{Server, all, child_table, expect_lines, start_registered, wait_for_standing};
use crate::client::try_call;
use crate::harness::{Node, Process, Tree, free_ports, poll_until};
use crate::impostor::Impostor;

/// Seven registered nodes, all killed.
fn seven_that_were_killed(server: &Server) -> Tree {
    let mut tree = start_registered(3, &[("ZOOKEEPER", &server.address())]);
    tree.nodes.iter_mut().for_each(Node::kill);
    tree
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn a_root_alone_has_its_tree_and_whoever_comes_back_has_its_old_place() {
    let server = Server::start();
    let mut tree = seven_that_were_killed(&server);
    tree.nodes[0].restart();
    expect_lines(tree.root(), "took 6 places below the root from ZooKeeper's tree", 1);
    let taken = |alive: fn(i32) -> bool| -> serde_json::Value {
        (1..=7).map(|id| json!([id - 1, format!("NODE-{id}"), alive(id)])).collect()
    };
    assert_eq!(child_table(tree.root()), taken(|id| id == 1));
    for id in [7, 2, 5, 6, 4, 3] {
        // On another port: only its id tells who it is.
        tree.nodes[id - 1] = tree
            .start_node(u32::try_from(id).expect("small"), &[("TREE_DEPTH", "3"), ("ZOOKEEPER", &server.address())]);
        assert_eq!(tree.node(id).get("/").json()["position"], id - 1);
    }
    assert_eq!(child_table(tree.root()), taken(|_| true));
    wait_for_standing(&all(&tree), "registered");
    server.expect_tree(&all(&tree));
    tree.leaf().write("colour", r#""teal""#);
    tree.node(4).expect_value("colour", r#""teal""#);
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn a_tree_of_another_depth_or_root_is_deleted_and_replaced() {
    let server = Server::start();
    let address = server.address();
    let mut tree = start_registered(2, &[("ZOOKEEPER", &address)]);
    tree.nodes.iter_mut().for_each(Node::kill);

    let mut root = Node::start(&[("ZOOKEEPER", &address)]);
    let line = "deleting ZooKeeper's tree, which does not fit: its depth is 2 and its root is NODE-1";
    expect_lines(&root, line, 1);
    assert_eq!(child_table(&root), json!([[0, "NODE-1", true]]));
    wait_for_standing(&[&root], "registered");
    assert_eq!(server.paths("/tree-cache/tree"), ["/tree-cache/tree", "/tree-cache/tree/NODE-1"]);
    root.kill();

    let root = Node::start(&[("ZOOKEEPER", &address), ("ROOT_NODE_ID", "3")]);
    let line = "deleting ZooKeeper's tree, which does not fit: its depth is 3 and its root is NODE-1";
    expect_lines(&root, line, 1);
    wait_for_standing(&[&root], "registered");
    assert_eq!(server.paths("/tree-cache/tree"), ["/tree-cache/tree", "/tree-cache/tree/NODE-3"]);
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn a_tree_that_contradicts_itself_is_written_again_by_those_who_live() {
    let server = Server::start();
    let mut tree = start_registered(3, &[("ZOOKEEPER", &server.address()), ("LEASE_SECONDS", "1")]);
    tree.nodes[0].kill();
    server.ask(&[r#"create /tree-cache/tree/NODE-1/NODE-9 {"id":9,"url":"http://h","run":1,"position":2}"#]);
    tree.nodes[0].restart();
    let line = "does not fit: /tree-cache/tree/NODE-1/NODE-9 has id 9 and position 2, of 7";
    expect_lines(tree.root(), line, 1);
    poll_until(Duration::from_secs(10), "all have joined again", || {
        child_table(tree.root()).as_array().is_some_and(|table| table.len() == 7)
    });
    poll_until(Duration::from_secs(10), "all have written their znodes again", || {
        server.paths("/tree-cache").len() == 17
    });
    wait_for_standing(&all(&tree), "registered");
    server.expect_tree(&all(&tree));
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn after_an_absence_of_zookeeper_the_roots_own_table_wins() {
    let mut server = Server::start();
    let mut tree = seven_that_were_killed(&server);
    server.kill();
    tree.nodes[0].restart();
    let address = server.address();
    let env = [("TREE_DEPTH", "3"), ("ZOOKEEPER", address.as_str())];
    // Not the places that they had.
    for (id, position) in [(4, 1), (2, 2), (3, 3)] {
        tree.nodes[id - 1] = tree.start_node(u32::try_from(id).expect("small"), &env);
        assert_eq!(tree.node(id).get("/").json()["position"], position);
    }
    server.run();
    let nodes: Vec<_> = [1, 2, 3, 4].map(|id| tree.node(id)).into();
    wait_for_standing(&nodes, "registered");
    // Until the sessions of those that were killed end.
    poll_until(Duration::from_secs(15), "what others had said is gone", || server.paths("/tree-cache").len() == 11);
    server.expect_tree(&nodes);
    assert_eq!(tree.node(3).get("/").json()["path"], json!(["NODE-1", "NODE-4", "NODE-3"]));
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn a_znode_that_cannot_be_read_is_ignored() {
    let server = Server::start();
    let mut tree = seven_that_were_killed(&server);
    server.ask(&["set /tree-cache/tree/NODE-1/NODE-3/NODE-7 {", "create /tree-cache/tree/NODE-1/other x"]);
    tree.nodes[0].restart();
    for path in ["NODE-3/NODE-7", "other"] {
        let line = format!("ignoring /tree-cache/tree/NODE-1/{path} in ZooKeeper: its data cannot be read");
        expect_lines(tree.root(), &line, 1);
    }
    expect_lines(tree.root(), "took 5 places below the root from ZooKeeper's tree", 1);
    for node in &mut tree.nodes[1..] {
        node.restart();
    }
    assert_eq!(tree.leaf().get("/").json()["position"], 6);
    wait_for_standing(&all(&tree), "registered");
    server.ask(&["delete /tree-cache/tree/NODE-1/other"]);
    server.expect_tree(&all(&tree));
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn whoever_can_write_to_zookeeper_is_not_a_node_for_that() {
    let server = Server::start();
    let mut tree = start_registered(3, &[("ZOOKEEPER", &server.address()), ("TREE_TOKEN", "n0b0dy-Knows")]);
    tree.nodes.iter_mut().for_each(Node::kill);
    let impostor = Impostor::start(7);
    let planted = format!(r#"{{"id":2,"url":"{}","run":7,"position":1}}"#, impostor.url());
    server.ask(&[&format!("set /tree-cache/tree/NODE-1/NODE-2 {planted}")]);

    tree.nodes[0].restart();
    expect_lines(tree.root(), "took 6 places below the root from ZooKeeper's tree", 1);
    tree.nodes[3].restart();
    let place = tree.node(4).get("/").json();
    assert_eq!((&place["position"], &place["path"]), (&json!(3), &json!(["NODE-1", "NODE-2", "NODE-4"])));
    assert_eq!(place["ancestors"], json!([{ "name": "NODE-1", "url": tree.root().url, "run": tree.root().run() }]));
    let listed = tree.root().get("/nodes").json()["nodes"][1].clone();
    assert_eq!((&listed["name"], &listed["url"], &listed["alive"]), (&json!("NODE-2"), &json!(null), &json!(false)));
    tree.node(4).get("/store/k").expect_error(404, "Key not found");
    tree.node(4).write("k", "1");
    tree.node(4).expect_value("k", "1");

    // The true one has its place, whoever else is said to have it.
    tree.nodes[1].restart();
    assert_eq!(tree.node(2).get("/").json()["position"], 1);
    poll_until(Duration::from_secs(5), "NODE-4 is told of its parent", || {
        tree.node(4).get("/").json()["parent"]["url"] == tree.node(2).url
    });
    // Nor does it help while the root runs.
    server.ask(&[&format!("set /tree-cache/tree/NODE-1/NODE-2 {planted}")]);
    poll_until(Duration::from_secs(10), "NODE-2 has written its znode again", || {
        !server.ask(&["get /tree-cache/tree/NODE-1/NODE-2"]).contains(&impostor.url())
    });
    tree.node(4).get("/store/other").expect_error(404, "Key not found");
    assert_eq!(impostor.heard(), [""; 0], "nobody ever asked it anything");
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn a_root_that_gets_no_answer_waits_three_seconds_and_serves() {
    let server = Server::start();
    server.pause();
    let port = free_ports(1);
    let (url, text) = (format!("http://127.0.0.1:{port}"), port.to_string());
    let env = [("API_PORT", text.as_str()), ("ZOOKEEPER", &server.address())];
    let started = Instant::now();
    let mut process = Process::spawn(&[], &env);
    poll_until(Duration::from_secs(2), "GET / is answered", || {
        process.expect_alive();
        try_call("GET", &url, &[], b"").is_ok_and(|answer| answer.json()["joined"] == false)
    });
    let call = |method, path: &str, body| try_call(method, &format!("{url}{path}"), &[], body).expect("an answer");
    call("GET", "/store/colour", b"").expect_error(503, "not joined yet");
    call("POST", "/nodes", br#"{"id":2,"run":1,"url":"http://127.0.0.1:1","position":null}"#)
        .expect_error(503, "not joined yet");
    assert_eq!(call("GET", "/metrics", b"").status, 200);
    let root = Node::wait_for_place(process, &[]);
    let waited = started.elapsed();
    assert!(waited > Duration::from_secs(3) && waited < Duration::from_secs(5), "{waited:?}");
    let line = format!("starting without the tree that ZooKeeper may have: {}: no answer within 2 s", server.address());
    expect_lines(&root, &line, 1);
    root.get("/store/colour").expect_error(404, "Key not found");
    server.resume();
    wait_for_standing(&[&root], "registered");
}
