//! The sentinel: a client of our own server that makes up for two defects of `tiny_http`.
//!
//! 1. Stranded connections. `tiny_http`'s thread pool counts an idle thread that a connection has
//!    already been put aside for, so in a burst a second connection is put aside for the same
//!    thread, and waits until some other connection closes: of 50 at once, up to 46 had no answer
//!    after 5 s. Each connection that the sentinel opens and closes gets a thread, which then
//!    takes a stranded one.
//! 2. A deaf process. Out of file descriptors or threads, the accepting thread of `tiny_http` ends,
//!    every second time without a word; old connections go on, new ones hang. So the sentinel
//!    asks the server for `GET /` once a second, and reports its silence as fatal.
//!
//! Invariant: a server that answers no new connection is reported after [`MAX_SILENCE`] checks. Left out:
//! starting again. That is the supervisor's work.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::metrics::count_threads;

/// Between two rounds of knocks while clients connect.
const KNOCK_PAUSE: Duration = Duration::from_millis(20);

/// For how long it goes on after the last sign of a stranded connection.
const KNOCK_TIME: Duration = Duration::from_millis(200);

/// A knock frees one stranded connection, and costs 0.15 ms of a core. So the knocks of a round are doubled,
/// up to so many, as long as there are signs that the last round freed some: new clients, or more threads,
/// for a client that was freed and sends nothing shows in no other way.
const MAX_KNOCKS: u32 = 16;

/// So many more knocks are earned in a round: a client that connects anew for each request must not make us knock
/// all the time.
const EARNED_KNOCKS: u32 = 2;

/// So many earned knocks can be saved for a burst.
const SAVED_KNOCKS: u32 = 256;

/// A client that is silent for longer may count as new again.
const KNOWN_TIME: Duration = Duration::from_secs(5);

/// Between two checks.
const CHECK_PAUSE: Duration = Duration::from_secs(1);

/// How long a check may take.
const CHECK_LIMIT: Duration = Duration::from_secs(2);

/// So many failed checks in a row are fatal.
const MAX_SILENCE: u32 = 5;

/// How the answer to a check begins; the kernel hands over so little of it in one piece.
const STATUS: &[u8; 12] = b"HTTP/1.1 200";

/// The other end of the sentinel's thread.
pub struct Sentinel {
    new_clients: Arc<AtomicU64>,
    thread: Thread,
    /// When each client sent its last request; only others tell of new connections. Those that come each second, as nodes
    /// do, must not have us knock each second: a knock keeps a thread that is idle from ending, for five seconds.
    known: HashMap<SocketAddr, Instant>,
    pruned: Instant,
}

impl Sentinel {
    /// Watches the server at `address` until it closes; reports to `fatal` when it has been silent for too long.
    pub fn start(
        address: SocketAddr,
        closing: Arc<AtomicBool>,
        fatal: impl Fn(String) + Send + 'static,
    ) -> io::Result<Self> {
        let new_clients = Arc::<AtomicU64>::default();
        let there = Arc::clone(&new_clients);
        let watch = move || watch(reachable(address), &there, &closing, &fatal);
        let thread = thread::Builder::new().name("sentinel".to_owned()).spawn(watch)?.thread().clone();
        Ok(Self { new_clients, thread, known: HashMap::new(), pruned: Instant::now() })
    }

    /// Says that a request came from that client; cheap, for it is called for each of them.
    pub fn notice_request(&mut self, client: SocketAddr) {
        if self.pruned.elapsed() > KNOWN_TIME {
            self.pruned = Instant::now();
            self.known.retain(|_, last| last.elapsed() <= KNOWN_TIME);
        }
        if self.known.insert(client, Instant::now()).is_none() {
            self.new_clients.fetch_add(1, SeqCst);
            // If it is about to park, it does not: no new client is overlooked.
            self.thread.unpark();
        }
    }
}

fn watch(address: SocketAddr, new_clients: &AtomicU64, closing: &AtomicBool, fatal: &impl Fn(String)) {
    let (mut last_sign, mut last_check) = (Instant::now(), Instant::now());
    let (mut seen, mut knocks, mut saved, mut failures) = (0, 1, SAVED_KNOCKS, 0);
    let mut threads_before = count_threads();
    while !closing.load(SeqCst) {
        let (clients, threads) = (new_clients.load(SeqCst), count_threads());
        if clients > seen || threads > threads_before {
            (last_sign, knocks) = (Instant::now(), MAX_KNOCKS.min(2 * knocks));
        } else {
            knocks = 1;
        }
        (seen, threads_before) = (clients, threads);
        if last_sign.elapsed() < KNOCK_TIME {
            thread::sleep(KNOCK_PAUSE);
            saved = SAVED_KNOCKS.min(saved + EARNED_KNOCKS);
            let now = knocks.min(saved);
            saved -= now;
            // If they fail, so does the check.
            (0..now).for_each(|_| drop(knock(address)));
        } else {
            saved = SAVED_KNOCKS;
            thread::park_timeout(CHECK_PAUSE);
        }
        if last_check.elapsed() < CHECK_PAUSE {
            continue;
        }
        last_check = Instant::now();
        match check(address) {
            // The check was a client, too, and a knock.
            Ok(()) => (seen, failures) = (seen + 1, 0),
            Err(_) if closing.load(SeqCst) => {}
            Err(error) => {
                log::warn!("this node does not answer at {address}: {error}");
                failures += 1;
            }
        }
        if failures == MAX_SILENCE {
            return fatal(format!("this node has stopped answering at {address}"));
        }
    }
}

/// Opens a connection and closes it at once, by a reset: that leaves no `TIME_WAIT` behind.
fn knock(address: SocketAddr) -> io::Result<()> {
    let stream = TcpStream::connect_timeout(&address, CHECK_LIMIT)?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))
}

fn check(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, CHECK_LIMIT)?;
    stream.set_read_timeout(Some(KNOCK_PAUSE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: sentinel\r\nConnection: close\r\n\r\n")?;
    let (deadline, mut status) = (Instant::now() + CHECK_LIMIT, [0; STATUS.len()]);
    while let Err(error) = stream.read_exact(&mut status) {
        if error.kind() != ErrorKind::WouldBlock || Instant::now() >= deadline {
            return Err(error);
        }
        // It is stranded itself, most likely, and others with it.
        (0..MAX_KNOCKS).try_for_each(|_| knock(address))?;
    }
    // To the end, so that the connection closes in good order.
    let _ = io::copy(&mut stream, &mut io::sink());
    if status == *STATUS { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&status))) }
}

/// Where a server that listens on `address` can be reached from this machine.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
