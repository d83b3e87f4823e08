//! Several hosts: the procedures of that chapter of `docs/operating.md`, carried out on hosts of their own, which are
//! network namespaces.
//!
//! What each procedure costs is asserted by what was answered, by whom, and how many waited; times are printed.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::find_metric;
use crate::harness::{Env, Folder, Over, PROCESS_LIMIT, PROGRAM, Process, poll_until};
use crate::network::{Network, Told, url};

const ENTRY: &str = "tree-cache; hit; detail=entry";
const COPY: &str = "tree-cache; hit; detail=copy";
const FETCH: &str = "tree-cache; fwd=uri-miss; detail=fetch";

const LEASE: (&str, &str) = ("LEASE_SECONDS", "1");

/// Hosts that know the nodes by the names `NODE-<id>`. NODE-1 to NODE-4 begin on the hosts 1 to 4.
struct Hosts {
    nodes: Vec<Process>,
    network: Network,
    folder: Folder,
}

impl Hosts {
    /// Hosts on which nothing runs yet.
    fn new(size: usize) -> Self {
        let (network, folder) = (Network::new(size), Folder::new("hosts"));
        folder.write("token", "s3cret\n");
        let hosts = Self { nodes: Vec::new(), network, folder };
        (1..=size).for_each(|host| hosts.tell_names(host, &[1, 2, 3, 4]));
        hosts
    }

    /// The same with a tree of four, whose leases are short.
    fn start(size: usize) -> Self {
        Self::start_with(size, LEASE)
    }

    fn start_with(size: usize, lease: (&str, &str)) -> Self {
        let mut hosts = Self::new(size);
        hosts.nodes = (1..=4).map(|id| hosts.start_node(id, id, &[lease])).collect();
        hosts
    }

    /// Tells a host on which hosts NODE-1 and so on are.
    fn tell_names(&self, host: usize, of: &[usize]) {
        let line = |(at, id): (&usize, usize)| format!("10.77.0.{at} NODE-{id}\n");
        self.network.tell_names(host, &of.iter().zip(1..).map(line).collect::<String>());
    }

    /// Starts a node with what the chapter says that it needs.
    fn spawn(&self, host: usize, id: usize, env: Env) -> Process {
        let (id, token, data) = (id.to_string(), self.folder.join("token"), self.data(host));
        let token = token.to_str().expect("it is ASCII");
        let needed =
            [("NODE_ID", id.as_str()), ("BIND_ADDR", "0.0.0.0"), ("TREE_TOKEN_FILE", token), ("DATA_DIR", &data)];
        self.network.run_on(host, &[PROGRAM], &[&needed[..], env].concat())
    }

    /// The same, and waits until it has its place.
    fn start_node(&self, host: usize, id: usize, env: Env) -> Process {
        let mut node = self.spawn(host, id, env);
        assert_eq!(node.wait_for_output("\n"), format!("NODE-{id} listening on http://0.0.0.0:5000\n"));
        node
    }

    /// Starts the root on host 5, with what was copied there, and waits until a write stands.
    fn start_new_root(&self, what: &str) -> Process {
        let began = Instant::now();
        let root = self.start_node(5, 1, &[LEASE]);
        eprintln!("{what}: the new root had its place after {:.2?}", began.elapsed());
        expect_found(&root, 4);
        poll_until(PROCESS_LIMIT, "a write stands", || self.put(2, "k", 2).status == 200);
        eprintln!("{what}: a write stood after {:.2?}", began.elapsed());
        root
    }

    /// What a host calls its `DATA_DIR`.
    fn data(&self, host: usize) -> String {
        self.folder.join(&format!("data-{host}")).to_str().expect("it is ASCII").to_owned()
    }

    /// Copies what the root has on disk to another host, as `scp` does.
    fn copy_data(&self, from: usize, to: usize) {
        fs::create_dir(self.data(to)).expect("it is not there yet");
        let [from, to] = [from, to].map(|host| format!("{}/tree-cache.redb", self.data(host)));
        fs::copy(from, to).expect("it is there");
    }

    fn get(&self, host: usize, key: &str) -> Told {
        self.network.get(host, key)
    }

    fn put(&self, host: usize, key: &str, value: u32) -> Told {
        self.network.put(host, key, value)
    }

    /// Puts that, and says whether the root waited for a silent holder meanwhile.
    #[track_caller]
    fn write_waits(&self, root: usize, host: usize, value: u32) -> u64 {
        let waits = || self.network.metric(root, "silent_holder_waits_total");
        let before = waits();
        self.put(host, "k", value).expect_put("k", value);
        waits() - before
    }
}

/// Fails the test unless each of these nodes reads the value, and reads it again from what it has kept.
#[track_caller]
fn expect_everywhere(network: &Network, value: u32, root: usize, others: &[usize]) {
    assert_eq!(network.get(root, "k").expect_value(value).by, ENTRY);
    for host in others {
        assert_eq!(network.get(*host, "k").expect_value(value).by, FETCH, "host {host}");
        // On a busy machine a lease of 1 s may end before the next read.
        poll_until(PROCESS_LIMIT, "it keeps a copy", || network.get(*host, "k").expect_value(value).by == COPY);
    }
}

// -- started by hand ---------------------------------------------------------------------------

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn with_names_a_host_needs_an_id_a_token_and_an_address_to_listen_on() {
    let mut hosts = Hosts::new(4);
    hosts.nodes = (1..=4).map(|id| hosts.start_node(id, id, &[])).collect();
    let told = hosts.put(4, "k", 1).expect_put("k", 1);
    eprintln!("the first write of a new tree: {:.2?}", told.took);
    expect_everywhere(&hosts.network, 1, 1, &[2, 3, 4]);
    let drawn = "4 of 7 nodes, depth 3\nNODE-1  http://NODE-1:5000\n├── NODE-2  http://NODE-2:5000\n\
                 │   ├── NODE-4  http://NODE-4:5000\n│   └── (free)\n└── NODE-3  http://NODE-3:5000\n";
    let mut show = hosts.network.run_on(3, &[PROGRAM, "show", "http://NODE-1:5000"], &[]);
    assert_eq!(show.wait_for_end(PROCESS_LIMIT), (Some(0), drawn.to_owned(), String::new()));
    let folders = [1, 2, 3, 4].map(|host| fs::exists(hosts.data(host)).expect("it can be asked"));
    assert_eq!(folders, [true, false, false, false], "only the root makes one");
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn with_addresses_a_host_needs_its_own_and_the_roots() {
    let network = Network::new(4);
    let start = |host: usize| {
        let (id, own, root) = (host.to_string(), url(host), url(1));
        let env = [("NODE_ID", id.as_str()), ("BIND_ADDR", "0.0.0.0"), ("NODE_URL", &own), ("ROOT_URL", &root)];
        let mut node =
            network.run_on(host, &[PROGRAM], &[&env[..], &[("LEASE_SECONDS", "5"), ("TREE_TOKEN", "s3cret")]].concat());
        node.wait_for_output(" listening on ");
        node
    };
    let _nodes = [1, 2, 3, 4].map(start);
    network.put(4, "k", 1).expect_put("k", 1);
    expect_everywhere(&network, 1, 1, &[2, 3, 4]);
}

#[test]
#[ignore = "needs root, ip, curl and haproxy: run make test-page"]
fn a_node_is_reached_at_the_port_of_its_url_be_it_its_own_or_one_that_is_passed_on() {
    let (network, folder) = (Network::new(3), Folder::new("ports"));
    // A published port: the node itself listens where no other host reaches it.
    let cfg = "defaults\n mode tcp\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n\
               listen published\n bind 10.77.0.3:8080\n server node 127.0.0.1:5000\n";
    let cfg = folder.write("haproxy.cfg", cfg);
    let _haproxy = network.run_on(3, &["/usr/sbin/haproxy", "-db", "-f", &cfg], &[]);
    let root_url = "http://10.77.0.1:6001";
    let start = |host: usize, bind: &str, port: &str, url: &str| {
        let id = host.to_string();
        let env = [("NODE_ID", id.as_str()), ("BIND_ADDR", bind), ("API_PORT", port), ("NODE_URL", url)];
        let mut node =
            network.run_on(host, &[PROGRAM], &[&env[..], &[("LEASE_SECONDS", "5"), ("ROOT_URL", root_url)]].concat());
        node.wait_for_output(" listening on ");
        node
    };
    let _nodes = [
        start(1, "0.0.0.0", "6001", root_url),
        start(2, "0.0.0.0", "6002", "http://10.77.0.2:6002"),
        start(3, "127.0.0.1", "5000", "http://10.77.0.3:8080"),
    ];
    let (at_3, at_2) = ("http://127.0.0.1:5000/store/k", "http://10.77.0.2:6002/store/k");
    network.ask_at(3, "PUT", at_3, r#"{"value":1}"#).expect_put("k", 1);
    for (host, store) in [(2, at_2), (3, at_3)] {
        assert_eq!(network.ask_at(host, "GET", store, "").expect_value(1).by, FETCH);
    }
    network.ask_at(2, "PUT", at_2, r#"{"value":2}"#).expect_put("k", 2);
    let count =
        |url: &str, name: &str| find_metric(&network.ask_at(3, "GET", &format!("{url}/metrics"), "").text, name);
    assert_eq!(count("http://127.0.0.1:5000", "invalidations_received_total"), 1, "it was told at its published port");
    assert_eq!(count(root_url, "silent_holder_waits_total"), 0);
    assert_eq!(network.ask_at(3, "GET", at_3, "").expect_value(2).by, FETCH);
}

// -- moved -------------------------------------------------------------------------------------

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_node_that_is_told_to_leave_first_moves_and_no_write_waits() {
    // Longer than a node takes to start on a busy machine.
    let mut hosts = Hosts::start_with(5, ("LEASE_SECONDS", "4"));
    hosts.put(1, "k", 1).expect_put("k", 1);
    let spare = ("NODE_URL", "http://10.77.0.5:5000");
    // While the old one lives.
    let line = "NODE-3 cannot join at http://NODE-1:5000: another NODE-3 is alive at http://NODE-3:5000 (409)";
    hosts.spawn(5, 3, &[spare]).expect_end(line);
    expect_everywhere(&hosts.network, 1, 1, &[3]);
    let began = Instant::now();
    let left = hosts.nodes[2].leave();
    hosts.nodes[2] = hosts.start_node(5, 3, &[spare]);
    eprintln!("a node left in {left:.2?}, and was on another host after {:.2?}", began.elapsed());
    assert_eq!(hosts.network.json(5, "/")["position"], 2, "it has its place");
    assert_eq!(hosts.write_waits(1, 2, 2), 0);
    expect_everywhere(&hosts.network, 2, 1, &[5]);

    // Back to a host that has its name, without a word to the old one: a write waits once for what that held.
    hosts.nodes[2].kill();
    hosts.nodes[2] = hosts.start_node(3, 3, &[]);
    assert_eq!(hosts.network.json(3, "/")["position"], 2);
    assert_eq!([3, 4].map(|value| hosts.write_waits(1, 2, value)), [1, 0]);
}

/// What a client saw that writes the next number and reads it, all the time.
#[derive(Debug, Default)]
struct Seen {
    /// The last write that stood, and later ones of which it is unknown.
    last: Vec<u32>,
    /// What refused it, and how often.
    refused: Vec<(String, u32)>,
    /// From one write that stood to the next.
    longest: Duration,
}

impl Seen {
    fn note_refused(&mut self, told: Told) {
        match self.refused.iter_mut().find(|(text, _)| *text == told.text) {
            Some((_, count)) => *count += 1,
            None => self.refused.push((told.text, 1)),
        }
    }

    #[track_caller]
    fn expect_last(&self, told: &Told) {
        let known = self.last.iter().any(|value| told.text == format!(r#"{{"value":{value}}}"#));
        assert!(told.status == 200 && known || self.last.is_empty(), "{told:?}, and not {:?}", self.last);
    }
}

/// The client on the first of these hosts. It asks the node there, and the next one where nobody answers.
fn be_client(network: &Network, at: &[usize], over: &AtomicBool) -> Seen {
    let (mut seen, mut stood) = (Seen::default(), Instant::now());
    let path = format!("/store/w{}", at[0]);
    let ask = |method: &str, body: &str| {
        let mut told = at.iter().map(|host| network.ask_at(at[0], method, &format!("{}{path}", url(*host)), body));
        told.find(|told| told.status > 0).expect("one of them answers")
    };
    for value in 1.. {
        let told = ask("PUT", &format!(r#"{{"value":{value}}}"#));
        if told.status == 200 {
            (seen.last, seen.longest) = (vec![value], stood.elapsed().max(seen.longest));
            stood = Instant::now();
        } else {
            seen.last.extend(told.text.contains(UNKNOWN).then_some(value));
            seen.note_refused(told);
        }
        let told = ask("GET", "");
        if told.status == 503 {
            seen.note_refused(told);
        } else {
            seen.expect_last(&told);
        }
        if over.load(Ordering::SeqCst) {
            break;
        }
        // There are other tests.
        thread::sleep(Duration::from_millis(10));
    }
    seen
}

/// Carries something out under clients on these hosts, and fails the test unless each reads its last acknowledged write all
/// the time, and all do afterwards. What refused them.
fn under_clients(
    hosts: &mut Hosts,
    at: &[usize],
    carry_out: impl FnOnce(&mut Vec<Process>, &Hosts),
) -> Vec<(String, u32)> {
    let mut nodes = std::mem::take(&mut hosts.nodes);
    let (shared, over) = (&*hosts, AtomicBool::new(false));
    let all = thread::scope(|scope| {
        let start = |client: usize| {
            let (network, over) = (&shared.network, &over);
            scope.spawn(move || be_client(network, &[&at[client..], &at[..client]].concat(), over))
        };
        let clients: Vec<_> = (0..at.len()).map(start).collect();
        let over = Over(&over);
        for host in at {
            poll_until(PROCESS_LIMIT, "it writes", || shared.get(*host, &format!("w{host}")).status == 200);
        }
        carry_out(&mut nodes, shared);
        for host in at {
            let read = || shared.get(*host, &format!("w{host}")).text;
            let before = read();
            poll_until(PROCESS_LIMIT, "it writes again", || read() != before);
        }
        drop(over);
        clients.into_iter().map(|client| client.join().expect("it goes on")).collect::<Vec<_>>()
    });
    hosts.nodes = nodes;
    for (host, seen) in at.iter().zip(&all) {
        let Seen { last, longest, refused } = seen;
        eprintln!("a client on host {host}: write {last:?}, {longest:.2?} without one at most, refused: {refused:?}");
        for reader in at {
            seen.expect_last(&hosts.get(*reader, &format!("w{host}")));
        }
    }
    all.into_iter().flat_map(|seen| seen.refused).collect()
}

const UNKNOWN: &str = "; whether it was applied is unknown";

/// What writes are told while the root leaves, and in the moment of its end.
fn is_of_leaving_root((text, _): &(String, u32)) -> bool {
    text == r#"{"detail":"NODE-1 is leaving; not applied"}"# || text.contains(UNKNOWN)
}

/// What nodes say whose root has ended, of a write and of a read.
fn is_of_ended_root(text: &str) -> bool {
    let root = "the root at http://NODE-1:5000: ";
    let write = text.contains(&format!(" on to {root}")) && text.ends_with("; it was not applied\"}");
    write || (text.contains("could not fetch ") && text.contains(" at http://NODE-1:5000: "))
}

/// Fails the test unless the root has found so many entries, and takes a write at once.
#[track_caller]
fn expect_found(root: &Process, entries: usize) {
    // What comes later in the log than both.
    poll_until(PROCESS_LIMIT, "a node has joined", || root.log().contains(" has position "));
    let log = root.log();
    assert!(log.contains(&format!(": {entries} entries\n")) && !log.contains("no write finishes"), "{log}");
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_root_moves_with_its_name_and_its_disk_and_no_node_is_started_again() {
    let mut hosts = Hosts::start(5);
    hosts.put(1, "k", 1).expect_put("k", 1);
    // As long as the name leads to the old one, a new one ends.
    let line = "another root answers at http://NODE-1:5000, and a tree has one";
    hosts.spawn(5, 1, &[LEASE]).expect_end(line);
    fs::remove_dir_all(hosts.data(5)).expect("it made one");
    let refused = under_clients(&mut hosts, &[2, 3, 4], |nodes, hosts| {
        eprintln!("the root left in {:.2?}", nodes[0].leave());
        // An operator may take longer than the nodes wait for a root that was just heard.
        poll_until(PROCESS_LIMIT, "a write is refused", || is_of_ended_root(&hosts.put(2, "x", 1).text));
        hosts.copy_data(1, 5);
        (1..=5).for_each(|host| hosts.tell_names(host, &[5, 2, 3, 4]));
        let switched = Instant::now();
        nodes[0] = hosts.start_new_root("the name was switched");
        poll_until(PROCESS_LIMIT, "all hear it", || [2, 3, 4].iter().all(|host| hosts.network.is_ready(*host)));
        eprintln!("the name was switched: all nodes were ready after {:.2?}", switched.elapsed());
    });
    assert!(refused.iter().all(|told| is_of_leaving_root(told) || is_of_ended_root(&told.0)), "{refused:?}");
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_root_moves_with_its_address_and_its_disk_and_no_node_is_started_again() {
    let mut hosts = Hosts::start(5);
    hosts.put(1, "k", 1).expect_put("k", 1);
    let refused = under_clients(&mut hosts, &[2, 3, 4], |nodes, hosts| {
        eprintln!("the root left in {:.2?}", nodes[0].leave());
        hosts.copy_data(1, 5);
        hosts.network.move_address(1, 5);
        nodes[0] = hosts.start_new_root("the address was moved");
    });
    assert!(refused.iter().all(|told| is_of_leaving_root(told) || is_of_ended_root(&told.0)), "{refused:?}");
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_root_at_another_address_gets_the_nodes_that_are_started_again_with_it() {
    let (network, folder) = (Network::new(4), Folder::new("data"));
    let data = ("DATA_DIR", folder.path());
    let mut nodes: Vec<_> = (1..=3).map(|host| network.start(host, &[data])).collect();
    network.put(1, "k", 1).expect_put("k", 1);
    expect_everywhere(&network, 1, 1, &[2, 3]);
    eprintln!("the root left in {:.2?}", nodes[0].leave());
    let root_url = url(4);
    let root = network.start(4, &[data, ("NODE_ID", "1"), ("ROOT_URL", &root_url)]);
    // Until it is started again, a node has nobody to ask.
    poll_until(PROCESS_LIMIT, "it is not ready", || network.ask(3, "GET", "/health", "").status == 503);
    let began = Instant::now();
    for host in [2, 3] {
        nodes[host - 1].leave();
        nodes[host - 1] = network.start(host, &[("ROOT_URL", &root_url)]);
    }
    eprintln!("a root at another address: two nodes were started again in {:.2?}", began.elapsed());
    network.put(2, "k", 2).expect_put("k", 2);
    expect_everywhere(&network, 2, 4, &[2, 3]);
    expect_found(&root, 1);
    assert_eq!(network.metric(4, "silent_holder_waits_total"), 0);
}

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn of_two_roots_the_one_ends_whose_name_was_switched_and_what_it_acknowledged_is_lost() {
    let mut hosts = Hosts::start(5);
    hosts.put(1, "k", 1).expect_put("k", 1);
    (1..=5).for_each(|host| hosts.tell_names(host, &[5, 2, 3, 4]));
    let began = Instant::now();
    let _second = hosts.start_node(5, 1, &[LEASE]);
    hosts.put(1, "k", 2).expect_put("k", 2);
    // Connections that are kept lead to the old one for as long as it lives.
    eprintln!("two roots: meanwhile NODE-4 reads {:?}", hosts.get(4, "k").text);
    hosts.nodes[0].expect_end("another root answers at http://NODE-1:5000 now, and a tree has one");
    eprintln!("two roots: the old one ended after {:.2?}", began.elapsed());
    let gone = |host: &usize| hosts.get(*host, "k").text == r#"{"detail":"Key not found"}"#;
    poll_until(PROCESS_LIMIT, "the nodes follow the name", || [2, 3, 4].iter().all(gone));
    eprintln!("two roots: the nodes had followed the name after {:.2?}", began.elapsed());
}

// -- started again -----------------------------------------------------------------------------

#[test]
#[ignore = "needs root, ip and curl: run make test-page"]
fn a_rolling_restart_over_hosts_refuses_nothing_but_the_writes_at_the_leaving_root() {
    let mut hosts = Hosts::start(4);
    hosts.put(1, "k", 1).expect_put("k", 1);
    let refused = under_clients(&mut hosts, &[1, 2, 3, 4], |nodes, hosts| {
        for id in [4, 3, 2, 1] {
            let began = Instant::now();
            let left = nodes[id - 1].leave();
            nodes[id - 1] = hosts.start_node(id, id, &[LEASE]);
            eprintln!("NODE-{id} left in {left:.2?} and was back after {:.2?}", began.elapsed());
        }
        assert!(!nodes[0].log().contains("no write finishes"), "{}", nodes[0].log());
        hosts.put(4, "k", 2).expect_put("k", 2);
    });
    assert!(refused.iter().all(is_of_leaving_root), "{refused:?}");
}
