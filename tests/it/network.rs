//! Hosts on one switch, each a network namespace, so that any of them can be cut off from any other, one way too.
//!
//! It needs root and `ip`, and `curl`, which is the client on each host.

use std::io::Write;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::client::find_metric;
use crate::process::{Env, PROCESS_LIMIT, PROGRAM, Process, command, run};

/// Nobody has it, so what is sent there is lost.
const NOBODY: &str = "02:00:00:00:00:99";

/// Hosts 1 to n, and the switch between them; gone when dropped.
pub struct Network {
    switch: String,
    hosts: Vec<String>,
}

/// What a client was told.
#[derive(Debug)]
pub struct Told {
    /// 0 if there was no answer.
    pub status: u16,
    pub text: String,
    /// What answered a read: an entry, a copy or a fetch.
    pub by: String,
    pub took: Duration,
}

impl Network {
    pub fn new(size: usize) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("tc{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        // Before any is made, so that what there is of them goes after a failure, too.
        let hosts = (1..=size).map(|host| format!("{prefix}-{host}")).collect();
        let network = Self { switch: format!("{prefix}-s"), hosts };
        run(&["ip", "netns", "add", &network.switch]);
        configure(&network.switch, "link add name switch type bridge\nlink set switch up\n");
        for (name, host) in network.hosts.iter().zip(1..) {
            run(&["ip", "netns", "add", name]);
            let ends = format!("link add name tree type veth peer name port{host} netns {}\n", network.switch);
            let address = format!("address add {}/24 dev tree\nlink set tree up\nlink set lo up\n", address(host));
            configure(name, &(ends + &address));
            configure(&network.switch, &format!("link set port{host} master switch up\n"));
        }
        network
    }

    /// From now on what one host sends to the other is lost.
    pub fn cut_one_way(&self, from: usize, to: usize) {
        self.lose(from, &address(to));
    }

    pub fn cut(&self, one: usize, other: usize) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    /// Undoes what was cut between them, each way.
    pub fn mend(&self, one: usize, other: usize) {
        for (from, to) in [(one, other), (other, one)] {
            // Fails where nothing was cut.
            let arguments = ["-n", &self.hosts[from - 1], "neigh", "delete", &address(to), "dev", "tree"];
            let _ = command("ip").args(arguments).stderr(Stdio::null()).status();
        }
    }

    fn lose(&self, from: usize, address: &str) {
        run(&["ip", "-n", &self.hosts[from - 1], "neigh", "replace", address, "lladdr", NOBODY, "dev", "tree"]);
    }

    /// What the processes on one host are told of names that they look up: these lines of `hosts`, and else nothing, by a
    /// server that never answers. `ip netns exec` shows it to those that it starts from then on.
    pub fn tell_names(&self, host: usize, hosts: &str) {
        let folder = format!("/etc/netns/{}", self.hosts[host - 1]);
        std::fs::create_dir_all(&folder).expect("root may make it");
        std::fs::write(format!("{folder}/hosts"), hosts).expect("it is ours");
        std::fs::write(format!("{folder}/resolv.conf"), "nameserver 10.77.0.99\n").expect("it is ours");
        self.lose(host, "10.77.0.99");
    }

    /// Starts NODE-<host> of a tree whose root is NODE-1, unless `env` says otherwise.
    pub fn spawn(&self, host: usize, env: Env) -> Process {
        let (id, address, root_url) = (host.to_string(), address(host), url(1));
        let defaults = [("NODE_ID", id.as_str()), ("BIND_ADDR", &address), ("ROOT_URL", &root_url)];
        self.run_on(host, &[PROGRAM], &[&defaults[..], &[("LEASE_SECONDS", "1")], env].concat())
    }

    /// The same, and waits until it has its place.
    pub fn start(&self, host: usize, env: Env) -> Process {
        let mut process = self.spawn(host, env);
        process.wait_for_output(" listening on ");
        process
    }

    /// Runs any program on one host.
    pub fn run_on(&self, host: usize, arguments: &[&str], env: Env) -> Process {
        let mut command = command("ip");
        command.args(["netns", "exec", &self.hosts[host - 1]]).args(arguments);
        Process::spawn_command(&mut command, env)
    }

    /// Has the host of one node answer at that address of another, as if it had always been its own.
    pub fn move_address(&self, from: usize, to: usize) {
        let address = address(from);
        configure(&self.hosts[from - 1], &format!("address delete {address}/24 dev tree\n"));
        configure(&self.hosts[to - 1], &format!("address add {address}/24 dev tree\n"));
        // What a gratuitous ARP does.
        for host in &self.hosts {
            run(&["ip", "-n", host, "neigh", "flush", "to", &address]);
        }
    }

    /// What a client on one host gets from the node there. A write has a body.
    pub fn ask(&self, host: usize, method: &str, path: &str, body: &str) -> Told {
        self.ask_at(host, method, &format!("{}{path}", url(host)), body)
    }

    /// What a client on one host gets at any URL.
    pub fn ask_at(&self, host: usize, method: &str, url: &str, body: &str) -> Told {
        let format = "\n%{http_code} %{time_total} %header{cache-status}\n";
        let mut arguments = vec!["curl", "-s", "--max-time", "20", "-X", method, "-w", format, url];
        if !body.is_empty() {
            arguments.extend(["-d", body]);
        }
        let (_, printed, log) = self.run_on(host, &arguments, &[]).wait_for_end(2 * PROCESS_LIMIT);
        let parts = printed.trim_end_matches('\n').rsplit_once('\n').and_then(|(text, line)| {
            let mut words = line.splitn(3, ' ');
            let (status, took) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            let by = words.next()?.to_owned();
            Some(Told { status, text: text.trim_end().to_owned(), by, took: Duration::from_secs_f64(took) })
        });
        parts.unwrap_or_else(|| panic!("{arguments:?} printed {printed:?} and {log:?}"))
    }

    /// What the node there answers as JSON.
    pub fn json(&self, host: usize, path: &str) -> serde_json::Value {
        let told = self.ask(host, "GET", path, "");
        serde_json::from_str(&told.text).unwrap_or_else(|error| panic!("{error}: {told:?}"))
    }

    /// The value of a line of its `GET /metrics`, named without its prefix.
    pub fn metric(&self, host: usize, name: &str) -> u64 {
        find_metric(&self.ask(host, "GET", "/metrics", "").text, name)
    }

    pub fn is_ready(&self, host: usize) -> bool {
        self.ask(host, "GET", "/health", "").status == 200
    }

    /// What a read there is told.
    pub fn get(&self, host: usize, key: &str) -> Told {
        self.ask(host, "GET", &format!("/store/{key}"), "")
    }

    /// What a write there is told.
    pub fn put(&self, host: usize, key: &str, value: u32) -> Told {
        self.ask(host, "PUT", &format!("/store/{key}"), &format!(r#"{{"value":{value}}}"#))
    }
}

impl Told {
    #[track_caller]
    pub fn expect(self, status: u16, text: &str) -> Self {
        assert_eq!((self.status, self.text.as_str()), (status, text));
        self
    }

    /// Fails the test unless that value was read.
    #[track_caller]
    pub fn expect_value(self, value: u32) -> Self {
        self.expect(200, &format!(r#"{{"value":{value}}}"#))
    }

    /// Fails the test unless that was put.
    #[track_caller]
    pub fn expect_put(self, key: &str, value: u32) -> Self {
        self.expect(200, &format!(r#"{{"key":"{key}","value":{value}}}"#))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.hosts.iter().chain([&self.switch]) {
            let _ = command("ip").args(["netns", "delete", name]).status();
            let _ = std::fs::remove_dir_all(format!("/etc/netns/{name}"));
        }
    }
}

fn address(host: usize) -> String {
    format!("10.77.0.{host}")
}

/// Where the node on that host is found.
pub fn url(host: usize) -> String {
    format!("http://{}:5000", address(host))
}

/// Has `ip` carry out these lines in a namespace.
fn configure(namespace: &str, lines: &str) {
    let mut ip =
        command("ip").args(["-n", namespace, "-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip is there");
    ip.stdin.take().expect("it is piped").write_all(lines.as_bytes()).expect("ip reads it");
    assert!(ip.wait().expect("it ends").success(), "{lines}");
}
