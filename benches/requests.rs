//! Requests on connections that stay open: one after another and timed, or as many as can be.

use std::thread;
use std::time::{Duration, Instant};

use crate::client::Raw;
use crate::harness::Node;

const CONNECTIONS: u32 = 64;

/// Requests that are sent on a connection before their answers are read.
const PIPELINED: usize = 20;

pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")
}

/// `fields` is what stands in the body: `"value":1`, and perhaps a `ttl`.
pub fn put(key: &str, fields: &str) -> String {
    let length = fields.len() + "{}".len();
    format!("PUT /store/{key} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{{{fields}}}")
}

/// How long one request takes.
pub fn time(raw: &mut Raw, request: &str) -> Duration {
    let sent = Instant::now();
    raw.send(request.as_bytes()).expect("it takes it");
    let answer = raw.read_answer().expect("it answers");
    // A full root refuses.
    assert!(matches!(answer.status, 200 | 507), "{request}: {}", answer.text());
    sent.elapsed()
}

pub fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() / 2]
}

/// For a table.
pub fn ms(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1000.0)
}

/// Sends requests on many connections, some at once on each, and takes no notice of what is answered.
pub fn pipeline(node: &Node, number: u32, request: impl Fn(u32) -> String + Sync) {
    let request = &request;
    thread::scope(|scope| {
        for part in 0..CONNECTIONS {
            scope.spawn(move || {
                let mut raw = Raw::connect(node.port).expect("it listens");
                let keys: Vec<u32> = (0..number).filter(|key| key % CONNECTIONS == part).collect();
                for some in keys.chunks(PIPELINED) {
                    let requests: String = some.iter().map(|key| request(*key)).collect();
                    raw.send(requests.as_bytes()).expect("it takes them");
                    for _ in some {
                        raw.read_answer().expect("it answers");
                    }
                }
            });
        }
    });
}
