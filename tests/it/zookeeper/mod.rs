//! The tree in a real ZooKeeper. Each test starts a private one, and looks at it with ZooKeeper's own client.
//!
//! They need Java and ZooKeeper's jar, so plain `cargo test` leaves them out; `make test` runs them, and then
//! they fail where ZooKeeper cannot be started.

mod outage;
mod recovery;
mod registration;
mod roots;
mod server;
