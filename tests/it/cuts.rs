//! What happens when: the rows of those tables in `docs/operating.md`, measured on hosts where nodes are killed, paused,
//! told to leave and cut off.
//!
//! NODE-1 is the root. NODE-2 and NODE-3 are its children, NODE-4 and NODE-5 those of NODE-2. What is asserted is
//! what was answered, by whom, and how many waited; times are printed, and have generous limits. The rows about
//! ZooKeeper are measured in `zookeeper`, name servers in `runs`, the disk in `durable`, the deaf process in `hostile`.

use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Env, Folder, PROCESS_LIMIT, Process, poll_until};
use crate::network::{Network, Told, url};

const LEASE: (&str, &str) = ("LEASE_SECONDS", "2");

/// The longest that one holder is waited for, and a root's first write: 1.1 leases.
const RECORD: Duration = Duration::from_millis(2200);

/// What a busy machine may add to any time. Generous, for causes are asserted by counters.
const BUSY: Duration = Duration::from_secs(4);

const SECOND: Duration = Duration::from_secs(1);

/// How long a node asks again for a root that was just heard.
const ROOT_SILENT: Duration = Duration::from_secs(3);

/// What a read may take.
const READ: Duration = Duration::from_secs(5);

/// What a write that is passed on may take: 1.21 leases and 2 s.
const WRITE: Duration = Duration::from_millis(4420);

const ABSENT: &str = r#"{"detail":"Key not found"}"#;

/// Says how long that took, and fails the test if it was longer than `most` on a machine with nothing else to do.
#[track_caller]
fn expect_time(what: &str, took: Duration, most: Duration) {
    eprintln!("{what}: {took:.2?}");
    assert!(took < most + BUSY, "{what}: {took:?}");
}

/// A tree with one node on each host.
struct Tree<'a> {
    nodes: Vec<Process>,
    network: Network,
    env: Vec<(&'a str, &'a str)>,
}

impl<'a> Tree<'a> {
    /// Starts it, and waits until its root has been young: `k` is 1.
    fn start(size: usize, env: &[(&'a str, &'a str)]) -> Self {
        let network = Network::new(size);
        let env = [&[LEASE][..], env].concat();
        let nodes = (1..=size).map(|id| network.start(id, &env)).collect();
        network.put(1, "k", 1).expect_put("k", 1);
        Self { nodes, network, env }
    }

    /// Starts the node of a host again, whether or not it is dead. How long that took.
    fn restart(&mut self, id: usize, env: Env) -> Duration {
        self.nodes[id - 1].kill();
        let began = Instant::now();
        self.nodes[id - 1] = self.network.start(id, &[&self.env[..], env].concat());
        began.elapsed()
    }

    fn get(&self, id: usize, key: &str) -> Told {
        self.network.get(id, key)
    }

    fn put(&self, id: usize, key: &str, value: u32) -> Told {
        self.network.put(id, key, value)
    }

    fn fetches(&self, id: usize) -> u64 {
        self.network.metric(id, "fetches_sent_total")
    }

    /// How often any of these nodes has waited for a silent holder.
    fn waits(&self, ids: &[usize]) -> u64 {
        ids.iter().map(|id| self.network.metric(*id, "silent_holder_waits_total")).sum()
    }

    fn position(&self, id: usize) -> serde_json::Value {
        self.network.json(id, "/")["position"].clone()
    }

    /// The names of those whom the root has heard within 3 s, by position.
    fn alive(&self) -> Vec<String> {
        let listing = self.network.json(1, "/nodes");
        let nodes = listing["nodes"].as_array().expect("a list").iter().filter(|node| node["alive"] == true);
        nodes.map(|node| node["name"].as_str().expect("a name").to_owned()).collect()
    }

    /// Puts that value of `k`, which waits for nobody.
    #[track_caller]
    fn expect_quick_write(&self, at: usize, value: u32, others: &[usize], what: &str) {
        let waits = self.waits(others);
        let told = self.put(at, "k", value).expect_put("k", value);
        assert_eq!(self.waits(others), waits, "{what}");
        expect_time(what, told.took, Duration::ZERO);
    }
}

// -- a node that is not the root ---------------------------------------------------------------

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn an_inner_node_that_dies_delays_one_write_and_no_read() {
    let mut tree = Tree::start(4, &[]);
    tree.get(4, "k").expect_value(1);
    tree.nodes[1].kill();
    let fetches = tree.fetches(4);
    let told = tree.get(4, "absent").expect(404, ABSENT);
    assert_eq!(tree.fetches(4) - fetches, 2, "one to its dead parent, one to the root");
    expect_time("an inner node died: a read of its child", told.took, Duration::ZERO);
    let told = tree.put(3, "k", 2).expect_put("k", 2);
    assert_eq!(tree.waits(&[1]), 1);
    expect_time("an inner node died: the write of what it held", told.took, RECORD);
    tree.get(4, "k").expect_value(2);
    tree.expect_quick_write(3, 3, &[1], "an inner node died: the next write");

    let took = tree.restart(2, &[]);
    expect_time("it comes back: it has its place", took, SECOND);
    assert_eq!((tree.position(2), tree.network.metric(2, "copies")), (1.into(), 0));
    expect_asked_again(&tree, 4, "it comes back: its child asks it again");
}

/// Waits until a child of NODE-2 asks it again, which it passes over for 5 s.
#[track_caller]
fn expect_asked_again(tree: &Tree, child: usize, what: &str) {
    let began = Instant::now();
    poll_until(PROCESS_LIMIT, what, || {
        let key = format!("absent{}", began.elapsed().as_nanos());
        tree.get(child, &key).expect(404, ABSENT);
        // What NODE-2 was asked for, it keeps.
        let fetches = tree.fetches(2);
        tree.get(2, &key).expect(404, ABSENT);
        tree.fetches(2) == fetches
    });
    expect_time(what, began.elapsed(), Duration::from_secs(5));
}

/// Reads 2 from `k`, which its parent is asked for in vain, and then the root.
#[track_caller]
fn expect_two_fetches(tree: &Tree, child: usize) -> Told {
    let fetches = tree.fetches(child);
    let told = tree.get(child, "k").expect_value(2);
    assert_eq!(tree.fetches(child) - fetches, 2, "{told:?}");
    told
}

/// Reads three keys in turn, each of which costs one fetch.
#[track_caller]
fn expect_passed_over(tree: &Tree, child: usize, what: &str) {
    let fetches = tree.fetches(child);
    let slowest = ["a", "b", "c"].map(|key| tree.get(child, key).expect(404, ABSENT).took);
    assert_eq!(tree.fetches(child) - fetches, 3, "its parent is passed over");
    expect_time(what, slowest.into_iter().max().expect("there are three"), Duration::ZERO);
}

/// Cuts two children off from their parent, each of them so.
fn cut_children_off(cut: impl Fn(&Network, usize, usize), what: &str) {
    let tree = Tree::start(5, &[]);
    // It keeps the connection; the other child never had one.
    tree.get(4, "k").expect_value(1);
    for child in [4, 5] {
        cut(&tree.network, child, 2);
    }
    let told = tree.put(3, "k", 2).expect_put("k", 2);
    assert_eq!(tree.waits(&[1, 2]), 1);
    expect_time(&format!("{what}: a write of what the child holds"), told.took, RECORD);
    thread::scope(|scope| {
        scope.spawn(|| {
            let told = expect_two_fetches(&tree, 5);
            expect_time(&format!("{what}: a first read"), told.took, SECOND);
            expect_passed_over(&tree, 5, &format!("{what}: those after it"));
        });
        let told = expect_two_fetches(&tree, 4);
        expect_time(&format!("{what}: a read on a connection that was there"), told.took, READ / 2);
        expect_passed_over(&tree, 4, &format!("{what}: those after it"));
    });
    for child in [4, 5] {
        tree.network.mend(child, 2);
    }
    expect_asked_again(&tree, 4, &format!("{what}: healed, the parent is asked again"));
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn children_that_are_cut_off_from_their_parent_pass_it_over_after_one_read() {
    cut_children_off(Network::cut, "children and parent cut");
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn children_whom_their_parent_does_not_hear_pass_it_over_after_one_read() {
    cut_children_off(Network::cut_one_way, "children are not heard by their parent");
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn children_who_do_not_hear_their_parent_pass_it_over_after_one_read() {
    let cut = |network: &Network, child, parent| network.cut_one_way(parent, child);
    cut_children_off(cut, "children do not hear their parent");
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_paused_parent_costs_one_read_half_of_its_time_and_answers_nothing_old_when_it_goes_on() {
    let tree = Tree::start(4, &[]);
    tree.put(1, "other", 1).expect_put("other", 1);
    tree.get(2, "other").expect_value(1);
    tree.get(4, "k").expect_value(1);
    tree.nodes[1].pause();
    let told = tree.put(3, "k", 2).expect_put("k", 2);
    assert_eq!(tree.waits(&[1]), 1);
    tree.put(3, "other", 2).expect_put("other", 2);
    expect_time("a paused parent: a write of what it holds", told.took, RECORD);
    let told = expect_two_fetches(&tree, 4);
    expect_time("a paused parent: the first read of its child", told.took, READ / 2);
    expect_passed_over(&tree, 4, "a paused parent: those after it");
    tree.nodes[1].resume();
    tree.get(2, "k").expect_value(2);
    // Of the one its child has asked it meanwhile, and that may be answered first.
    let told = tree.get(2, "other").expect_value(2);
    assert!(told.by.ends_with("detail=fetch"), "its copy has ended: {}", told.by);
    expect_asked_again(&tree, 4, "a paused parent: it goes on, and is asked again");
}

/// Has a node open three connections to the one above it, and keep them.
fn open_connections(tree: &Tree, id: usize) {
    tree.nodes[0].pause();
    thread::scope(|scope| {
        for key in ["x", "y", "z"] {
            scope.spawn(move || tree.get(id, key));
        }
        poll_until(READ / 2, "all three wait", || tree.fetches(id) == 3);
        tree.nodes[0].resume();
    });
}

/// Cuts the last node of a tree off from its root, so; it may still be heard there.
fn cut_off_from_root(size: usize, cut: impl Fn(&Network), is_heard: bool, what: &str) {
    let tree = Tree::start(size, &[]);
    let above: Vec<usize> = (1..size).collect();
    open_connections(&tree, size);
    let copied = Instant::now();
    tree.get(size, "k").expect_value(1);
    cut(&tree.network);
    let began = Instant::now();
    let told = tree.get(size, "k");
    // What a busy machine needs for all this may be longer than the lease.
    if told.status == 200 || copied.elapsed() < SECOND * 3 / 2 {
        assert_eq!(told.expect_value(1).by, "tree-cache; hit; detail=copy");
    }
    let written = thread::scope(|scope| {
        let written = scope.spawn(|| tree.put(size, "w", 1));
        scope.spawn(|| {
            poll_until(PROCESS_LIMIT, "the root misses it", || !tree.alive().contains(&format!("NODE-{size}")));
            // Each connection that was open may still bring a join, whose answer is waited for.
            let joins = if is_heard { 2 * READ } else { Duration::ZERO };
            expect_time(&format!("{what}: the root lists it as lost"), began.elapsed(), ROOT_SILENT + joins);
        });
        scope.spawn(|| {
            let told = tree.get(size, "r");
            assert_eq!(told.status, 503, "{told:?}");
            expect_time(&format!("{what}: its first read of what it has not"), told.took, READ);
        });
        let told = tree.put(1, "k", 2).expect_put("k", 2);
        assert_eq!(tree.waits(&above), 1);
        expect_time(&format!("{what}: a write of what it holds"), told.took, RECORD);
        written.join().expect("it is answered")
    });
    expect_time(&format!("{what}: its write"), written.took, WRITE);
    assert_eq!(written.status, 503, "{written:?}");
    let is_unknown = written.text.contains("; whether it was applied is unknown");
    assert!(is_unknown || written.text.contains("; it was not applied"), "{written:?}");

    poll_until(PROCESS_LIMIT, "it misses the root", || !tree.network.is_ready(size));
    // Connections that were kept are given up one after another.
    let mut told = tree.get(size, "r");
    poll_until(2 * PROCESS_LIMIT, "reads fail soon", || {
        told = tree.get(size, "r");
        assert_eq!(told.status, 503, "{told:?}");
        told.took < SECOND * 3 / 2
    });
    let since = began.elapsed();
    eprintln!("{what}: its reads after {since:.1?}: {:.2?}", told.took);

    (1..size).for_each(|other| tree.network.mend(size, other));
    let healed = Instant::now();
    poll_until(PROCESS_LIMIT, "it hears the root", || tree.network.is_ready(size));
    expect_time(&format!("{what}: healed, it is ready again"), healed.elapsed(), Duration::from_secs(3));
    tree.get(size, "k").expect_value(2);
    tree.expect_quick_write(size, 3, &above, &format!("{what}: healed, its write"));
    tree.get(size, "k").expect_value(3);
    let stands = tree.get(1, "w").status == 200;
    assert_eq!(stands, is_unknown && is_heard, "{written:?}");
    eprintln!("{what}: its write {}: {}", if stands { "stands" } else { "does not stand" }, written.text);
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_node_that_is_cut_off_from_its_root_answers_nothing_old() {
    cut_off_from_root(2, |network| network.cut(2, 1), false, "node and root cut");
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_node_that_its_root_does_not_hear_answers_nothing_old() {
    cut_off_from_root(2, |network| network.cut_one_way(2, 1), false, "a node is not heard by the root");
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_node_that_does_not_hear_its_root_answers_nothing_old() {
    cut_off_from_root(2, |network| network.cut_one_way(1, 2), true, "a node does not hear the root");
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_leaf_that_is_cut_off_from_everything_answers_nothing_old() {
    let cut = |network: &Network| (1..4).for_each(|other| network.cut(4, other));
    cut_off_from_root(4, cut, false, "a leaf and all others cut");
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_leaf_that_is_cut_off_from_the_root_alone_reads_through_its_parent() {
    let tree = Tree::start(4, &[]);
    tree.network.cut(4, 1);
    tree.get(4, "k").expect_value(1);
    tree.expect_quick_write(1, 2, &[1, 2], "a leaf and the root cut: a write of what the leaf holds");
    tree.get(4, "k").expect_value(2);
    poll_until(PROCESS_LIMIT, "it misses the root", || !tree.network.is_ready(4));
    let told = tree.get(4, "absent").expect(404, ABSENT);
    expect_time("a leaf and the root cut: its reads", told.took, Duration::ZERO);
    let told = tree.put(4, "k", 3);
    assert!(told.status == 503 && told.text.ends_with("; it was not applied\"}"), "{told:?}");
    expect_time("a leaf and the root cut: its writes", told.took, 2 * SECOND);
    assert!(!tree.alive().contains(&"NODE-4".to_owned()));
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn children_of_a_node_that_is_cut_off_from_the_root_read_on_without_it() {
    let tree = Tree::start(4, &[]);
    tree.get(4, "k").expect_value(1);
    tree.network.cut(2, 1);
    let told = tree.put(3, "k", 2).expect_put("k", 2);
    assert_eq!(tree.waits(&[1]), 1);
    expect_time("parent and root cut: a write of what the parent holds", told.took, RECORD);
    let told = expect_two_fetches(&tree, 4);
    expect_time("parent and root cut: the first read of a child", told.took, READ / 2);
    // It says that it has lost those above it, and is passed over for a second; then it is asked again.
    let (began, mut all, mut slow) = (Instant::now(), 0, Vec::new());
    while began.elapsed() < 2 * READ {
        let told = tree.get(4, &format!("absent{all}")).expect(404, ABSENT);
        all += 1;
        if told.took > SECOND / 2 {
            slow.push(told.took);
        }
    }
    let slowest = slow.iter().max().copied().unwrap_or_default();
    expect_time(&format!("parent and root cut: the slowest of {} slow reads of {all}", slow.len()), slowest, READ / 2);
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn nodes_leave_and_neither_writes_nor_the_clients_of_others_wait() {
    let mut tree = Tree::start(4, &[]);
    tree.get(4, "k").expect_value(1);
    let began = tree.nodes[3].begin_leaving();
    tree.expect_quick_write(3, 2, &[1, 2], "a leaf leaves: a write of what it held");
    // On a busy machine it may have left by then.
    let (read, written) = (tree.get(4, "k"), tree.put(4, "l", 3));
    if tree.nodes[3].is_alive() {
        read.expect_value(2);
        written.expect_put("l", 3);
    }
    tree.nodes[3].expect_left();
    expect_time("a leaf leaves: it ends", began.elapsed(), RECORD + SECOND);
    tree.restart(4, &[]);

    tree.get(4, "k").expect_value(2);
    let began = tree.nodes[1].begin_leaving();
    let mut slowest = Duration::ZERO;
    let mut reads = 0;
    while tree.nodes[1].is_alive() {
        let told = tree.get(4, &format!("r{reads}")).expect(404, ABSENT);
        (slowest, reads) = (slowest.max(told.took), reads + 1);
        if reads == 5 {
            tree.expect_quick_write(3, 4, &[1, 3], "an inner node leaves: a write of what it and its child held");
        }
    }
    tree.nodes[1].expect_left();
    expect_time("an inner node leaves: it ends", began.elapsed(), RECORD + SECOND);
    expect_time(&format!("an inner node leaves: the slowest of {reads} reads of its child"), slowest, Duration::ZERO);
    tree.expect_quick_write(3, 5, &[1, 3, 4], "an inner node has left: a write");
    tree.get(4, "k").expect_value(5);
}

// -- the root ----------------------------------------------------------------------------------

/// Reads `k` at a node until it is refused, and says for how long it was answered.
fn read_until_refused(tree: &Tree, id: usize, value: u32, began: Instant) -> Duration {
    let mut answered = Duration::ZERO;
    poll_until(PROCESS_LIMIT, "the copy has ended", || {
        let told = tree.get(id, "k");
        if told.status == 503 {
            return true;
        }
        told.expect_value(value);
        answered = began.elapsed();
        false
    });
    answered
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn copies_outlive_the_root_by_a_lease_and_it_comes_back_with_its_entries_and_its_tree() {
    let folder = Folder::new("data");
    let mut tree = Tree::start(4, &[("DATA_DIR", folder.path())]);
    let all = tree.alive();
    tree.put(1, "l", 1).expect_put("l", 1);
    tree.get(4, "k").expect_value(1);
    tree.nodes[0].kill();
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let answered = read_until_refused(&tree, 4, 1, began);
            expect_time("the root died: copies are answered for", answered, RECORD);
        });
        scope.spawn(|| {
            let told = tree.get(2, "r");
            assert_eq!(told.status, 503, "{told:?}");
            expect_time("the root died: the first read of what is not there", told.took, ROOT_SILENT);
        });
        let told = tree.put(3, "k", 2);
        assert!(told.status == 503 && told.text.ends_with("; it was not applied\"}"), "{told:?}");
        expect_time("the root died: the first write", told.took, ROOT_SILENT);
    });
    poll_until(PROCESS_LIMIT, "they miss the root", || !tree.network.is_ready(2) && !tree.network.is_ready(3));
    let (fetches, forwarded) = (tree.fetches(2), tree.network.metric(3, "forwarded_total"));
    let (read, written) = (tree.get(2, "r"), tree.put(3, "k", 2));
    assert_eq!((read.status, written.status), (503, 503));
    // Who has missed the root for so long joins before it passes a write on.
    assert_eq!(
        (tree.fetches(2) - fetches, tree.network.metric(3, "forwarded_total") - forwarded),
        (1, 0),
        "none is repeated"
    );
    expect_time("the root died: reads after 3 s", read.took, Duration::ZERO);
    expect_time("the root died: writes after 3 s", written.took, Duration::ZERO);

    expect_time("the root comes back: it serves", tree.restart(1, &[]), SECOND);
    let back = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            poll_until(PROCESS_LIMIT, "the root knows its tree", || tree.alive() == all);
            expect_time("the root comes back: it knows its tree", back.elapsed(), ROOT_SILENT);
        });
        let read = tree.get(4, "l").expect_value(1);
        expect_time("the root comes back: a first read", read.took, Duration::ZERO);
        let written = tree.put(1, "k", 2).expect_put("k", 2);
        expect_time("the root comes back: its first write", written.took, RECORD);
    });
    tree.get(4, "k").expect_value(2);
    expect_time("without DATA_DIR the root comes back: it serves", tree.restart(1, &[("DATA_DIR", "")]), SECOND);
    tree.get(1, "k").expect(404, ABSENT);
    let written = tree.put(1, "k", 3).expect_put("k", 3);
    expect_time("without DATA_DIR the root comes back: its first write", written.took, RECORD);
}

/// Reads and writes at two nodes while the root comes back, and has them succeed where it does so in time.
fn expect_no_failure(tree: &mut Tree, value: u32, what: &str) {
    let (read, written, took) = thread::scope(|scope| {
        let network = &tree.network;
        let read = scope.spawn(|| network.get(2, "gap"));
        let written = scope.spawn(|| network.put(3, "k", value));
        let began = Instant::now();
        let env = &tree.env;
        tree.nodes[0] = network.start(1, env);
        let took = began.elapsed();
        (read.join().expect("it is answered"), written.join().expect("it is answered"), took)
    });
    expect_time(&format!("{what}: it serves"), took, SECOND);
    expect_time(&format!("{what}: a read meanwhile"), read.took, ROOT_SILENT);
    expect_time(&format!("{what}: a write meanwhile"), written.took, WRITE);
    // It was heard up to a second before, and the first write may have to wait.
    if took < SECOND {
        read.expect(404, ABSENT);
        written.expect_put("k", value);
    }
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_root_that_is_back_within_a_second_fails_nobody() {
    let folder = Folder::new("data");
    let mut tree = Tree::start(4, &[("DATA_DIR", folder.path())]);
    tree.get(4, "k").expect_value(1);
    tree.nodes[0].kill();
    expect_no_failure(&mut tree, 2, "the root died and is back");
    tree.get(4, "k").expect_value(2);

    tree.nodes[0].begin_leaving();
    let told = tree.put(3, "k", 3);
    if tree.nodes[0].is_alive() {
        told.expect(503, r#"{"detail":"NODE-1 is leaving; not applied"}"#);
    }
    let (mut slowest, mut reads) = (Duration::ZERO, 0);
    let (root, network) = (&mut tree.nodes[0], &tree.network);
    while root.is_alive() {
        let told = network.get(3, "k");
        if root.is_alive() {
            (slowest, reads) = (slowest.max(told.expect_value(2).took), reads + 1);
        }
    }
    tree.nodes[0].expect_left();
    let log = tree.nodes[0].log();
    // Who reads on asks for three seconds more.
    eprintln!("the root leaves: {}", log.lines().last().unwrap_or_default());
    expect_time(&format!("the root leaves: the slowest of {reads} reads"), slowest, Duration::ZERO);
    expect_no_failure(&mut tree, 3, "the root has left and is back");
    assert!(!tree.nodes[0].log().contains("no write finishes"), "{}", tree.nodes[0].log());
    tree.get(4, "k").expect_value(3);

    tree.nodes[0].begin_leaving();
    tree.nodes[0].expect_left();
    tree.restart(1, &[("DATA_DIR", "")]);
    tree.nodes[0].wait_for_log("no write finishes for", 1);
    let told = tree.put(1, "k", 4).expect_put("k", 4);
    expect_time("the root has left and is back, without DATA_DIR: its first write", told.took, RECORD);
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_root_that_is_cut_off_is_as_good_as_dead_but_slower() {
    let tree = Tree::start(4, &[]);
    open_connections(&tree, 4);
    tree.get(4, "k").expect_value(1);
    (2..=4).for_each(|other| tree.network.cut(1, other));
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let answered = read_until_refused(&tree, 4, 1, began);
            expect_time("the root cut off: copies are answered for", answered, RECORD);
        });
        scope.spawn(|| {
            let told = tree.get(4, "r");
            assert_eq!(told.status, 503, "{told:?}");
            expect_time("the root cut off: the first read of what is not there", told.took, READ);
        });
        let told = tree.put(3, "k", 2);
        assert_eq!(told.status, 503, "{told:?}");
        expect_time("the root cut off: the first write", told.took, WRITE);
    });
    poll_until(PROCESS_LIMIT, "they miss the root", || !tree.network.is_ready(3) && !tree.network.is_ready(4));
    let (mut read, mut written) = (tree.get(4, "r"), tree.put(3, "k", 2));
    poll_until(2 * PROCESS_LIMIT, "both fail soon", || {
        (read, written) = (tree.get(4, "r"), tree.put(3, "k", 2));
        assert_eq!((read.status, written.status), (503, 503));
        read.took < SECOND * 5 / 2 && written.text.ends_with("; it was not applied\"}")
    });
    let since = began.elapsed();
    eprintln!("the root cut off: after {since:.1?} a read takes {:.2?}, a write {:.2?}", read.took, written.took);
    (2..=4).for_each(|other| tree.network.mend(1, other));
    let healed = Instant::now();
    poll_until(PROCESS_LIMIT, "all are ready", || (2..=4).all(|id| tree.network.is_ready(id)));
    expect_time("the root cut off: healed, all are ready", healed.elapsed(), ROOT_SILENT);
    tree.put(4, "k", 5).expect_put("k", 5);
    tree.get(3, "k").expect_value(5);
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_root_that_comes_back_otherwise_loses_its_nodes_until_it_is_put_right() {
    const TOKEN: (&str, &str) = ("TREE_TOKEN", "s3cret");
    thread::scope(|scope| {
        for other in [("TREE_TOKEN", "another"), ("TREE_TOKEN_FILE", ""), ("TREE_DEPTH", "1")] {
            scope.spawn(move || {
                let mut tree = Tree::start(2, &[TOKEN]);
                tree.get(2, "k").expect_value(1);
                tree.nodes[0].kill();
                let mut env = vec![LEASE, TOKEN];
                // With none at all, for an empty file is none.
                env.retain(|(name, _)| *name != TOKEN.0 || other.0 == "TREE_DEPTH");
                env.push(other);
                let began = Instant::now();
                tree.nodes[0] = tree.network.start(1, &env);
                thread::scope(|scope| {
                    scope.spawn(|| {
                        let answered = read_until_refused(&tree, 2, 1, began);
                        expect_time(&format!("{other:?}: copies are answered for"), answered, RECORD);
                    });
                    let told = tree.put(1, "k", 2).expect_put("k", 2);
                    expect_time(&format!("{other:?}: its first write"), told.took, RECORD);
                });
                let line = format!("WARN: no place from the root at {} any more: ", url(1));
                tree.nodes[1].wait_for_log(&line, 1);
                poll_until(PROCESS_LIMIT, "it misses the root", || !tree.network.is_ready(2));
                tree.restart(1, &[]);
                let began = Instant::now();
                poll_until(PROCESS_LIMIT, "it hears the root", || tree.network.is_ready(2));
                expect_time(&format!("{other:?}: put right, its node takes part"), began.elapsed(), SECOND);
                tree.put(2, "k", 3).expect_put("k", 3);
            });
        }
    });
}

// -- all nodes ---------------------------------------------------------------------------------

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn after_the_death_of_all_the_root_has_its_entries_and_gives_places_in_the_order_of_return() {
    let folder = Folder::new("data");
    let mut tree = Tree::start(4, &[("DATA_DIR", folder.path())]);
    tree.get(4, "k").expect_value(1);
    tree.nodes.iter_mut().for_each(Process::kill);
    expect_time("all died: the root serves", tree.restart(1, &[]), SECOND);
    tree.get(1, "k").expect_value(1);
    let told = tree.put(1, "k", 2).expect_put("k", 2);
    expect_time("all died: the first write", told.took, RECORD);
    for (id, position) in [(4, 1), (3, 2), (2, 3)] {
        tree.restart(id, &[]);
        assert_eq!(tree.position(id), position);
        tree.get(id, "k").expect_value(2);
    }
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_node_whose_place_a_root_has_given_away_gets_another() {
    let mut tree = Tree::start(3, &[]);
    tree.nodes[0].kill();
    tree.nodes[2].kill();
    tree.nodes[1].pause();
    tree.restart(1, &[]);
    tree.restart(3, &[]);
    assert_eq!(tree.position(3), 1);
    tree.nodes[1].resume();
    let began = Instant::now();
    poll_until(PROCESS_LIMIT, "it has another place", || tree.position(2) == 2);
    expect_time("its place was given away: it has another", began.elapsed(), ROOT_SILENT);
    tree.put(2, "k", 2).expect_put("k", 2);
    tree.get(3, "k").expect_value(2);
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn all_nodes_that_are_told_to_end_at_once_end_and_the_next_write_need_not_wait() {
    let folder = Folder::new("data");
    let mut tree = Tree::start(4, &[("DATA_DIR", folder.path())]);
    for id in 2..=4 {
        tree.get(id, "k").expect_value(1);
    }
    let began = Instant::now();
    tree.nodes.iter().for_each(|node| node.signal("TERM"));
    tree.nodes[1..].iter_mut().for_each(Process::expect_left);
    expect_time("all are told to end: all but the root have ended", began.elapsed(), RECORD + SECOND);
    tree.nodes[0].expect_left();
    expect_time("all are told to end: the root has ended", began.elapsed(), RECORD + SECOND);
    for id in 1..=4 {
        tree.restart(id, &[]);
    }
    assert!(!tree.nodes[0].log().contains("no write finishes"), "{}", tree.nodes[0].log());
    tree.get(4, "k").expect_value(1);
    tree.expect_quick_write(4, 2, &[1, 2, 3], "all were told to end: the first write");
}

// -- who may not take part ---------------------------------------------------------------------

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_node_that_the_root_cannot_reach_says_so_and_waits() {
    let tree = Tree::start(1, &[]);
    let began = Instant::now();
    let (root_url, nobody) = (url(1), url(9));
    let env = [("NODE_ID", "2"), ("API_PORT", "5001"), ("NODE_URL", &nobody), ("ROOT_URL", &root_url)];
    let mut node = tree.network.spawn(1, &env);
    let line = format!("waiting: no place from the root at {root_url}: answered 503 \"cannot reach you at {nobody}\"");
    node.wait_for_log(&line, 1);
    expect_time("a node that the root cannot reach: it says so", began.elapsed(), SECOND);
    let line = format!("NODE-2 gets no place, since it cannot be reached at {nobody}: ");
    tree.nodes[0].wait_for_log(&line, 2);
    assert_eq!(tree.alive(), ["NODE-1"]);
    tree.expect_quick_write(1, 2, &[1], "a node that the root cannot reach: a write");
    node.expect_alive();
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_second_root_ends_and_a_root_whose_name_is_anothers_ends() {
    let (network, folder) = (Network::new(2), Folder::new("data"));
    let name = "http://root.internal:5000";
    let (data, named) = (("DATA_DIR", folder.path()), ("NODE_URL", name));
    for host in [1, 2] {
        network.tell_names(host, &format!("10.77.0.{host} root.internal\n"));
    }
    let mut first = network.start(1, &[named, data]);
    for (env, line) in [
        (("ROOT_URL", url(1)), format!("another root answers at {}, and a tree has one", url(1))),
        (("DATA_DIR", folder.path().to_owned()), format!("DATA_DIR={:?}: another process uses it", folder.path())),
    ] {
        let began = Instant::now();
        let mut second = network.spawn(2, &[("NODE_ID", "1"), ("ROOT_URL", name), named, (env.0, &env.1)]);
        second.expect_end(&line);
        expect_time(&format!("a second root, by {}: it ends", env.0), began.elapsed(), SECOND);
    }
    network.put(1, "k", 1).expect_put("k", 1);

    let second = network.start(2, &[("NODE_ID", "1"), ("ROOT_URL", name), named]);
    network.tell_names(1, "10.77.0.2 root.internal\n");
    let began = Instant::now();
    let line = format!("another root answers at {name} now, and a tree has one");
    first.expect_end(&line);
    expect_time("a root whose name leads to another: it ends", began.elapsed(), Duration::from_secs(11));

    second.pause();
    let env = [("NODE_ID", "1"), ("ROOT_URL", name), named];
    network.tell_names(1, "10.77.0.1 root.internal\n");
    let _third = network.start(1, &env);
    network.tell_names(2, "10.77.0.1 root.internal\n");
    let mut second = second;
    thread::sleep(ROOT_SILENT);
    second.resume();
    let began = Instant::now();
    second.expect_end(&line);
    expect_time("a paused root that was replaced: it goes on, and ends", began.elapsed(), 2 * SECOND);
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn of_two_processes_with_one_id_the_one_that_the_root_can_reach_stays() {
    let network = Network::new(4);
    let _root = network.start(1, &[]);
    let mut nodes = vec![network.start(2, &[])];
    let refused = |host| format!("NODE-2 cannot join at {}: another NODE-2 is alive at {} (409)", url(1), url(host));
    let began = Instant::now();
    network.spawn(3, &[("NODE_ID", "2")]).expect_end(&refused(2));
    expect_time("a second process of one id: it ends", began.elapsed(), SECOND);
    nodes[0].expect_alive();
    for (host, what) in [(3, "paused"), (4, "cut off")] {
        let mut first = nodes.pop().expect("there is one");
        if what == "paused" {
            first.pause();
        } else {
            network.cut(1, host - 1);
        }
        let began = Instant::now();
        nodes.push(network.start(host, &[("NODE_ID", "2")]));
        expect_time(&format!("the first is {what}: the second has its place"), began.elapsed(), 2 * SECOND);
        if what == "paused" {
            first.resume();
        } else {
            network.mend(1, host - 1);
        }
        let began = Instant::now();
        first.expect_end(&refused(host));
        expect_time(&format!("the first was {what}: it ends"), began.elapsed(), ROOT_SILENT);
    }
    network.put(4, "k", 1).expect_put("k", 1);
}

// -- no room -----------------------------------------------------------------------------------

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_full_root_says_507_and_a_full_node_keeps_no_more_copies() {
    let (network, folder) = (Network::new(2), Folder::new("data"));
    // No copy ends meanwhile, and no first write waits.
    let env = [("DATA_DIR", folder.path()), ("NEW_TREE", "1"), ("LEASE_SECONDS", "60")];
    let root = network.start(1, &[&env[..], &[("MAX_STORE_BYTES", "20000")]].concat());
    let leaf = network.start(2, &[("MAX_STORE_BYTES", "2000")]);
    let tree = Tree { nodes: vec![root, leaf], network, env: Vec::new() };
    for number in 0..20 {
        let key = format!("k{number}");
        tree.put(2, &key, number).expect_put(&key, number);
    }
    for _ in 0..2 {
        for number in 0..20 {
            tree.get(2, &format!("k{number}")).expect_value(number);
        }
    }
    let (copies, bytes) = (tree.network.metric(2, "copies"), tree.network.metric(2, "bytes"));
    assert!((1..20).contains(&copies) && bytes <= 2000, "{copies} copies of {bytes} bytes");
    assert_eq!(tree.fetches(2), 40 - copies, "what it could not keep it fetches");
    eprintln!("a full node: {copies} of 20 copies in {bytes} bytes");
    let large = format!(r#"{{"value":"{}"}}"#, "x".repeat(20_000));
    for id in [1, 2] {
        let told = tree.network.ask(id, "PUT", "/store/k0", &large);
        assert!(told.status == 507 && told.text.starts_with(r#"{"detail":"the store is full: "#), "{told:?}");
        tree.get(id, "k0").expect_value(0);
    }
    assert_eq!(tree.network.metric(1, "entries"), 20);
}
