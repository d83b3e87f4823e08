//! What a node counts, for `GET /metrics`. Counters only grow, and each stands alone: they are
//! read without a common lock, so two of them may be a request apart.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cache::store::Gauges;
use crate::http::pool::count_threads;

/// One number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The counters of one node.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Reads by clients that were answered from an entry.
    pub reads_from_entry: Counter,
    /// Reads by clients that were answered from a copy.
    pub reads_from_copy: Counter,
    /// Reads by clients that a fetch answered.
    pub reads_from_fetch: Counter,
    /// Reads by clients that found no value.
    pub reads_from_none: Counter,
    /// Writes that stand; only the root counts them.
    pub writes: Counter,
    /// Fetches sent to ancestors.
    pub fetches_sent: Counter,
    /// Leases granted to other nodes.
    pub grants: Counter,
    /// Invalidations sent to holders, repeated ones included.
    pub invalidations_sent: Counter,
    /// Invalidations that came from above.
    pub invalidations_received: Counter,
    /// Writes and invalidations that had to wait for a record to run out.
    pub silent_holder_waits: Counter,
}

impl Metrics {
    /// All in the text format of Prometheus.
    #[must_use]
    pub fn render(&self, gauges: Gauges) -> String {
        let mut text = String::new();
        family(
            &mut text,
            "reads_total",
            "counter",
            "Reads by clients, by what answered them.",
            &[
                ("{from=\"entry\"}", self.reads_from_entry.get()),
                ("{from=\"copy\"}", self.reads_from_copy.get()),
                ("{from=\"fetch\"}", self.reads_from_fetch.get()),
                ("{from=\"none\"}", self.reads_from_none.get()),
            ],
        );
        for (name, kind, help, value) in [
            ("writes_total", "counter", "Writes that stand; only the root counts them.", self.writes.get()),
            ("fetches_sent_total", "counter", "Fetches sent to ancestors.", self.fetches_sent.get()),
            ("grants_total", "counter", "Leases granted to other nodes.", self.grants.get()),
            ("invalidations_sent_total", "counter", "Invalidations sent to holders.", self.invalidations_sent.get()),
            (
                "invalidations_received_total",
                "counter",
                "Invalidations that came from above.",
                self.invalidations_received.get(),
            ),
            (
                "silent_holder_waits_total",
                "counter",
                "Times that a holder was waited for until its record ran out.",
                self.silent_holder_waits.get(),
            ),
            ("entries", "gauge", "Keys at the root.", gauges.entries as u64),
            ("copies", "gauge", "Copies, ended ones that were not swept yet among them.", gauges.copies as u64),
            (
                "holders",
                "gauge",
                "Records of holders, ended ones that were not swept yet among them.",
                gauges.holders as u64,
            ),
            ("bytes", "gauge", "What all that is held counts.", gauges.bytes as u64),
            ("threads", "gauge", "Threads of the process; 0 where they cannot be counted.", count_threads()),
        ] {
            family(&mut text, name, kind, help, &[("", value)]);
        }
        text
    }
}

impl Counter {
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

fn family(text: &mut String, name: &str, kind: &str, help: &str, samples: &[(&str, u64)]) {
    let _ = writeln!(text, "# HELP tree_cache_{name} {help}\n# TYPE tree_cache_{name} {kind}");
    for (labels, value) in samples {
        let _ = writeln!(text, "tree_cache_{name}{labels} {value}");
    }
}
