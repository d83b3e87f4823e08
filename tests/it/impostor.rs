//! A stranger who answers whatever it is asked as a node would, and keeps what it was told.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::json;

/// How long it waits for the rest of a request.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// Hears whoever connects, one after another; gone when dropped.
pub struct Stranger {
    pub address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stranger {
    /// Listens, and does that with each connection and what was asked on it.
    pub fn start(mut hear: impl FnMut(TcpStream, String) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("some port is free");
        let address = listener.local_addr().expect("it listens");
        let over = Arc::<AtomicBool>::default();
        let ends = Arc::clone(&over);
        let thread = thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok).take_while(|_| !ends.load(Ordering::Relaxed)) {
                let request = read_request(&stream);
                hear(stream, request);
            }
        });
        Self { address, over, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// The answer with that status, further header lines if there are any, and body; the connection ends then.
pub fn answer(status: u16, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} X{headers}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// The stranger who answers as a node would.
pub struct Impostor {
    stranger: Stranger,
    heard: Arc<Mutex<Vec<String>>>,
    writes: Arc<Mutex<(u16, bool)>>,
    stalls: Arc<AtomicBool>,
}

impl Impostor {
    /// Listens, and says to everybody that it is this run. All that nodes and commands look for is in its one
    /// answer, a value for any key included.
    pub fn start(run: u64) -> Self {
        let body = json!({
            "role": "root", "run": run, "joined": true, "root_ms": 0, "lease_ms": 3_600_000, "value": "poison",
            "position": 1, "path": ["NODE-1", "NODE-2"], "ancestors": [], "children": [],
            "depth": 2, "size": 3, "nodes": [],
        })
        .to_string();
        let (heard, stalls) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicBool>::default());
        let writes = Arc::new(Mutex::new((200, true)));
        let mut held = Vec::new();
        let (ears, says, stall) = (Arc::clone(&heard), Arc::clone(&writes), Arc::clone(&stalls));
        let stranger = Stranger::start(move |stream, request| {
            let (status, names_run) =
                if request.starts_with("PUT ") { *says.lock().expect("nobody panics") } else { (200, true) };
            let name = if names_run { format!("\r\nTree-Cache-Run: {run}") } else { String::new() };
            let request_is_fetch = request.starts_with("GET /copies/");
            // Before it answers: whoever has the answer may look at once.
            ears.lock().expect("nobody panics").push(request);
            if stall.load(Ordering::Relaxed) && request_is_fetch {
                let half = answer(200, "", &body);
                let _ = (&stream).write_all(&half.as_bytes()[..half.len() - 10]);
                held.push(stream);
                return;
            }
            // Who asked may have gone.
            let _ = (&stream).write_all(answer(status, &name, &body).as_bytes());
        });
        Self { stranger, heard, writes, stalls }
    }

    /// From now on it answers a `PUT` with that status, and says or does not say which run it is.
    pub fn answer_writes_with(&self, status: u16, names_run: bool) {
        *self.writes.lock().expect("nobody panics") = (status, names_run);
    }

    /// From now on it answers a fetch but for the end of its answer.
    pub fn stall(&self) {
        self.stalls.store(true, Ordering::Relaxed);
    }

    pub fn port(&self) -> u16 {
        self.stranger.address.port()
    }

    pub fn url(&self) -> String {
        self.stranger.url()
    }

    /// What it has been told since it was last asked this: a text for each request, headers and all.
    pub fn heard(&self) -> Vec<String> {
        std::mem::take(&mut self.heard.lock().expect("nobody panics"))
    }
}

/// Reads one request, its body too: who closes without reading it may lose the answer.
fn read_request(stream: &TcpStream) -> String {
    stream.set_read_timeout(Some(REQUEST_LIMIT)).expect("the time is not zero");
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    while let Ok(1..) = reader.read_line(&mut head) {
        let line = head[..head.len() - 1].rsplit('\n').next().unwrap_or_default().trim_end().to_lowercase();
        if line.is_empty() {
            break;
        }
        length = line.strip_prefix("content-length: ").map_or(length, |length| length.parse().expect("a length"));
    }
    let _ = reader.take(length).read_to_end(&mut Vec::new());
    head
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // So that it looks.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
