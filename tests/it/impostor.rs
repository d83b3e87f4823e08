//! A stranger who answers whatever it is asked as a node would, and keeps what it was told.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::json;

/// How long it waits for the rest of a request.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// The stranger; gone when dropped.
pub struct Impostor {
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Impostor {
    /// Listens, and says to everybody that it is this run. All that nodes and commands look for is in its one
    /// answer, a value for any key included.
    pub fn start(run: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("some port is free");
        let address = listener.local_addr().expect("it listens");
        let body = json!({
            "run": run, "joined": true, "lease_ms": 3_600_000, "value": "poison",
            "position": 1, "path": ["NODE-1", "NODE-2"], "ancestors": [], "children": [],
            "depth": 2, "size": 3, "nodes": [],
        })
        .to_string();
        let answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let (heard, over) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicBool>::default());
        let (ears, ends) = (Arc::clone(&heard), Arc::clone(&over));
        let thread = thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok).take_while(|_| !ends.load(Ordering::Relaxed)) {
                let request = read_request(&stream);
                // Before it answers: whoever has the answer may look at once.
                ears.lock().expect("nobody panics").push(request);
                // Who asked may have gone.
                let _ = (&stream).write_all(answer.as_bytes());
            }
        });
        Self { address, heard, over, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it has been told since it was last asked this: a text for each request, headers and all.
    pub fn heard(&self) -> Vec<String> {
        std::mem::take(&mut self.heard.lock().expect("nobody panics"))
    }
}

/// Reads one request without its body.
fn read_request(mut stream: &TcpStream) -> String {
    stream.set_read_timeout(Some(REQUEST_LIMIT)).expect("the time is not zero");
    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(count @ 1..) => request.extend_from_slice(&buffer[..count]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&request).into_owned()
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // So that it looks.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
