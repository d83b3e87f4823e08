//! One connection to ZooKeeper: from finding a server that serves to the few things that are done with znodes.
//!
//! The client (the crate `zookeeper`) reconnects by itself, and that is what it does badly: it spins
//! at 17,000 attempts a second, it silently comes back with another session and without the ephemeral
//! znode, or it never comes back. So a client is used for one connection only: the first sign that this
//! is lost ends it (see [`Session::connect`]), and whoever wants another begins anew, with names looked up
//! afresh. Watches are not used: they are lost with each connection, and a look each second costs less than
//! the care for them.
//!
//! Invariant: a lost connection makes every call return an error, now and later. But a call may
//! block for as long as a server hangs, or even panic: `mod.rs` makes up for that.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::panic::resume_unwind;
use std::sync::mpsc::Sender;
use std::time::Duration;

use zookeeper::{Acl, CreateMode, ZkError, ZkResult, ZkState, ZooKeeper};

use super::Report;
use super::znodes::{self, Found, TREE};
use crate::protocol::messages;
use crate::tree;

/// The life of a session without a word from us, and so of the live znode of a node that died. Six looks:
/// short, for people look there for who is alive; but a busy machine must not seem dead, and a
/// ZooKeeper with default settings grants none under 4 s.
pub const SESSION_LIFE: Duration = Duration::from_secs(6);

/// How long a server may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// How long a server may take to say that it serves.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// The most that is read of a tree: twice as many as the deepest one has nodes.
const MAX_ZNODES: usize = 2 << tree::MAX_DEPTH;

/// One connection to one server.
pub struct Session {
    zookeeper: ZooKeeper,
    /// The server's.
    pub address: SocketAddr,
    /// Where every answer is told, as long as anybody wants this session.
    pub reports: Sender<Report>,
}

impl Session {
    /// Connects to the first server that says that it serves; if none does, the text says why, for each.
    pub fn connect(servers: &[String], reports: Sender<Report>) -> Result<Self, String> {
        let address = find_server(servers)?;
        let zookeeper = ZooKeeper::connect(&address.to_string(), SESSION_LIFE, |_| {})
            .map_err(|cause| format!("{address}: {cause:?}"))?;
        // The listener runs on the client's own thread, before that begins to reconnect. Unwinding ends this
        // thread, closes its socket, and makes all calls, waiting ones too, return an error; and unlike
        // a panic it does so without a word in the log.
        zookeeper.add_listener(|state| {
            if !matches!(state, ZkState::Connected | ZkState::ConnectedReadOnly | ZkState::Closed) {
                resume_unwind(Box::new("a client is used for one connection only"));
            }
        });
        Ok(Self { zookeeper, address, reports })
    }

    /// Every call goes through here: so each answer is told, and a session that nobody wants any more stops.
    pub fn call<T>(&self, call: impl FnOnce(&ZooKeeper) -> ZkResult<T>) -> ZkResult<T> {
        let result = call(&self.zookeeper);
        if self.reports.send(Report::Answered).is_ok() { result } else { Err(ZkError::OperationTimeout) }
    }

    /// The data of a znode, if there is that znode, and the session that holds it, if it is ephemeral. Which session is our
    /// own the client does not tell.
    pub fn read(&self, path: &str) -> ZkResult<Option<(Vec<u8>, i64)>> {
        let read = self.call(|zk| zk.get_data(path, false));
        read.map(|(data, stat)| Some((data, stat.ephemeral_owner))).or_else(none_if_gone)
    }

    /// All znodes of the tree that may be of use: a stranger may have made more, and deeper ones.
    pub fn read_tree(&self) -> ZkResult<Found> {
        let (mut found, mut unread) = (Found::new(), vec![TREE.to_owned()]);
        while let Some(above) = unread.pop() {
            for name in self.call(|zk| zk.get_children(&above, false)).or_else(none_if_gone)? {
                let path = format!("{above}/{name}");
                let (data, _) = self.read(&path)?.unwrap_or_default();
                found.insert(path.clone(), messages::from_json(&data).ok());
                if znodes::level(&path) < tree::MAX_DEPTH && found.len() < MAX_ZNODES {
                    unread.push(path);
                }
            }
        }
        Ok(found)
    }

    /// Makes a znode say what it should; the one above must be there.
    pub fn write(&self, path: &str, data: &[u8]) -> ZkResult<()> {
        match self.read(path)? {
            Some((found, _)) if found == data => Ok(()),
            Some(_) => self.call(|zk| zk.set_data(path, data.to_vec(), None)).map(drop),
            None => {
                self.create(path, data, CreateMode::Persistent)?;
                // Looked at again: a node below may have been quicker, and said less.
                self.write(path, data)
            }
        }
    }

    /// Makes a znode unless it is there; the one above must be.
    pub fn create(&self, path: &str, data: &[u8], mode: CreateMode) -> ZkResult<()> {
        let acl = Acl::open_unsafe().clone();
        match self.call(|zk| zk.create(path, data.to_vec(), acl, mode)) {
            Ok(_) | Err(ZkError::NodeExists) => Ok(()),
            Err(cause) => Err(cause),
        }
    }

    /// Deletes a znode with all below it, even while somebody writes there. It goes down and up in a loop, since a stranger
    /// may have made it deeper than a stack is. Whoever writes there all the time keeps this going, and nothing else.
    pub fn delete_whole(&self, path: &str) -> ZkResult<()> {
        let mut at = path.to_owned();
        loop {
            match self.call(|zk| zk.delete(&at, None)) {
                Ok(()) | Err(ZkError::NoNode) if at == path => return Ok(()),
                Ok(()) | Err(ZkError::NoNode) => at.truncate(at.rfind('/').expect("it is below another")),
                Err(ZkError::NotEmpty) => {
                    let above = at.clone();
                    for name in self.call(|zk| zk.get_children(&above, false)).or_else(none_if_gone)? {
                        let child = format!("{above}/{name}");
                        if matches!(self.call(|zk| zk.delete(&child, None)), Err(ZkError::NotEmpty)) {
                            at = child;
                        }
                    }
                }
                Err(cause) => return Err(cause),
            }
        }
    }
}

/// A znode that is gone when we come to look has nothing in it.
fn none_if_gone<T: Default>(cause: ZkError) -> ZkResult<T> {
    if matches!(cause, ZkError::NoNode) { Ok(T::default()) } else { Err(cause) }
}

/// The address of the first server that says that it serves. The client is never shown another: it would
/// wait for it for ever.
fn find_server(servers: &[String]) -> Result<SocketAddr, String> {
    let mut causes = Vec::new();
    for server in servers {
        let addresses = server.to_socket_addrs().inspect_err(|error| causes.push(format!("{server}: {error}")));
        for address in addresses.into_iter().flatten() {
            match probe(address) {
                Ok(()) => return Ok(address),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    causes.push(format!("{address}: no answer within {} s", PROBE_LIMIT.as_secs()));
                }
                Err(error) => causes.push(format!("{address}: {error}")),
            }
        }
    }
    Err(causes.join("; "))
}

fn probe(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_LIMIT)?;
    stream.set_read_timeout(Some(PROBE_LIMIT))?;
    stream.write_all(b"srvr")?;
    let answer = io::read_to_string(stream.take(4096))?;
    if answer.contains("Mode:") {
        return Ok(());
    }
    Err(io::Error::other(format!("does not serve: {:?}", answer.lines().next().unwrap_or_default())))
}
