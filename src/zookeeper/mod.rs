//! ZooKeeper, where the tree is kept a second time: each node writes its znodes there, and a root that
//! starts finds its child table there again.
//!
//! Invariant: the cache goes on whatever ZooKeeper or its client does. All that may block, panic
//! or fail is done by a session's own thread, which reports after every step; another thread only
//! listens, and waits by the clock. To the rest of the program a node is registered or it is not.
//!
//! All nodes are registered again within 15 s of ZooKeeper's return, which is 8 + 4 + 3. A session that will never answer
//! is given up on after [`SILENCE_LIMIT`]. The pause before the next session is [`LAST_PAUSE`] at most. That one takes
//! 3 s to connect. A further server that hangs adds its 3 s, and a name server what it takes to look up the names.
//!
//! Left out: what the znodes say ([`znodes`]), and how they are read and written ([`session`]).

mod session;
mod znodes;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use zookeeper::{CreateMode, ZkError, ZkResult, ZooKeeperExt};

use self::session::{SESSION_LIFE, Session};
use self::znodes::{LIVE, Live, Shape, TREE, Wanted};
use crate::config::Config;
use crate::node::Node;
use crate::node::join::ASK_LIMIT;
use crate::protocol::messages;
use crate::tree::NodeRef;

/// Between two looks at this node's znodes.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// A session that is silent for longer counts as lost: it lives for [`SESSION_LIFE`]. Looking up the servers' names may
/// take some of that time, too.
const SILENCE_LIMIT: Duration = Duration::from_secs(8);

/// How long a starting root waits for the tree.
const RECOVERY_LIMIT: Duration = Duration::from_secs(3);

/// Before a new session; doubled each time that none has registered this node.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause before a new session.
const LAST_PAUSE: Duration = Duration::from_secs(4);

/// How long a starting root waits until a former root's session is over: its life, and what ZooKeeper's ticks add.
const RIVAL_LIMIT: Duration = SESSION_LIFE.saturating_add(Duration::from_secs(3));

/// What a session's thread tells the one that listens to it.
enum Report {
    /// ZooKeeper answered a call.
    Answered,
    /// How this node's znodes stand: all are there, at that server, or what they lack.
    Looked(Result<SocketAddr, String>),
    /// The places below the root, position and id, that a starting root asks for.
    Found(Vec<(u32, u32)>),
    /// Another root lives, as it says, and this one must end.
    Rival(String),
    /// The session is over, for that reason.
    Lost(String),
}

// -- who listens -------------------------------------------------------------------------------

/// Keeps this node registered, for ever; returns at once if there is no ZooKeeper to register in, and with why this root
/// must end if another one is registered and lives.
pub fn keep_registered(node: &Arc<Node>) -> Result<(), String> {
    let mut servers = node.config.zookeeper.clone();
    // Doubled before it is used.
    let mut pause = FIRST_PAUSE / 2;
    while !servers.is_empty() {
        let reports = start_session(node, &servers);
        let cause = listen(node, &reports)?;
        // A session that was given up on reports to nobody from here on, and so ends when it can.
        drop(reports);
        pause = if node.is_registered() { FIRST_PAUSE } else { (pause * 2).min(LAST_PAUSE) };
        note(node, Err(cause));
        thread::sleep(pause);
        // One that hangs must not keep us from the others.
        servers.rotate_left(1);
    }
    Ok(())
}

/// Listens until the session ends, or is silent for longer than it can live; returns why. The error is what this root
/// must end with.
fn listen(node: &Node, reports: &Receiver<Report>) -> Result<String, String> {
    loop {
        match reports.recv_timeout(SILENCE_LIMIT) {
            Ok(Report::Answered | Report::Found(_)) => {}
            Ok(Report::Looked(found)) => note(node, found),
            Ok(Report::Rival(text)) => return Err(text),
            Ok(Report::Lost(cause)) => return Ok(cause),
            Err(RecvTimeoutError::Disconnected) => return Ok("its thread panicked, or did not start".to_owned()),
            Err(RecvTimeoutError::Timeout) => return Ok(format!("no answer within {} s", SILENCE_LIMIT.as_secs())),
        }
    }
}

/// Says how it stands: to `GET /` always, to the log if that is new.
fn note(node: &Node, found: Result<SocketAddr, String>) {
    let is_new = node.set_registered(found.is_ok());
    match found {
        _ if !is_new => {}
        Ok(address) => log::info!("registered in ZooKeeper at {address}"),
        Err(cause) => log::warn!("not registered in ZooKeeper, trying again and again: {cause}"),
    }
}

/// Asks ZooKeeper for the places of the tree that a former run of this root had; waits [`RECOVERY_LIMIT`] at most, and
/// for the session of a former root to end. The error is what this root must end with: another one has the tree.
pub fn find_tree(node: &Arc<Node>) -> Result<Vec<(u32, u32)>, String> {
    let started = Instant::now();
    let mut deadline = started + RECOVERY_LIMIT;
    let mut servers = node.config.zookeeper.clone();
    let mut cause = format!("no answer within {} s", RECOVERY_LIMIT.as_secs());
    while !servers.is_empty() {
        let reports = start_session(node, &servers);
        while let Ok(report) = reports.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            match report {
                Report::Answered | Report::Looked(Ok(_)) => {}
                Report::Found(places) => return Ok(places),
                Report::Rival(text) => return Err(text),
                Report::Looked(Err(text)) if started.elapsed() > RIVAL_LIMIT => return Err(text),
                Report::Looked(Err(text)) => {
                    deadline = Instant::now() + RECOVERY_LIMIT;
                    if text != cause {
                        log::info!("waiting for the end of a session: {text}");
                        cause = text;
                    }
                }
                Report::Lost(lost) => cause = lost,
            }
        }
        if Instant::now() + FIRST_PAUSE >= deadline {
            log::warn!("starting without the tree that ZooKeeper may have: {cause}");
            break;
        }
        thread::sleep(FIRST_PAUSE);
        servers.rotate_left(1);
    }
    Ok(Vec::new())
}

fn shape(config: &Config) -> Shape {
    Shape { depth: config.tree_depth, root_id: config.root_id }
}

// -- a session's thread ------------------------------------------------------------------------

/// Starts a thread that connects and looks after this node's znodes.
fn start_session(node: &Arc<Node>, servers: &[String]) -> Receiver<Report> {
    let (reports, receiver) = mpsc::channel();
    let (node, servers) = (Arc::clone(node), servers.to_vec());
    let session = move || {
        let ended = Session::connect(&servers, reports.clone())
            .and_then(|session| look_after(&node, &session).map_err(|cause| format!("{}: {cause:?}", session.address)));
        // Nobody listens to a session that was given up on.
        let _ = reports.send(ended.unwrap_or_else(Report::Lost));
    };
    // If it does not start, the channel closes without a report, as when it panics.
    let _ = thread::Builder::new().name("zookeeper".to_owned()).spawn(session);
    receiver
}

/// Looks after this node's znodes until the session is over, or another root is known to live. A root that has no table
/// yet is first told what is there.
fn look_after(node: &Node, session: &Session) -> ZkResult<Report> {
    let live_path = format!("{LIVE}/{}", node.myself.name);
    let mut live_owner = None;
    let mut mirrored = Wanted::new();
    loop {
        let live = session.read(&live_path)?;
        let looked = match live.and_then(|(data, held_by)| find_rival(node, &data, held_by)) {
            Some((text, true)) => return Ok(Report::Rival(text)),
            // It may only be cut off from us.
            Some((text, false)) => Ok(Err(text)),
            None if !node.is_joined() => return recover(node, session).map(Report::Found),
            None => hold_live(session, node, &live_path, &mut live_owner)
                .and_then(|()| mirror_table(session, node, &mut mirrored))
                .and_then(|()| hold_place(session, node)),
        };
        let found = match looked {
            Ok(held) => held.map(|()| session.address),
            // Somebody else changed what we were changing. The next look will see.
            Err(cause @ (ZkError::NoNode | ZkError::NotEmpty | ZkError::NodeExists)) => {
                mirrored.clear();
                Err(format!("{}: {cause:?}", session.address))
            }
            Err(cause) => return Err(cause),
        };
        // If nobody listens any more, the next call will find that out.
        let _ = session.reports.send(Report::Looked(found));
        thread::sleep(LOOK_PAUSE);
    }
}

/// Finds in the live znode of this root another process of this tree, at another URL, and whether it lives and is a
/// root. One at our own is our former self.
fn find_rival(node: &Node, data: &[u8], held_by: i64) -> Option<(String, bool)> {
    let NodeRef { name, url, run } = &node.myself;
    let live: Live = messages::from_json(data).ok().filter(|_| node.config.is_root())?;
    if live.run == *run || live.url == *url || !live.is_proven(name, held_by, node.config.token.as_deref()) {
        return None;
    }
    let identity = node.client.ask_identity(&live.url, ASK_LIMIT);
    let lives = identity.is_ok_and(|identity| identity.run == live.run && identity.is_root() && identity.stays());
    Some((format!("another root of this tree is registered in ZooKeeper, at {}", live.url), lives))
}

/// Holds this node's live znode, and remembers by which session: the client does not tell its own.
fn hold_live(session: &Session, node: &Node, path: &str, owner: &mut Option<i64>) -> ZkResult<()> {
    let NodeRef { name, url, run } = &node.myself;
    let data = |session| messages::to_json(&Live::new(name, url, *run, session, node.config.token.as_deref()));
    if let Some((_, held_by)) = session.read(path)?.filter(|(_, held_by)| Some(*held_by) == *owner) {
        return session.write(path, &data(held_by));
    }
    // A session of a former run, or one of ours that was lost: with it the znode would go.
    session.delete_whole(path)?;
    session.call(|zk| zk.ensure_path(LIVE))?;
    // Which session that is only the znode tells.
    session.create(path, &data(0), CreateMode::Ephemeral)?;
    let (created, held_by) = session.read(path)?.ok_or(ZkError::NoNode)?;
    if created != data(0) {
        return Err(ZkError::NodeExists);
    }
    *owner = Some(held_by);
    session.write(path, &data(held_by))
}

/// Makes this node's znode in the tree say what it should; the text says why it cannot yet.
fn hold_place(session: &Session, node: &Node) -> ZkResult<Result<(), String>> {
    let NodeRef { url, run, .. } = &node.myself;
    let place = node.place();
    let Some(mut wanted) = place.and_then(|place| znodes::wanted(&place, node.config.node_id, url, *run)) else {
        return Ok(Err("a node above this one is not known".to_owned()));
    };
    let (path, data) = wanted.pop_last().expect("its own is among them");
    if session.read(&path)?.is_none() {
        session.create(TREE, &messages::to_json(&shape(&node.config)), CreateMode::Persistent)?;
        for (path, data) in &wanted {
            session.create(path, &messages::to_json(data), CreateMode::Persistent)?;
        }
    }
    session.write(&path, &messages::to_json(&data)).map(Ok)
}

/// Makes the whole tree agree with the root's child table, if this is the root and the table has changed. So the
/// place of a node that is away is kept, and one that moved leaves nothing behind, whether it still lives or not.
fn mirror_table(session: &Session, node: &Node, mirrored: &mut Wanted) -> ZkResult<()> {
    let Some(wanted) = node.table().map(|table| znodes::wanted_of_table(&table)) else { return Ok(()) };
    if wanted == *mirrored {
        return Ok(());
    }
    let found = session.read_tree()?;
    for path in znodes::misplaced(node.config.tree_depth, &wanted, &found) {
        log::info!("deleting {path} from ZooKeeper: the child table says otherwise");
        session.delete_whole(path)?;
    }
    session.write(TREE, &messages::to_json(&shape(&node.config)))?;
    for (path, data) in znodes::unsaid(&wanted, &found) {
        session.write(path, &messages::to_json(data))?;
    }
    *mirrored = wanted;
    Ok(())
}

/// Reads the tree that a former run of this root had. One that does not fit is deleted.
fn recover(node: &Node, session: &Session) -> ZkResult<Vec<(u32, u32)>> {
    let Some((kept_shape, _)) = session.read(TREE)? else { return Ok(Vec::new()) };
    let found = session.read_tree()?;
    match znodes::fit(shape(&node.config), messages::from_json(&kept_shape).ok(), &found) {
        Ok(places) => {
            for (path, _) in found.iter().filter(|(_, data)| data.is_none()) {
                log::warn!("ignoring {path} in ZooKeeper: its data cannot be read");
            }
            log::info!("took {} places below the root from ZooKeeper's tree", places.len());
            Ok(places)
        }
        Err(cause) => {
            log::warn!("deleting ZooKeeper's tree, which does not fit: {cause}");
            session.delete_whole(TREE)?;
            Ok(Vec::new())
        }
    }
}
