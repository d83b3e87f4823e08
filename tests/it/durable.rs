//! A root that keeps its entries on disk, and is killed, moved, cut short of room, or given what is no file of its own.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use redb::{Database, TableDefinition};
use serde_json::json;

use crate::client::try_call;
use crate::harness::{Env, Folder, Node, Over, PROCESS_LIMIT, Process, Tree, free_ports, poll_until, run};
use crate::relay::Relay;

fn file(folder: &Folder) -> PathBuf {
    folder.join("tree-cache.redb")
}

/// A root of the smallest tree that keeps its entries in that folder, and never kept any before.
fn new_root(folder: &Folder, env: Env) -> Node {
    let defaults = [("TREE_DEPTH", "1"), ("DATA_DIR", folder.path()), ("NEW_TREE", "1")];
    Node::start(&[&defaults, env].concat())
}

#[test]
fn a_root_that_was_killed_has_its_entries_byte_for_byte() {
    let folder = Folder::new("data");
    let mut root = new_root(&folder, &[("LEASE_SECONDS", "0.2")]);
    let entries = [("a", r#"{ "x" :  1e400}"#), ("b", "null"), ("c%2F%00", r#""čtyři""#)];
    for (key, value) in entries {
        assert_eq!(root.put(key, value).status, 200);
    }
    root.write("gone", "1");
    root.delete("gone").expect(200, r#"{"key":"gone"}"#);
    assert_eq!(root.metric("commits_total"), 5);
    for _ in 0..2 {
        root.restart();
        for (key, value) in entries {
            root.expect_value(key, value);
        }
        root.get("/store/gone").expect_error(404, "Key not found");
        root.write("new", "2");
    }
}

#[test]
fn only_a_new_tree_need_not_wait_for_the_leases_of_a_former_root() {
    let folder = Folder::new("data");
    let mut root = new_root(&folder, &[("LEASE_SECONDS", "3")]);
    assert_eq!(root.young_for_ms(), 0);
    root.write("k", "1");
    // The lease that is on record counts, not its own; until its wait is over the longer one stays on record.
    for _ in 0..2 {
        root.kill();
        root = new_root(&folder, &[("LEASE_SECONDS", "0.1")]);
        assert!((2500..=3300).contains(&root.young_for_ms()), "{}", root.young_for_ms());
        root.expect_value("k", "1");
        root.get("/store/other").expect_error(404, "Key not found");
    }
    poll_until(PROCESS_LIMIT, "it is not young any more", || root.young_for_ms() == 0);
    root.write("k", "2");
    // That its own alone is outstanding now was noted with that.
    root.restart();
    assert!(root.young_for_ms() <= 110, "{}", root.young_for_ms());
    // One whose file was moved aside tells of a tree that was there before.
    root.kill();
    fs::rename(file(&folder), folder.join("backup")).expect("it is ours");
    let root = new_root(&folder, &[("LEASE_SECONDS", "3")]);
    assert!((2500..=3300).contains(&root.young_for_ms()), "{}", root.young_for_ms());
    // Without a word, an empty folder knows nothing.
    let empty = Folder::new("data");
    let root = Node::start(&[("DATA_DIR", empty.path()), ("LEASE_SECONDS", "3")]);
    assert!((2500..=3300).contains(&root.young_for_ms()), "{}", root.young_for_ms());
}

#[test]
fn what_has_ended_stays_so_and_nothing_ends_while_a_root_is_young() {
    let folder = Folder::new("data");
    let mut root = new_root(&folder, &[("LEASE_SECONDS", "3")]);
    let put = |root: &Node, key: &str, ttl: f64| {
        let body = json!({ "value": 1, "ttl": ttl }).to_string();
        assert_eq!(root.call("PUT", &format!("/store/{key}"), body.as_bytes()).status, 200);
    };
    put(&root, "short", 0.3);
    put(&root, "middle", 0.8);
    put(&root, "long", 3600.0);
    poll_until(PROCESS_LIMIT, "the first has ended", || root.get("/store/short").status == 404);
    root.kill();
    thread::sleep(Duration::from_secs(1));
    root.restart();
    // Nobody has seen the second one end, and somebody may hold a copy of it.
    root.get("/store/short").expect_error(404, "Key not found");
    root.expect_value("middle", "1");
    poll_until(PROCESS_LIMIT, "it is not young any more", || root.young_for_ms() == 0);
    root.get("/store/middle").expect_error(404, "Key not found");
    root.expect_value("long", "1");
    root.restart();
    root.get("/store/middle").expect_error(404, "Key not found");
    root.expect_value("long", "1");
    poll_until(PROCESS_LIMIT, "what has ended takes no room", || root.metric("entries") == 1);
}

#[test]
fn what_is_no_folder_of_this_roots_is_refused_in_one_line() {
    let folder = Folder::new("data");
    let mut root = new_root(&folder, &[]);
    root.write("k", "1");
    let refuse = |folder: &Path, env: Env, cause: &str| {
        let name = folder.display().to_string();
        let env = [&[("API_PORT", "0"), ("DATA_DIR", name.as_str())], env].concat();
        let (code, printed, log) = Process::run_to_end(&[], &env);
        let line = format!("tree-cache: DATA_DIR={name:?}: {cause}");
        assert!(log.starts_with(&line) && log.lines().count() == 1, "{cause}: {log}");
        assert_eq!((code, printed), (Some(1), String::new()));
    };
    refuse(Path::new(folder.path()), &[], "another process uses it");
    // And it goes on.
    root.write("k", "2");
    let too_small = ("MAX_STORE_BYTES", "100");
    root.kill();
    refuse(Path::new(folder.path()), &[too_small], "over 187 bytes are there, 100 are allowed");
    let link = Folder::new("data");
    std::os::unix::fs::symlink("/nowhere", file(&link)).expect("the folder is ours");
    refuse(Path::new(link.path()), &[], "No such file or directory");
    refuse(&file(&folder), &[], "File exists");
    refuse(Path::new("/proc/no/such"), &[], "No such file or directory");

    let whole = fs::read(file(&folder)).expect("it is there");
    let write = |bytes: &[u8]| fs::write(file(&folder), bytes).expect("it is ours");
    let mut bits = whole.clone();
    for place in (4096..bits.len()).step_by(512) {
        bits[place] ^= 1;
    }
    for (bytes, cause) in [
        (&b""[..], "tree-cache.redb is damaged, or no file of this program"),
        (&[b'x'; 10_000], "tree-cache.redb is damaged, or no file of this program"),
        (&whole[..300], "tree-cache.redb is damaged, or no file of this program"),
        (&whole[..whole.len() / 2], "tree-cache.redb is damaged, or no file of this program"),
        (&bits, "tree-cache.redb is damaged, or no file of this program"),
    ] {
        write(bytes);
        refuse(Path::new(folder.path()), &[], cause);
    }
    for (format, cause) in [
        (None, "tree-cache.redb is damaged, or no file of this program: it has no format"),
        (Some(2), "tree-cache.redb has format 2, and this program reads 1"),
    ] {
        fs::remove_file(file(&folder)).expect("it is ours");
        let database = Database::create(file(&folder)).expect("it can be made");
        let transaction = database.begin_write().expect("nobody else writes");
        let notes = TableDefinition::<&str, u64>::new("notes");
        transaction.open_table(notes).expect("it is new").insert("format", format.unwrap_or(0)).expect("a note");
        if format.is_none() {
            transaction.delete_table(notes).expect("it is there");
        }
        transaction.commit().expect("there is room");
        drop(database);
        refuse(Path::new(folder.path()), &[], cause);
    }
    write(&whole);
    root.restart();
    root.expect_value("k", "2");
    // What was begun and left by another start is in nobody's way.
    let begun = Folder::new("data");
    fs::write(begun.join("tree-cache.new"), vec![0; 73_728]).expect("it is ours");
    new_root(&begun, &[]).write("k", "1");
}

#[test]
fn another_node_than_the_root_does_not_touch_the_folder() {
    let folder = Folder::new("data");
    let tree = Tree::start(1, &[("TREE_DEPTH", "2")]);
    let node = tree.start_node(2, &[("TREE_DEPTH", "2"), ("DATA_DIR", folder.path())]);
    node.write("k", "1");
    assert_eq!(fs::read_dir(Path::new(folder.path())).expect("it is there").count(), 0);
}

/// What one client knows of one key.
#[derive(Default)]
struct Known {
    acknowledged: u64,
    /// Later ones, of which it does not know what came of them.
    unknown: Vec<u64>,
}

/// Writes higher and higher values to keys of its own, until the node is gone.
fn write_on(url: &str, client: usize, known: &mut HashMap<String, Known>, next: &mut u64, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        *next += 1;
        let key = format!("k{client}-{}", *next % 5);
        let known = known.entry(key.clone()).or_default();
        let body = format!(r#"{{"value":{next}}}"#);
        match try_call("PUT", &format!("{url}/store/{key}"), &[], body.as_bytes()) {
            Ok(answer) if answer.status == 200 => {
                known.acknowledged = *next;
                known.unknown.clear();
            }
            // Whatever says so was not applied.
            Ok(answer) if answer.text().contains("not applied") => {}
            _ => known.unknown.push(*next),
        }
    }
}

#[test]
fn what_was_acknowledged_is_there_whenever_all_nodes_are_killed() {
    let kills = std::env::var("KILLS").map_or(30, |text| text.parse().expect("KILLS is a number"));
    let folder = Folder::new("data");
    let env = [("DATA_DIR", folder.path()), ("NEW_TREE", "1"), ("LEASE_SECONDS", "0.1"), ("RUST_LOG", "warn")];
    let mut tree = Tree::start(2, &env);
    let mut clients: Vec<(HashMap<String, Known>, u64)> = (0..6).map(|_| (HashMap::new(), 0)).collect();
    let (mut acknowledged, mut kept) = (0, 0);
    for kill in 0..kills {
        let over = AtomicBool::new(false);
        let urls: Vec<String> = tree.nodes.iter().map(|node| node.url.clone()).collect();
        let before: u64 = clients.iter().map(|(_, next)| next).sum();
        thread::scope(|scope| {
            for (number, (known, next)) in clients.iter_mut().enumerate() {
                let (url, over) = (&urls[number % urls.len()], &over);
                scope.spawn(move || write_on(url, number, known, next, over));
            }
            let _over = Over(&over);
            // Not always as long after the start.
            thread::sleep(Duration::from_millis(50 + kill * 37 % 150));
            tree.nodes.iter_mut().for_each(Node::kill);
        });
        tree.nodes.iter_mut().for_each(Node::restart);
        for (key, known) in clients.iter_mut().flat_map(|(known, _)| known) {
            let answer = tree.root().get(&format!("/store/{key}"));
            let value = if answer.status == 404 { 0 } else { answer.json()["value"].as_u64().expect("a number") };
            assert!(
                value == known.acknowledged || known.unknown.contains(&value),
                "kill {kill}: {key} is {value}; {} was acknowledged, then unknown: {:?}",
                known.acknowledged,
                known.unknown
            );
            kept += u64::from(value > known.acknowledged);
            (known.acknowledged, known.unknown) = (value, Vec::new());
            if value > 0 {
                tree.leaf().expect_value(key, &value.to_string());
            }
        }
        acknowledged += clients.iter().map(|(_, next)| next).sum::<u64>() - before;
    }
    println!("{kills} kills, {acknowledged} writes; {kept} of which nobody knew were there");
    assert!(acknowledged > kills, "something must have been written");
}

#[test]
#[ignore = "needs root: run make test-page"]
fn a_full_disk_ends_the_root_and_loses_nothing_that_was_acknowledged() {
    let folder = Folder::new("data");
    run(&["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder.path()]);
    let mut root = new_root(&folder, &[("LEASE_SECONDS", "0.1")]);
    let value = format!("\"{}\"", "x".repeat(10_000));
    let mut acknowledged = Vec::new();
    for number in 0..1000 {
        let key = format!("k{number}");
        let body = format!(r#"{{"value":{value}}}"#);
        match try_call("PUT", &format!("{}/store/{key}", root.url), &[], body.as_bytes()) {
            Ok(answer) if answer.status == 200 => acknowledged.push(key),
            _ => break,
        }
    }
    let (code, _, log) = root.process.wait_for_end(PROCESS_LIMIT);
    let line = log.lines().last().unwrap_or_default();
    let start = format!("tree-cache: DATA_DIR={:?}: could not commit, so what is there is unknown", folder.path());
    assert!(line.starts_with(&start) && line.contains("No space left on device"), "{log}");
    assert_eq!(code, Some(1));
    println!("{} values of 10 KB fit on 2 MB; {line}", acknowledged.len());
    // Started again without room it serves what is there, or says the same.
    let port = root.port.to_string();
    let env = [("API_PORT", port.as_str()), ("DATA_DIR", folder.path()), ("LEASE_SECONDS", "0.1")];
    let mut process = Process::spawn(&[], &env);
    poll_until(PROCESS_LIMIT, "it has its place, or ends", || {
        !process.is_alive() || process.printed().contains("listening")
    });
    if process.is_alive() {
        root.expect_value(acknowledged.last().expect("there are some"), &value);
    } else {
        assert!(process.log().contains("No space left on device"), "{}", process.log());
    }
    process.kill();
    run(&["mount", "-o", "remount,size=8m", folder.path()]);
    root.restart();
    assert!(acknowledged.len() > 50);
    for key in &acknowledged {
        root.expect_value(key, &value);
    }
    root.write("more", "1");
    root.kill();
    run(&["umount", folder.path()]);
}

// -- one root ----------------------------------------------------------------------------------

#[test]
fn a_second_root_ends_with_one_line_and_the_first_goes_on() {
    let folder = Folder::new("data");
    let root = new_root(&folder, &[]);
    root.write("k", "1");
    let line = format!("another root answers at {}, and a tree has one", root.url);
    Process::expect_failure(&[], &[("API_PORT", "0"), ("NODE_URL", &root.url)], &line);
    Process::expect_failure(&[], &[("API_PORT", "0"), ("NODE_ID", "1"), ("ROOT_URL", &root.url)], &line);
    // Who forgot to say which node it is does not become a root.
    let line = "NODE_ID must be a whole number from 1 to 7 where ROOT_URL is set";
    Process::expect_failure(&[], &[("API_PORT", "0"), ("ROOT_URL", &root.url)], line);
    root.write("k", "2");
    let line = format!("NODE-1 INFO: DATA_DIR={:?}: 0 entries, a new file\n", folder.path());
    assert_eq!(root.process.log(), line);
}

#[test]
fn of_two_roots_that_start_at_once_behind_one_name_one_is_left() {
    // Which of them has the smaller run is another each time.
    for _ in 0..4 {
        let ports = [free_ports(1), free_ports(1)];
        let name = Relay::start(ports[0]);
        let start = |port: u16| Process::spawn(&[], &[("API_PORT", &port.to_string()), ("NODE_URL", &name.url())]);
        let mut roots = ports.map(start);
        poll_until(PROCESS_LIMIT, "one has ended", || roots.iter_mut().any(|root| !root.is_alive()));
        let ended = usize::from(roots[0].is_alive());
        let (code, printed, log) = roots[ended].wait_for_end(PROCESS_LIMIT);
        // On a busy machine it may be that it finds out only later.
        let line = format!("tree-cache: another root answers at {}", name.url());
        assert!(code == Some(1) && log.lines().last().is_some_and(|last| last.starts_with(&line)), "{printed}{log}");
        roots[1 - ended].wait_for_output("listening on");
    }
}

#[test]
fn a_root_whose_name_is_anothers_now_ends() {
    let ports = [free_ports(1), free_ports(1)];
    let name = Relay::start(ports[0]);
    let url = name.url();
    let env = |port: &str| [("API_PORT", port.to_owned()), ("NODE_URL", url.clone()), ("TREE_DEPTH", "1".to_owned())];
    let start = |port: u16| {
        let env = env(&port.to_string());
        Node::start(&env.iter().map(|(name, value)| (*name, value.as_str())).collect::<Vec<_>>())
    };
    let mut first = start(ports[0]);
    first.write("k", "1");
    // It looks every ten seconds, and at once when it was paused.
    first.pause();
    name.lead_to(ports[1]);
    let second = start(ports[1]);
    thread::sleep(Duration::from_secs(2));
    first.resume();
    let began = Instant::now();
    let (code, _, log) = first.process.wait_for_end(Duration::from_secs(7));
    let line = format!("tree-cache: another root answers at {url} now, and a tree has one\n");
    assert!(code == Some(1) && log.ends_with(&line), "{log}");
    println!("it ended {:?} after it went on", began.elapsed());
    second.write("k", "2");
}
