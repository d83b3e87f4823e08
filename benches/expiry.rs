//! What it costs others when very many keys end at once: how long the slowest of their requests takes meanwhile, beside
//! the slowest at the same node while nothing ends.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::client::Raw;
use crate::harness::{Node, Tree};
use crate::requests::{get, ms, pipeline, put, time};
use crate::{memory_mb, number_from_env};

/// So many keys a second are put or fetched in any case.
const SLOWEST: u32 = 7000;

/// How long the node is watched, each time.
const WATCHED: Duration = Duration::from_secs(8);

/// Entries at a root, in memory and on disk; copies at a leaf; and a full root that is written to.
pub fn measure(folder: &Path) {
    let data_dir = folder.to_str().expect("it is UTF-8");
    let of_root = format!("{data_dir}/root");
    let number = number_from_env("BENCH_ENDING", 1_000_000);
    println!("\n{number} keys that end at once, and the slowest of the requests that one client sends all the time\n");
    println!("| what ends | request | requests | slowest, nothing ends | slowest, all end |\n|---|---|---|---|---|");
    // Room for some nineteen of twenty.
    let too_small = (190 * number).to_string();
    for (title, env) in [
        ("entries at the root", &[("MAX_STORE_BYTES", "1000000000")][..]),
        ("entries at a full root", &[("MAX_STORE_BYTES", &too_small)]),
        (
            "entries at the root, durable",
            &[("MAX_STORE_BYTES", "1000000000"), ("DATA_DIR", of_root.as_str()), ("NEW_TREE", "1")],
        ),
    ] {
        let root = Node::start(&[&[("TREE_DEPTH", "1")], env].concat());
        let idle = watch(&root);
        let ends = fill(&root, number);
        report(title, &root, idle, ends);
    }

    // Copies end with their lease, so they are fetched as fast as can be.
    let number = number / 4;
    let of_tree = format!("{data_dir}/tree");
    let long = [("LEASE_SECONDS", "3600"), ("MAX_STORE_BYTES", "1000000000")];
    let tree = Tree::start(2, &[&long[..], &[("DATA_DIR", &of_tree), ("NEW_TREE", "1")]].concat());
    let idle = watch(tree.leaf());
    println!("(of copies {number}, since each is fetched)");
    let ends = fill_copies(&tree, number);
    report("copies at a leaf", tree.leaf(), idle, ends);
}

/// Puts so many keys that all end at the time that it returns.
fn fill(root: &Node, number: u32) -> Instant {
    // When it has been young.
    root.write("other", "1");
    let ends = Instant::now() + Duration::from_secs(10 + u64::from(number / SLOWEST));
    let request = |key: u32| {
        let ttl = ends.saturating_duration_since(Instant::now()).as_secs_f64();
        put(&format!("e{key}"), &format!(r#""value":{key},"ttl":{ttl:.6}"#))
    };
    pipeline(root, number, request);
    assert!(Instant::now() < ends, "they must not end while they are put: set BENCH_ENDING to less");
    ends
}

/// Has the leaf read so many keys whose copies end at the time that it returns, or soon after.
fn fill_copies(tree: &Tree, number: u32) -> Instant {
    let ends = fill(tree.root(), number);
    pipeline(tree.leaf(), number, |key| get(&format!("/store/e{key}")));
    // Each ends when ten elevenths of what was left of its ttl are over.
    let now = Instant::now();
    now + ends.saturating_duration_since(now) * 10 / 11
}

/// The requests that are watched, how many there were of each, and the slowest.
type Watched = Vec<(&'static str, u32, Duration)>;

/// The request of that number.
type Request = fn(u32) -> String;

/// Sends each kind of request all the time, on a connection of its own.
fn watch(node: &Node) -> Watched {
    // Each PUT is of another key, and needs room.
    let kinds: [(_, Request); 4] = [
        ("GET", |_| get("/store/other")),
        ("PUT", |count| put(&format!("new{count}"), r#""value":1"#)),
        ("GET /store", |_| get("/store?limit=1000")),
        ("GET /", |_| get("/")),
    ];
    node.write("other", "1");
    thread::scope(|scope| {
        let watching = kinds.map(|(name, request)| {
            scope.spawn(move || {
                let mut raw = Raw::connect(node.port).expect("it listens");
                let (began, mut count, mut slowest) = (Instant::now(), 0, Duration::ZERO);
                while began.elapsed() < WATCHED {
                    slowest = slowest.max(time(&mut raw, &request(count)));
                    count += 1;
                    thread::sleep(Duration::from_millis(1));
                }
                (name, count, slowest)
            })
        });
        watching.into_iter().map(|watching| watching.join().expect("it answers")).collect()
    })
}

fn report(title: &str, node: &Node, idle: Watched, ends: Instant) {
    let full_mb = memory_mb(node);
    thread::sleep(ends.saturating_duration_since(Instant::now() + Duration::from_secs(1)));
    let (watched, gone) = thread::scope(|scope| {
        let gone = scope.spawn(|| wait_until_gone(node, ends));
        (watch(node), gone.join().expect("they all go"))
    });
    for ((name, _, before), (_, count, slowest)) in idle.into_iter().zip(watched) {
        println!("| {title} | {name} | {count} | {} ms | {} ms |", ms(before), ms(slowest));
    }
    let (seconds, left_mb) = (gone.as_secs_f64(), memory_mb(node));
    println!("(all gone {seconds:.1} s after their end, and of {full_mb:.0} MB the node still takes {left_mb:.0})");
}

/// How long after their end it is until all are dropped.
fn wait_until_gone(node: &Node, ends: Instant) -> Duration {
    // Those that were put meanwhile stay: no more than one a millisecond.
    let stay = u64::try_from(WATCHED.as_millis()).expect("some seconds");
    while node.metric("entries") + node.metric("copies") > stay {
        thread::sleep(Duration::from_millis(100));
    }
    Instant::now().saturating_duration_since(ends)
}
