//! Black-box tests: real processes, real sockets, and nothing known but what is promised to users.
//!
//! One binary, so that it is linked once. Every test starts its own nodes, on ports of their own: all
//! may run at once and in any order, beside a tree that somebody uses.

mod api;
mod body;
mod browser;
mod client;
mod coherence;
mod cuts;
mod door;
mod durable;
mod harness;
mod hostile;
mod hosts;
mod house;
mod impostor;
mod leases;
mod leaving;
mod local;
mod network;
mod page;
mod process;
mod program;
mod proxies;
mod random;
mod relay;
mod runs;
mod tree;
mod wrong_values;
mod zookeeper;
