//! What size costs: time, memory and messages as the tree grows deeper, holds more keys, and has more clients.
//!
//! Three parts, each printed as tables. `BENCH_DEPTH` (7), `BENCH_KEYS` (1,000,000) and `BENCH_CONNECTIONS` (1,000) can be
//! set to less for a quick try, or to more.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::client::Raw;
use crate::harness::{Env, Node, Process, Tree, free_ports};
use crate::requests::{get, median, ms, pipeline, put, time};
use crate::{Figures, Load, memory_mb, number_from_env, run_load};

/// As `make local` and the image have it, since memory is measured.
const ALLOCATOR: [(&str, &str); 2] = [("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_THRESHOLD_", "1048576")];

/// Room for a million entries and as many records.
const ROOM: (&str, &str) = ("MAX_STORE_BYTES", "2000000000");

/// How long an idle tree is watched.
const IDLE: Duration = Duration::from_secs(5);

/// So often a read or a write is repeated for its median: through a tree, and at one node.
const THROUGH_TREE: u32 = 15;
const AT_NODE: u32 = 200;

/// Between two looks whether a node has its place, which takes few milliseconds.
const LOOK_PAUSE: Duration = Duration::from_micros(200);

pub fn measure(folder: &Path) {
    // Each client's connection takes a descriptor here.
    rlimit::increase_nofile_limit(u64::MAX).expect("it is asked for no more than there is");
    measure_depths();
    measure_keys(folder);
    measure_connections();
}

// -- depth -------------------------------------------------------------------------------------

fn measure_depths() {
    let deepest = number_from_env("BENCH_DEPTH", 7);
    let rows: Vec<_> = (1..=deepest).map(measure_depth).collect();
    let heads = [
        "depth | nodes | all joined in turn, s | per node, ms | all started at once, s | idle: processor time of the root, ms/s \
         | of another node | threads of the root | its descriptors",
        "depth | nodes | root, idle, MB | inner node | leaf | root, after reads and writes, MB | inner node | leaf",
        "depth | nodes | fetches for a read that misses everywhere | ms, the first | ms, median | invalidations for a write \
         when every node holds a copy | ms, the first | ms, median",
    ];
    for (number, head) in heads.into_iter().enumerate() {
        print_head(head);
        for row in &rows {
            println!("{}", row[number]);
        }
    }
}

/// One row of each table.
fn measure_depth(depth: u32) -> [String; 3] {
    eprintln!("depth {depth} of size");
    let (tree, at_once) = start_tree(depth, true);
    drop(tree);
    let (tree, in_turn) = start_tree(depth, false);
    let nodes = tree.nodes.len();
    let (root_ms, node_ms) = measure_idle(&tree);
    let [threads, descriptors] = ["task", "fd"].map(|what| tree.root().process.entries_of(what));
    let idle = memories(&tree);
    let reads = measure_reads(&tree);
    let writes = measure_writes(&tree);
    let per_node = ms(in_turn / u32::try_from(nodes).expect("few"));
    [
        format!(
            "| {depth} | {nodes} | {:.2} | {per_node} | {:.2} | {root_ms:.1} | {node_ms:.2} | {threads} | {descriptors} |",
            in_turn.as_secs_f64(),
            at_once.as_secs_f64()
        ),
        format!("| {depth} | {nodes} | {idle} | {} |", memories(&tree)),
        format!("| {depth} | {nodes} | {reads} | {writes} |"),
    ]
}

/// Starts a tree, its nodes one after another or all at once, as an engine does; says how long it took until each had its
/// place. Started at once, they have their places in no order.
fn start_tree(depth: u32, at_once: bool) -> (Tree, Duration) {
    let (depth_text, root_port) = (depth.to_string(), free_ports(1).to_string());
    let root_url = format!("http://127.0.0.1:{root_port}");
    let spawn = |id: u32| {
        let (port, id) = (if id == 1 { &root_port } else { "0" }, id.to_string());
        let own = [("TREE_DEPTH", &*depth_text), ("API_PORT", port), ("NODE_ID", &id), ("ROOT_URL", &root_url)];
        Process::spawn(&[], &[&ALLOCATOR[..], &own].concat())
    };
    let wait = |mut process: Process| {
        while process.printed().is_empty() {
            process.expect_alive();
            thread::sleep(LOOK_PAUSE);
        }
        Node::wait_for_place(process, &[])
    };
    let began = Instant::now();
    let ids = 1..1 << depth;
    let nodes = if at_once {
        let processes: Vec<_> = ids.map(spawn).collect();
        processes.into_iter().map(wait).collect()
    } else {
        ids.map(|id| wait(spawn(id))).collect()
    };
    (Tree { nodes }, began.elapsed())
}

/// The processor time that the root takes in a second in which nobody asks anything, and another node's, in ms.
fn measure_idle(tree: &Tree) -> (f64, f64) {
    let before: Vec<_> = tree.nodes.iter().map(processor_ns).collect();
    thread::sleep(IDLE);
    let taken = |(node, before): (&Node, HashMap<_, u64>)| -> u64 {
        processor_ns(node).into_iter().map(|(thread, ns)| ns - before.get(&thread).unwrap_or(&0)).sum()
    };
    let of_each = tree.nodes.iter().zip(before).map(taken);
    let ms: Vec<f64> = of_each.map(|ns| Duration::from_nanos(ns).div_duration_f64(IDLE) * 1000.0).collect();
    let others = f64::from(u32::try_from(ms.len() - 1).expect("few"));
    (ms[0], if others > 0.0 { ms[1..].iter().sum::<f64>() / others } else { 0.0 })
}

/// What each of its threads has taken so far. Linux counts that of the whole process in steps of 10 ms, and most nodes take
/// less.
fn processor_ns(node: &Node) -> HashMap<OsString, u64> {
    let threads = fs::read_dir(format!("/proc/{}/task", node.process.id())).expect("it lives").map_while(Result::ok);
    let taken = threads.filter_map(|thread| {
        // One that has just ended has none.
        let stat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        Some((thread.file_name(), stat.split(' ').next()?.parse().ok()?))
    });
    taken.collect()
}

/// Of the root, a node below it that has children, and a leaf.
fn memories(tree: &Tree) -> String {
    let nodes = [(1, tree.root()), (3, tree.nodes.get(1).unwrap_or(tree.root())), (2, tree.leaf())];
    let of_each =
        nodes.map(
            |(at_least, node)| {
                if tree.nodes.len() < at_least { "–".to_owned() } else { format!("{:.1}", memory_mb(node)) }
            },
        );
    of_each.join(" | ")
}

fn measure_reads(tree: &Tree) -> String {
    for key in 0..THROUGH_TREE {
        tree.root().write(&format!("r{key}"), "1");
    }
    let mut raw = Raw::connect(tree.leaf().port).expect("it listens");
    let times = || (0..THROUGH_TREE).map(|key| time(&mut raw, &get(&format!("/store/r{key}")))).collect();
    count_and_time(tree, "fetches_sent_total", times)
}

/// Of a key that each node has a copy of.
fn measure_writes(tree: &Tree) -> String {
    tree.root().write("k", "1");
    let mut raw = Raw::connect(tree.root().port).expect("it listens");
    let times = || {
        let write = |_| {
            tree.nodes.iter().for_each(|node| node.expect_value("k", "1"));
            time(&mut raw, &put("k", r#""value":1"#))
        };
        (0..THROUGH_TREE).map(write).collect()
    };
    count_and_time(tree, "invalidations_sent_total", times)
}

/// How many messages each request cost, how long the first took, for which connections are opened, and a usual one.
fn count_and_time(tree: &Tree, metric: &str, times: impl FnOnce() -> Vec<Duration>) -> String {
    let sum = || tree.nodes.iter().map(|node| node.metric(metric)).sum::<u64>();
    let before = sum();
    let times = times();
    let messages = f64::from(u32::try_from(sum() - before).expect("not many")) / f64::from(THROUGH_TREE);
    format!("{messages:.1} | {} | {}", ms(times[0]), ms(median(&times)))
}

// -- keys --------------------------------------------------------------------------------------

fn measure_keys(folder: &Path) {
    print_head(
        "node | keys | MB | bytes per key | GET /store?limit=1000, median ms | slowest | GET, median ms | PUT, median ms \
         | start after kill -9, s | file, MB",
    );
    let folder = folder.join("size");
    let durable = [("DATA_DIR", folder.to_str().expect("it is UTF-8")), ("NEW_TREE", "1"), ROOM];
    let alone =
        |env: Env| Node::start(&[&ALLOCATOR[..], &[("TREE_DEPTH", "1"), ("LEASE_SECONDS", "0.1"), ROOM], env].concat());
    let number = |key: u32| put(&format!("k{key}"), &format!(r#""value":"{key:098}""#));
    grow("root, in memory", &mut alone(&[]), number, None);
    let mut root = alone(&durable);
    grow("root, durable", &mut root, number, Some(&folder.join("tree-cache.redb")));

    // Copies that last need a long lease, and a root that is not young for as long: so that one, after it has left.
    root.leave();
    let mut tree = Tree::start(2, &[&ALLOCATOR[..], &durable, &[("LEASE_SECONDS", "3600")]].concat());
    let empty_mb = memory_mb(tree.root());
    grow("leaf", &mut tree.nodes[1], |key| get(&format!("/store/k{key}")), None);
    let keys = number_from_env("BENCH_KEYS", 1_000_000);
    println!("| root of that leaf, memory for records | {} | – | – |", measure_at(tree.root(), keys, empty_mb));
}

/// Has the node hold more and more keys, by requests of them.
fn grow(title: &str, node: &mut Node, request: fn(u32) -> String, file: Option<&Path>) {
    let most = number_from_env("BENCH_KEYS", 1_000_000);
    // As many connections as later, that what these take is not taken for the keys'.
    pipeline(node, 10_000, |_| get("/store/other"));
    let (mut held, empty_mb) = (0, memory_mb(node));
    for keys in [0, most / 100, most / 10, most] {
        eprintln!("{title}: {keys} keys");
        pipeline(node, keys - held, |key| request(held + key));
        held = keys;
        let figures = measure_at(node, keys, empty_mb);
        let start = file.map_or("– | –".to_owned(), |file| {
            let began = Instant::now();
            node.restart();
            let (took, bytes) = (began.elapsed(), file.metadata().expect("it is there").len());
            format!("{:.2} | {}", took.as_secs_f64(), bytes / 1_000_000)
        });
        println!("| {title} | {figures} | {start} |");
    }
}

fn measure_at(node: &Node, keys: u32, empty_mb: f64) -> String {
    let mb = memory_mb(node);
    let per_key = if keys == 0 { "–".to_owned() } else { format!("{:.0}", (mb - empty_mb) * 1e6 / f64::from(keys)) };
    let mut raw = Raw::connect(node.port).expect("it listens");
    let mut times = |number: u32, request: &dyn Fn(u32) -> String| -> Vec<Duration> {
        (1..=number).map(|turn| time(&mut raw, &request(turn))).collect()
    };
    // One key, whose copy is gone then; other keys are read, far from each other.
    let puts = times(AT_NODE, &|_| put("k0", r#""value":1"#));
    let gets = times(AT_NODE, &|turn| get(&format!("/store/k{}", turn * 7919 % keys.max(1))));
    let lists = times(AT_NODE / 4, &|_| get("/store?limit=1000"));
    let slowest = lists.iter().max().copied().unwrap_or_default();
    let [list, get, put] = [lists, gets, puts].map(|times| ms(median(&times)));
    format!("{keys} | {mb:.1} | {per_key} | {list} | {} | {get} | {put}", ms(slowest))
}

// -- connections -------------------------------------------------------------------------------

fn measure_connections() {
    print_head("idle | active | MB | threads | descriptors | hits/s | p99 ms | writes/s | p99 ms");
    let tree = Tree::start(2, &[&ALLOCATOR[..], &[("LEASE_SECONDS", "5")]].concat());
    tree.root().write("k1", "1");
    let many = number_from_env("BENCH_CONNECTIONS", 1000);
    for (idle, active) in [(0, 0), (0, 1), (0, 16), (0, 64), (0, many / 5), (many, 0), (many / 5 * 4, many / 5), (0, 0)]
    {
        eprintln!("{idle} idle connections and {active} active ones");
        let open = |_| {
            let mut raw = Raw::connect(tree.leaf().port).expect("it listens");
            time(&mut raw, &get("/store/k1"));
            raw
        };
        let opened: Vec<Raw> = (0..idle).map(open).collect();
        let (hits, taken) = load(tree.leaf(), "hit", active);
        let writes = if active > 0 { load(tree.leaf(), "write", active).0 } else { "– | –".to_owned() };
        println!("| {idle} | {active} | {taken} | {hits} | {writes} |");
        drop(opened);
    }
}

/// What so many connections get done, and what the node takes meanwhile.
fn load(node: &Node, script: &'static str, connections: u32) -> (String, String) {
    let load =
        Load { title: script, script, ports: vec![node.port], connections: connections as usize, runs: Vec::new() };
    thread::scope(|scope| {
        let running = (connections > 0).then(|| scope.spawn(|| run_load(&load)));
        // In the middle of a run, or when the threads are gone that wait 5 s for another connection.
        let middle = Duration::from_millis(500) * number_from_env("BENCH_SECONDS", 3);
        thread::sleep(if connections > 0 { middle } else { Duration::from_secs(6) });
        let [threads, descriptors] = ["task", "fd"].map(|what| node.process.entries_of(what));
        let taken = format!("{:.1} | {threads} | {descriptors}", memory_mb(node));
        let figures = running.map(|running| running.join().expect("it ends"));
        let figures = figures.map_or("– | –".to_owned(), |Figures { requests_per_second, p99_ms, .. }| {
            format!("{requests_per_second:.0} | {p99_ms:.2}")
        });
        (figures, taken)
    })
}

// -- of all three ------------------------------------------------------------------------------

fn print_head(columns: &str) {
    println!("\n| {columns} |\n|{}", "---|".repeat(columns.split(" | ").count()));
}
