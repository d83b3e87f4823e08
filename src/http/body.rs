//! The body of a request: where it ends, how much of it is kept, and what is left of one that is refused.
//!
//! Invariants: a request whose body cannot be told from the next request is the last one of its connection. What is
//! refused is read to its end, into nothing, before it is answered: a proxy may already have another client's request
//! behind it. The bodies that are held at one moment, over all connections, have a bound.
//!
//! Left out: a limit on the line that begins a chunk, which `tiny_http` reads.

use std::fmt::Display;
use std::io::{self, ErrorKind, Read};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use chunked_transfer::Decoder;
use tiny_http::Request;

use super::server::{asks_for, find_header, find_headers};
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

    pub fn hold(&self) -> Held<'_> {
        Held { flight: self, bytes: 0 }
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

    fn clear(&mut self) {
        self.flight.held.fetch_sub(std::mem::take(&mut self.bytes), SeqCst);
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Reads a body of at most `max_bytes` as it comes.
pub fn read(request: &mut Request, max_bytes: usize, held: &mut Held) -> Result<Vec<u8>, Refused> {
    let length = read_length(request).map_err(Refused::last)?;
    let mut refused = None;
    if let Some(length) = length.filter(|length| *length > max_bytes) {
        let error = too_large(length, max_bytes);
        // Whoever asked first need not send it.
        if find_header(request, "Expect").is_some() || is_absurd(length) {
            return Err(Refused::last(error));
        }
        refused = Some(error);
    }
    let (mut body, mut read_bytes) = (Vec::new(), 0);
    let mut keep = |piece: &[u8]| {
        read_bytes += piece.len();
        if refused.is_some() {
            return;
        }
        let counted = (body.len() + piece.len()).saturating_sub(FREE_BYTES).min(piece.len());
        let kept = if read_bytes > max_bytes { Err(too_large("more", max_bytes)) } else { held.add(counted) };
        match kept {
            Ok(()) => body.extend_from_slice(piece),
            Err(error) => {
                (refused, body) = (Some(error), Vec::new());
                held.clear();
            }
        }
    };
    let result = match length {
        Some(0) => Ok(()),
        Some(length) => read_pieces(&mut request.as_reader().take(length as u64), &mut keep),
        // `tiny_http` leaves a connection that may change its protocol as it is.
        None if asks_for(request, "upgrade") => read_pieces(&mut Decoder::new(request.as_reader()), &mut keep),
        None => read_pieces(request.as_reader(), &mut keep),
    };
    if let Err(error) = result {
        let text = format!("the body broke off after {read_bytes} bytes: {error}");
        return Err(Refused::last(Kind::BadRequest.error(text)));
    }
    match (refused, length) {
        (Some(error), _) => Err(Refused { error, is_last: read_bytes >= MAX_DRAINED_BYTES }),
        // A body cut short reads as if it had been whole. In chunks this cannot be seen, but an object cut short is no JSON.
        (None, Some(length)) if read_bytes < length => {
            let text = format!("the body ended after {read_bytes} of {length} bytes");
            Err(Refused::last(Kind::BadRequest.error(text)))
        }
        (None, _) => Ok(body),
    }
}

fn read_pieces(reader: &mut dyn Read, keep: &mut impl FnMut(&[u8])) -> io::Result<()> {
    let mut piece = [0; PIECE_BYTES];
    let mut left = MAX_DRAINED_BYTES;
    while left > 0 {
        match reader.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => {
                keep(&piece[..count]);
                left = left.saturating_sub(count);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The declared length of a body; none: it comes in chunks.
fn read_length(request: &Request) -> Result<Option<usize>, Error> {
    let mut lengths = find_headers(request, "Content-Length");
    let mut codings = find_headers(request, "Transfer-Encoding");
    let text = match (codings.next(), codings.next(), lengths.next(), lengths.next()) {
        (None, _, None, _) => return Ok(Some(0)),
        (None, _, Some(text), None) => match read_digits(text) {
            Some(length) => return Ok(Some(length)),
            None => format!("Content-Length {text:?} is not a number of bytes"),
        },
        (None, _, _, Some(_)) => "there is more than one Content-Length".to_owned(),
        (Some(_), _, Some(_), _) => "there is a Content-Length and a Transfer-Encoding".to_owned(),
        (Some(coding), None, ..) if coding.eq_ignore_ascii_case("chunked") => {
            if *request.http_version() > (1, 0) {
                return Ok(None);
            }
            "HTTP/1.0 has no Transfer-Encoding".to_owned()
        }
        (Some(_), Some(_), ..) => "there is more than one Transfer-Encoding".to_owned(),
        (Some(coding), ..) => format!("Transfer-Encoding {coding:?} is not known; only chunked is"),
    };
    Err(Kind::BadRequest.error(text))
}

fn too_large(length: impl Display, max_bytes: usize) -> Error {
    Kind::ContentTooLarge.error(format!("the body has {length} bytes; at most {max_bytes} are allowed"))
}

/// Whether `tiny_http` must not be let near a body of that length. When the request is dropped, what is left of the
/// body is read into a buffer of the *declared* size: where that much cannot be had, the process aborts.
pub fn is_absurd(length: usize) -> bool {
    length > MAX_DRAINED_BYTES || Vec::<u8>::new().try_reserve_exact(length).is_err()
}
