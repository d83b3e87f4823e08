//! Roots that can know of each other through ZooKeeper alone: each is to be found at a URL of its own.

use std::time::{Duration, Instant};

use zookeeper::{Acl, CreateMode, ZooKeeper};

use super::server::{Server, expect_lines, standing, wait_for_standing};
use crate::harness::{Env, Node, PROCESS_LIMIT, Process, poll_until};
use crate::impostor::Impostor;

const TOKEN: (&str, &str) = ("TREE_TOKEN", "s3cret");

fn start_root(server: &Server, env: Env) -> Node {
    let address = server.address();
    Node::start(&[&[("ZOOKEEPER", address.as_str()), TOKEN], env].concat())
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn a_second_root_of_a_registered_tree_ends_with_one_line_and_the_first_goes_on() {
    let server = Server::start();
    let mut root = start_root(&server, &[]);
    wait_for_standing(&[&root], "registered");
    let line = format!("another root of this tree is registered in ZooKeeper, at {}", root.url);
    Process::expect_failure(&[], &[("API_PORT", "0"), ("ZOOKEEPER", &server.address()), TOKEN], &line);
    root.write("k", "1");
    wait_for_standing(&[&root], "registered");
    // One at the same URL is its former self, and is replaced at once.
    let began = Instant::now();
    root.restart();
    wait_for_standing(&[&root], "registered");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert!(!root.process.log().contains("waiting for the end"), "{}", root.process.log());
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn a_root_waits_for_the_end_of_a_silent_ones_session_and_that_one_ends_when_it_goes_on() {
    let server = Server::start();
    let mut first = start_root(&server, &[]);
    wait_for_standing(&[&first], "registered");
    first.pause();
    let began = Instant::now();
    let second = start_root(&server, &[]);
    let waited = began.elapsed();
    println!("the second root waited {waited:?}");
    assert!(waited > Duration::from_secs(2) && waited < Duration::from_secs(12), "{waited:?}");
    let text = format!("another root of this tree is registered in ZooKeeper, at {}", first.url);
    expect_lines(&second, &format!("waiting for the end of a session: {text}"), 1);
    wait_for_standing(&[&second], "registered");
    first.resume();
    let (code, _, log) = first.process.wait_for_end(PROCESS_LIMIT);
    let line = format!("tree-cache: another root of this tree is registered in ZooKeeper, at {}\n", second.url);
    assert!(code == Some(1) && log.ends_with(&line), "{log}");
    second.write("k", "1");
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn what_a_stranger_says_of_roots_is_neither_believed_nor_asked_nor_told() {
    let server = Server::start();
    let impostor = Impostor::start(7);
    let of_others = start_root(&server, &[("TREE_TOKEN", "another")]);
    wait_for_standing(&[&of_others], "registered");
    // What a root with another secret wrote, and what anybody may write.
    let planted = |proof: &str| format!(r#"{{"url":"{}","run":7,"proof":{proof}}}"#, impostor.url());
    let nothing = serde_json::to_string(&[0_u8; 32]).expect("numbers");
    for data in [planted(&nothing), planted("[]"), "x".to_owned(), "{}".to_owned()] {
        server.ask(&[&format!("set /tree-cache/live/NODE-1 {data}")]);
    }
    poll_until(PROCESS_LIMIT, "it has written its own again", || {
        server.ask(&["get /tree-cache/live/NODE-1"]).contains(&of_others.url)
    });
    drop(of_others);
    server
        .ask(&["deleteall /tree-cache/live/NODE-1", &format!("create /tree-cache/live/NODE-1 {}", planted(&nothing))]);
    let began = Instant::now();
    let mut root = start_root(&server, &[]);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    wait_for_standing(&[&root], "registered");
    root.write("k", "1");
    // Nor what it has written itself, in a znode that another session holds, or none.
    let told = server.ask(&["get /tree-cache/live/NODE-1"]);
    let replay = told.lines().find(|line| line.starts_with('{')).expect("its data").to_owned();
    root.kill();
    server.ask(&["deleteall /tree-cache/live/NODE-1", &format!("create /tree-cache/live/NODE-1 {replay}")]);
    let began = Instant::now();
    let mut root = start_root(&server, &[]);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    wait_for_standing(&[&root], "registered");
    root.write("k", "1");
    // And while it runs: over its own znode, and in its place.
    for commands in [
        vec![format!("set /tree-cache/live/NODE-1 {}", planted(&nothing))],
        vec![
            "deleteall /tree-cache/live/NODE-1".to_owned(),
            format!("create /tree-cache/live/NODE-1 {}", planted(&nothing)),
        ],
    ] {
        server.ask(&commands.iter().map(String::as_str).collect::<Vec<_>>());
        poll_until(PROCESS_LIMIT, "it has written its own again", || {
            server.ask(&["get /tree-cache/live/NODE-1"]).contains(&root.url)
        });
    }
    root.process.expect_alive();
    root.expect_value("k", "1");
    assert_eq!(impostor.heard(), [""; 0], "nobody ever asked it anything");
}

#[test]
#[ignore = "needs ZooKeeper: run make test"]
fn a_tree_that_is_deeper_than_any_costs_a_node_nothing() {
    let server = Server::start();
    let client = ZooKeeper::connect(&server.address(), Duration::from_secs(6), |_| {}).expect("it serves");
    let create = |path: &str, data: &str| {
        let acl = Acl::open_unsafe().clone();
        client.create(path, data.as_bytes().to_vec(), acl, CreateMode::Persistent).expect("the one above is there");
    };
    create("/tree-cache", "");
    create("/tree-cache/live", "");
    create("/tree-cache/tree", r#"{"depth":3,"root_id":1}"#);
    for (path, depth) in [("/tree-cache/live/NODE-1", 3000), ("/tree-cache/tree/NODE-1", 3000)] {
        let mut path = path.to_owned();
        for _ in 0..depth {
            create(&path, "x");
            path += "/x";
        }
    }
    let root = start_root(&server, &[]);
    // The live znode is its own, so what is below it goes, in several goes if it must be.
    poll_until(Duration::from_mins(1), "it is registered", || standing(&root) == "registered");
    assert!(root.process.most_memory_kb() < 60_000, "{}", root.process.most_memory_kb());
    assert!(client.get_children("/tree-cache/live/NODE-1", false).is_ok_and(|children| children.is_empty()));
}
