//! ZooKeeper, where the tree is kept a second time: each node writes its znodes there, and a root that
//! starts finds its child table there again.
//!
//! Invariant: nothing that ZooKeeper or its client does is felt by the cache. All that may block, panic
//! or fail is done by a session's own thread, which reports after every step; another thread only
//! listens, and waits by the clock. To the rest of the program a node is registered or it is not.
//!
//! Left out: what the znodes say (`znodes.rs`), how they are read and written (`session.rs`), and whether a
//! tree fits (`recovery.rs`).

pub mod recovery;
mod session;
mod znodes;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use zookeeper::{CreateMode, ZkError, ZkResult};

use self::recovery::{Fitting, Recovery};
use self::session::{SESSION_LIFE, Session};
use self::znodes::{LIVE, Shape, TREE, Wanted};
use crate::config::Config;
use crate::node::Node;
use crate::tree::Member;

/// Between two looks at this node's znodes.
const CHECK_PAUSE: Duration = Duration::from_secs(1);

/// A call that takes longer counts as unanswered.
const CALL_LIMIT: Duration = Duration::from_secs(3);

/// How long a starting root waits for the tree.
const RECOVERY_LIMIT: Duration = Duration::from_secs(3);

/// Before a new session; doubled each time that none came about.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause before a new session.
const LAST_PAUSE: Duration = Duration::from_secs(4);

/// What a session's thread tells the one that listens to it.
enum Report {
    /// ZooKeeper answered a call.
    Answered,
    /// All of this node's znodes are there.
    Registered(SocketAddr),
    /// ZooKeeper answers, and yet something is missing.
    Incomplete(String),
    /// What a starting root found.
    Found(Recovery),
    /// The session is over; why.
    Ended(String),
}

// -- who listens -------------------------------------------------------------------------------

/// Keeps this node registered, for ever; returns at once if there is no ZooKeeper to register in.
pub fn keep_registered(node: &Arc<Node>) {
    let mut servers = node.config.zookeeper.clone();
    let mut pause = FIRST_PAUSE;
    while !servers.is_empty() {
        let there = Arc::clone(node);
        let reports = start_session(&servers, move |session, reports| match register(&there, session, reports) {
            Ok(never) => match never {},
            Err(cause) => cause,
        });
        let cause = listen(node, &reports, &mut pause);
        // A session that was given up on reports to nobody from here on, and so ends when it can.
        drop(reports);
        note(node, false, &cause);
        thread::sleep(pause);
        pause = (pause * 2).min(LAST_PAUSE);
        // One that hangs must not keep us from the others.
        servers.rotate_left(1);
    }
}

/// Listens until the session ends, or is silent for longer than it can live; returns why.
fn listen(node: &Node, reports: &Receiver<Report>, pause: &mut Duration) -> String {
    let mut last_report = Instant::now();
    loop {
        match reports.recv_timeout(CHECK_PAUSE + CALL_LIMIT) {
            Ok(Report::Registered(address)) => {
                *pause = FIRST_PAUSE;
                note(node, true, &address.to_string());
            }
            Ok(Report::Incomplete(cause)) => note(node, false, &cause),
            Ok(Report::Ended(cause)) => return cause,
            Ok(Report::Answered | Report::Found(_)) => {}
            Err(RecvTimeoutError::Disconnected) => return "the client panicked".to_owned(),
            Err(RecvTimeoutError::Timeout) => {
                let cause = format!("no answer within {} s", CALL_LIMIT.as_secs());
                if last_report.elapsed() > SESSION_LIFE {
                    return cause;
                }
                note(node, false, &cause);
                continue;
            }
        }
        last_report = Instant::now();
    }
}

/// Says how it stands: to `GET /` always, to the log if that is new.
fn note(node: &Node, registered: bool, text: &str) {
    match (node.set_registered(registered), registered) {
        (false, _) => {}
        (true, true) => log::info!("registered in ZooKeeper at {text}"),
        (true, false) => log::warn!("not registered in ZooKeeper, trying again and again: {text}"),
    }
}

/// Asks ZooKeeper for the tree that a former run of this root had; waits [`RECOVERY_LIMIT`] at most.
#[must_use]
pub fn find_tree(config: &Config) -> Recovery {
    let deadline = Instant::now() + RECOVERY_LIMIT;
    let shape = shape(config);
    let mut servers = config.zookeeper.clone();
    let mut cause = format!("no answer within {} s", RECOVERY_LIMIT.as_secs());
    while !servers.is_empty() {
        let reports = start_session(&servers, move |session, reports| {
            recover(session, shape).map_or_else(
                |cause| cause,
                |recovery| {
                    let _ = reports.send(Report::Found(recovery));
                    ZkError::SessionExpired
                },
            )
        });
        while let Ok(report) = reports.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            match report {
                Report::Found(recovery) => return recovery,
                Report::Ended(ended) => cause = ended,
                _ => {}
            }
        }
        if Instant::now() + FIRST_PAUSE >= deadline {
            log::warn!("starting without the tree that ZooKeeper may have: {cause}");
            return Recovery::NoAnswer;
        }
        thread::sleep(FIRST_PAUSE);
        servers.rotate_left(1);
    }
    Recovery::Off
}

fn shape(config: &Config) -> Shape {
    Shape { depth: config.tree_depth, root_id: config.root_id }
}

// -- a session's thread ------------------------------------------------------------------------

/// Starts a thread that connects and does its `work`, which returns what ended it.
fn start_session(
    servers: &[String],
    work: impl FnOnce(&Session, &Sender<Report>) -> ZkError + Send + 'static,
) -> Receiver<Report> {
    let (reports, receiver) = mpsc::channel();
    let (servers, sender) = (servers.to_vec(), reports.clone());
    let session = move || {
        let answers = sender.clone();
        let cause = match Session::connect(&servers, move || answers.send(Report::Answered).is_ok()) {
            Ok(session) => format!("{}: {:?}", session.address(), work(&session, &sender)),
            Err(cause) => cause,
        };
        // Nobody listens to a session that was given up on.
        let _ = sender.send(Report::Ended(cause));
    };
    if let Err(error) = thread::Builder::new().name("zookeeper".to_owned()).spawn(session) {
        let _ = reports.send(Report::Ended(format!("could not start a thread: {error}")));
    }
    receiver
}

/// Looks after this node's znodes until the session is over.
fn register(node: &Node, session: &Session, reports: &Sender<Report>) -> ZkResult<Infallible> {
    let mut live_owner = None;
    let mut mirrored = Vec::new();
    loop {
        let checked = hold_live(session, &node.myself.name, &mut live_owner).and_then(|()| {
            if node.config.is_root() {
                mirror_table(session, node, &mut mirrored)?;
            }
            hold_place(session, node)
        });
        let report = match checked {
            Ok(true) => Report::Registered(session.address()),
            Ok(false) => Report::Incomplete("a node above this one is not known".to_owned()),
            // Somebody else changed what we were changing. The next look will see.
            Err(cause @ (ZkError::NoNode | ZkError::NotEmpty)) => {
                mirrored.clear();
                Report::Incomplete(format!("{}: {cause:?}", session.address()))
            }
            Err(cause) => return Err(cause),
        };
        if reports.send(report).is_err() {
            return Err(ZkError::OperationTimeout);
        }
        thread::sleep(CHECK_PAUSE);
    }
}

/// Holds this node's live znode, and remembers by which session: the client does not tell its own.
fn hold_live(session: &Session, name: &str, owner: &mut Option<i64>) -> ZkResult<()> {
    let path = format!("{LIVE}/{name}");
    match session.owner(&path)? {
        found @ Some(_) if found == *owner => return Ok(()),
        // A session of a former run, or one of ours that was lost: with it the znode would go.
        Some(_) => session.delete_whole(&path)?,
        None => session.create(LIVE, b"", CreateMode::Persistent)?,
    }
    session.create(&path, b"", CreateMode::Ephemeral)?;
    *owner = session.owner(&path)?;
    Ok(())
}

/// Makes this node's znode in the tree say what it should; whether its path is known.
fn hold_place(session: &Session, node: &Node) -> ZkResult<bool> {
    let place = node.place();
    let wanted = place.and_then(|place| znodes::wanted(&place, node.config.node_id, &node.myself.url, node.run));
    let Some((own, above)) = wanted.as_deref().and_then(<[Wanted]>::split_last) else { return Ok(false) };
    if !session.exists(&own.path)? {
        let tree = shape(&node.config).wanted();
        for Wanted { path, data } in std::iter::once(&tree).chain(above) {
            session.create(path, data, CreateMode::Persistent)?;
        }
    }
    session.write(own)?;
    Ok(true)
}

/// Makes the whole tree agree with the root's child table, if that has changed. So the place of a node that
/// is away is kept, and one that moved leaves nothing behind, whether it still lives or not.
fn mirror_table(session: &Session, node: &Node, mirrored: &mut Vec<(u32, Option<u64>)>) -> ZkResult<()> {
    let (runs, wanted) = {
        let table = node.table();
        let run = |(position, member): (u32, &Member)| (position, member.process.as_ref().map(|process| process.run));
        let runs: Vec<_> = table.members().into_iter().map(run).collect();
        if runs == *mirrored {
            return Ok(());
        }
        (runs, znodes::wanted_of_table(&table))
    };
    let found = session.read_tree()?;
    for znode in znodes::misplaced(node.config.tree_depth, &wanted, &found) {
        log::info!("deleting {} from ZooKeeper: the child table says otherwise", znode.full_path());
        session.delete_whole(&znode.full_path())?;
    }
    session.write(&shape(&node.config).wanted())?;
    for wanted in znodes::unsaid(&wanted, &found) {
        session.write(wanted)?;
    }
    *mirrored = runs;
    Ok(())
}

/// Reads the tree that a former run of this root had. One that does not fit is deleted.
fn recover(session: &Session, shape: Shape) -> ZkResult<Recovery> {
    let Some(kept_shape) = session.data(TREE)? else { return Ok(Recovery::Empty) };
    let found = session.read_tree()?;
    Ok(match recovery::fit(shape, &kept_shape, &found) {
        Ok(_) if found.is_empty() => Recovery::Empty,
        Ok(Fitting { places, unreadable }) => {
            for path in unreadable {
                log::warn!("ignoring {path} in ZooKeeper: its data cannot be read");
            }
            log::info!("took {} places below the root from ZooKeeper's tree", places.len());
            Recovery::Restored(places)
        }
        Err(cause) => {
            log::warn!("deleting ZooKeeper's tree, which does not fit: {cause}");
            session.delete_whole(TREE)?;
            Recovery::Unfit
        }
    })
}
