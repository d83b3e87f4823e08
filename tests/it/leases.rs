//! Copies that are never stale, on real processes: what a copy saves, what it costs, and what a lost
//! node does to both.

use std::time::{Duration, Instant};

use crate::client::{Raw, copy_path, join_body};
use crate::harness::{Node, PROCESS_LIMIT, Process, Tree, load_alone, poll_until};
use crate::impostor::Impostor;

const FROM_COPY: &str = "reads_total{from=\"copy\"}";

/// Asserts that a time lies between two limits; what the machine itself adds is allowed for.
#[track_caller]
fn expect_within(took: Duration, least: Duration, most: Duration) {
    assert!(took >= least && took <= most, "took {took:?}, not {least:?} to {most:?}");
}

#[test]
fn a_second_read_at_a_leaf_costs_no_message() {
    let tree = Tree::start(3, &[("LEASE_SECONDS", "4")]);
    let leaf = tree.node(4);
    tree.root().write("k", "1");
    leaf.expect_value("k", "1");
    assert_eq!((leaf.metric(FROM_COPY), leaf.metric("fetches_sent_total")), (0, 1));
    assert_eq!((tree.node(2).metric("grants_total"), tree.root().metric("grants_total")), (1, 1));
    tree.node(2).pause();
    tree.root().pause();
    let asked = Instant::now();
    leaf.expect_value("k", "1");
    assert!(asked.elapsed() < Duration::from_secs(1), "nobody was asked");
    assert_eq!((leaf.metric(FROM_COPY), leaf.metric("fetches_sent_total")), (1, 1));
    leaf.get("/store").expect(200, r#"{"k":1}"#);
}

#[test]
fn a_thousand_writes_are_seen_by_every_node_that_held_a_copy() {
    let tree = Tree::start(3, &[("LEASE_SECONDS", "4")]);
    for round in 0..1000 {
        let writer = &tree.nodes[round % 7];
        writer.write("k", &round.to_string());
        for node in &tree.nodes {
            node.expect_value("k", &round.to_string());
        }
    }
    // All six held a copy, each time but the last.
    let received: u64 = tree.nodes[1..].iter().map(|node| node.metric("invalidations_received_total")).sum();
    assert_eq!(received, 6 * 999);
    assert_eq!(tree.root().metric("silent_holder_waits_total"), 0);
}

#[test]
fn a_dead_inner_node_delays_one_write_by_one_lease_and_its_children_read_on() {
    let mut tree = Tree::start(3, &[("LEASE_SECONDS", "4")]);
    let second = Duration::from_secs(1);
    tree.root().put("k", "1");
    for id in 4..=5 {
        tree.node(id).expect_value("k", "1");
    }
    tree.nodes[1].kill();
    let asked = Instant::now();
    tree.node(7).write("k", "2");
    expect_within(asked.elapsed(), second, 5 * second);
    assert_eq!(tree.root().metric("silent_holder_waits_total"), 1);
    for id in 4..=5 {
        let asked = Instant::now();
        tree.node(id).expect_value("k", "2");
        assert!(asked.elapsed() < second, "a dead parent refuses at once");
    }
    // Its children are the root's holders now, so the next write waits for nobody.
    tree.root().write("k", "3");
    assert_eq!(tree.root().metric("silent_holder_waits_total"), 1);
    tree.nodes[1].restart();
    assert_eq!(tree.node(2).get("/").json()["position"], 1);
    tree.node(2).expect_value("k", "3");
}

#[test]
fn a_paused_parent_costs_one_reader_its_time_limit_and_the_next_one_nothing() {
    let tree = Tree::start(3, &[("LEASE_SECONDS", "4")]);
    for key in ["a", "b", "c"] {
        tree.root().put(key, "1");
    }
    tree.node(2).pause();
    let asked = Instant::now();
    tree.node(4).expect_value("a", "1");
    expect_within(asked.elapsed(), Duration::from_millis(2400), Duration::from_secs(4));
    for key in ["b", "c"] {
        let asked = Instant::now();
        tree.node(4).expect_value(key, "1");
        assert!(asked.elapsed() < Duration::from_secs(1), "the parent is passed over");
    }
}

#[test]
fn a_parent_that_stalls_within_its_answer_costs_half_of_the_time_limit() {
    let mut tree = Tree::start(1, &[("TREE_DEPTH", "3")]);
    let impostor = Impostor::start(7);
    let join = join_body(2, 7, &impostor.url(), None);
    assert_eq!(tree.root().call("POST", "/nodes", join.as_bytes()).status, 200);
    for id in [3, 4] {
        tree.nodes.push(tree.start_node(id, &[("TREE_DEPTH", "3")]));
    }
    tree.root().write("k", "1");
    impostor.stall();
    let asked = Instant::now();
    tree.leaf().expect_value("k", "1");
    // A limit for each phase of a call would let it begin anew with the answer's body.
    expect_within(asked.elapsed(), Duration::from_millis(2400), Duration::from_secs(4));
    assert!(impostor.heard().iter().any(|heard| heard.starts_with("GET /copies/k?")));
}

#[test]
fn a_dead_leaf_never_bans_its_living_parent() {
    let rounds = std::env::var("ROUNDS").map_or(1, |text| text.parse().expect("ROUNDS is a number"));
    let mut tree = Tree::start(3, &[("LEASE_SECONDS", "1")]);
    for round in 1..=rounds {
        tree.root().write("k", "1");
        for id in [2, 4] {
            tree.node(id).expect_value("k", "1");
        }
        tree.nodes[3].kill();
        tree.root().write("k", "2");
        // Its parent waited until its record had run out, and could still say so in time.
        let waits = |id: usize| tree.node(id).metric("silent_holder_waits_total");
        assert_eq!((waits(2), waits(1)), (round, 0), "round {round}");
        tree.node(2).expect_value("k", "2");
        tree.nodes[3].restart();
    }
}

#[test]
fn a_parent_that_is_back_is_asked_again() {
    let tree = Tree::start(3, &[]);
    let parent = tree.node(2);
    tree.root().put("k", "1");
    parent.pause();
    tree.node(4).get("/store/a").expect_error(404, "Key not found");
    let passed_over = Instant::now();
    parent.resume();
    poll_until(Duration::from_secs(20), "it carries out what had come", || parent.metric("fetches_sent_total") == 1);
    poll_until(Duration::from_secs(15), "the parent is asked", || {
        tree.node(4).get(&format!("/store/{}", passed_over.elapsed().as_millis()));
        parent.metric("fetches_sent_total") > 1
    });
    let waited = passed_over.elapsed();
    assert!(waited > Duration::from_secs(1), "it is passed over for 5 s, and was asked after {waited:?}");
}

#[test]
fn a_node_that_has_lost_its_root_is_not_ready_but_lives() {
    let mut tree = Tree::start(2, &[]);
    let port = tree.leaf().port.to_string();
    let health = || Process::run_to_end(&["health"], &[("API_PORT", &port)]).0;
    tree.root().get("/health").expect(200, r#"{"status":"ok"}"#);
    tree.leaf().get("/health").expect(200, r#"{"status":"ok"}"#);
    let killed = Instant::now();
    tree.nodes[0].kill();
    poll_until(Duration::from_secs(15), "the leaf misses its root", || tree.leaf().get("/health").status == 503);
    assert!(killed.elapsed() > Duration::from_secs(1), "a root may be silent for 3 s");
    let answer = tree.leaf().get("/health");
    let detail = answer.json()["detail"].as_str().expect("a reason").to_owned();
    answer.expect_retry(&detail);
    assert!(detail.starts_with("the root was last heard ") && detail.ends_with("s ago"), "{detail}");
    // Whoever restarts what is not alive must not restart all nodes while the root is away.
    assert_eq!(health(), Some(0));
    tree.nodes[0].restart();
    poll_until(Duration::from_secs(15), "the leaf is ready again", || tree.leaf().get("/health").status == 200);
}

#[test]
fn a_thousand_reads_that_wait_for_a_paused_parent_keep_no_hit_waiting() {
    let _alone = load_alone();
    let tree = Tree::start(3, &[("LEASE_SECONDS", "8")]);
    let leaf = tree.node(4);
    tree.root().put("k", "1");
    leaf.expect_value("k", "1");
    tree.node(2).pause();
    tree.root().pause();
    let mut waiting: Vec<Raw> = (0..1000).map(|_| Raw::connect(leaf.port).expect("it accepts")).collect();
    for (raw, number) in waiting.iter_mut().zip(0..) {
        raw.send(format!("GET /store/other{number} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).expect("it is open");
    }
    poll_until(Duration::from_secs(4), "all wait", || leaf.metric("fetches_sent_total") >= 1001);
    let asked = Instant::now();
    for _ in 0..20 {
        leaf.expect_value("k", "1");
    }
    let took = asked.elapsed() / 20;
    assert!(took < Duration::from_millis(500), "a hit took {took:?}");
    for raw in &mut waiting {
        assert_eq!(raw.read_answer().expect("it is answered").status, 503);
    }
}

#[test]
fn a_paused_leaf_never_answers_a_value_from_before_a_write() {
    let tree = Tree::start(2, &[("LEASE_SECONDS", "1")]);
    tree.root().put("k", "1");
    tree.node(2).expect_value("k", "1");
    tree.node(2).pause();
    tree.node(3).write("k", "2");
    tree.node(2).resume();
    tree.node(2).expect_value("k", "2");
}

#[test]
fn with_the_root_dead_copies_are_answered_until_their_lease_ends() {
    let mut tree = Tree::start(3, &[("LEASE_SECONDS", "3")]);
    tree.root().put("k", "1");
    tree.node(4).expect_value("k", "1");
    tree.nodes[0].kill();
    tree.node(4).expect_value("k", "1");
    poll_until(Duration::from_secs(10), "the lease ends", || tree.node(4).get("/store/k").status == 503);
    let asked = Instant::now();
    assert_eq!(tree.node(4).get("/store/k").status, 503);
    assert!(asked.elapsed() < Duration::from_secs(2));
    tree.nodes[0].restart();
    let back = Instant::now();
    tree.node(6).write("k", "2");
    tree.node(4).expect_value("k", "2");
    assert!(back.elapsed() < Duration::from_secs(9), "three leases");
}

#[test]
fn a_value_with_a_ttl_is_gone_from_every_node_when_it_is_over() {
    let tree = Tree::start(3, &[]);
    // Not in the root's first seconds, when no write finishes.
    tree.root().delete("other").expect(200, r#"{"key":"other"}"#);
    let put = Instant::now();
    let answer = tree.node(7).call("PUT", "/store/k", br#"{"value":1,"ttl":4}"#);
    answer.expect(200, r#"{"key":"k","value":1}"#);
    for node in &tree.nodes {
        node.expect_value("k", "1");
    }
    poll_until(Duration::from_secs(8), "it expires at the root", || tree.root().get("/store/k").status == 404);
    assert!(put.elapsed() >= Duration::from_secs(4), "it lived for {:?}", put.elapsed());
    for node in &tree.nodes {
        node.get("/store/k").expect_error(404, "Key not found");
    }
    poll_until(Duration::from_secs(5), "it is swept", || tree.root().metric("entries") == 0);
    for ttl in ["0", "-1", "1e300", "1e-12", "\"2\""] {
        let body = format!(r#"{{"value":1,"ttl":{ttl}}}"#);
        assert_eq!(tree.node(7).call("PUT", "/store/k", body.as_bytes()).status, 422, "{ttl}");
    }
}

#[test]
fn with_the_root_dead_a_read_costs_few_fetches_however_deep_the_reader_is() {
    let mut tree = Tree::start(5, &[]);
    tree.nodes[0].kill();
    let leaf = tree.leaf();
    poll_until(PROCESS_LIMIT, "the leaf has lost its root", || leaf.get("/health").status == 503);
    let answer = leaf.get("/store/k");
    assert_eq!(answer.status, 503);
    assert!(answer.text().len() < 500, "{}", answer.text());
    let fetches: u64 = tree.nodes[1..].iter().map(|node| node.metric("fetches_sent_total")).sum();
    // Each on the way up asks the one above, and then the root: not all that are left.
    assert_eq!(fetches, 2 * 3 + 1);
}

#[test]
fn what_has_ended_is_swept_from_every_node() {
    let tree = Tree::start(2, &[("LEASE_SECONDS", "1")]);
    for key in 0..200 {
        tree.root().put(&key.to_string(), "1");
        tree.node(2).get(&format!("/store/{key}"));
    }
    tree.node(2).expect_value("199", "1");
    assert!(tree.node(2).metric("copies") > 0 && tree.root().metric("holders") > 0);
    poll_until(Duration::from_secs(10), "copies and records are swept", || {
        (tree.node(2).metric("copies"), tree.node(2).metric("bytes"), tree.root().metric("holders")) == (0, 0, 0)
    });
    assert_eq!(tree.root().metric("entries"), 200);
}

#[test]
fn an_invalidation_for_another_run_is_refused() {
    let tree = Tree::start(2, &[]);
    let run = tree.node(2).run();
    tree.root().write("k", "1");
    tree.node(2).expect_value("k", "1");
    let path = |run: u64, level: u32| format!("/copies/k?to={run}&level={level}");
    tree.node(2).call("DELETE", &path(run + 1, 1), b"").expect_error(409, "NODE-2 is another process now");
    assert_eq!(tree.node(2).metric("copies"), 1);
    tree.node(2).call("DELETE", &path(run, 1), b"").expect(200, &format!(r#"{{"run":{run}}}"#));
    assert_eq!(tree.node(2).metric("copies"), 0);
    // What the root holds are entries, and it is below nobody, whatever is said.
    for level in [0, 1] {
        let answer = tree.root().call("DELETE", &path(tree.root().run(), level), b"");
        answer.expect_error(409, "NODE-1 is not below the node that sends this");
    }
    tree.root().expect_value("k", "1");
}

#[test]
fn two_nodes_that_hold_copies_of_each_other_do_not_tell_each_other_for_ever() {
    let tree = Tree::start(2, &[("LEASE_SECONDS", "1")]);
    tree.root().write("k", "1");
    // Each is made to believe that itself and the other hold copies of its own copy.
    for (at, holder) in [(2, 2), (2, 3), (3, 2), (3, 3)] {
        let path = copy_path(tree.node(at).run(), holder, tree.node(holder).run(), &tree.node(holder).url);
        assert_eq!(tree.node(at).get(&path).status, 200);
    }
    tree.root().write("k", "2");
    let sent = |id| tree.node(id).metric("invalidations_sent_total");
    assert!(sent(2) + sent(3) <= 8, "each asks each a few times at most: {} and {}", sent(2), sent(3));
    for node in &tree.nodes {
        node.expect_value("k", "2");
    }
}

#[test]
fn a_web_page_cannot_pass_for_a_node() {
    let root = Node::alone();
    let refused = "this call is for nodes, and no web page may make it";
    for header in [("Origin", "https://elsewhere"), ("Sec-Fetch-Site", "cross-site")] {
        root.call_with("POST", "/nodes", &[header], b"{}").expect_error(403, refused);
        root.call_with("GET", "/copies/k", &[header], b"").expect_error(403, refused);
    }
}
