//! Threads that take turns, on a real socket, with handlers that wait, panic or count.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::sync::Barrier;

use super::*;

/// For whatever a client waits for; generous, for the machine may be busy.
const LIMIT: Duration = Duration::from_secs(20);

/// Serves with that handler until the test is over.
fn start(handler: impl Fn(&Incoming) -> Answer + Send + Sync + 'static) -> SocketAddr {
    let listener = listen(([127, 0, 0, 1], 0).into()).expect("some port is free");
    let address = listener.local_addr().expect("it listens");
    let handler = move |incoming: Result<Incoming, Error>| handler(&incoming.expect("a sound request"));
    serve(listener, 1000, Box::new(handler), |error| panic!("{error}")).expect("threads can be started");
    address
}

fn ask(address: SocketAddr, paths: &[&str]) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(address).expect("it accepts");
    stream.set_read_timeout(Some(LIMIT)).expect("the time is not zero");
    for path in paths {
        write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").expect("the connection is open");
    }
    BufReader::new(stream)
}

/// The statuses of that many answers, none of which has a line in its body that begins like one.
fn statuses(answers: impl BufRead, count: usize) -> Vec<String> {
    let lines = answers.split(b'\n').map(|line| line.expect("it answers in time"));
    let lines = lines.map(|line| String::from_utf8_lossy(&line).into_owned());
    lines.filter_map(|line| Some(line.strip_prefix("HTTP/1.1 ")?[..3].to_owned())).take(count).collect()
}

#[test]
fn no_request_waits_for_another_to_be_answered() {
    let barrier = Barrier::new(50);
    let address = start(move |incoming| {
        // Not the sentinel, which would take the place of one of the fifty.
        if incoming.request.url() == "/together" {
            barrier.wait();
        }
        Answer::json(200, b"\n".to_vec())
    });
    for _ in 0..2 {
        let streams: Vec<_> = (0..50).map(|_| ask(address, &["/together"])).collect();
        for stream in streams {
            assert_eq!(statuses(stream, 1), ["200"]);
        }
    }
}

#[test]
fn a_panic_ends_one_request_and_no_thread() {
    let address = start(|incoming| {
        assert_ne!(incoming.request.url(), "/panic", "on purpose");
        Answer::json(200, b"\n".to_vec())
    });
    for _ in 0..=SPARE_THREADS {
        assert_eq!(statuses(ask(address, &["/panic", "/"]), 2), ["500", "200"]);
    }
}

#[test]
fn a_connection_never_has_more_than_one_thread() {
    let (now, most) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let address = start(move |incoming| {
        // The sentinel asks too, on a connection of its own.
        if incoming.request.url() == "/counted" {
            seen.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            thread::yield_now();
            now.fetch_sub(1, SeqCst);
        }
        Answer::json(200, b"\n".to_vec())
    });
    assert_eq!(statuses(ask(address, &["/counted"; 500]), 500), ["200"; 500]);
    assert_eq!(most.load(SeqCst), 1);
}

#[test]
fn pipelined_requests_stay_in_their_order_and_none_is_stuck() {
    let address =
        start(|incoming| Answer::json(if incoming.request.url() == "/first" { 201 } else { 202 }, b"\n".to_vec()));
    let client = || {
        let (mut stream, pair) = (ask(address, &[]), "GET /first HTTP/1.1\r\n\r\nGET /second HTTP/1.1\r\n\r\n");
        for _ in 0..2000 {
            stream.get_mut().write_all(pair.as_bytes()).expect("the connection is open");
            assert_eq!(statuses(&mut stream, 2), ["201", "202"]);
        }
    };
    thread::scope(|threads| (0..16).for_each(|_| drop(threads.spawn(client))));
}
