//! What travels between nodes, and between a node and its clients: both ends of each thing side by side.
//!
//! A request is a [`call::Call`], its key a path segment ([`key`]), its body and its answer's one of [`messages`],
//! its refusal an [`error::Error`].

pub mod call;
pub mod error;
pub mod key;
pub mod messages;
