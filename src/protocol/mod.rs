//! What travels between nodes, and between a node and its clients.

pub mod call;
pub mod error;
pub mod key;
