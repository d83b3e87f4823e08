//! The HTTP server: `tiny_http`, threads that take turns, and what `tiny_http` lacks.
//!
//! Leader and followers: one thread, the leader, waits in `recv()`. When it gets a request it lets the next thread
//! lead, and carries the request out itself, so no request is handed from one thread to another.
//!
//! Invariants: while a request is carried out, somebody waits for the next one. A connection never has more than
//! one thread, and its requests stay in their order. One bad request ends nothing but itself. `sentinel.rs` keeps
//! the server from going deaf.
//!
//! Left out: TLS; a limit on headers and on silent clients (`tiny_http` offers neither, and
//! `SO_RCVTIMEO` on the listener would end accepting after that time).

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tiny_http::{Method, Request, Response, StatusCode};

use super::body::{self, Flight, Refused, is_absurd};
use super::sentinel::Sentinel;
use crate::protocol::error::{Error, Kind};
use crate::protocol::messages::{self, ErrorAnswer};

/// A client that does not take its answer for this long is given up, and its thread is free again.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// Connections that the kernel may hold for us while all are being accepted.
const BACKLOG: i32 = 1024;

/// Up to this length a body is sent in one write with its head; longer ones are not copied for that.
const ONE_WRITE_BYTES: usize = 16 << 10;

/// So many threads stay to wait for requests; a further one ends when it has nothing to do. With 8 a leaf that passes on
/// the writes of 64 clients started 2,000 threads a second, and did a fifth less.
const SPARE_THREADS: usize = 32;

/// For how long nothing is heard that comes after the last request of a connection. Then its client has left, or never
/// will.
const DEAF_TIME: Duration = Duration::from_secs(5);

/// A server that closes has done so when nothing was in hand for this time: each client that asks on a connection which is
/// there is told to close it, and one that comes anew is refused.
const QUIET_TIME: Duration = Duration::from_millis(100);

/// Between two looks whether something is in hand.
const CLOSE_PAUSE: Duration = Duration::from_millis(10);

/// A request as the handler sees it: its body has been read whole.
pub struct Incoming<'a> {
    pub request: &'a Request,
    /// Empty if there was none.
    pub body: Vec<u8>,
}

impl Incoming<'_> {
    /// The values of all headers of that name, whatever its case.
    pub fn headers(&self, name: &'static str) -> impl Iterator<Item = &str> {
        find_headers(self.request, name)
    }

    /// The value of the first one.
    pub fn header(&self, name: &'static str) -> Option<&str> {
        self.headers(name).next()
    }
}

/// What is sent back.
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, &'static str)>,
    /// The body: what was written for it, and then, if it ends with a value, the value's own bytes, which may be many and
    /// are not copied.
    pub body: Vec<u8>,
    pub value: Arc<Vec<u8>>,
}

impl Answer {
    /// No HTTP cache in between may keep any answer: what it answered after a write would be stale.
    pub fn empty(status: u16) -> Self {
        Self { status, headers: vec![("Cache-Control", "no-store")], body: Vec::new(), value: Arc::default() }
    }

    pub fn new(status: u16, content_type: &'static str, body: Vec<u8>) -> Self {
        Self { body, ..Self::empty(status).with_header("Content-Type", content_type) }
    }

    /// An answer with a JSON body. Whoever gets a 503 may try again soon.
    pub fn json(status: u16, body: Vec<u8>) -> Self {
        let answer = Self::new(status, "application/json", body);
        if status == 503 { answer.with_header("Retry-After", "1") } else { answer }
    }

    /// The same answer with one more header.
    pub fn with_header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }
}

impl From<Error> for Answer {
    fn from(Error { kind, text, allow }: Error) -> Self {
        let mut answer = Self::json(kind as u16, messages::to_json(&ErrorAnswer { detail: text }));
        answer.headers.extend(allow.map(|methods| ("Allow", methods)));
        if kind == Kind::Unauthorized { answer.with_header("WWW-Authenticate", "Bearer") } else { answer }
    }
}

/// Turns a request, or what was wrong with it, into its answer; runs on many threads at once.
pub type Handler = dyn Fn(Result<Incoming, Error>) -> Answer + Send + Sync;

/// Opens the listening socket. What is set on it, every accepted connection inherits.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Without it the second packet of an answer waits for the client's delayed ACK: 44 ms in place of 0.2.
    socket.set_tcp_nodelay(true)?;
    // A client whose machine vanished is noticed by the kernel; one that is just silent is not.
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_mins(1)))?;
    socket.set_write_timeout(Some(SEND_LIMIT))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Serves on threads of its own; `handler` is called with bodies of at most `max_body_bytes`. What ends the serving goes
/// to `fatal`, unless [`Server::close`] does.
pub fn serve(
    listener: TcpListener,
    max_body_bytes: usize,
    handler: Box<Handler>,
    fatal: impl Fn(String) + Clone + Send + Sync + 'static,
) -> io::Result<Arc<Server>> {
    let closing = Arc::<AtomicBool>::default();
    let sentinel = Sentinel::start(listener.local_addr()?, Arc::clone(&closing), fatal.clone())?;
    let listening = listener.try_clone()?;
    let http = tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)?;
    let server = Arc::new(Server {
        http,
        listening,
        closing,
        leader: Mutex::new(sentinel),
        connections: Mutex::default(),
        waiting: AtomicUsize::new(0),
        max_body_bytes,
        flight: Flight::new(max_body_bytes),
        handler,
        fatal: Box::new(fatal),
    });
    server.start_thread()?;
    Ok(server)
}

pub struct Server {
    http: tiny_http::Server,
    /// The listening socket, which `tiny_http` does not give away.
    listening: TcpListener,
    closing: Arc<AtomicBool>,
    /// Held by the leader, who tells the sentinel of each request. Whoever takes a request from `tiny_http` also puts
    /// it in its queue before anybody takes the next one. If two threads did so side by side:
    /// 1. One takes the first request of a connection, another the second, and serves it.
    /// 2. The first one finds that the connection has a thread, and queues its request there.
    /// 3. That thread waits for ever to send the second answer: `tiny_http` sends the first one before.
    leader: Mutex<Sentinel>,
    connections: Mutex<Connections>,
    /// Threads that lead, wait to lead, or are about to.
    waiting: AtomicUsize,
    max_body_bytes: usize,
    flight: Flight,
    handler: Box<Handler>,
    fatal: Box<dyn Fn(String) + Send + Sync>,
}

#[derive(Default)]
struct Connections {
    /// Those that have a thread, and which of their requests wait. `tiny_http` delivers pipelined requests at once: with
    /// a thread for each of them, 200,000 pipelined GETs killed the process in 4 s.
    served: HashMap<SocketAddr, VecDeque<Request>>,
    /// Those of which nothing more is heard, since when, and the kernel's number of each: `tiny_http` closes no connection
    /// by itself, and the next one may have the same address and port.
    ended: HashMap<SocketAddr, (Instant, Option<u64>)>,
}

impl Server {
    /// Refuses new connections, and carries out what is in hand and what comes on those that are there, with the word that
    /// they close; returns when nothing more comes, or at the limit.
    pub fn close(&self, limit: Duration) {
        self.closing.store(true, SeqCst);
        // It may have ended by itself.
        let _ = SockRef::from(&self.listening).shutdown(Shutdown::Read);
        let (began, mut last_busy) = (Instant::now(), Instant::now());
        while last_busy.elapsed() < QUIET_TIME && began.elapsed() < limit {
            thread::sleep(CLOSE_PAUSE);
            if !self.connections().served.is_empty() {
                last_busy = Instant::now();
            }
        }
    }

    fn start_thread(self: &Arc<Self>) -> io::Result<()> {
        let server = Arc::clone(self);
        self.waiting.fetch_add(1, SeqCst);
        let started = thread::Builder::new().name("serve".to_owned()).spawn(move || server.serve_requests());
        if started.is_err() {
            self.waiting.fetch_sub(1, SeqCst);
        }
        started.map(drop)
    }

    /// Takes requests and carries them out, while not too many others wait to do so.
    fn serve_requests(self: &Arc<Self>) {
        loop {
            let (client, first) = match self.lead() {
                Ok(taken) => taken,
                // What comes on connections that are there is still served.
                Err(_) if self.closing.load(SeqCst) => continue,
                Err(error) => return (self.fatal)(format!("could not accept connections any more: {error}")),
            };
            if self.waiting.fetch_sub(1, SeqCst) == 1
                && let Err(error) = self.start_thread()
            {
                // Nobody waits until this request is done. If its client makes us wait, the sentinel ends the process.
                log::error!("could not start a thread: {error}");
            }
            let mut next = Some(first);
            while let Some(request) = next {
                // The panic hook has logged it. The request was dropped, which made tiny_http answer 500.
                let _ = catch_unwind(AssertUnwindSafe(|| self.handle(request, client)));
                next = self.next_of(client);
            }
            let one_more = |waiting| (waiting < SPARE_THREADS).then_some(waiting + 1);
            if self.waiting.fetch_update(SeqCst, SeqCst, one_more).is_err() {
                return;
            }
        }
    }

    /// Takes requests until one comes of a connection that has no thread, which this thread must serve.
    fn lead(&self) -> io::Result<(SocketAddr, Request)> {
        let mut sentinel = self.leader.lock().expect("nothing panics under this lock");
        loop {
            let request = self.next_request()?;
            let client = *request.remote_addr().expect("a TCP connection has an address");
            sentinel.notice_request(client);
            match self.connections().served.entry(client) {
                Entry::Occupied(mut queue) => queue.get_mut().push_back(request),
                Entry::Vacant(queue) => {
                    queue.insert(VecDeque::new());
                    return Ok((client, request));
                }
            }
        }
    }

    /// Not `incoming_requests()`: that iterator just ends when accepting fails.
    fn next_request(&self) -> io::Result<Request> {
        // A wait in `recv()` costs two context switches. The clients' threads run while we yield, and often there
        // are several requests after that: worth a third of the throughput.
        if let Some(request) = self.http.try_recv()? {
            return Ok(request);
        }
        thread::yield_now();
        self.http.try_recv()?.map_or_else(|| self.http.recv(), Ok)
    }

    /// The next request of a connection; when there is none, it has no thread any more.
    fn next_of(&self, client: SocketAddr) -> Option<Request> {
        let mut connections = self.connections();
        let request = connections.served.get_mut(&client).and_then(VecDeque::pop_front);
        if request.is_none() {
            connections.served.remove(&client);
        }
        request
    }

    fn handle(&self, mut request: Request, client: SocketAddr) {
        if self.has_ended(client) {
            return discard(request);
        }
        match body::read(&mut request, self.max_body_bytes, &self.flight) {
            Ok((body, _held)) => {
                let answer = (self.handler)(Ok(Incoming { request: &request, body }));
                self.send(request, &answer);
            }
            Err(Refused { error, is_last: false }) => self.send(request, &(self.handler)(Err(error))),
            Err(Refused { error, is_last: true }) => {
                self.end(client);
                refuse(request, &(self.handler)(Err(error)));
            }
        }
    }

    /// Sends the answer to a request whose body has been read. The head is ours, since `tiny_http`'s own gives a 204 a
    /// length, sends 32 KiB and more in chunks, obeys `TE`, and does not say that an old connection stays.
    fn send(&self, request: Request, answer: &Answer) {
        let closes = self.closing.load(SeqCst);
        let head = write_head(answer, if closes { "Connection: close\r\n" } else { connection_of(&request) });
        let mut parts = [head.as_bytes(), &answer.body, &answer.value];
        if *request.method() == Method::Head {
            parts[1..].fill(&[]);
        }
        let mut writer = request.into_writer();
        let sent = if parts[1].len() + parts[2].len() <= ONE_WRITE_BYTES {
            writer.write_all(&parts.concat())
        } else {
            parts.iter().try_for_each(|part| writer.write_all(part))
        };
        // Nobody is told if its client has left.
        let _ = sent.and_then(|()| writer.flush());
    }

    fn has_ended(&self, client: SocketAddr) -> bool {
        let ended = self.connections().ended.get(&client).copied();
        ended.is_some_and(|(since, socket)| since.elapsed() <= DEAF_TIME && socket == self.socket_of(client))
    }

    /// The kernel's number of a connection, where it tells.
    fn socket_of(&self, client: SocketAddr) -> Option<u64> {
        let (table, octets) = match client.ip() {
            IpAddr::V4(ip) => ("/proc/net/tcp", ip.octets().to_vec()),
            IpAddr::V6(ip) => ("/proc/net/tcp6", ip.octets().to_vec()),
        };
        // Each four bytes are a number in the machine's own order.
        let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
        let words: Vec<_> = octets.chunks(4).map(|bytes| format!("{:08X}", word(bytes))).collect();
        let theirs = format!("{}:{:04X}", words.concat(), client.port());
        let ours = format!(":{:04X}", self.http.server_addr().to_ip()?.port());
        let table = std::fs::read_to_string(table).ok()?;
        let mut lines = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
        lines.find(|line| line[1].ends_with(&ours) && line[2] == theirs)?.get(9)?.parse().ok()
    }

    /// Hears nothing more of a connection.
    fn end(&self, client: SocketAddr) {
        let socket = self.socket_of(client);
        let mut connections = self.connections();
        connections.ended.retain(|_, (since, _)| since.elapsed() <= DEAF_TIME);
        connections.ended.insert(client, (Instant::now(), socket));
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().expect("nothing panics under this lock")
    }
}

/// Answers the last request of a connection, whose body may be there or not.
///
/// `into_writer` waits for a body of a declared length, and so does a drop: what is left is read into a buffer of the
/// *declared* size. `Content-Length: 1000000000000` was an allocation failure, and that aborts the process; forty
/// of 31 MB, of which nothing came, took 1.2 GB. Upgrading hands out the raw stream with the reader inside, so that
/// what comes can be read into nothing, or the stream forgotten where the length is absurd: that costs a thread
/// and two descriptors each time.
fn refuse(request: Request, answer: &Answer) {
    let body = if *request.method() == Method::Head { &[][..] } else { &answer.body };
    let head = write_head(answer, "Connection: close\r\n");
    let length = request.body_length().unwrap_or(0);
    // `tiny_http` writes the head of an upgrade: its own status line and date, a length only behind a line end that is
    // smuggled in (CVE-2026-66753; Cargo.toml names this very version). It is all ours, and constant but for numbers.
    let rest = head.splitn(3, "\r\n").nth(2).expect("status, date, and the rest").trim_end();
    let mut stream = request.upgrade(&format!("none\r\n{rest}"), Response::empty(answer.status));
    let _ = stream.write_all(body).and_then(|()| stream.flush());
    if is_absurd(length) {
        std::mem::forget(stream);
    } else {
        read_into_nothing(&mut stream, length);
    }
}

/// Leaves a request unanswered that came after the last one of its connection.
fn discard(mut request: Request) {
    let length = request.body_length().unwrap_or(0);
    if is_absurd(length) {
        return std::mem::forget(request);
    }
    read_into_nothing(request.as_reader(), length);
    drop(request.into_writer());
}

fn read_into_nothing(reader: &mut dyn Read, length: usize) {
    let _ = io::copy(&mut reader.take(length as u64), &mut io::sink());
}

fn write_head(answer: &Answer, connection: &str) -> String {
    let reason = StatusCode(answer.status).default_reason_phrase();
    let date = httpdate::HttpDate::from(SystemTime::now());
    // Long enough for all but the page's.
    let mut head = String::with_capacity(512);
    head.extend(["HTTP/1.1 ", &answer.status.to_string(), " ", reason, "\r\nDate: ", &date.to_string(), "\r\n"]);
    for (name, value) in &answer.headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    if answer.status != 204 {
        let length = answer.body.len() + answer.value.len();
        head.extend(["Content-Length: ", &length.to_string(), "\r\n"]);
    }
    head + connection + "\r\n"
}

/// What the answer says of its connection: what `tiny_http` is going to do with it.
fn connection_of(request: &Request) -> &'static str {
    let is_old = *request.http_version() <= (1, 0);
    let asks_for = |option| asks_for(request, option);
    if asks_for("close") || asks_for("upgrade") || (is_old && !asks_for("keep-alive")) {
        return "Connection: close\r\n";
    }
    if is_old { "Connection: keep-alive\r\n" } else { "" }
}

/// Whether the client asks that of its connection, in the way in which `tiny_http` reads it.
pub fn asks_for(request: &Request, option: &str) -> bool {
    find_headers(request, "Connection").next().is_some_and(|asked| asked.to_ascii_lowercase().contains(option))
}

pub fn find_headers<'a>(request: &'a Request, name: &'static str) -> impl Iterator<Item = &'a str> {
    request.headers().iter().filter(move |header| header.field.equiv(name)).map(|header| header.value.as_str())
}

#[cfg(test)]
mod tests;
