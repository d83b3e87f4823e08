//! HTTP, on both sides: the API, the server under it, the page, and the client for the other nodes.
//!
//! `api` is where a call meets the node. `server` and `sentinel` know nothing of nodes, `client` and
//! `names` nothing of a node's state.

pub mod api;
mod body;
pub mod client;
mod names;
mod one_send;
mod page;
pub mod sentinel;
pub mod server;
