//! A private ZooKeeper, and its own client.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;

use crate::harness::{Env, Folder, Node, Process, Tree, command, free_ports, poll_until};

/// How long a node may take to be registered once ZooKeeper is there.
pub const REGISTER_LIMIT: Duration = Duration::from_secs(15);

/// How long ZooKeeper may take to start; generous, for the machine may be busy.
const START_LIMIT: Duration = Duration::from_secs(30);

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/zookeeper/server.sh");

/// A server with a port and a directory of its own; both are kept when it is killed and started again.
pub struct Server {
    pub port: u16,
    folder: Folder,
    settings: &'static str,
    process: Option<Process>,
}

impl Server {
    /// One that is not started yet, with more lines for its configuration.
    pub fn new(settings: &'static str) -> Self {
        let port = free_ports(1);
        Self { port, folder: Folder::new("zookeeper"), settings, process: None }
    }

    /// One that serves.
    pub fn start() -> Self {
        let mut server = Self::new("");
        server.run();
        server
    }

    /// What nodes are told of it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts it and waits until it serves.
    pub fn run(&mut self) {
        let mut script = command(SCRIPT);
        script.arg("serve").arg(self.folder.path()).arg(self.port.to_string());
        let mut process = Process::spawn_command(&mut script, &[("ZOO_CFG", self.settings)]);
        poll_until(START_LIMIT, "a ZooKeeper that serves", || {
            assert!(
                process.is_alive(),
                "ZooKeeper cannot be started (`make test` says what it needs): {}",
                process.log()
            );
            self.serves()
        });
        self.process = Some(process);
    }

    fn serves(&self) -> bool {
        let ask = || {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(b"srvr")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        ask().is_ok_and(|answer: String| answer.contains("Mode:"))
    }

    /// Kills it without warning; what it has written stays.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Forgets all that it has written; it must have been killed.
    pub fn wipe(&self) {
        assert!(self.process.is_none());
        fs::remove_dir_all(self.folder.join("data")).expect("it has written something");
    }

    /// Stops it where it stands; it keeps its connections.
    pub fn pause(&self) {
        self.process.as_ref().expect("it runs").pause();
    }

    pub fn resume(&self) {
        self.process.as_ref().expect("it runs").resume();
    }

    /// What ZooKeeper's own client says to these commands; each start of it takes about a second.
    pub fn ask(&self, commands: &[&str]) -> String {
        let mut client = command("java")
            .args(["-Xmx64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", "/usr/share/java/zookeeper.jar"])
            .args(["org.apache.zookeeper.ZooKeeperMain", "-server", &self.address()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("java can be started");
        let commands = commands.join("\n") + "\n";
        client.stdin.take().expect("it is piped").write_all(commands.as_bytes()).expect("the client reads");
        let output = client.wait_with_output().expect("the client ends");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// The paths of all znodes below one, that one included.
    pub fn paths(&self, path: &str) -> Vec<String> {
        let answer = self.ask(&[&format!("ls -R {path}")]);
        let mut paths: Vec<_> = answer.lines().filter(|line| line.starts_with('/')).map(str::to_owned).collect();
        paths.sort();
        paths
    }

    /// Fails the test unless ZooKeeper has the tree of these nodes and nothing else, and all of them live.
    #[track_caller]
    pub fn expect_tree(&self, nodes: &[&Node]) {
        let mut paths = vec!["/tree-cache".to_owned(), "/tree-cache/live".to_owned(), "/tree-cache/tree".to_owned()];
        let mut gets = Vec::new();
        let mut records = Vec::new();
        for node in nodes {
            let described = node.get("/").json();
            let names: Vec<_> =
                described["path"].as_array().expect("a path").iter().filter_map(|name| name.as_str()).collect();
            let path = format!("/tree-cache/tree/{}", names.join("/"));
            gets.push(format!("get {path}"));
            records.push(format!(
                r#"{{"id":{},"url":"{}","run":{},"position":{}}}"#,
                described["id"], node.url, described["run"], described["position"]
            ));
            paths.extend([path, format!("/tree-cache/live/{}", node.name)]);
        }
        paths.sort();
        let commands: Vec<_> = std::iter::once("ls -R /tree-cache").chain(gets.iter().map(String::as_str)).collect();
        let answer = self.ask(&commands);
        let mut found: Vec<_> = answer.lines().filter(|line| line.starts_with("/tree-cache")).collect();
        found.sort_unstable();
        assert_eq!(found, paths, "{answer}");
        let found: Vec<_> = answer.lines().filter(|line| line.starts_with('{')).collect();
        assert_eq!(found, records, "{answer}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Before its folder goes.
        self.kill();
    }
}

/// How a node says that it stands with ZooKeeper.
pub fn standing(node: &Node) -> String {
    node.get("/").json()["zookeeper"].as_str().expect("it says so").to_owned()
}

/// Starts a tree and waits until all of it is registered.
pub fn start_registered(depth: u32, env: Env) -> Tree {
    let tree = Tree::start(depth, env);
    wait_for_standing(&all(&tree), "registered");
    tree
}

pub fn wait_for_standing(nodes: &[&Node], expected: &str) {
    poll_until(REGISTER_LIMIT, &format!("all nodes are {expected:?}"), || {
        nodes.iter().all(|node| standing(node) == expected)
    });
}

/// Fails the test unless the log has this many lines with that text.
#[track_caller]
pub fn expect_lines(node: &Node, text: &str, count: usize) {
    let log = node.process.wait_for_log(text, count);
    assert_eq!(log.lines().filter(|line| line.contains(text)).count(), count, "{text:?} in {log}");
}

pub fn all(tree: &Tree) -> Vec<&Node> {
    tree.nodes.iter().collect()
}

/// Which nodes the root has in its child table: position, name, and whether it has heard them.
pub fn child_table(root: &Node) -> serde_json::Value {
    let nodes = root.get("/nodes").json()["nodes"].clone();
    nodes
        .as_array()
        .expect("a list")
        .iter()
        .map(|node| json!([node["position"], node["name"], node["alive"]]))
        .collect()
}
