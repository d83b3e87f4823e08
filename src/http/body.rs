//! The body of a request: where it ends, how much of it is kept, and what is left of one that is refused.
//!
//! Invariants: a request whose body cannot be told from the next request is the last one of its connection. What is
//! refused is read to its end, into nothing, before it is answered: a proxy may already have another client's request
//! behind it. The bodies that are held at one moment, over all connections, have a bound.
//!
//! Left out: a limit on the line that begins a chunk, which `tiny_http` reads.

use std::fmt::Display;
use std::io::{ErrorKind, Read};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use chunked_transfer::Decoder;
use tiny_http::Request;

use super::server::{asks_for, find_headers};
use crate::protocol::call::read_digits;
use crate::protocol::error::{Error, Kind};

/// So much of a refused body is read into nothing. Of what is longer, nothing is read.
const MAX_DRAINED_BYTES: usize = 1 << 30;

/// So much of each body is not counted: `tiny_http` reads it before it says that there is a request. So small writes
/// go on, however many large ones are stuck.
const FREE_BYTES: usize = 1 << 10;

/// Read at once.
const PIECE_BYTES: usize = 16 << 10;

/// Why a body is not kept.
pub struct Refused {
    pub error: Error,
    /// Something of it may be left, or it cannot be said where the next request begins.
    pub is_last: bool,
}

impl Refused {
    fn last(error: Error) -> Self {
        Self { error, is_last: true }
    }
}

/// The bodies that are held at this moment, in bytes.
pub struct Flight {
    held: AtomicUsize,
    max_bytes: usize,
}

/// What one body adds to a [`Flight`], until it is dropped.
pub struct Held<'a> {
    flight: &'a Flight,
    bytes: usize,
}

impl Flight {
    /// Room for four of the largest bodies, and for 64 MiB: so one that is allowed is never refused for its size.
    pub fn new(max_body_bytes: usize) -> Self {
        Self { held: AtomicUsize::new(0), max_bytes: (64 << 20).max(4 * max_body_bytes) }
    }
}

impl Held<'_> {
    /// Adds what has come, not what was promised: promises cost nothing.
    fn add(&mut self, bytes: usize) -> Result<(), Error> {
        let Flight { held, max_bytes } = self.flight;
        let more = |held| Some(held + bytes).filter(|held| held <= max_bytes);
        if held.fetch_update(SeqCst, SeqCst, more).is_err() {
            let text = format!("the bodies that this node is receiving have {max_bytes} bytes; it was not applied");
            return Err(Kind::ServiceUnavailable.error(text));
        }
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.flight.held.fetch_sub(self.bytes, SeqCst);
    }
}

/// Reads a body of at most `max_bytes` as it comes, and counts it in the flight for as long as it is held.
pub fn read<'a>(request: &mut Request, max_bytes: usize, flight: &'a Flight) -> Result<(Vec<u8>, Held<'a>), Refused> {
    let mut held = Held { flight, bytes: 0 };
    let length = read_length(request).map_err(Refused::last)?;
    let mut refused = length.filter(|length| *length > max_bytes).map(|length| too_large(length, max_bytes));
    // Whoever asked first need not send it.
    let is_left = || find_headers(request, "Expect").next().is_some() || length.is_some_and(is_absurd);
    if let Some(error) = refused.take_if(|_| is_left()) {
        return Err(Refused::last(error));
    }
    let mut reader: Box<dyn Read> = match length {
        Some(0) => return Ok((Vec::new(), held)),
        Some(length) => Box::new(request.as_reader().take(length as u64)),
        // `tiny_http` leaves a connection that may change its protocol as it is.
        None if asks_for(request, "upgrade") => Box::new(Decoder::new(request.as_reader())),
        None => Box::new(request.as_reader()),
    };
    let (mut body, mut read_bytes, mut piece) = (Vec::new(), 0, [0; PIECE_BYTES]);
    while read_bytes < MAX_DRAINED_BYTES {
        let count = match reader.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(broken(&format!("broke off after {read_bytes} bytes: {error}"))),
        };
        read_bytes += count;
        if refused.is_none() {
            let counted = count.min(read_bytes.saturating_sub(FREE_BYTES));
            refused = if read_bytes > max_bytes { Err(too_large("more", max_bytes)) } else { held.add(counted) }.err();
            body.extend_from_slice(&piece[..count]);
        }
        if refused.is_some() {
            (body, held) = (Vec::new(), Held { flight, bytes: 0 });
        }
    }
    match (refused, length) {
        (Some(error), _) => Err(Refused { error, is_last: read_bytes >= MAX_DRAINED_BYTES }),
        // A body cut short reads as if it had been whole. In chunks this cannot be seen, but an object cut short is no JSON.
        (None, Some(length)) if read_bytes < length => {
            Err(broken(&format!("ended after {read_bytes} of {length} bytes")))
        }
        (None, _) => Ok((body, held)),
    }
}

/// So much came of a body whose end is not known.
fn broken(what: &str) -> Refused {
    Refused::last(Kind::BadRequest.error(format!("the body {what}")))
}

/// The declared length of a body; none: it comes in chunks. Whatever else says where it ends, two readers of it might not
/// agree.
fn read_length(request: &Request) -> Result<Option<usize>, Error> {
    let lengths: Vec<_> = find_headers(request, "Content-Length").collect();
    let codings: Vec<_> = find_headers(request, "Transfer-Encoding").collect();
    let has_chunks = *request.http_version() > (1, 0);
    let length = match (&lengths[..], &codings[..]) {
        ([], []) => Some(Some(0)),
        ([length], []) => read_digits(length).map(Some),
        ([], [coding]) if has_chunks && coding.eq_ignore_ascii_case("chunked") => Some(None),
        _ => None,
    };
    length.ok_or_else(|| {
        let said = format!("Content-Length {lengths:?} and Transfer-Encoding {codings:?}");
        Kind::BadRequest.error(format!("{said} do not say where the body ends"))
    })
}

fn too_large(length: impl Display, max_bytes: usize) -> Error {
    Kind::ContentTooLarge.error(format!("the body has {length} bytes; at most {max_bytes} are allowed"))
}

/// Whether `tiny_http` must not be let near a body of that length. When the request is dropped, what is left of the
/// body is read into a buffer of the *declared* size: where that much cannot be had, the process aborts.
pub fn is_absurd(length: usize) -> bool {
    length > MAX_DRAINED_BYTES || Vec::<u8>::new().try_reserve_exact(length).is_err()
}
