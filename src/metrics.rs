//! What a node counts, for `GET /metrics`. Counters only grow, and each stands alone: they are
//! read without a common lock, so two of them may be a request apart.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::cache::store::Gauges;

#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// One line a counter: its field, its name and labels, and the help of that name, if it is the first one.
macro_rules! counters {
    ($($field:ident: $name:literal, $help:literal;)*) => {
        /// The counters of one node.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $(pub $field: Counter,)*
            /// Guards the number of answers of each status that refuses.
            refused: Mutex<BTreeMap<u16, u64>>,
        }

        impl Metrics {
            fn counters(&self) -> Vec<Sample> {
                vec![$(Sample($name.to_owned(), $help, self.$field.0.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters! {
    reads_from_entry: r#"reads_total{from="entry"}"#, "Reads by clients, by what answered them.";
    reads_from_copy: r#"reads_total{from="copy"}"#, "";
    reads_from_fetch: r#"reads_total{from="fetch"}"#, "";
    reads_from_none: r#"reads_total{from="none"}"#, "";
    writes: "writes_total", "Writes that stand; only the root counts them.";
    commits: "commits_total", "Commits to disk; one serves all writes that were decided meanwhile.";
    forwarded: "forwarded_total", "Requests of clients passed on to the root.";
    fetches_sent: "fetches_sent_total", "Fetches sent to ancestors.";
    grants: "grants_total", "Leases granted to other nodes.";
    invalidations_sent: "invalidations_sent_total", "Invalidations sent to holders, repeated ones included.";
    invalidations_received: "invalidations_received_total", "Invalidations received, refused ones included.";
    silent_holder_waits: "silent_holder_waits_total", "Waits until a silent holder's record ran out.";
}

/// Name with labels, help and value.
struct Sample(String, &'static str, u64);

impl Metrics {
    /// Counts an answer of a status of 400 or more.
    pub fn count_refused(&self, status: u16) {
        *self.refused.lock().expect("nothing panics under this lock").entry(status).or_default() += 1;
    }

    /// All in the text format of Prometheus. The names of counters, and only these, end with `_total`.
    pub fn render(&self, gauges: Gauges, root_silence: Option<Duration>) -> String {
        let mut samples = self.counters();
        for (status, count) in self.refused.lock().expect("nothing panics under this lock").iter() {
            let name = format!(r#"refused_total{{status="{status}"}}"#);
            samples.push(Sample(name, "Requests answered with an error, by status.", *count));
        }
        // A node that was never given a place has not heard its root.
        let silence = root_silence.map_or(u64::MAX, |silence| silence.as_secs());
        let gauges = [
            ("root_last_heard_seconds", "Since the root was last heard; 0 at the root.", silence),
            ("entries", "Keys at the root.", gauges.entries as u64),
            ("copies", "Copies, those that have ended and were not swept yet among them.", gauges.copies as u64),
            ("holders", "Records of holders, likewise.", gauges.holders as u64),
            ("bytes", "What all that is held counts.", gauges.bytes as u64),
            ("threads", "Threads of the process; 0 where they cannot be counted.", count_threads()),
        ];
        samples.extend(gauges.map(|(name, help, value)| Sample(name.to_owned(), help, value)));
        let (mut text, mut last) = (String::new(), "");
        for Sample(sample, help, value) in &samples {
            let name = sample.split('{').next().unwrap_or_default();
            if name != last {
                let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
                let _ = writeln!(text, "# HELP tree_cache_{name} {help}\n# TYPE tree_cache_{name} {kind}");
                last = name;
            }
            let _ = writeln!(text, "tree_cache_{sample} {value}");
        }
        text
    }
}

/// The threads of this process. Linux says it; elsewhere it is 0.
pub fn count_threads() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Threads:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}
