//! `make bench`: how fast a tree is, beside what `tiny_http` itself can do, and beside other servers.
//!
//! The *bare* server is `tiny_http` as its documentation shows it: four threads in `recv()`, and a constant
//! answer. It, a real tree of seven and the servers of `others.rs` are measured in turn, round by round, and each figure
//! is the median of its rounds, so that a machine whose speed drifts does not favour anybody.
//!
//! Then comes what size costs (`size.rs`), and the end of many keys (`expiry.rs`). `cargo bench --bench bench size` measures
//! that part alone; the others are `throughput` and `expiry`.
//!
//! `BENCH_ROUNDS` (5), `BENCH_SECONDS` (3) and `BENCH_ENDING` (1,000,000 keys) can be set in the environment, and the sizes
//! that `size.rs` names. Load comes from `wrk`.

#[path = "../tests/it/client.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod client;
#[path = "../tests/it/harness.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod harness;
#[path = "../tests/it/process.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod process;

#[path = "expiry.rs"]
mod expiry;
#[path = "others.rs"]
mod others;
#[path = "requests.rs"]
mod requests;
#[path = "size.rs"]
mod size;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Instant;

use harness::{Node, Process, Tree, command, free_ports};
use others::Others;
use tiny_http::{Response, Server};

/// What is kept under the keys k0 to k999, and what the bare server answers: a small value.
const VALUE: &str = r#""teal""#;

const BARE: &str = "bare server";

/// Keys that are read in turn to miss: too many to come round again within a lease.
const MISS_KEYS: u32 = 60_000;

/// Scripts for `wrk`. All requests are made before the first is sent, since making one costs more than answering it.
const SCRIPTS: [(&str, &str); 9] = [
    ("hit", r#"wrk.path = "/store/k1""#),
    (
        "miss",
        r#"local n, requests = 0, {}
init = function() for k = 0, 59999 do requests[k] = wrk.format("GET", "/store/m" .. k) end end
request = function() n = (n + 1) % 60000; return requests[n] end"#,
    ),
    (
        "write",
        r#"local n, requests = 0, {}
init = function() for k = 0, 999 do requests[k] = wrk.format("PUT", "/store/k" .. k, nil, '{"value":"teal"}') end end
request = function() n = (n + 1) % 1000; return requests[n] end"#,
    ),
    ("webdis get", r#"wrk.path = "/GET/k1""#),
    (
        "webdis set",
        r#"local n, requests = 0, {}
init = function() for k = 0, 999 do requests[k] = wrk.format("PUT", "/SET/k" .. k, nil, '{"value":"teal"}') end end
request = function() n = (n + 1) % 1000; return requests[n] end"#,
    ),
    ("etcd get", r#"wrk.path = "/v2/keys/k1""#),
    (
        "etcd put",
        r#"local n, requests, headers = 0, {}, { ["Content-Type"] = "application/x-www-form-urlencoded" }
init = function() for k = 0, 999 do requests[k] = wrk.format("PUT", "/v2/keys/k" .. k, headers, 'value="teal"') end end
request = function() n = (n + 1) % 1000; return requests[n] end"#,
    ),
    (
        "mostly reads",
        r#"local gets, puts = {}, {}
init = function()
  math.randomseed(os.time())
  for k = 0, 99 do
    gets[k], puts[k] = wrk.format("GET", "/store/k" .. k), wrk.format("PUT", "/store/k" .. k, nil, '{"value":"teal"}')
  end
end
request = function()
  local kind = math.random(1000) == 1 and puts or gets
  return kind[math.random(0, 99)]
end"#,
    ),
    (
        "mix",
        r#"local gets, puts = {}, {}
init = function()
  math.randomseed(os.time())
  for k = 0, 999 do
    gets[k], puts[k] = wrk.format("GET", "/store/k" .. k), wrk.format("PUT", "/store/k" .. k, nil, '{"value":"teal"}')
  end
end
request = function()
  local kind = math.random(100) <= 5 and puts or gets
  return kind[math.random(0, 999)]
end"#,
    ),
];

/// Figures of one run or, as medians, of all runs of one load.
#[derive(Clone, Copy, Default)]
struct Figures {
    requests_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

struct Load {
    title: &'static str,
    script: &'static str,
    ports: Vec<u16>,
    connections: usize,
    runs: Vec<Figures>,
}

/// Measures something, with a folder for what is to be durable.
type Part = fn(&Path);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, bare, port] = &arguments[..]
        && bare == "bare"
    {
        return serve_bare(port.parse().expect("a port"));
    }
    // Beside what etcd writes, so on the same disk.
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("data");
    let parts: [(&str, Part); 3] =
        [("throughput", measure_throughput), ("size", size::measure), ("expiry", expiry::measure)];
    let is_named = |name: &str| arguments.iter().any(|argument| argument == name);
    let is_any_named = parts.iter().any(|(name, _)| is_named(name));
    assert!(command("wrk").arg("-v").output().is_ok(), "wrk is missing: apt-get install wrk");
    for (name, measure) in parts {
        if is_named(name) || !is_any_named {
            // Of an earlier part or run, if there was one.
            let _ = fs::remove_dir_all(&folder);
            measure(&folder);
        }
    }
}

/// The bare server, for ever.
fn serve_bare(port: u16) {
    let server = Server::http(("127.0.0.1", port)).expect("the port is free");
    let answer = || {
        loop {
            let request = server.recv().expect("it accepts connections");
            // The client may have left.
            let _ = request.respond(Response::from_string(format!(r#"{{"value":{VALUE}}}"#)));
        }
    };
    println!("ready");
    thread::scope(|threads| (0..4).for_each(|_| drop(threads.spawn(answer))));
}

fn measure_throughput(folder: &Path) {
    let rounds = number_from_env("BENCH_ROUNDS", 5);
    let bare_port = free_ports(1);
    let program = std::env::current_exe().expect("this program has a path");
    let mut bare = Process::spawn_command(command(program).args(["bare", &bare_port.to_string()]), &[]);
    bare.wait_for_output("ready");
    let tree = Tree::start(3, &[("LEASE_SECONDS", "5")]);
    let (root, leaf) = (tree.root().port, tree.leaf().port);
    fill(&tree);
    let durable = Tree::start(2, &[("DATA_DIR", folder.to_str().expect("it is UTF-8")), ("NEW_TREE", "1")]);

    let others = Others::start(bare_port);
    let leaves: Vec<_> = tree.nodes[3..].iter().map(|node| node.port).collect();
    for connections in [1, 16, 64] {
        let load = |title, script, ports| Load { title, script, ports, connections, runs: Vec::new() };
        let mut loads = vec![
            load(BARE, "hit", vec![bare_port]),
            load("hits at the root", "hit", vec![root]),
            load("hits at a leaf", "hit", vec![leaf]),
            load("misses at a leaf of depth 3", "miss", vec![leaf]),
            load("writes at the root", "write", vec![root]),
            load("writes at a leaf", "write", vec![leaf]),
            load("writes at the root, durable", "write", vec![durable.root().port]),
            load("writes at a leaf, durable", "write", vec![durable.leaf().port]),
            load("95:5 mix over 1,000 keys, all four leaves", "mix", leaves.clone()),
        ];
        loads.retain(|load| load.ports.len() <= connections);
        loads.extend(others.loads.iter().map(|(title, script, port)| load(title, script, vec![*port])));
        for round in 1..=rounds {
            for load in &mut loads {
                eprintln!("{connections} connections, round {round} of {rounds}: {}", load.title);
                load.runs.push(run_load(load));
            }
        }
        println!("\n{connections} connections, medians of {rounds} rounds in turn\n");
        println!("| load | requests/s | p50 ms | p99 ms | ratio to bare |\n|---|---|---|---|---|");
        let bare = median(&loads[0].runs);
        for load in &loads {
            let Figures { requests_per_second, p50_ms, p99_ms } = median(&load.runs);
            let ratio = requests_per_second / bare.requests_per_second;
            println!("| {} | {requests_per_second:.0} | {p50_ms:.2} | {p99_ms:.2} | {ratio:.2} |", load.title);
        }
    }
    drop(others);
    measure_hits(&tree);
    println!();
    for node in [tree.root(), tree.leaf()] {
        println!("{} takes {:.1} MB after that, with 61,000 small keys in the tree", node.name, memory_mb(node));
    }
}

/// How many of the reads at the leaves are answered from copies, when one operation in 1,000 is a write. Each
/// copy must be fetched anew once a lease and after each write of its key, and that is what arithmetic expects;
/// where the two fall together one fetch does for both, so it can be a little better.
fn measure_hits(tree: &Tree) {
    let leaves = &tree.nodes[3..];
    let reads =
        |from: &str| -> u64 { leaves.iter().map(|leaf| leaf.metric(&format!("reads_total{{from=\"{from}\"}}"))).sum() };
    let ports = leaves.iter().map(|leaf| leaf.port).collect();
    let load = Load { title: "mostly reads", script: "mostly reads", ports, connections: 16, runs: Vec::new() };
    let (copies, fetches, writes) = (reads("copy"), reads("fetch"), tree.root().metric("writes_total"));
    let began = Instant::now();
    run_load(&load);
    let seconds = began.elapsed().as_secs_f64();
    let (copies, fetches) = (reads("copy") - copies, reads("fetch") - fetches);
    let writes = tree.root().metric("writes_total") - writes;
    #[expect(clippy::cast_precision_loss, reason = "counts of a few seconds are far below 2^52")]
    let (reads, share) = ((copies + fetches) as f64, copies as f64 / (copies + fetches) as f64);
    #[expect(clippy::cast_precision_loss, reason = "as above")]
    let misses = 4.0 * (100.0 * seconds / 5.0 + writes as f64);
    println!(
        "\n{:.0} reads/s at four leaves, 100 keys, 1 write in 1,000: {:.2} % answered from copies; arithmetic expects {:.2} %",
        reads / seconds,
        100.0 * share,
        100.0 * (1.0 - misses / reads)
    );
}

/// Puts the keys k0 to k999 and m0 to m59999.
fn fill(tree: &Tree) {
    let agent = ureq::Agent::config_builder().proxy(None).build().new_agent();
    eprintln!("putting {} keys", MISS_KEYS + 1000);
    for number in 0..MISS_KEYS + 1000 {
        let key = if number < 1000 { format!("k{number}") } else { format!("m{}", number - 1000) };
        let url = format!("{}/store/{key}", tree.root().url);
        agent.put(&url).send(format!(r#"{{"value":{VALUE}}}"#)).expect("a put").body_mut().read_to_vec().expect("ok");
    }
}

/// All its connections are shared among its ports.
fn run_load(load: &Load) -> Figures {
    let seconds = number_from_env("BENCH_SECONDS", 3);
    let script = script_path(load.script);
    let connections = (load.connections / load.ports.len()).to_string();
    let start = |port: &u16| -> Child {
        command("wrk")
            .args(["-t1", "-c", &connections, "-d", &seconds.to_string(), "--latency", "-s"])
            .arg(&script)
            .arg(format!("http://127.0.0.1:{port}/"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("wrk can be started")
    };
    let running: Vec<Child> = load.ports.iter().map(start).collect();
    let mut sum = Figures::default();
    for wrk in running {
        let output = wrk.wait_with_output().expect("wrk ends");
        let text = String::from_utf8_lossy(&output.stdout);
        // The bare server leaves a connection without a thread now and then.
        let is_late = text.contains("Socket errors") && load.title != BARE;
        assert!(!text.contains("Non-2xx") && !is_late, "{}: {text}", load.title);
        sum.requests_per_second += word_after(&text, "Requests/sec:").parse::<f64>().expect("a number");
        // Of several, the slowest.
        let (_, latencies) = text.split_once("Latency Distribution").expect("--latency prints it");
        sum.p50_ms = sum.p50_ms.max(milliseconds(word_after(latencies, "50%")));
        sum.p99_ms = sum.p99_ms.max(milliseconds(word_after(latencies, "99%")));
    }
    sum
}

fn script_path(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.lua"));
    let script = SCRIPTS.iter().find(|(known, _)| *known == name).expect("a script of that name").1;
    fs::write(&path, script).expect("the target folder can be written");
    path
}

fn word_after<'a>(text: &'a str, mark: &str) -> &'a str {
    let rest = text.split_once(mark).unwrap_or_else(|| panic!("no {mark} in {text}")).1;
    rest.split_whitespace().next().expect("a figure")
}

/// `wrk` writes 870.00us, 1.20ms or 1.01s.
fn milliseconds(text: &str) -> f64 {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let unit = match &text[digits.len()..] {
        "us" => 0.001,
        "ms" => 1.0,
        "s" => 1000.0,
        unit => panic!("a time in {unit}"),
    };
    digits.parse::<f64>().expect("a number") * unit
}

fn median(runs: &[Figures]) -> Figures {
    let middle = |figure: fn(&Figures) -> f64| {
        let mut figures: Vec<f64> = runs.iter().map(figure).collect();
        figures.sort_unstable_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    Figures {
        requests_per_second: middle(|run| run.requests_per_second),
        p50_ms: middle(|run| run.p50_ms),
        p99_ms: middle(|run| run.p99_ms),
    }
}

#[expect(clippy::cast_precision_loss, reason = "kilobytes are far below 2^52")]
fn memory_mb(node: &Node) -> f64 {
    node.process.memory_kb() as f64 / 1000.0
}

fn number_from_env(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a whole number")))
}
