//! Clients that mean no good, or have no luck: the node goes on, and serves the others meanwhile.
//!
//! Each test that opens many connections does so alone, so that none of them measures another. Run
//! them with `--nocapture` to see how long the others had to wait.

use std::io::{self, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::client::{Raw, raw_call};
use crate::harness::{Node, PROCESS_LIMIT, PROGRAM, Process, Tree, command, load_alone, poll_until};
use crate::random::Random;

/// How long anybody may have to wait for an answer. A connection that the library has stranded would wait
/// for ever, and a node that is cured frees one every 20 ms: so this is enough for a hundred of them.
const WAIT_LIMIT: Duration = Duration::from_secs(3);

/// Nor does the last of a burst of clients: measured 0.2 s at most, where without the sentinel some wait for ever.
const BURST_LIMIT: Duration = Duration::from_secs(1);

const GET: &[u8] = b"GET /store/k HTTP/1.1\r\nHost: x\r\n\r\n";

/// A root alone that holds one key.
fn start_root() -> Node {
    let root = Node::alone();
    root.write("k", "1");
    root
}

/// Fails the test unless ten new clients, one after another, are each answered in time.
fn expect_others_are_served(node: &Node, what: &str) {
    let mut worst = Duration::ZERO;
    for _ in 0..10 {
        let begun = Instant::now();
        raw_call(node.port, GET).expect(200, r#"{"value":1}"#);
        worst = worst.max(begun.elapsed());
    }
    eprintln!("{what}: others waited {worst:?} at most");
    assert!(worst < WAIT_LIMIT, "{what}: others waited {worst:?}");
}

fn connect(node: &Node) -> Raw {
    Raw::connect(node.port).expect("the node accepts connections")
}

fn put_of_length(length: &str, more: &str) -> Vec<u8> {
    format!("PUT /store/k HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{more}\r\n{{\"v").into_bytes()
}

#[test]
fn a_length_that_cannot_be_meant_is_refused_and_others_are_served_meanwhile() {
    let mut root = start_root();
    let large = |length: &str| (413, format!("the body has {length} bytes; at most 1048576 are allowed"));
    let senseless = |lengths: &[&str]| {
        (400, format!("Content-Length {lengths:?} and Transfer-Encoding [] do not say where the body ends"))
    };
    let mut held = Vec::new();
    for (length, (status, detail)) in [
        ("1000000000000", large("1000000000000")),
        ("1000000000000000", large("1000000000000000")),
        ("9223372036854775807", large("9223372036854775807")),
        ("9223372036854775808", large("9223372036854775808")),
        ("18446744073709551615", large("18446744073709551615")),
        ("1073741825", large("1073741825")),
        ("-1", senseless(&["-1"])),
        ("+2048", senseless(&["+2048"])),
        ("18446744073709551616", senseless(&["18446744073709551616"])),
        ("99999999999999999999999999", senseless(&["99999999999999999999999999"])),
    ] {
        let (once, two) = ((status, detail), |second| senseless(&[length, second]));
        for (more, (status, detail)) in [
            ("", &once),
            ("Connection: close\r\n", &once),
            ("Expect: 100-continue\r\n", &once),
            ("Content-Length: 2\r\n", &two("2")),
            ("content-length: x\r\nExpect: 100-continue\r\n", &two("x")),
            (&format!("Content-Length: {length}\r\n"), &two(length)),
        ] {
            let mut raw = connect(&root);
            raw.send(&put_of_length(length, more)).expect("the node takes the request");
            let answer = raw.read_answer().unwrap_or_else(|error| panic!("{length} {more:?}: {error}"));
            answer.expect_error(*status, detail);
            assert!(answer.closes(), "{length} {more:?}");
            // It stays open, the rest of its body still to come.
            held.push(raw);
        }
    }
    expect_others_are_served(&root, "absurd lengths");
    drop(held);
    expect_others_are_served(&root, "absurd lengths let go");
    root.process.expect_alive();
    root.expect_value("k", "1");
}

#[test]
fn a_hundred_bodies_of_a_gibibyte_that_never_come_are_only_promises() {
    let _alone = load_alone();
    // Where that much memory cannot be had, nobody may ask for it.
    for (limit, count) in [("unlimited", 100), ("900000", 10)] {
        let script = format!("ulimit -v {limit}; exec \"$0\"");
        let env = [("API_PORT", "0"), ("TREE_DEPTH", "1"), ("MALLOC_ARENA_MAX", "1")];
        let process = Process::spawn_command(command("sh").args(["-c", &script, PROGRAM]), &env);
        let mut root = Node::wait_for_place(process, &env);
        root.write("k", "1");
        let mut held = Vec::new();
        for number in 0..count {
            let mut raw = connect(&root);
            raw.send(&put_of_length("1073741824", "")).expect("the node takes the request");
            if number % 2 == 0 {
                raw.end_sending().expect("it is open");
                let detail = "the body has 1073741824 bytes; at most 1048576 are allowed";
                raw.read_answer().expect("it answers").expect_error(413, detail);
            }
            held.push(raw);
        }
        expect_others_are_served(&root, "gibibytes promised");
        root.process.expect_alive();
        drop(held);
        expect_others_are_served(&root, "gibibytes that do not come");
        root.process.expect_alive();
    }
}

/// Sends a request on each of 64 kept connections, three times over; the longest wait for the last answer.
fn ask_on_all(burst: &mut [Raw], sent: impl Fn()) -> Duration {
    let mut worst = Duration::ZERO;
    for _ in 0..3 {
        for raw in &mut *burst {
            raw.send(GET).expect("the connection is open");
        }
        sent();
        let begun = Instant::now();
        for raw in &mut *burst {
            raw.read_answer().expect("each is answered").expect(200, r#"{"value":1}"#);
        }
        worst = worst.max(begun.elapsed());
    }
    worst
}

#[test]
fn a_burst_of_sixty_four_connections_leaves_none_unanswered() {
    let _alone = load_alone();
    let root = start_root();
    let mut worst = Duration::ZERO;
    for _ in 0..20 {
        let mut burst: Vec<_> = (0..64).map(|_| connect(&root)).collect();
        worst = worst.max(ask_on_all(&mut burst, || {}));
    }
    eprintln!("bursts: the last of 64 had its answer after {worst:?} at most");
    assert!(worst < BURST_LIMIT, "the last of 64 had its answer after {worst:?}");
}

#[test]
fn sixty_four_connections_at_one_moment_at_a_fresh_node_are_all_answered() {
    let _alone = load_alone();
    let mut worst = Duration::ZERO;
    for _ in 0..10 {
        let root = start_root();
        // They wait together, as for a node that was busy, and are accepted all at once: then the library puts
        // most of them aside for the few threads that it has, each of which is soon taken for long.
        root.pause();
        let mut burst: Vec<_> = (0..64).map(|_| connect(&root)).collect();
        worst = worst.max(ask_on_all(&mut burst, || root.resume()));
    }
    eprintln!("bursts at a fresh node: the last of 64 had its answer after {worst:?} at most");
    assert!(worst < BURST_LIMIT, "the last of 64 had its answer after {worst:?}");
}

#[test]
fn half_a_request_and_silence_keep_nobody_else_waiting() {
    let alone = load_alone();
    // Each takes a descriptor here, and two at the node, which raises its own limit.
    rlimit::increase_nofile_limit(u64::MAX).expect("the limit can be asked for");
    let mut root = start_root();
    let threads = root.process.entries_of("task");
    let mut held = Vec::new();
    for half in [
        &b"GET /store/k HT"[..],
        b"GET /store/k HTTP/1.1\r\nHost: x\r\n",
        b"PUT /store/k HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{\"value\":",
        b"PUT /store/k HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n{\"value\":",
        b"",
    ] {
        for _ in 0..160 {
            let mut raw = connect(&root);
            raw.send(half).expect("the node takes what comes");
            held.push(raw);
        }
    }
    expect_others_are_served(&root, "800 silent clients");
    let memory_kb = root.process.memory_kb();
    assert!(memory_kb < 100_000, "they take {memory_kb} kB");
    root.process.expect_alive();
    drop((held, alone));
    // But for those that stay to wait for requests. Counted from outside: every request would keep one more idle thread
    // of the library alive for seconds.
    poll_until(PROCESS_LIMIT, "their threads are given back", || root.process.entries_of("task") <= threads + 40);
    root.expect_value("k", "1");
}

#[test]
fn random_bytes_harm_nobody() {
    let _alone = load_alone();
    let mut root = start_root();
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    let starts: [&[u8]; 8] = [
        b"",
        b"GET ",
        b"GET /store/k HTTP/1.1\r\n",
        b"PUT /store/other HTTP/1.1\r\nContent-Length: ",
        b"PUT /store/other HTTP/1.1\r\nContent-Length: 60\r\n\r\n",
        b"PUT /store/other HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /nodes HTTP/1.1\r\nContent-Length: 200\r\n\r\n{\"id\":2,",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ];
    for round in 0..400 {
        let mut bytes = random.pick(&starts).to_vec();
        let (line_ends, count) = (random.below(2) == 0, random.below(1500));
        bytes.extend(random.bytes(count));
        if line_ends {
            bytes.extend(b"\r\n\r\n");
        }
        let mut raw = connect(&root);
        // The node may close before it has them all.
        let _: io::Result<()> = raw.send(&bytes).and_then(|()| raw.end_sending());
        if round % 100 == 99 {
            expect_others_are_served(&root, "random bytes");
        }
    }
    root.process.expect_alive();
    root.get("/store/other").expect_error(404, "Key not found");
}

#[test]
fn a_thousand_connections_opened_and_dropped_leave_nothing() {
    let _alone = load_alone();
    let mut root = start_root();
    for round in 0..1000 {
        let mut raw = connect(&root);
        if round % 2 == 0 {
            raw.send(GET).expect("the node takes the request");
        }
    }
    expect_others_are_served(&root, "a thousand connections dropped");
    root.process.expect_alive();
    // Nothing of them is left: every descriptor is given back.
    poll_until(PROCESS_LIMIT, "the descriptors are given back", || root.process.entries_of("fd") < 30);
}

#[test]
fn resets_cost_no_line_in_the_log_but_at_level_debug() {
    for (level, lines) in [("info", 0), ("debug", 1)] {
        let mut root = Node::start(&[("TREE_DEPTH", "1"), ("RUST_LOG", level)]);
        root.write("k", "1");
        let reset_once = || {
            for request in [GET, b"", b"GET /", b"PUT /store/k HTTP/1.1\r\nContent-Length: 5000\r\n\r\n{"] {
                let stream = TcpStream::connect(("127.0.0.1", root.port)).expect("the node accepts connections");
                (&stream).write_all(request).expect("the node takes the request");
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("Linux knows it");
            }
        };
        // Which of them finds tiny_http in the wrong moment is a matter of luck.
        let panics = || root.process.log().matches("tiny_http").count();
        poll_until(PROCESS_LIMIT, "panics in tiny_http", || {
            (0..50).for_each(|_| reset_once());
            panics() >= lines
        });
        raw_call(root.port, GET).expect(200, r#"{"value":1}"#);
        let log = root.process.log();
        assert!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
        assert!(level == "debug" || panics() == 0, "{log}");
        root.process.expect_alive();
    }
}

#[test]
fn a_root_with_children_gives_back_the_threads_of_a_burst() {
    let _alone = load_alone();
    // Their joins come each second.
    let tree = Tree::start(2, &[]);
    let root = tree.root();
    let threads = root.process.entries_of("task");
    let mut burst: Vec<_> = (0..300).map(|_| connect(root)).collect();
    for raw in &mut burst {
        raw.send(GET).expect("it is open");
    }
    for raw in &mut burst {
        assert_eq!(raw.read_answer().expect("it answers").status, 404);
    }
    drop(burst);
    let given_back = || root.process.entries_of("task") <= threads + 40;
    poll_until(Duration::from_secs(30), "their threads are given back", given_back);
}

#[test]
fn pipelined_requests_are_answered_in_order_and_take_one_thread() {
    let _alone = load_alone();
    let root = start_root();
    let mut raw = connect(&root);
    let requests: String = (0..50)
        .map(|number| {
            format!("PUT /store/p HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n{{\"value\":1{number:03}}}")
        })
        .map(|put| put + "GET /store/p HTTP/1.1\r\nHost: x\r\n\r\n")
        .collect();
    raw.send(requests.as_bytes()).expect("the node takes them all");
    for number in 0..50 {
        let mut next = || raw.read_answer().expect("each is answered");
        next().expect(200, &format!(r#"{{"key":"p","value":1{number:03}}}"#));
        next().expect(200, &format!(r#"{{"value":1{number:03}}}"#));
    }
}

#[test]
fn thousands_of_pipelined_requests_whose_answers_nobody_reads_hold_one_thread() {
    let _alone = load_alone();
    let mut root = start_root();
    let threads = root.process.entries_of("task");
    // So long that 20,000 of them fill every buffer between the node and its client.
    let long = format!("\"{}\"", "x".repeat(4000));
    root.put("long", &long);
    let mut raw = connect(&root);
    raw.send(&b"GET /store/long HTTP/1.1\r\nHost: x\r\n\r\n".repeat(20_000)).expect("the node takes them all");
    expect_others_are_served(&root, "20,000 pipelined requests");
    let held = root.process.entries_of("task").saturating_sub(threads);
    eprintln!("20,000 pipelined requests: {held} more threads");
    assert!(held <= 16, "{held} more threads");
    root.process.expect_alive();
}

#[test]
fn clients_that_never_read_their_answer_keep_nobody_else_waiting() {
    let _alone = load_alone();
    let mut root = start_root();
    let large = format!("\"{}\"", "x".repeat(1_000_000));
    root.put("large", &large);
    let mut held = Vec::new();
    for _ in 0..32 {
        let mut raw = connect(&root);
        raw.send(&b"GET /store/large HTTP/1.1\r\nHost: x\r\n\r\n".repeat(8)).expect("the node takes the request");
        held.push(raw);
    }
    expect_others_are_served(&root, "32 clients that do not read");
    root.process.expect_alive();
    drop(held);
    root.expect_value("large", &large);
}

#[test]
fn a_megabyte_of_headers_harms_nobody() {
    let mut root = start_root();
    let one = format!("X-Long: {}\r\n", "x".repeat(1 << 20));
    let many = (0..20_000).map(|number| format!("X-{number}: {number}\r\n")).collect::<Vec<_>>().concat();
    let target = format!("/store/{}", "k".repeat(1 << 20));
    for (headers, target, status) in [(one.as_str(), "/store/k", 200), (&many, "/store/k", 200), ("", &target, 400)] {
        let answer = raw_call(root.port, format!("GET {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").as_bytes());
        assert_eq!(answer.status, status);
    }
    expect_others_are_served(&root, "long headers");
    root.process.expect_alive();
}

#[test]
fn without_descriptors_a_node_answers_again_or_ends_with_an_error() {
    // The library fails in another way for an odd and an even number of descriptors.
    for limit in [63, 64] {
        let script = format!("ulimit -n {limit}; exec \"$0\"");
        let env = [("API_PORT", "0"), ("TREE_DEPTH", "1")];
        let process = Process::spawn_command(command("sh").args(["-c", &script, PROGRAM]), &env);
        let mut node = Node::wait_for_place(process, &env);
        node.write("k", "1");
        let begun = Instant::now();
        let held: Vec<_> = (0..200).filter_map(|_| Raw::connect(node.port).ok()).collect();
        drop(held);
        let answered = |node: &Node| {
            let ask = || {
                let mut raw = Raw::connect(node.port)?;
                raw.limit_reads(Duration::from_secs(1))?;
                raw.send(GET)?;
                raw.read_answer()
            };
            ask().is_ok_and(|answer| answer.status == 200)
        };
        let mut alive = true;
        poll_until(Duration::from_secs(30), "it answers again, or has ended", || {
            alive = node.process.is_alive();
            !alive || answered(&node)
        });
        let took = begun.elapsed();
        if alive {
            expect_others_are_served(&node, "descriptors given back");
        } else {
            let (code, _, log) = node.process.wait_for_end(PROCESS_LIMIT);
            assert_eq!(code, Some(1), "{log}");
            assert!(log.lines().last().is_some_and(|line| line.starts_with("tree-cache: ")), "{log}");
        }
        eprintln!("{limit} descriptors: {} after {took:?}", if alive { "answers again" } else { "ended" });
    }
}
