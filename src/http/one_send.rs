//! Sends the head of a request and its body at once: `ureq` alone hands the kernel each by itself, and whoever gets them
//! wakes twice.
//!
//! What `ureq` calls unversioned may change with any version of it, so Cargo.toml names one.

use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// The last link of the chain that opens a connection.
#[derive(Debug)]
pub struct OneSend;

/// A connection, and what is still to be sent on it: less than fills its buffer, and only until an answer is waited for.
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
    fn send_held(&mut self, timeout: NextTimeout) -> Result<(), Error> {
        self.inner.buffers().output()[..self.held.len()].copy_from_slice(&self.held);
        let sent = self.inner.transmit_output(self.held.len(), timeout);
        self.held.clear();
        sent
    }
}

impl<T: Transport> Transport for Holding<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let output = self.inner.buffers().output();
        if amount <= output.len() - self.held.len() {
            self.held.extend_from_slice(&output[..amount]);
            return Ok(());
        }
        // What is held is sent from the same buffer.
        let more = output[..amount].to_vec();
        self.send_held(timeout)?;
        self.held = more;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        if !self.held.is_empty() {
            self.send_held(timeout)?;
        }
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }
}
