//! Sends the head of a request and its body at once: `ureq` alone hands the kernel each by itself, and whoever gets them
//! wakes twice.
//!
//! What `ureq` calls unversioned may change with any version of it, so Cargo.toml names one.

use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// The last link of the chain that opens a connection.
#[derive(Debug)]
pub struct OneSend;

/// A connection, and what is still to be sent on it: no more than fills its buffer, and only until an answer is waited for.
#[derive(Debug)]
pub struct Holding<T> {
    inner: T,
    held: Vec<u8>,
}

impl<T: Transport> Connector<T> for OneSend {
    type Out = Holding<T>;

    fn connect(&self, _: &ConnectionDetails, chained: Option<T>) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(|inner| Holding { inner, held: Vec::new() }))
    }
}

impl<T: Transport> Holding<T> {
    /// Sends what is held, by the buffer through which all must go.
    fn send_held(&mut self, timeout: NextTimeout) -> Result<(), Error> {
        let Self { inner, held } = self;
        let buffer_bytes = inner.buffers().output().len();
        let sent = held.chunks(buffer_bytes).try_for_each(|piece| {
            inner.buffers().output()[..piece.len()].copy_from_slice(piece);
            inner.transmit_output(piece.len(), timeout)
        });
        held.clear();
        sent
    }
}

impl<T: Transport> Transport for Holding<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let output = self.inner.buffers().output();
        let is_full = self.held.len() + amount > output.len();
        self.held.extend_from_slice(&output[..amount]);
        if is_full { self.send_held(timeout) } else { Ok(()) }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.send_held(timeout)?;
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }
}
