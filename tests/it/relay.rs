//! What stands for a name or for a network: a port whose connections lead to another one.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::thread;

/// Passes connections on, until they are cut: then they stay open and nothing gets through. It ends with the tests.
pub struct Relay {
    pub port: u16,
    to: Arc<AtomicU16>,
    cuts: Arc<AtomicU32>,
}

impl Relay {
    pub fn start(to: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let (to, cuts) = (Arc::new(AtomicU16::new(to)), Arc::<AtomicU32>::default());
        let (leads_to, told) = (Arc::clone(&to), Arc::clone(&cuts));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", leads_to.load(Ordering::Relaxed))) else { continue };
                let now = told.load(Ordering::Relaxed);
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let ends = (from.try_clone().expect("it is open"), to.try_clone().expect("it is open"));
                    let told = Arc::clone(&told);
                    thread::spawn(move || pass_on(ends, || told.load(Ordering::Relaxed) == now));
                }
            }
        });
        Self { port, to, cuts }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// New connections lead there.
    pub fn lead_to(&self, port: u16) {
        self.to.store(port, Ordering::Relaxed);
    }

    pub fn cut(&self) {
        self.cuts.fetch_add(1, Ordering::Relaxed);
    }
}

fn pass_on((mut from, mut to): (TcpStream, TcpStream), is_whole: impl Fn() -> bool) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if is_whole() && to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    if is_whole() {
        let _ = to.shutdown(Shutdown::Write);
    }
}
