//! What a tree that works writes into ZooKeeper.

use super::server::{REGISTER_LIMIT, Server, all, standing, start_registered, wait_for_standing};
use crate::harness::{Node, free_ports, poll_until};

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn seven_nodes_are_in_the_tree_and_live_and_a_killed_one_lives_no_more() {
    let server = Server::start();
    // The first server of the two answers never.
    let servers = format!("127.0.0.1:{},localhost:{}", free_ports(1), server.port);
    let mut tree = start_registered(3, &[("ZOOKEEPER", &servers)]);
    server.expect_tree(&all(&tree));
    let shape = server.ask(&["get /tree-cache/tree"]);
    assert!(shape.contains(r#"{"depth":3,"root_id":1}"#), "{shape}");

    let before = server.paths("/tree-cache");
    tree.nodes[3].kill();
    let without: Vec<_> = before.iter().filter(|path| *path != "/tree-cache/live/NODE-4").cloned().collect();
    poll_until(REGISTER_LIMIT, "NODE-4 lives no more", || server.paths("/tree-cache") == without);

    tree.nodes[3].restart();
    wait_for_standing(&all(&tree), "registered");
    server.expect_tree(&all(&tree));
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn znodes_that_are_deleted_or_overwritten_come_back() {
    let server = Server::start();
    let tree = start_registered(2, &[("ZOOKEEPER", &server.address())]);
    server.ask(&[
        "set /tree-cache/tree/NODE-1/NODE-2 x",
        "delete /tree-cache/tree/NODE-1/NODE-3",
        "deleteall /tree-cache/live",
    ]);
    let size = tree.nodes.len() * 2 + 3;
    poll_until(REGISTER_LIMIT, "all znodes", || server.paths("/tree-cache").len() == size);
    wait_for_standing(&all(&tree), "registered");
    server.expect_tree(&all(&tree));
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn without_the_variable_nothing_is_registered() {
    let server = Server::start();
    let node = Node::start(&[]);
    assert_eq!(standing(&node), "off");
    assert_eq!(server.paths("/"), ["/", "/zookeeper", "/zookeeper/config", "/zookeeper/quota"]);
}
