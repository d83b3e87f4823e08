//! `deploy/local.sh`, as `make local` calls it.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::client::{join_body, try_call};
use crate::harness::{Env, Folder, PROCESS_LIMIT, PROGRAM, Process, command, free_ports, poll_until, signal};

/// Starts the script. It may be asked to stop (which ends its nodes), while a kill would leave them behind.
struct Local(Process);

impl Local {
    fn start(env: Env) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/local.sh");
        Self(Process::spawn_command(command("bash").args([script, PROGRAM]), env))
    }

    /// Has it end its nodes, and then itself.
    fn stop(mut self) {
        self.0.signal("TERM");
        assert_eq!(self.0.wait_for_end(PROCESS_LIMIT).0, Some(0));
    }

    /// The processes that it has started and that still live.
    fn children(&self) -> Vec<u32> {
        let id = self.0.id();
        let listed = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).expect("Linux lists them");
        listed.split_whitespace().filter_map(|id| id.parse().ok()).collect()
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        // After a failed assertion only; and then there is nothing more to be said.
        if self.0.is_alive() {
            self.0.signal("TERM");
            self.0.wait_for_end(PROCESS_LIMIT);
        }
    }
}

fn is_listening(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[test]
fn make_local_runs_the_whole_tree_and_leaves_nothing_behind() {
    let base = free_ports(7);
    let mut local = Local::start(&[("API_PORT", &base.to_string())]);
    let printed = local.0.wait_for_output("Ctrl-C ends all 7 nodes.\n");
    let url = |id: u16| format!("http://127.0.0.1:{}", base + id - 1);
    let mut expected = [1, 2, 3, 4, 5, 6, 7].map(|id| format!("NODE-{id} listening on {}\n", url(id))).concat();
    let node = |branch: &str, id| format!("{branch}NODE-{id}  {}\n", url(id));
    expected += "\n7 of 7 nodes, depth 3\n";
    expected +=
        &[("", 1), ("├── ", 2), ("│   ├── ", 4), ("│   └── ", 5), ("└── ", 3), ("    ├── ", 6), ("    └── ", 7)]
            .map(|(branch, id)| node(branch, id))
            .concat();
    assert!(printed.starts_with(&expected), "{printed}");
    let put = format!("  curl -X PUT localhost:{}/store/colour -d '{{\"value\":\"teal\"}}'\n", base + 6);
    let get = format!("  curl localhost:{}/store/colour\n", base + 3);
    assert!(printed.contains(&(put + &get)), "{printed}");

    try_call("PUT", &(url(7) + "/store/colour"), &[], br#"{"value":"teal"}"#)
        .expect("NODE-7 answers")
        .expect(200, r#"{"key":"colour","value":"teal"}"#);
    for id in 1..=7 {
        try_call("GET", &(url(id) + "/store/colour"), &[], b"")
            .expect("every node answers")
            .expect(200, r#"{"value":"teal"}"#);
    }

    // Its nodes have a secret, which only its owner can read.
    let join = join_body(2, 7, "http://127.0.0.1:9", None);
    let answer = try_call("POST", &(url(1) + "/nodes"), &[], join.as_bytes()).expect("NODE-1 answers");
    answer.expect_error(401, "this call needs the token of the nodes");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/.local-token");
    let mode = fs::metadata(path).expect("it is there").permissions().mode();
    assert_eq!((mode & 0o777, fs::read_to_string(path).expect("it is ours").len()), (0o600, 64));

    let children = local.children();
    local.0.signal("TERM");
    let (code, printed, _) = local.0.wait_for_end(PROCESS_LIMIT);
    assert_eq!(code, Some(0));
    assert!(printed.ends_with("\nstopping 7 nodes (once more: at once)\n"), "{printed}");
    for child in children {
        assert!(!Path::new(&format!("/proc/{child}")).exists(), "process {child} is left");
    }
    assert!(!(base..base + 7).any(is_listening));
}

/// What a root logs that waits for the leases of a former one.
const YOUNG: &str = "NODE-1 INFO: no write finishes for 5.5s: ";

#[test]
fn make_local_takes_a_first_write_at_once_and_its_entries_go_with_the_tree() {
    let (base, temporary) = (free_ports(3), Folder::new("local"));
    let env = [("API_PORT", &*base.to_string()), ("TREE_DEPTH", "2"), ("TMPDIR", temporary.path())];
    let mut local = Local::start(&env);
    local.0.wait_for_output("Ctrl-C ends all 3 nodes.\n");
    let began = Instant::now();
    try_call("PUT", &format!("http://127.0.0.1:{}/store/colour", base + 2), &[], br#"{"value":"teal"}"#)
        .expect("NODE-3 answers")
        .expect(200, r#"{"key":"colour","value":"teal"}"#);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(!local.0.log().contains(YOUNG), "{}", local.0.log());

    let made = fs::read_dir(temporary.path()).expect("it is ours").map(|entry| entry.expect("it is ours").path());
    let files = made.map(|folder| folder.join("data/tree-cache.redb").exists()).collect::<Vec<_>>();
    assert_eq!(files, [true], "the root keeps its entries there");
    local.stop();
    fs::remove_dir(temporary.path()).expect("nothing is left in it");
}

#[test]
fn make_local_finds_again_what_is_in_a_folder_of_the_callers() {
    let (base, folder) = (free_ports(3), Folder::new("local"));
    let data_dir = format!("{}/data", folder.path());
    let env = [("API_PORT", &*base.to_string()), ("TREE_DEPTH", "2"), ("DATA_DIR", data_dir.as_str())];
    let url = format!("http://127.0.0.1:{}/store/colour", base + 2);
    for is_first in [true, false] {
        let mut local = Local::start(&env);
        local.0.wait_for_output("Ctrl-C ends all 3 nodes.\n");
        if is_first {
            let answer = try_call("PUT", &url, &[], br#"{"value":"teal"}"#).expect("NODE-3 answers");
            answer.expect(200, r#"{"key":"colour","value":"teal"}"#);
        }
        try_call("GET", &url, &[], b"").expect("NODE-3 answers").expect(200, r#"{"value":"teal"}"#);
        // The first has left, so it has nothing outstanding that the second one must wait for.
        assert!(!local.0.log().contains(YOUNG), "{}", local.0.log());
        local.stop();
    }
}

#[test]
fn make_local_ends_at_once_at_a_second_signal() {
    let base = free_ports(3);
    let mut local = Local::start(&[("API_PORT", &base.to_string()), ("TREE_DEPTH", "2"), ("LEASE_SECONDS", "60")]);
    local.0.wait_for_output("Ctrl-C ends all 3 nodes.\n");
    // The root waits for the end of this copy.
    let url = format!("http://127.0.0.1:{}/store/colour", base + 2);
    try_call("GET", &url, &[], b"").expect("NODE-3 answers").expect_error(404, "Key not found");
    local.0.signal("INT");
    let began = Instant::now();
    local.0.wait_for_log("NODE-1 INFO: leaving", 1);
    poll_until(PROCESS_LIMIT, "it is another signal", || began.elapsed() > Duration::from_millis(1500));
    assert!(local.0.is_alive() && is_listening(base));
    local.0.signal("INT");
    assert_eq!(local.0.wait_for_end(PROCESS_LIMIT).0, Some(0));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(!(base..base + 3).any(is_listening));
}

#[test]
fn make_local_takes_another_depth_and_root_and_names_a_node_that_dies() {
    let base = free_ports(3);
    let mut local = Local::start(&[("API_PORT", &base.to_string()), ("TREE_DEPTH", "2"), ("ROOT_NODE_ID", "2")]);
    let printed = local.0.wait_for_output("Ctrl-C ends all 3 nodes.\n");
    let url = |id: u16| format!("http://127.0.0.1:{}", base + id - 1);
    let lines = [2, 1, 3].map(|id| format!("NODE-{id} listening on {}\n", url(id))).concat();
    let drawn = format!("NODE-2  {}\n├── NODE-1  {}\n└── NODE-3  {}\n", url(2), url(1), url(3));
    assert!(printed.starts_with(&format!("{lines}\n3 of 3 nodes, depth 2\n{drawn}")), "{printed}");

    // Started last, so it is the last of the nodes; a `sleep` of the script may come after it.
    let id_of = |child: &u32| fs::read(format!("/proc/{child}/environ")).unwrap_or_default();
    let is_node_3 = |child: &u32| id_of(child).split(|byte| *byte == 0).any(|variable| variable == b"NODE_ID=3");
    let child = local.children().into_iter().find(is_node_3).expect("NODE-3 runs");
    signal(child, "KILL");
    let line = format!("make local: NODE-3 (process {child}) ended with status 137; the others go on\n");
    poll_until(Duration::from_secs(5), "the dead node is named", || local.0.log().contains(&line));
    assert!(is_listening(base) && is_listening(base + 1) && !is_listening(base + 2));
    local.0.signal("INT");
    assert_eq!(local.0.wait_for_end(PROCESS_LIMIT).0, Some(0));
    assert!(!(base..base + 3).any(is_listening));
}

#[test]
fn make_local_listens_where_it_is_told_whatever_else_is_set() {
    for (bind_addr, host, listens_at) in [
        ("0.0.0.0", "127.0.0.1", "0.0.0.0"),
        ("::1", "[::1]", "[::1]"),
        ("::", "[::1]", "[::]"),
        ("", "127.0.0.1", "127.0.0.1"),
    ] {
        let base = free_ports(3);
        let env = [("API_PORT", &*base.to_string()), ("TREE_DEPTH", "2"), ("BIND_ADDR", bind_addr), ("TREE_TOKEN", "")];
        let of_others = [
            ("NODE_URL", "http://elsewhere:1"),
            ("ROOT_URL", "http://elsewhere:2"),
            ("ZOOKEEPER", ""),
            ("DATA_DIR", ""),
            ("NEW_TREE", "x"),
        ];
        let mut local = Local::start(&[&env[..], &of_others].concat());
        let printed = local.0.wait_for_output("Ctrl-C ends all 3 nodes.\n");
        assert!(printed.starts_with(&format!("NODE-1 listening on http://{listens_at}:{base}\n")), "{printed}");
        let drawn =
            format!("\n3 of 3 nodes, depth 2\nNODE-1  http://{host}:{base}\n├── NODE-2  http://{host}:{}\n", base + 1);
        assert!(printed.contains(&drawn), "{printed}");
        local.stop();
    }
}

#[test]
fn make_local_names_a_taken_port_and_starts_nothing() {
    let base = free_ports(7);
    let _taken = TcpListener::bind(("127.0.0.1", base + 4)).expect("the port is free");
    let (code, printed, log) = Local::start(&[("API_PORT", &base.to_string())]).0.wait_for_end(PROCESS_LIMIT);
    let line = format!(
        "make local: port {} is taken by another program; nothing was started. API_PORT=6000 make local takes others\n",
        base + 4
    );
    assert_eq!((code, printed.as_str(), log), (Some(1), "", line));
    assert!(!(base..base + 4).any(is_listening));
}

#[test]
fn make_local_names_a_wrong_value() {
    for (variable, value, line) in [
        ("TREE_DEPTH", "8", "TREE_DEPTH=8: must be at most 7, which is 127 processes"),
        ("TREE_DEPTH", "x", "TREE_DEPTH=\"x\": must be a whole number over 0"),
        ("ROOT_NODE_ID", "9", "ROOT_NODE_ID=9: must be a whole number from 1 to 7"),
        ("API_PORT", "0", "API_PORT=\"0\": must be a whole number over 0"),
        ("API_PORT", "65530", "API_PORT=65530: no room for 7 ports up to 65535"),
    ] {
        let (code, printed, log) = Local::start(&[(variable, value)]).0.wait_for_end(PROCESS_LIMIT);
        assert_eq!((code, printed.as_str(), log), (Some(1), "", format!("make local: {line}\n")));
    }
}
