//! HTTP, on both sides.

pub mod api;
pub mod client;
pub mod page;
pub mod pool;
pub mod sentinel;
pub mod server;
