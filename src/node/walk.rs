//! The walk up, the write, and the walk down: what the store decides, in turn, and the calls between.
//!
//! Invariants: whoever waits, waits by the clock. What was begun in the store is ended there, come what may.

use std::fmt::Display;
use std::sync::{Arc, mpsc};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::{Node, lock, not_joined};
use crate::cache::leases::{Holder, Record, record_life};
use crate::cache::store::{Leased, Reading, Source, Step, Store};
use crate::cache::writes::{Condition, Refusal, Write};
use crate::http::client::{CallError, Reply};
use crate::protocol::call::{Call, PassedOn};
use crate::protocol::error::{Error, Kind};
use crate::protocol::messages::whole_ms;
use crate::tree::{ALIVE, NodeRef};

/// What a read may take in all.
pub const READ_LIMIT: Duration = Duration::from_secs(5);

/// What an ancestor's answer needs to come back; the ancestor has so much less time than its asker.
const ANSWER_TIME: Duration = Duration::from_millis(100);

/// For how long an ancestor that gave no answer is not asked: it costs one reader its time limit, and not every
/// reader after that one.
const BACK_OFF: Duration = Duration::from_secs(5);

/// The same for one that answered 503: it has lost those above it, or leaves.
const SHORT_BACK_OFF: Duration = Duration::from_secs(1);

/// What a write may take beyond what the root may have to wait for.
const WRITE_SLACK: Duration = Duration::from_secs(2);

/// The root's answers to a write that reach the client. Any other is no word on that write.
const WRITE_ANSWERS: &[u16] = &[200, 412, 413, 422, 503, 507];

/// How the text ends of a write that was not passed on, and that the root will not do later.
const NOT_APPLIED: &str = "; it was not applied";

/// What asking the root for the tree may take.
const NODES_LIMIT: Duration = Duration::from_secs(2);

/// Between two attempts to reach a root that may be starting again.
const ROOT_PAUSE: Duration = Duration::from_millis(50);

/// Between two attempts to tell a holder that gave no answer.
const RETELL_PAUSE: Duration = Duration::from_millis(100);

/// A fetch or a write that was begun in the store under this number. Whatever came of it, a panic too, it is over there
/// when this is dropped: else whoever comes after it would wait for ever.
struct Begun<'a> {
    node: &'a Node,
    key: &'a str,
    number: u64,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let waiting = self.node.store().abandon(self.key, self.number);
        waiting.iter().for_each(Thread::unpark);
    }
}

impl Node {
    // -- the walk up ---------------------------------------------------------------------------

    /// Reads a key, for a client or for another node that becomes its `holder`. It ends soon after
    /// `deadline`, whatever happens.
    pub fn read(&self, key: &str, holder: Option<&Holder>, deadline: Instant) -> Result<(Leased, Source), Error> {
        let mut reading = Reading::new(key, holder, thread::current());
        loop {
            let now = Instant::now();
            let step = self.store().step_read(&mut reading, now);
            match step {
                Step::Answer(answer, source) => return Ok((answer, source)),
                Step::Fetch(number) => {
                    let _begun = Begun { node: self, key, number };
                    let mut fetched = self.ask_ancestors(key, deadline, true);
                    // Only whom the client asked: else each on the way up would go on asking for the one below.
                    while fetched.is_err() && holder.is_none() && self.waits_for_root(deadline) {
                        fetched = self.ask_ancestors(key, deadline, true);
                    }
                    let now = Instant::now();
                    let (answer, waiting) = self.store().end_fetch(&reading, number, fetched.as_ref().ok(), now);
                    waiting.iter().for_each(Thread::unpark);
                    let failed = || fetched.expect_err("what an ancestor answered is an answer");
                    return answer.map(|answer| (answer, Source::Fetch)).ok_or_else(failed);
                }
                Step::Wait if now >= deadline && self.config.is_root() => {
                    let text = format!("could not read {key:?}, which has ended: the disk is slow");
                    return Err(Kind::ServiceUnavailable.error(text));
                }
                Step::Wait if now >= deadline => return Err(no_answer(key, &[])),
                Step::Wait => {
                    self.wake_committer();
                    thread::park_timeout(deadline - now);
                }
            }
        }
    }

    /// Asks the ancestors, nearest first, until one answers; says when that one was asked. If it `rejoins`, it begins anew
    /// where the root is another one, but once: several may answer there in turn.
    fn ask_ancestors(&self, key: &str, deadline: Instant, rejoins: bool) -> Result<(Leased, Instant), Error> {
        let root = self.last_join().ok_or_else(not_joined)?.answer;
        let mut causes = Vec::new();
        let mut above_asked = false;
        for (steps, ancestor) in root.place.ancestors.iter().enumerate() {
            let is_root = steps + 1 == root.place.ancestors.len();
            // Rule 2: the copy's life begins here, before the fetch is sent.
            let asked_at = Instant::now();
            let left = deadline.saturating_duration_since(asked_at);
            let half = left / 2;
            let (limit, wait) = if is_root { (left, left) } else { (half, half.saturating_sub(ANSWER_TIME)) };
            if wait < ANSWER_TIME || (!is_root && (above_asked || self.is_passed_over(&ancestor.url, asked_at))) {
                continue;
            }
            let cause = match self.fetch(ancestor, root.run, key, wait, limit) {
                Ok(fetched) => return Ok((fetched, asked_at)),
                Err(cause) => cause,
            };
            match cause {
                // Another root answers there, which the next join makes ours.
                CallError::Refused { status: 409, .. } if is_root && rejoins => {
                    if self.join_afresh(deadline).is_ok_and(|joined| joined.answer.run != root.run) {
                        return self.ask_ancestors(key, deadline, false);
                    }
                }
                // Most likely it has asked all above it. If each node asked them all again, a read at depth d would
                // cost 2^(d-1) fetches while the root is dead; so only the root is asked once more.
                CallError::Refused { status: 503, .. } => {
                    above_asked = true;
                    self.pass_over(&ancestor.url, SHORT_BACK_OFF);
                }
                CallError::Refused { .. } => {}
                _ => self.pass_over(&ancestor.url, BACK_OFF),
            }
            causes.push(format!("from {} at {}: {cause}", ancestor.name, ancestor.url));
        }
        Err(no_answer(key, &causes))
    }

    /// Waits a moment for a root that gave no answer, if it was heard lately and there is time left: it may be starting
    /// again, and then nobody's read or write need fail.
    fn waits_for_root(&self, deadline: Instant) -> bool {
        let waits =
            self.root_silence().is_some_and(|silence| silence < ALIVE) && Instant::now() + ROOT_PAUSE < deadline;
        if waits {
            thread::sleep(ROOT_PAUSE);
        }
        waits
    }

    fn fetch(&self, at: &NodeRef, root: u64, key: &str, wait: Duration, limit: Duration) -> Result<Leased, CallError> {
        self.metrics.fetches_sent.count();
        let NodeRef { name, url, run } = self.myself.clone();
        // Who leaves keeps nothing.
        let holder = (!self.is_leaving()).then_some(Holder { name, url, run });
        let call = Call::Fetch { key: key.to_owned(), to: at.run, holder, wait };
        self.client.fetch_copy(at, root, &call, limit)
    }

    fn is_passed_over(&self, url: &str, now: Instant) -> bool {
        let mut passed_over = lock(&self.passed_over);
        passed_over.retain(|_, until| now < *until);
        passed_over.contains_key(url)
    }

    /// Nobody looks whether the root is among them.
    fn pass_over(&self, url: &str, time: Duration) {
        lock(&self.passed_over).insert(url.to_owned(), Instant::now() + time);
    }

    // -- the write -----------------------------------------------------------------------------

    /// Changes a key at the root: invalidates first, then decides, makes it durable, and puts it in place (rules 4 and 12).
    /// If it is refused, the old value stands.
    pub fn write(
        self: &Arc<Self>,
        key: &str,
        write: &Write,
        condition: Condition,
        deadline: Instant,
    ) -> Result<(), Error> {
        self.expect_stays("; not applied")?;
        let ticket = self.store().queue_write(key, condition, deadline, thread::current());
        let _begun = Begun { node: self, key, number: ticket };
        let holders = self.wait_for(deadline, |store, now| store.take_turn(key, ticket, now))?;
        self.invalidate_holders(key, holders);
        let finish = |store: &mut Store<Thread>, now| store.finish_write(key, ticket, write, now);
        let next = self.wait_for(deadline + WRITE_SLACK, finish)?;
        next.iter().for_each(Thread::unpark);
        self.metrics.writes.count();
        Ok(())
    }

    /// Asks the store until it lets a writer go on or refuses it. That comes, since each writer before waits for nobody
    /// longer than a record lasts (rule 6), and wakes the next; only the disk may be slower than the `limit`.
    fn wait_for<T>(
        &self,
        limit: Instant,
        ask: impl Fn(&mut Store<Thread>, Instant) -> Result<T, Refusal>,
    ) -> Result<T, Error> {
        loop {
            let now = Instant::now();
            let asked = ask(&mut self.store(), now);
            match asked {
                Err(Refusal::NotYet(then)) if now < limit => {
                    self.wake_committer();
                    thread::park_timeout(then.unwrap_or(limit) - now);
                }
                asked => return asked.map_err(refused),
            }
        }
    }

    /// Passes a client's write on to the root, and once more if that was another run. Without an answer the error says
    /// whether it may have been applied.
    pub fn forward(&self, mut call: Call, headers: &[(&str, &str)], body: &[u8]) -> Result<Reply, Error> {
        let mut joined = self.last_join().ok_or_else(not_joined)?;
        let began = Instant::now();
        let mut deadline = began + write_limit(joined.lease());
        let (mut joins_first, mut is_again) = (joined.heard.elapsed() > ALIVE, false);
        loop {
            if joins_first {
                let again = self.join_afresh(deadline);
                joined = again.map_err(|cause| self.not_passed_on(&call, &cause, NOT_APPLIED))?;
                // A root that leaves says that its lease is zero; the one that came after it has another.
                deadline = began + write_limit(joined.lease());
            }
            let limit = deadline.saturating_duration_since(Instant::now());
            // Rule 11: its clock may be a tenth slower than ours, and would come there after we have given up.
            let until = Duration::from_millis(joined.answer.root_ms) + (joined.heard.elapsed() + limit) * 10 / 11;
            call.say_passed_on(PassedOn { to: joined.answer.run, until_ms: whole_ms(until) });
            // Nobody else may answer (rule 8).
            let is_answer =
                |reply: &Reply| reply.run == Some(joined.answer.run) && WRITE_ANSWERS.contains(&reply.status);
            let cause = match self.send_to_root(&call, headers, body, limit, is_answer) {
                Ok(reply) => return Ok(reply),
                Err(CallError::Refused { status: 409, .. }) if !is_again => {
                    (joins_first, is_again) = (true, true);
                    continue;
                }
                Err(CallError::NotReached(_)) if self.waits_for_root(deadline) => continue,
                Err(cause) => cause,
            };
            // Who stands in between may have passed it on.
            let is_unknown = matches!(cause, CallError::NoAnswer(_) | CallError::Refused { status: 500.., .. });
            let outcome = if is_unknown { "; whether it was applied is unknown" } else { NOT_APPLIED };
            return Err(self.not_passed_on(&call, &cause, outcome));
        }
    }

    /// Asks the root for the tree, for a client.
    pub fn ask_for_tree(&self, headers: &[(&str, &str)]) -> Result<Reply, Error> {
        let is_answer = |reply: &Reply| matches!(reply.status, 200 | 503);
        let answer = self.send_to_root(&Call::Nodes, headers, b"", NODES_LIMIT, is_answer);
        answer.map_err(|cause| self.not_passed_on(&Call::Nodes, &cause, ""))
    }

    fn send_to_root(
        &self,
        call: &Call,
        headers: &[(&str, &str)],
        body: &[u8],
        limit: Duration,
        is_answer: impl Fn(&Reply) -> bool,
    ) -> Result<Reply, CallError> {
        self.metrics.forwarded.count();
        let reply = self.client.send(&self.config.root_url, call, headers, body, limit)?;
        if is_answer(&reply) { Ok(reply) } else { Err(reply.refused()) }
    }

    fn not_passed_on(&self, call: &Call, cause: &impl Display, outcome: &str) -> Error {
        let (method, target) = call.write();
        let path = target.split('?').next().unwrap_or_default();
        let root_url = &self.config.root_url;
        let text = format!("could not pass {method} {path} on to the root at {root_url}: {cause}{outcome}");
        Kind::ServiceUnavailable.error(text)
    }

    // -- the walk down -------------------------------------------------------------------------

    /// Makes sure that this node and all below it hold no copy of `key` (rule 5).
    pub fn invalidate(self: &Arc<Self>, key: &str, run: u64, sender_level: u32) -> Result<(), Error> {
        self.metrics.invalidations_received.count();
        let refuse = |why: &str| Kind::Conflict.error(format!("{} is {why}", self.myself.name));
        // Down only: two nodes that hold copies of each other's would tell each other for ever. That takes a
        // tree whose places were reversed, or a stranger; either way the record runs out by itself.
        // The root is below nobody, whatever is said: what it holds are entries.
        if self.config.is_root() || self.level() <= sender_level {
            return Err(refuse("not below the node that sends this"));
        }
        // Rule 8: that one's holders, which this one does not know, would not be told.
        if run != self.myself.run {
            return Err(refuse("another process now"));
        }
        let holders = self.store().invalidate(key, Instant::now());
        self.invalidate_holders(key, holders);
        Ok(())
    }

    /// Tells all these holders at the same time, and returns when each has acknowledged or its record
    /// has run out. It waits by the clock: a call may return later, and its answer counts for nothing then.
    fn invalidate_holders(self: &Arc<Self>, key: &str, mut waiting: Vec<Record>) {
        let (sender, acknowledged) = mpsc::channel();
        for record in waiting.clone() {
            let (node, told_key, sender) = (Arc::clone(self), key.to_owned(), sender.clone());
            let tell = move || {
                if node.tell_holder(&told_key, &record) {
                    // Nobody listens any more once the record has run out.
                    let _ = sender.send(record);
                }
            };
            if let Err(error) = thread::Builder::new().name("tell".to_owned()).spawn(tell) {
                log::error!("could not start a thread to invalidate {key:?}: {error}");
            }
        }
        // So that the channel closes when all have acknowledged or refused.
        drop(sender);
        let time_left = |waiting: &[Record]| {
            let last_end = waiting.iter().map(|record| record.ends).max();
            last_end.map(|end| end.saturating_duration_since(Instant::now()))
        };
        while let Some(Ok(record)) = time_left(&waiting).map(|left| acknowledged.recv_timeout(left)) {
            self.store().end_telling(key, &record, true, Instant::now());
            waiting.retain(|other| other.holder != record.holder);
        }
        // Rule 6: who did not acknowledge holds its copy until its record has run out.
        let Some(left) = time_left(&waiting) else { return };
        self.metrics.silent_holder_waits.count();
        thread::sleep(left);
        for record in waiting {
            log::info!("waited for {} at {} to let go of {key:?}", record.holder.name, record.holder.url);
            self.store().end_telling(key, &record, false, Instant::now());
        }
    }

    /// Tells one holder until it answers, or until its record has run out; whether it acknowledged.
    fn tell_holder(&self, key: &str, record: &Record) -> bool {
        loop {
            let left = record.ends.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.metrics.invalidations_sent.count();
            match self.client.invalidate_copy(&record.holder, key, self.level(), left) {
                Ok(()) => return true,
                // Another process answers there, or none of ours. Its former self may live, or those below it, who were not
                // told: so this is no acknowledgement (rule 8).
                Err(CallError::Refused { status: ..=499, .. }) => return false,
                Err(_) => thread::sleep(left.min(RETELL_PAUSE)),
            }
        }
    }
}

/// How long a write may take that a client asks for. A silent holder is waited for, and what is told in the root's clock
/// is divided by 1.1 (rule 11).
pub fn write_limit(lease: Duration) -> Duration {
    record_life(record_life(lease)) + WRITE_SLACK
}

fn refused(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Condition(text) => Kind::PreconditionFailed.error(text),
        Refusal::Full(text) => Kind::InsufficientStorage.error(text),
        Refusal::Late(text) => Kind::ServiceUnavailable.error(text),
        Refusal::NotYet(_) => {
            Kind::ServiceUnavailable.error("the root's disk is slow: whether it was applied is unknown")
        }
    }
}

fn no_answer(key: &str, causes: &[String]) -> Error {
    let causes =
        if causes.is_empty() { ": no ancestor answered in time".to_owned() } else { format!(" {}", causes.join("; ")) };
    Kind::ServiceUnavailable.error(format!("could not fetch {key:?}{causes}"))
}
