//! Joining: how a node gets its place in the tree, keeps it, and how the root gives it; and that there is one root.
//!
//! A node repeats its join every second and states the position that it holds. So the root knows
//! whom it heard lately, and a root that came back learns its tree from those who live.
//!
//! Invariant: two living processes never hold one place, and a process in the table could be reached
//! by the root when it came.

use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::{LOOK_PAUSE, Node, READ_LIMIT, not_joined};
use crate::cache::leases::record_life;
use crate::http::client::CallError;
use crate::protocol::error::{Error, Kind};
use crate::protocol::messages::{Identity, JoinAnswer, JoinRequest, PROTOCOL, whole_ms};
use crate::tree::{self, Member, Process};

/// Between two joins of a node that has its place.
const REJOIN_PAUSE: Duration = Duration::from_secs(1);

/// Between two attempts to join.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// How long a starting node waits for its root, and a starting root for another one that starts or leaves. (One whose
/// `DATA_DIR` is in use does not wait.)
const START_LIMIT: Duration = Duration::from_mins(1);

/// Between two lines that say what a starting node waits for.
const REPORT_PAUSE: Duration = Duration::from_secs(5);

/// How long a join may take. A root that asks two silent nodes takes as long; then the join is sent again.
const JOIN_LIMIT: Duration = Duration::from_secs(2);

/// No lease is longer; a stranger must not make the root wait.
const LONGEST_LEASE: Duration = Duration::from_hours(1);

/// How long the root waits for a node to say who it is.
pub const ASK_LIMIT: Duration = Duration::from_secs(1);

/// Between two looks of a root whether it is alone. Each is a new client of its own server, for which the sentinel knocks a
/// while; so they are rare.
const ALONE_PAUSE: Duration = Duration::from_secs(10);

/// What leaving may take beyond what records last.
const LEAVE_SLACK: Duration = Duration::from_secs(1);

// -- one root ----------------------------------------------------------------------------------

/// Makes sure that no other root answers where this one is to be found. Of two that start, the one with the smaller run
/// stays; but it may be that only the other one can see both, so it is waited for. One that leaves is waited for, too.
pub fn expect_alone(node: &Node) -> Result<(), String> {
    let started = Instant::now();
    while let Some((url, other)) = find_other_root(node) {
        let stays = !other.leaving && (other.joined || other.run < node.myself.run);
        if stays || started.elapsed() > START_LIMIT {
            return Err(format!("another root answers at {url}, and a tree has one"));
        }
        thread::sleep(RETRY_PAUSE);
    }
    Ok(())
}

/// Repeats the question whether this root is alone: its name may be another's now.
fn keep_alone(node: &Node) -> Result<(), String> {
    let mut looked = Instant::now();
    loop {
        let began = Instant::now();
        thread::sleep(REJOIN_PAUSE);
        // Another one may have taken over.
        let was_paused = began.elapsed() > 2 * REJOIN_PAUSE;
        // Where ZooKeeper says that it is this one, the other will find that out: else both might end.
        if node.is_registered() || (looked.elapsed() < ALONE_PAUSE && !was_paused) {
            continue;
        }
        looked = Instant::now();
        if let Some((url, _)) = find_other_root(node).filter(|(_, other)| other.stays()) {
            return Err(format!("another root answers at {url} now, and a tree has one"));
        }
    }
}

fn find_other_root(node: &Node) -> Option<(String, Identity)> {
    let given = Some(&node.config.root_url).filter(|url| node.config.is_root_url_given && **url != node.myself.url);
    let mut urls = std::iter::once(&node.myself.url).chain(given);
    urls.find_map(|url| {
        let other = node.client.ask_identity(url, ASK_LIMIT).ok()?;
        (other.is_root() && other.run != node.myself.run).then(|| (url.clone(), other))
    })
}

// -- the joining node --------------------------------------------------------------------------

/// Waits until the root has given this node its place, a minute at most; any 4xx of the root but a 421 ends that at
/// once. The root has its own already.
pub fn join_root(node: &Node) -> Result<(), String> {
    let started = Instant::now();
    let mut next_report = started;
    // Before there is a place, for whoever needs another join wakes this thread.
    node.joiner.get_or_init(thread::current);
    while !node.config.is_root() {
        let cause = match try_join(node) {
            Ok(()) => break,
            // Who is not the root may be soon.
            Err(CallError::Refused { status: status @ (400..=420 | 422..=499), detail }) => {
                return Err(refused(node, status, &detail));
            }
            Err(cause) => cause,
        };
        let waiting = format!("no place from the root at {}: {cause}", node.config.root_url);
        if started.elapsed() > START_LIMIT {
            return Err(format!("{waiting}; gave up after {} s", START_LIMIT.as_secs()));
        }
        if Instant::now() >= next_report {
            log::info!("waiting: {waiting}");
            next_report = Instant::now() + REPORT_PAUSE;
        }
        thread::sleep(RETRY_PAUSE);
    }
    Ok(())
}

/// Repeats the join until the root says that another process has this place; the root itself looks whether it is
/// alone.
pub fn keep_joined(node: &Node) -> Result<(), String> {
    if node.config.is_root() {
        return keep_alone(node);
    }
    let mut lost = false;
    loop {
        // Or until somebody needs to know who the root is now.
        thread::park_timeout(if lost { RETRY_PAUSE } else { REJOIN_PAUSE });
        match try_join(node) {
            // Another process has the place. What else is refused may be a mistake in the root's start, or a
            // stranger on its port: no reason to lose the node as well.
            Err(CallError::Refused { status: 409, detail }) => return Err(refused(node, 409, &detail)),
            Err(cause) if !lost => {
                log::warn!("no place from the root at {} any more: {cause}", node.config.root_url);
                lost = true;
            }
            Ok(()) if lost => {
                log::info!("the root at {} answers again", node.config.root_url);
                lost = false;
            }
            _ => {}
        }
    }
}

fn try_join(node: &Node) -> Result<(), CallError> {
    let asked = Instant::now();
    let last = node.last_join();
    let request = JoinRequest {
        protocol: Some(PROTOCOL),
        id: node.config.node_id,
        run: node.myself.run,
        url: node.myself.url.clone(),
        position: last.as_ref().map(|joined| joined.answer.place.position),
        root: last.map(|joined| joined.answer.run),
        holds_ms: whole_ms(node.store().holds_for(asked)),
    };
    let answer = node.client.join_root(&node.config.root_url, &request, JOIN_LIMIT);
    let answer = answer.inspect_err(|cause| node.note_join(asked, Err(cause.to_string())))?;
    node.take_place(answer, asked);
    Ok(())
}

fn refused(node: &Node, status: u16, detail: &str) -> String {
    format!("{} cannot join at {}: {detail} ({status})", node.myself.name, node.config.root_url)
}

// -- leaving -----------------------------------------------------------------------------------

/// Takes on nothing more, and returns when no other node has this one on record: no write waits for it then. It goes on
/// joining, answering and invalidating meanwhile. Where the root leaves, too, or gives no answer, there are no writes.
/// It returns how long what is in hand then has: as long again, and a read its time at least.
pub fn leave(node: &Node) -> Duration {
    let began = Instant::now();
    let lease = node.last_join().map_or(node.config.lease, |joined| joined.lease());
    let limit = record_life(lease) + LEAVE_SLACK;
    node.store().leave();
    node.joiner.get().into_iter().for_each(Thread::unpark);
    // Before it has its place nobody has it on record.
    let is_waited_for = || node.is_joined() && !node.store().may_end(Instant::now()) && !node.has_lost_root(began);
    while is_waited_for() && began.elapsed() < limit {
        node.wake_committer();
        thread::sleep(LOOK_PAUSE);
    }
    limit.max(READ_LIMIT + LEAVE_SLACK)
}

// -- the root ----------------------------------------------------------------------------------

/// Gives a node its place, unless it is not of this tree, another process lives in its place, or it cannot be reached.
pub fn admit(node: &Node, join: JoinRequest) -> Result<JoinAnswer, Error> {
    if join.protocol != Some(PROTOCOL) {
        let text = format!("this root speaks protocol {PROTOCOL}, and the node {}", join.protocol.unwrap_or(1));
        return Err(Kind::BadRequest.error(text));
    }
    let last_id = tree::size(node.config.tree_depth);
    if !(1..=last_id).contains(&join.id) {
        let name = tree::name(join.id);
        return Err(Kind::BadRequest.error(format!("no place for {name}: the ids of this tree are 1 to {last_id}")));
    }
    if join.id == node.config.node_id {
        return Err(Kind::Conflict.error(format!("{} is this root", tree::name(join.id))));
    }
    let table = || node.table().ok_or_else(not_joined);
    let known = table()?.process(join.id).cloned();
    if join.root.is_some_and(|root| root != node.myself.run) {
        // Rule 10: it may hold what another root granted, at most an hour's lease. Each time that it says so: while it has
        // its place from that one it may fetch from others who have.
        node.wait_for_leases(Duration::from_millis(join.holds_ms).min(LONGEST_LEASE));
    }
    let is_repeat = known.as_ref().is_some_and(|known| known.run == join.run && known.url == join.url);
    if !is_repeat {
        // A restarted node takes over its place, unless its former self still lives elsewhere.
        if let Some(Process { url, run, .. }) = &known
            && *url != join.url
            && node.client.ask_identity(url, ASK_LIMIT).is_ok_and(|identity| identity.run == *run)
        {
            return Err(Kind::Conflict.error(format!("another {} is alive at {url}", tree::name(join.id))));
        }
        expect_reachable(node, &join)?;
    }
    let mut table = table()?;
    if table.process(join.id).map(|process| process.run) != known.map(|process| process.run) {
        // Another join of this id came between the questions and now. The node asks again in a second.
        return Err(Kind::ServiceUnavailable.error(format!("two joins of {} at once", tree::name(join.id))));
    }
    let process = Process { run: join.run, url: join.url, heard: Instant::now() };
    let position = table.admit(Member { id: join.id, process: Some(process) }, join.position);
    let place = table.place(position);
    drop(table);
    if !is_repeat {
        log::info!("{} has position {position}, below {}", tree::name(join.id), place.ancestors[0].name);
    }
    // Who leaves grants nothing, and those who leave as well need not wait for it.
    let lease = if node.is_leaving() { Duration::ZERO } else { node.config.lease };
    let (root_ms, lease_ms) = (whole_ms(node.started.elapsed()), whole_ms(lease));
    Ok(JoinAnswer { run: node.myself.run, root_ms, place, lease_ms })
}

/// A node that can ask but not be told would make every write of what it reads wait.
fn expect_reachable(node: &Node, join: &JoinRequest) -> Result<(), Error> {
    let cause = match node.client.ask_identity(&join.url, ASK_LIMIT) {
        Ok(identity) if identity.run == join.run => return Ok(()),
        Ok(_) => "another process answers there".to_owned(),
        Err(cause) => cause.to_string(),
    };
    log::info!("{} gets no place, since it cannot be reached at {}: {cause}", tree::name(join.id), join.url);
    // Only the root's log says why: else whoever may join could have the root ask any URL, and would be told what
    // answers there.
    Err(Kind::ServiceUnavailable.error(format!("cannot reach you at {}", join.url)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::tests::young_root;

    fn join(id: u32, url: &str) -> JoinRequest {
        JoinRequest {
            protocol: Some(PROTOCOL),
            id,
            run: 1,
            url: url.to_owned(),
            position: None,
            root: None,
            holds_ms: 0,
        }
    }

    #[test]
    fn rule_10_a_place_from_another_root_makes_this_one_wait_for_what_is_held() {
        let minutes = |minutes: u64| minutes * 60_000;
        let root = young_root();
        root.take_table(Vec::new(), root.config.lease);
        let own = Some(root.myself.run);
        // One without a place holds nothing of anybody's, and nobody's holds is believed to be longer than an hour.
        for (from, holds_ms, young_for) in [
            (None, minutes(9), 66),
            (Some(7), 0, 66),
            (own, minutes(2), 66),
            (Some(7), minutes(2), 132),
            // The same run, which has fetched from others meanwhile.
            (Some(7), minutes(9), 594),
            (Some(8), minutes(9_999), 3960),
        ] {
            // Nobody answers there, so it has no place yet.
            let request = JoinRequest { root: from, holds_ms, position: Some(1), ..join(2, "http://127.0.0.1:9") };
            admit(&root, request).expect_err("it cannot be reached");
            let left = root.young_for();
            let expected = Duration::from_secs(young_for);
            assert!(left <= expected && left + Duration::from_secs(1) > expected, "{from:?}: {left:?}");
        }
    }

    #[test]
    fn who_is_not_of_this_tree_is_told_so() {
        let root = young_root();
        root.take_table(Vec::new(), root.config.lease);
        let request = |protocol, id| JoinRequest { protocol, ..join(id, "http://127.0.0.1:9") };
        for (request, text) in [
            (request(Some(4), 2), "this root speaks protocol 3, and the node 4"),
            (request(None, 2), "this root speaks protocol 3, and the node 1"),
            (request(Some(PROTOCOL), 0), "no place for NODE-0: the ids of this tree are 1 to 3"),
            (request(Some(PROTOCOL), 4), "no place for NODE-4: the ids of this tree are 1 to 3"),
            (request(Some(PROTOCOL), 1), "NODE-1 is this root"),
        ] {
            assert_eq!(admit(&root, request).map(|_| ()).map_err(|error| error.text), Err(text.to_owned()));
        }
    }

    #[test]
    fn only_the_same_process_at_the_same_place_is_not_asked_again() {
        let root = young_root();
        root.take_table(Vec::new(), root.config.lease);
        let process = Process { run: 1, url: "http://127.0.0.1:9".to_owned(), heard: Instant::now() };
        root.table().unwrap().admit(Member { id: 2, process: Some(process) }, None);
        for (run, url, answered) in
            [(1, "http://127.0.0.1:9", true), (2, "http://127.0.0.1:9", false), (1, "http://127.0.0.1:8", false)]
        {
            let admitted = admit(&root, JoinRequest { run, ..join(2, url) });
            // Nobody answers at either.
            let expected = if answered { Ok(1) } else { Err(format!("cannot reach you at {url}")) };
            assert_eq!(admitted.map(|answer| answer.place.position).map_err(|error| error.text), expected);
        }
    }
}
