//! Starts nodes and whole trees of them.

use std::time::{Duration, Instant};

use crate::client::{Answer, find_metric, try_call};

pub use crate::process::{
    Env, Folder, Over, PROCESS_LIMIT, PROGRAM, Process, command, free_ports, load_alone, poll_until, run, signal,
};

/// A node that has its place.
pub struct Node {
    /// `NODE-<id>`.
    pub name: String,
    pub url: String,
    pub port: u16,
    pub process: Process,
    env: Vec<(String, String)>,
}

impl Node {
    /// Starts a node, on a port that is free unless `env` names one, and waits until it has its place.
    pub fn start(env: Env) -> Self {
        // A root finishes no write in its first 1.1 leases.
        let defaults = [("API_PORT", "0"), ("LEASE_SECONDS", "1")];
        let process = Process::spawn(&[], &[&defaults, env].concat());
        Self::wait_for_place(process, env)
    }

    /// A root of the smallest tree.
    pub fn alone() -> Self {
        Self::start(&[("TREE_DEPTH", "1")])
    }

    /// Waits for the line that a node prints once it has its place.
    pub fn wait_for_place(mut process: Process, env: Env) -> Self {
        let printed = process.wait_for_output("\n");
        let line = printed.trim_end();
        let (name, url) = line.split_once(" listening on ").unwrap_or_else(|| panic!("unexpected line {line:?}"));
        let port = url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("the line ends with a port");
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { name: name.to_owned(), url: url.to_owned(), port, process, env }
    }

    /// Kills the node without warning.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Kills the node if it lives, and starts it again with the same id on the same port.
    pub fn restart(&mut self) {
        self.kill();
        let port = self.port.to_string();
        let env: Vec<_> = self.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        *self = Self::start(&[&env[..], &[("API_PORT", &port)]].concat());
    }

    /// Has the node leave, waits for its end, and says how long it took. It must end with 0.
    pub fn leave(&mut self) -> Duration {
        let began = Instant::now();
        self.process.signal("TERM");
        self.expect_left(began)
    }

    /// The same, where it was told to leave at that time.
    pub fn expect_left(&mut self, began: Instant) -> Duration {
        self.process.expect_left();
        began.elapsed()
    }

    /// Stops the node where it stands; it keeps its connections and accepts none.
    pub fn pause(&self) {
        self.process.pause();
    }

    pub fn resume(&self) {
        self.process.resume();
    }

    pub fn get(&self, path: &str) -> Answer {
        self.call("GET", path, b"")
    }

    /// `PUT /store/{key}` with that value; the key as it stands in the path.
    pub fn put(&self, key: &str, value: &str) -> Answer {
        self.call("PUT", &format!("/store/{key}"), format!(r#"{{"value":{value}}}"#).as_bytes())
    }

    /// Fails the test unless that value is put. The key is one that needs no percent-encoding.
    #[track_caller]
    pub fn write(&self, key: &str, value: &str) {
        self.put(key, value).expect(200, &format!(r#"{{"key":"{key}","value":{value}}}"#));
    }

    /// Fails the test unless that value is read.
    #[track_caller]
    pub fn expect_value(&self, key: &str, value: &str) {
        self.get(&format!("/store/{key}")).expect(200, &format!(r#"{{"value":{value}}}"#));
    }

    /// `DELETE /store/{key}`.
    pub fn delete(&self, key: &str) -> Answer {
        self.call("DELETE", &format!("/store/{key}"), b"")
    }

    /// Any request, with a body if it is not empty.
    pub fn call(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        self.call_with(method, path, &[], body)
    }

    /// Any request with more headers.
    pub fn call_with(&self, method: &str, path: &str, headers: Env, body: &[u8]) -> Answer {
        try_call(method, &format!("{}{path}", self.url), headers, body).unwrap_or_else(|error| {
            panic!("{method} {path} at {}: {error}; it said: {}", self.name, self.process.log())
        })
    }

    /// The number by which this process is told from others that had or will have its name.
    pub fn run(&self) -> u64 {
        self.get("/").json()["run"].as_u64().expect("a number")
    }

    /// For how long this root can finish no write.
    pub fn young_for_ms(&self) -> u64 {
        self.get("/").json()["young_for_ms"].as_u64().expect("a number")
    }

    /// The value of a line of `GET /metrics`, named without its prefix.
    pub fn metric(&self, name: &str) -> u64 {
        find_metric(self.get("/metrics").text(), name)
    }
}

/// A whole tree. Its nodes are in the order of their ids, and of their positions.
pub struct Tree {
    pub nodes: Vec<Node>,
}

impl Tree {
    /// Starts the nodes one after another, each when the one before has its place.
    pub fn start(depth: u32, env: Env) -> Self {
        let (depth_text, root_port) = (depth.to_string(), free_ports(1).to_string());
        let env = [&[("TREE_DEPTH", depth_text.as_str())], env].concat();
        let root = Node::start(&[&env[..], &[("API_PORT", &root_port)]].concat());
        let mut tree = Self { nodes: vec![root] };
        for id in 2..1 << depth {
            tree.nodes.push(tree.start_node(id, &env));
        }
        tree
    }

    /// Starts one more node, with nothing but its id and `env`.
    pub fn start_node(&self, id: u32, env: Env) -> Node {
        let root_url = self.root().url.clone();
        Node::start(&[env, &[("NODE_ID", &id.to_string()), ("ROOT_URL", &root_url)]].concat())
    }

    pub fn node(&self, id: usize) -> &Node {
        &self.nodes[id - 1]
    }

    pub fn root(&self) -> &Node {
        self.node(1)
    }

    /// The last node: a leaf, if the tree has more than a root.
    pub fn leaf(&self) -> &Node {
        self.nodes.last().expect("there is a root")
    }
}
