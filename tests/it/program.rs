//! The program as its user meets it: configuration, arguments, exit codes, the lines that it prints.

use std::net::TcpListener;

use crate::client::try_call;
use crate::harness::{Node, Process, Tree, free_ports};
use crate::wrong_values::WRONG_VALUES;

#[test]
fn a_wrong_value_ends_the_program_with_one_line_that_says_what_is_allowed() {
    for (variable, allowed, values) in WRONG_VALUES {
        for value in *values {
            let line = format!("{variable}={value:?}: must be {allowed}");
            Process::expect_failure(&[], &[("API_PORT", "0"), (*variable, *value)], &line);
        }
    }
    // A secret is not shown, even when it is a wrong one.
    let line = "TREE_TOKEN=\"…\": must be visible ASCII characters without a space";
    Process::expect_failure(&[], &[("API_PORT", "0"), ("TREE_TOKEN", "two words")], line);
}

#[test]
fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let address = taken.local_addr().expect("it is bound");
    let (code, printed, log) = Process::run_to_end(&[], &[("API_PORT", &address.port().to_string())]);
    assert_eq!((code, printed.as_str(), log.lines().count()), (Some(1), "", 1));
    assert!(log.starts_with(&format!("tree-cache: could not listen on {address}: Address already in use")), "{log}");
}

#[test]
fn other_arguments_are_answered_with_the_usage() {
    for arguments in [&["start"][..], &["--help"], &["health", "x"], &["show", "a", "b"], &[""]] {
        let ended = Process::run_to_end(arguments, &[("API_PORT", "0")]);
        let usage = "usage: tree-cache [health | show [URL] | --version]\n";
        assert_eq!(ended, (Some(2), String::new(), usage.to_owned()), "{arguments:?}");
    }
}

#[test]
fn a_root_alone_prints_its_line_and_nothing_else() {
    let node = Node::start(&[]);
    node.get("/store/k").expect_error(404, "Key not found");
    assert_eq!(node.process.printed(), format!("NODE-1 listening on http://127.0.0.1:{}\n", node.port));
    let young = "NODE-1 INFO: no write finishes for 1.1s: nodes may hold copies that another root has granted\n";
    assert_eq!(node.process.log(), young, "a good day is a quiet one");
}

#[test]
fn health_is_the_exit_code() {
    let mut node = Node::start(&[]);
    let port = node.port.to_string();
    let env = [("API_PORT", port.as_str())];
    assert_eq!(Process::run_to_end(&["health"], &env), (Some(0), String::new(), String::new()));
    node.pause();
    Process::expect_failure(&["health"], &env, &format!("no node at {}: no answer within 2.0s", node.url));
    node.kill();
    Process::expect_failure(&["health"], &env, &format!("no node at {}: connection refused", node.url));
}

#[test]
fn the_version_is_told() {
    let version = concat!("tree-cache ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(Process::run_to_end(&["--version"], &[]), (Some(0), version.to_owned(), String::new()));
}

#[test]
fn show_draws_the_tree() {
    let tree = Tree::start(1, &[("TREE_DEPTH", "3")]);
    let nodes = [2, 3, 4].map(|id| tree.start_node(id, &[("TREE_DEPTH", "3")]));
    let [first, second, third] = [0, 1, 2].map(|node: usize| &nodes[node].url);
    let root = &tree.root().url;
    let drawn = format!(
        "4 of 7 nodes, depth 3\nNODE-1  {root}\n├── NODE-2  {first}\n│   ├── NODE-4  {third}\n│   └── (free)\n└── NODE-3  {second}\n"
    );
    for url in [root, &format!("{root}/")] {
        assert_eq!(Process::run_to_end(&["show", url], &[]), (Some(0), drawn.clone(), String::new()));
    }
    assert_eq!(Process::run_to_end(&["show"], &[("ROOT_URL", root)]), (Some(0), drawn, String::new()));

    let nobody = format!("http://127.0.0.1:{}", free_ports(1));
    let line = format!("could not ask for the tree at {nobody}: connection refused");
    Process::expect_failure(&["show", &nobody], &[], &line);
    Process::expect_failure(&["show", "nonsense"], &[], "\"nonsense\" is not a URL of the form http://host:port");
}

#[test]
fn listening_beyond_this_machine_without_a_token_is_warned_about() {
    for (token, warned) in [(None, true), (Some("s3cret"), false)] {
        let port = free_ports(1);
        let (port_text, url) = (port.to_string(), format!("http://127.0.0.1:{port}"));
        let mut env = vec![("BIND_ADDR", "0.0.0.0"), ("NODE_URL", url.as_str()), ("API_PORT", &port_text)];
        env.extend(token.map(|token| ("TREE_TOKEN", token)));
        let node = Node::start(&env);
        assert_eq!(node.url, format!("http://0.0.0.0:{port}"), "what it listens on");
        let described = try_call("GET", &url, &[], b"").expect("it answers").json();
        assert_eq!(described["url"], url, "how others reach it");
        let warning = format!(
            "NODE-1 WARN: 0.0.0.0:{port} can be reached from other machines, and without TREE_TOKEN anybody can pose as a node\n"
        );
        let log = node.process.wait_for_log(warning.trim_end(), usize::from(warned));
        assert_eq!(log.contains("WARN"), warned, "{log}");
    }
}

#[test]
fn the_log_level_is_obeyed() {
    let quiet = Node::start(&[("RUST_LOG", "off"), ("BIND_ADDR", "0.0.0.0"), ("NODE_URL", "http://127.0.0.1:9")]);
    assert_eq!(quiet.process.log(), "");
    let loud = Node::start(&[("RUST_LOG", "debug")]);
    loud.get("/store/k").expect_error(404, "Key not found");
    loud.process.wait_for_log("NODE-1 DEBUG: 404: Key not found", 1);
}

#[test]
fn show_draws_the_same_tree_from_any_node() {
    let tree = Tree::start(2, &[]);
    let show = |url: &str| Process::run_to_end(&["show", url], &[]);
    let (code, drawn, _) = show(&tree.leaf().url);
    assert_eq!((code, &drawn), (Some(0), &show(&tree.root().url).1));
    assert!(drawn.starts_with("3 of 3 nodes, depth 2\nNODE-1  http://"), "{drawn}");
}
