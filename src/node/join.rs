//! Joining: how a node gets its place in the tree, keeps it, and how the root gives it.
//!
//! A node repeats its join every second and states the position that it holds. So the root knows
//! whom it heard lately, and a root that came back learns its tree from those who live.
//!
//! Invariant: two living processes never hold one place, and a process in the table could be reached
//! by the root when it came.

use std::thread;
use std::time::{Duration, Instant};

use crate::http::client::{CallError, JoinAnswer, JoinRequest};
use crate::node::{Joined, Node};
use crate::protocol::error::Error;
use crate::tree::{self, Member, Process, Standing};

/// Between two joins of a node that has its place.
const REPEAT_PAUSE: Duration = Duration::from_secs(1);

/// Between two attempts to join.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// How long a starting node waits for its root.
const START_LIMIT: Duration = Duration::from_mins(1);

/// Between two lines that say what a starting node waits for.
const REPORT_PAUSE: Duration = Duration::from_secs(5);

/// How long a join may take; the root may spend twice [`ASK_LIMIT`] on it, but seldom does.
const JOIN_LIMIT: Duration = Duration::from_secs(2);

/// How long the root waits for a node to say who it is.
const ASK_LIMIT: Duration = Duration::from_secs(1);

// -- the joining node --------------------------------------------------------------------------

/// Waits until the root has given this node its place. The root has its own already.
///
/// # Errors
/// The root refused, or gave no answer for a minute: one line that says which.
pub fn join_root(node: &Node) -> Result<(), String> {
    let started = Instant::now();
    let mut next_report = started;
    while !node.config.is_root() {
        let cause = match try_join(node) {
            Ok(()) => break,
            Err(cause @ CallError::Refused { status: 400..=499, .. }) => return Err(refusal(node, &cause)),
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

/// Repeats the join for ever.
///
/// # Errors
/// The root refuses this node, so it has no place any more.
pub fn keep_joined(node: &Node) -> Result<(), String> {
    let mut lost = false;
    while !node.config.is_root() {
        thread::sleep(if lost { RETRY_PAUSE } else { REPEAT_PAUSE });
        match try_join(node) {
            // Another process has the place. What else is refused may be a mistake in the root's start, or a
            // stranger on its port: no reason to lose the node as well.
            Err(cause @ CallError::Refused { status: 409, .. }) => return Err(refusal(node, &cause)),
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
    Ok(())
}

fn try_join(node: &Node) -> Result<(), CallError> {
    let request = JoinRequest {
        id: node.config.node_id,
        run: node.run,
        url: node.myself.url.clone(),
        position: node.place().map(|place| place.position),
    };
    let JoinAnswer { place, lease_ms } = node.peer.join_root(&node.config.root_url, &request, JOIN_LIMIT)?;
    node.take_place(Joined { place: place.into(), lease: Duration::from_millis(lease_ms) });
    Ok(())
}

fn refusal(node: &Node, cause: &CallError) -> String {
    let cause = match cause {
        CallError::Refused { status, detail } => format!("{detail} ({status})"),
        cause => cause.to_string(),
    };
    format!("{} cannot join at {}: {cause}", node.myself.name, node.config.root_url)
}

// -- the root ----------------------------------------------------------------------------------

/// Gives a node its place.
///
/// # Errors
/// It is not of this tree, another process lives in its place, or it cannot be reached.
pub fn admit(node: &Node, join: JoinRequest) -> Result<JoinAnswer, Error> {
    let last_id = tree::size(node.config.tree_depth);
    if !(1..=last_id).contains(&join.id) {
        return Err(Error::NoSuchPlace { name: tree::name(join.id), last_id });
    }
    let standing = node.table().standing(join.id, join.run, &join.url);
    if standing != Standing::Known && join.position.is_some() {
        // It had its place from a former run of this root.
        node.expect_former_holders();
    }
    match &standing {
        Standing::Known => {}
        Standing::New => expect_reachable(node, &join)?,
        Standing::Restarted { url, run } => {
            expect_gone(node, &join, url, *run)?;
            expect_reachable(node, &join)?;
        }
    }
    let mut table = node.table();
    if table.standing(join.id, join.run, &join.url) != standing {
        // Another join of this id came between the questions and now. The node asks again in a second.
        return Err(Error::TwoJoins { name: tree::name(join.id) });
    }
    let process = Process { run: join.run, url: join.url, heard: Instant::now() };
    let position = table.admit(Member { id: join.id, process: Some(process) }, join.position);
    let place = table.place(position);
    drop(table);
    if standing != Standing::Known {
        log::info!("{} has position {position}, below {}", tree::name(join.id), place.ancestors[0].name);
    }
    let lease_ms = u64::try_from(node.config.lease.as_millis()).expect("a lease is at most an hour");
    Ok(JoinAnswer { place, lease_ms })
}

/// A node that can ask but not be told would make every write of what it reads wait.
fn expect_reachable(node: &Node, join: &JoinRequest) -> Result<(), Error> {
    let cause = match node.peer.ask_identity(&join.url, ASK_LIMIT) {
        Ok(identity) if identity.run == join.run => return Ok(()),
        Ok(_) => "another process answers there".to_owned(),
        Err(cause) => cause.to_string(),
    };
    log::info!("{} gets no place, since it cannot be reached at {}: {cause}", tree::name(join.id), join.url);
    Err(Error::CannotReach { url: join.url.clone() })
}

/// A restarted node takes over its place, unless its former self still lives elsewhere.
fn expect_gone(node: &Node, join: &JoinRequest, url: &str, run: u64) -> Result<(), Error> {
    let lives_elsewhere =
        url != join.url && node.peer.ask_identity(url, ASK_LIMIT).is_ok_and(|identity| identity.run == run);
    if lives_elsewhere {
        return Err(Error::PlaceTaken { name: tree::name(join.id), url: url.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::tests::{quiet_until, young_root};

    #[test]
    fn rule_8_a_stated_position_that_the_root_does_not_know_makes_it_wait() {
        for known in [false, true] {
            let root = young_root();
            let process = Process { run: 1, url: "http://127.0.0.1:9".to_owned(), heard: Instant::now() };
            let join = |run, position| JoinRequest { id: 2, run, url: process.url.clone(), position };
            if known {
                // Another process has the id by now, and so the position is not honoured.
                root.table().admit(Member { id: 2, process: Some(process.clone()) }, None);
            }
            // Nobody answers there, so neither has its place.
            admit(&root, join(2, None)).expect_err("it cannot be reached");
            assert_eq!(quiet_until(&root), None);
            admit(&root, join(3, Some(1))).expect_err("it cannot be reached");
            assert_eq!(quiet_until(&root), Some(root.started + Duration::from_secs(66)));
        }
    }
}
