//! What a node holds and has promised.

pub mod leases;
pub mod store;
pub mod value;

#[cfg(test)]
mod simulation;
