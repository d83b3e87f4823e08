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
use std::io::{self, Cursor, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, SystemTime};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tiny_http::{Header, Method, Request, Response, StatusCode};

use super::sentinel::Sentinel;
use crate::protocol::call::read_digits;
use crate::protocol::error::{Error, Kind};
use crate::protocol::messages::{self, ErrorAnswer};

/// A declared length that nobody means: above it, `tiny_http` must not be let near the body.
const ABSURD_BODY_BYTES: usize = 1 << 30;

/// A client that does not take its answer for this long is given up, and its thread is free again.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// Connections that the kernel may hold for us while all are being accepted.
const BACKLOG: i32 = 1024;

/// Up to this length a body is sent in one write with its head; longer ones are not copied for that.
const ONE_WRITE_BYTES: usize = 16 << 10;

/// So many threads stay to wait for requests; a further one ends when it has nothing to do.
const SPARE_THREADS: usize = 8;

/// A request as the handler sees it: its body has been read whole.
pub struct Incoming<'a> {
    request: &'a Request,
    /// Empty if there was none.
    pub body: Vec<u8>,
}

impl Incoming<'_> {
    /// `GET`, `PUT`, or whatever the client wrote.
    pub fn method(&self) -> &str {
        self.request.method().as_str()
    }

    /// The path and query, still encoded.
    pub fn target(&self) -> &str {
        self.request.url()
    }

    /// The values of all headers of that name, whatever its case.
    pub fn headers(&self, name: &'static str) -> impl Iterator<Item = &str> {
        find_headers(self.request, name)
    }

    /// The value of the first one.
    pub fn header(&self, name: &'static str) -> Option<&str> {
        find_header(self.request, name)
    }
}

/// What is sent back.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, &'static str)>,
    /// Shared rather than copied.
    pub body: Arc<[u8]>,
}

impl Answer {
    /// No HTTP cache in between may keep any answer: what it answered after a write would be stale.
    pub fn empty(status: u16) -> Self {
        Self { status, headers: vec![("Cache-Control", "no-store")], body: Arc::default() }
    }

    pub fn new(status: u16, content_type: &'static str, body: impl Into<Arc<[u8]>>) -> Self {
        Self { body: body.into(), ..Self::empty(status).with_header("Content-Type", content_type) }
    }

    /// An answer with a JSON body. Whoever gets a 503 may try again soon.
    pub fn json(status: u16, body: impl Into<Arc<[u8]>>) -> Self {
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
    fn from(Error { kind, text }: Error) -> Self {
        let answer = Self::json(kind.status(), messages::to_json(&ErrorAnswer { detail: text.into() }));
        match kind {
            Kind::Unauthorized => answer.with_header("WWW-Authenticate", "Bearer"),
            Kind::MethodNotAllowed(allow) => answer.with_header("Allow", allow),
            _ => answer,
        }
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

/// Serves for ever on threads of its own; `handler` is called with bodies of at most `max_body_bytes`.
/// What ends the serving goes to `fatal`.
pub fn serve(
    listener: TcpListener,
    max_body_bytes: usize,
    handler: Box<Handler>,
    fatal: impl Fn(String) + Clone + Send + Sync + 'static,
) -> io::Result<()> {
    let sentinel = Sentinel::start(listener.local_addr()?, fatal.clone())?;
    let http = tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)?;
    let (leader, connections, waiting) = (Mutex::new(sentinel), Mutex::default(), AtomicUsize::new(0));
    let server = Server { http, leader, connections, waiting, max_body_bytes, handler, fatal: Box::new(fatal) };
    Arc::new(server).start_thread()
}

struct Server {
    http: tiny_http::Server,
    /// Held by the leader, who tells the sentinel of each request. Whoever takes a request from `tiny_http` also puts
    /// it in its queue before anybody takes the next one. If two threads did so side by side:
    /// 1. One takes the first request of a connection, another the second, and serves it.
    /// 2. The first one finds that the connection has a thread, and queues its request there.
    /// 3. That thread waits for ever to send the second answer: `tiny_http` sends the first one before.
    leader: Mutex<Sentinel>,
    /// Guards which connections have a thread, and which of their requests wait. `tiny_http` delivers pipelined
    /// requests at once: with a thread for each of them, 200,000 pipelined GETs killed the process in 4 s.
    connections: Mutex<HashMap<SocketAddr, VecDeque<Request>>>,
    /// Threads that lead, wait to lead, or are about to.
    waiting: AtomicUsize,
    max_body_bytes: usize,
    handler: Box<Handler>,
    fatal: Box<dyn Fn(String) + Send + Sync>,
}

impl Server {
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
            let client = match self.lead() {
                Ok(client) => client,
                Err(error) => return (self.fatal)(format!("could not accept connections any more: {error}")),
            };
            if self.waiting.fetch_sub(1, SeqCst) == 1
                && let Err(error) = self.start_thread()
            {
                // Nobody waits until this request is done. If its client makes us wait, the sentinel ends the process.
                log::error!("could not start a thread: {error}");
            }
            while let Some(request) = self.next_of(client) {
                // The panic hook has logged it. The request was dropped, which made tiny_http answer 500.
                let _ = catch_unwind(AssertUnwindSafe(|| self.handle(request)));
            }
            let one_more = |waiting| (waiting < SPARE_THREADS).then_some(waiting + 1);
            if self.waiting.fetch_update(SeqCst, SeqCst, one_more).is_err() {
                return;
            }
        }
    }

    /// Takes requests until one comes of a connection that has no thread, which this thread must serve.
    fn lead(&self) -> io::Result<SocketAddr> {
        let mut sentinel = self.leader.lock().expect("nothing panics under this lock");
        loop {
            let request = self.next_request()?;
            let client = *request.remote_addr().expect("a TCP connection has an address");
            sentinel.notice_request(client);
            match self.connections().entry(client) {
                Entry::Occupied(mut queue) => queue.get_mut().push_back(request),
                Entry::Vacant(queue) => {
                    queue.insert(VecDeque::from([request]));
                    return Ok(client);
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
        let request = connections.get_mut(&client).and_then(VecDeque::pop_front);
        if request.is_none() {
            connections.remove(&client);
        }
        request
    }

    fn handle(&self, mut request: Request) {
        let body = read_body(&mut request, self.max_body_bytes);
        let is_read = body.is_ok();
        let answer = (self.handler)(body.map(|body| Incoming { request: &request, body }));
        if is_read { send(request, &answer) } else { refuse(request, answer) }
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<SocketAddr, VecDeque<Request>>> {
        self.connections.lock().expect("nothing panics under this lock")
    }
}

fn read_body(request: &mut Request, max_bytes: usize) -> Result<Vec<u8>, Error> {
    if find_header(request, "Transfer-Encoding").is_some() {
        // tiny_http cannot tell a whole chunked body from one that was cut short.
        return Err(Kind::LengthRequired.error("a body needs a Content-Length"));
    }
    if find_headers(request, "Content-Length").count() > 1 {
        return Err(Kind::BadRequest.error("there is more than one Content-Length"));
    }
    let length = match find_header(request, "Content-Length").map(|text| (text, read_digits(text))) {
        None => 0,
        Some((_, Some(length))) => length,
        Some((text, None)) => {
            return Err(Kind::BadRequest.error(format!("Content-Length {text:?} is not a number of bytes")));
        }
    };
    if length > ABSURD_BODY_BYTES {
        return Err(Kind::ContentTooLarge.error(format!("the body has {length} bytes, more than any node keeps")));
    }
    if length > max_bytes {
        let text = format!("the body has {length} bytes; at most {max_bytes} are allowed");
        return Err(Kind::ContentTooLarge.error(text));
    }
    let mut body = Vec::new();
    if length > 0 {
        let whole = request.as_reader().take(length as u64).read_to_end(&mut body);
        // A body cut short reads as if it had been whole.
        if whole.is_err() || body.len() < length {
            return Err(Kind::BadRequest.error(format!("the body ended after {} of {length} bytes", body.len())));
        }
    }
    Ok(body)
}

/// Sends the answer to a request whose body has been read. The head is ours, since `tiny_http`'s own gives a 204 a
/// length, sends 32 KiB and more in chunks, obeys `TE`, and does not say that an old connection stays.
fn send(request: Request, answer: &Answer) {
    let (head, is_head) = (write_head(answer, connection_of(&request)), *request.method() == Method::Head);
    let body = if is_head { &[] } else { &answer.body[..] };
    let mut writer = request.into_writer();
    let sent = if body.len() <= ONE_WRITE_BYTES {
        writer.write_all(&[head.as_bytes(), body].concat())
    } else {
        writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(body))
    };
    note_sent(sent.and_then(|()| writer.flush()));
}

/// Answers a request whose body has not been read to its end; `tiny_http` reads the rest after that.
fn refuse(request: Request, answer: Answer) {
    if request.body_length().is_some_and(|length| length > ABSURD_BODY_BYTES) {
        return refuse_undrained(request, &answer);
    }
    let length = answer.body.len();
    let header = |name: &str, value: &str| Header::from_bytes(name, value).expect("our headers are ASCII");
    let headers = answer.headers.iter().map(|(name, value)| header(name, value)).collect();
    let response = Response::new(StatusCode(answer.status), headers, Cursor::new(answer.body), Some(length), None);
    note_sent(request.respond(response.with_chunked_threshold(usize::MAX)));
}

/// Answers a request whose body is declared longer than any memory.
///
/// `tiny_http` drains an unread body into a buffer of the *declared* size when the request is
/// answered or dropped: `Content-Length: 1000000000000` was an allocation failure, and that aborts
/// the process; 2^63 a panic. Upgrading hands out the raw stream with the reader inside; the stream
/// is then forgotten, so that no drop ever drains. It costs a thread and two descriptors each
/// time, which is why it is kept for lengths that nobody means.
fn refuse_undrained(request: Request, answer: &Answer) {
    let mut stream = request.upgrade("none", Response::empty(100));
    let head = write_head(answer, "Connection: close\r\n");
    note_sent(stream.write_all(&[head.as_bytes(), &answer.body].concat()).and_then(|()| stream.flush()));
    std::mem::forget(stream);
}

fn note_sent(sent: io::Result<()>) {
    if let Err(error) = sent {
        log::debug!("could not answer: {error}");
    }
}

fn write_head(answer: &Answer, connection: &str) -> String {
    let (status, length) = (answer.status, answer.body.len());
    let reason = StatusCode(status).default_reason_phrase();
    let mut head = format!("HTTP/1.1 {status} {reason}\r\nDate: {}\r\n", httpdate::fmt_http_date(SystemTime::now()));
    for (name, value) in &answer.headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    if status != 204 {
        head.extend(["Content-Length: ", &length.to_string(), "\r\n"]);
    }
    head + connection + "\r\n"
}

/// What the answer says of its connection: what `tiny_http` is going to do with it.
fn connection_of(request: &Request) -> &'static str {
    let (asked, is_old) = (find_header(request, "Connection"), *request.http_version() <= (1, 0));
    let asks_for = |option| asked.is_some_and(|asked| asked.to_ascii_lowercase().contains(option));
    if asks_for("close") || asks_for("upgrade") || (is_old && !asks_for("keep-alive")) {
        return "Connection: close\r\n";
    }
    if is_old { "Connection: keep-alive\r\n" } else { "" }
}

fn find_headers<'a>(request: &'a Request, name: &'static str) -> impl Iterator<Item = &'a str> {
    request.headers().iter().filter(move |header| header.field.equiv(name)).map(|header| header.value.as_str())
}

fn find_header<'a>(request: &'a Request, name: &'static str) -> Option<&'a str> {
    find_headers(request, name).next()
}

#[cfg(test)]
mod tests;
