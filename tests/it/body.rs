//! Bodies: how long they are, what becomes of one that is refused, and what they may take.

use std::time::Duration;

use crate::client::Raw;
use crate::harness::{Env, Node, PROCESS_LIMIT, Tree, free_ports, load_alone, poll_until};

const LARGEST: usize = 3000;

const STOPS: &[u8] = b"PUT /store/smuggled HTTP/1.1\r\nContent-Length: 11\r\n\r\n{\"value\":2}";

const GOES_ON: &[u8] = b"GET /store/next HTTP/1.1\r\n\r\n";

const OBJECT: &str = r#"{"value":1}"#;

const KEPT: &str = r#"{"key":"k","value":1}"#;

/// A body of so many bytes.
fn body_of(bytes: usize) -> String {
    format!(r#"{{"value":"{}"}}"#, "x".repeat(bytes - r#"{"value":""}"#.len()))
}

/// The same text in chunks of at most so many bytes.
fn chunked(text: &str, bytes: usize) -> String {
    let chunks = text.as_bytes().chunks(bytes);
    let chunks = chunks.map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk)));
    chunks.collect::<String>() + "0\r\n\r\n"
}

fn send(node: &Node, version: &str, headers: &str, body: &str) -> Raw {
    let mut raw = Raw::connect(node.port).expect("the node accepts connections");
    raw.send(format!("PUT /store/k HTTP/{version}\r\nHost: x\r\n{headers}\r\n{body}").as_bytes())
        .expect("the node takes the request");
    raw
}

#[test]
fn a_request_whose_end_is_known_leaves_the_next_one_as_it_is() {
    let tree = Tree::start(2, &[("MAX_VALUE_BYTES", &LARGEST.to_string())]);
    tree.root().write("next", "7");
    let (largest, large) = (body_of(LARGEST), body_of(LARGEST + 1));
    let (is_large, are_more) = (
        format!("the body has {} bytes; at most 3000 are allowed", large.len()),
        "the body has more bytes; at most 3000 are allowed",
    );
    let of_length = |length: usize, more: &str| format!("Content-Length: {length}\r\n{more}");
    let in_chunks = |more: &str| format!("Transfer-Encoding: chunked\r\n{more}");
    let (expect, huge) = ("Expect: 100-continue\r\n", body_of(3 << 20));
    for node in [tree.root(), tree.leaf()] {
        for (headers, body, status, text) in [
            (in_chunks(""), chunked(OBJECT, 100), 200, KEPT),
            (in_chunks(""), chunked(OBJECT, 1), 200, KEPT),
            ("transfer-encoding: Chunked\r\n".to_owned(), chunked(OBJECT, 4), 200, KEPT),
            (in_chunks(""), chunked(OBJECT, 9).replace("9\r\n", "009 ;name=\"value\"\r\n"), 200, KEPT),
            (in_chunks(expect), chunked(OBJECT, 4), 200, KEPT),
            (in_chunks(""), chunked(&largest, 1000), 200, ""),
            (in_chunks(""), chunked(&large, 1000), 413, are_more),
            (in_chunks(expect), chunked(&large, 100_000), 413, are_more),
            (in_chunks(""), chunked(&huge, 100_000), 413, are_more),
            (in_chunks(""), chunked(&OBJECT[..8], 4), 422, ""),
            (of_length(11, ""), OBJECT.to_owned(), 200, KEPT),
            (of_length(11, expect), OBJECT.to_owned(), 200, KEPT),
            (of_length(LARGEST, expect), largest.clone(), 200, ""),
            (of_length(large.len(), ""), large.clone(), 413, &is_large),
            (of_length(huge.len(), ""), huge.clone(), 413, "the body has 3145728 bytes; at most 3000 are allowed"),
        ] {
            let what = format!("{headers:?} at {}", node.name);
            let mut raw = send(node, "1.1", &headers, &body);
            raw.send(GOES_ON).expect("it is open");
            let answer = raw.read_answer().unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!((answer.status, answer.header("connection")), (status, None), "{what}: {}", answer.text());
            match status {
                200 if text.is_empty() => {}
                200 => answer.expect(status, text),
                _ if text.is_empty() => {}
                _ => answer.expect_error(status, text),
            }
            raw.read_answer().unwrap_or_else(|error| panic!("{what}: {error}")).expect(200, r#"{"value":7}"#);
        }
    }
}

#[test]
fn a_request_whose_end_is_not_known_is_the_last_of_its_connection() {
    let tree = Tree::start(2, &[("MAX_VALUE_BYTES", &LARGEST.to_string())]);
    let large = body_of(LARGEST + 1);
    let (one, broken) = (chunked(OBJECT, 100), "the body broke off after");
    let too_large = "the body has 3001 bytes; at most 3000 are allowed";
    let senseless = "Content-Length ";
    let mut ended = Vec::new();
    for node in [tree.root(), tree.leaf()] {
        for (version, headers, body, status, text) in [
            ("1.1", "Transfer-Encoding: chunked\r\n", "x\r\n", 400, broken),
            ("1.1", "Transfer-Encoding: chunked\r\n", "-5\r\n{\"value\":1}\r\n0\r\n\r\n", 400, broken),
            ("1.1", "Transfer-Encoding: chunked\r\n", "\r\n", 400, broken),
            ("1.1", "Transfer-Encoding: chunked\r\n", "b\r\n{\"value\":1}0\r\n\r\n", 400, broken),
            ("1.1", "Transfer-Encoding: chunked\r\n", "a\r\n{\"value\":1}\r\n0\r\n\r\n", 400, broken),
            ("1.1", "Transfer-Encoding: chunked\r\n", "b\r\n{\"value\":1}\r\n0\r\nX: y\r\n\r\n", 400, broken),
            ("1.1", "Transfer-Encoding: identity\r\n", OBJECT, 400, senseless),
            ("1.1", "Transfer-Encoding: gzip, chunked\r\n", &one, 400, senseless),
            ("1.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", &one, 400, senseless),
            ("1.0", "Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n", &one, 400, senseless),
            ("1.1", "Transfer-Encoding: chunked\r\nContent-Length: 11\r\n", &one, 400, senseless),
            ("1.1", "Content-Length: 21\r\nTransfer-Encoding: chunked\r\n", &one, 400, senseless),
            ("1.1", "Content-Length: 11\r\nContent-Length: 11\r\n", OBJECT, 400, senseless),
            ("1.1", "Content-Length: 11\r\nContent-Length: 5\r\n", OBJECT, 400, senseless),
            ("1.1", "Content-Length: 5\r\nContent-Length: 5000\r\n", OBJECT, 400, senseless),
            ("1.1", "Content-Length: 5000\r\nContent-Length: 5\r\n", OBJECT, 400, senseless),
            ("1.1", "Content-Length: +11\r\n", OBJECT, 400, senseless),
            ("1.1", "Content-Length: 0xb\r\n", OBJECT, 400, senseless),
            ("1.1", "Content-Length: 11, 11\r\n", OBJECT, 400, senseless),
            ("1.1", "Content-Length:\r\n", OBJECT, 400, senseless),
            // Whoever asked need not send the body, and may have sent it before it had the answer.
            ("1.1", "Content-Length: 3001\r\nExpect: 100-continue\r\n", "", 413, too_large),
            ("1.1", "Content-Length: 3001\r\nExpect: 100-Continue\r\n", &large, 413, too_large),
        ] {
            let what = format!("{headers:?} {body:.20?} at {}", node.name);
            let mut raw = send(node, version, headers, body);
            raw.send(STOPS).expect("it is open");
            let (answer, was_told_to_go_on) = raw.read_final().unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(!was_told_to_go_on, "{what}: whoever asked first is not told to send it");
            assert!(answer.status == status && answer.closes(), "{what}: {} {}", answer.status, answer.text());
            assert!(answer.detail().starts_with(text), "{what}: {}", answer.text());
            assert_eq!(answer.detail().ends_with(" do not say where the body ends"), text == senseless, "{what}");
            answer.expect_no_store();
            ended.push((what, raw));
        }
    }
    for (what, mut raw) in ended {
        raw.limit_reads(Duration::from_millis(20)).expect("the time is not zero");
        // What cannot be read as a request, tiny_http refuses by itself.
        let next = raw.read_answer().map(|answer| (answer.status, answer.text().to_owned()));
        assert!(next.as_ref().map_or(true, |answer| *answer == (400, String::new())), "{what}: {next:?}");
    }
    tree.root().get("/store/smuggled").expect_error(404, "Key not found");
    tree.root().get("/store/k").expect_error(404, "Key not found");
}

#[test]
fn the_next_connection_of_the_same_port_is_heard() {
    let root = Node::alone();
    root.write("k", "1");
    for framing in ["Content-Length: 11\r\nContent-Length: 11\r\n", "Content-Length: x\r\n", "Transfer-Encoding: x\r\n"]
    {
        // Not one that the kernel may give to another test.
        let own = free_ports(1);
        let mut raw = Raw::connect_from(own, root.port).expect("the port is free");
        raw.send(format!("PUT /store/k HTTP/1.1\r\n{framing}\r\n{OBJECT}").as_bytes()).expect("it is open");
        raw.read_answer().expect("it answers");
        raw.reset();
        // It is free again once nobody has the old one, not even a process that another test is just forking.
        let mut next = None;
        poll_until(PROCESS_LIMIT, "the port is free again", || {
            next = Raw::connect_from(own, root.port).ok();
            next.is_some()
        });
        let mut next = next.expect("it is connected");
        next.limit_reads(Duration::from_secs(4)).expect("the time is not zero");
        next.send(b"GET /store/k HTTP/1.1\r\n\r\n").expect("it is open");
        next.read_answer().expect("it answers").expect(200, r#"{"value":1}"#);
    }
}

#[test]
fn bodies_that_are_promised_take_no_memory() {
    let _alone = load_alone();
    // As the image and `make local` set it.
    let env = [("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_THRESHOLD_", "1048576")];
    let root = Node::start(&[&env[..], &[("TREE_DEPTH", "1")]].concat());
    let mut held = Vec::new();
    for framing in ["31000000\r\nExpect: 100-continue", "31000000\r\nContent-Length: 2", "31000000", "+31000000"] {
        for _ in 0..20 {
            let mut raw = send(&root, "1.1", &format!("Content-Length: {framing}\r\n"), "");
            if framing != "31000000" {
                assert!(raw.read_answer().expect("it answers").status >= 400);
            }
            raw.send(b"x").expect("it is open");
            held.push(raw);
        }
    }
    root.write("k", "1");
    let open_kb = root.process.memory_kb();
    drop(held);
    root.write("k", "2");
    let most_kb = root.process.most_memory_kb();
    eprintln!("eighty promises of 31 MB take {open_kb} kB, and {most_kb} kB when they are broken");
    assert!(open_kb < 60_000 && most_kb < 60_000, "{open_kb} kB, {most_kb} kB");
}

#[test]
fn a_client_that_would_change_the_protocol_may_send_chunks() {
    let root = Node::alone();
    // As Java's client asks, and `curl --http2`.
    let upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n";
    for (framing, body) in
        [("Transfer-Encoding: chunked\r\n", chunked(OBJECT, 4)), ("Content-Length: 11\r\n", OBJECT.to_owned())]
    {
        let answer = send(&root, "1.1", &format!("{upgrade}{framing}"), &body).read_answer().expect("it answers");
        answer.expect(200, KEPT);
        assert_eq!(answer.header("connection"), Some("close"));
    }
    let answer = send(&root, "1.1", &format!("{upgrade}Transfer-Encoding: chunked\r\n"), "x\r\n").read_answer();
    answer.expect("it answers").expect_error(400, "the body broke off after 0 bytes: Error while decoding chunks");
}

#[test]
fn a_body_cut_short_is_400_or_closes_the_connection_and_nothing_is_written() {
    let tree = Tree::start(2, &[]);
    for node in [tree.root(), tree.leaf()] {
        for length in [12, 1024, 1025, 100_000] {
            let mut raw = send(node, "1.1", &format!("Content-Length: {length}\r\n"), OBJECT);
            raw.end_sending().expect("the connection is open");
            match raw.read_answer() {
                Ok(answer) => answer.expect_error(400, &format!("the body ended after 11 of {length} bytes")),
                // Such bodies are read by tiny_http itself, which just closes the connection of a short one.
                Err(error) => assert!(length <= 1024, "{length}: {error}"),
            }
        }
        for (cut, status) in [("", 400), ("b", 400), ("b\r\n{\"value\":", 422), ("b\r\n{\"value\":1}\r\n", 400)] {
            let mut raw = send(node, "1.1", "Transfer-Encoding: chunked\r\n", cut);
            raw.end_sending().expect("the connection is open");
            assert_eq!(raw.read_answer().expect("it answers").status, status, "{cut:?}");
        }
    }
    tree.root().get("/store/k").expect_error(404, "Key not found");
}

#[test]
fn the_bodies_that_are_being_received_have_a_bound_and_small_writes_go_on() {
    let _alone = load_alone();
    let root = Node::start(&[("TREE_DEPTH", "1"), ("MALLOC_ARENA_MAX", "1")]);
    let body = body_of(1 << 20);
    let (length, in_chunks) = (format!("Content-Length: {}\r\n", body.len()), "Transfer-Encoding: chunked\r\n");
    let chunks = chunked(&body, 5000);
    // 64 MiB are allowed. Whoever needs more while these are held is refused, and gives its part back.
    let both = [(length.as_str(), &body), (in_chunks, &chunks)];
    let begin = |(framing, body): (&str, &'_ str)| {
        let (most, last) = body.split_at(body.len() - 1);
        (send(&root, "1.1", framing, most), last.to_owned())
    };
    let mut held: Vec<_> =
        (0..90).map(|number| both[number % 2]).map(|(framing, body)| begin((framing, body))).collect();
    root.write("small", "1");
    root.expect_value("small", "1");
    let mut statuses = Vec::new();
    for (raw, last) in &mut held {
        raw.send(last.as_bytes()).expect("it is open");
        let answer = raw.read_answer().expect("it answers");
        if answer.status == 503 {
            answer.expect_retry("the bodies that this node is receiving have 67108864 bytes; it was not applied");
        }
        statuses.push(answer.status);
    }
    let kept = statuses.iter().filter(|status| **status == 200).count();
    let memory_kb = root.process.most_memory_kb();
    eprintln!("of 90 bodies of 1 MiB at once {kept} were kept, in {memory_kb} kB at most");
    assert!((55..=70).contains(&kept) && memory_kb < 110_000, "{statuses:?}, {memory_kb} kB");
    // All the room was given back.
    for _ in 0..70 {
        assert_eq!(root.call("PUT", "/store/k", body.as_bytes()).status, 200);
    }
}

#[test]
fn a_large_value_takes_at_most_four_times_its_size_at_root_and_leaf_together() {
    const BYTES: usize = 100_000_000;
    let _alone = load_alone();
    let env: Env = &[("MAX_VALUE_BYTES", "200000000"), ("MAX_STORE_BYTES", "1000000000"), ("MALLOC_ARENA_MAX", "1")];
    let tree = Tree::start(2, env);
    let body = body_of(BYTES);
    let most_kb = || tree.root().process.most_memory_kb() + tree.leaf().process.most_memory_kb();
    // Together with the old value, while the new one comes.
    for (what, tenths) in [("written", 40), ("written over", 50)] {
        assert_eq!(tree.leaf().call("PUT", "/store/k", body.as_bytes()).status, 200);
        // The answer comes before what was passed on is let go of.
        poll_until(PROCESS_LIMIT, "the leaf holds nothing of it", || tree.leaf().process.memory_kb() < 60_000);
        assert_eq!(tree.leaf().get("/store/k").body.len(), BYTES);
        eprintln!("a value of 100 MB is {what} and read: root and leaf took {} kB at most", most_kb());
        assert!(most_kb() * 1024 < tenths * BYTES as u64 / 10, "{what}: {} kB", most_kb());
    }
}
