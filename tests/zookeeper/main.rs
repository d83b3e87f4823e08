//! The tree in a real ZooKeeper. Each test starts a private one, and looks at it with ZooKeeper's own client.
//!
//! They need Java and ZooKeeper's jar, so plain `cargo test` leaves them out; `make test` runs them, and then
//! they fail where ZooKeeper cannot be started.

#[path = "../black_box/client.rs"]
#[allow(dead_code, unused_imports, reason = "the other suite uses the rest")]
mod client;
#[path = "../black_box/harness.rs"]
#[allow(dead_code, unused_imports, reason = "the other suite uses the rest")]
mod harness;
#[path = "../black_box/impostor.rs"]
mod impostor;
mod outage;
#[path = "../black_box/process.rs"]
#[allow(dead_code, unused_imports, reason = "the other suite uses the rest")]
mod process;
mod recovery;
mod registration;
mod server;
