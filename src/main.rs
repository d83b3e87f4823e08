//! tree-cache: a distributed cache whose nodes form a binary tree.
//!
//! Reads climb. Writes jump to the root. Invalidations descend.
//!
//! This file is the boot, top to bottom: configuration, listen, serve, join, register. The rooms, in reading
//! order: [`tree`], [`cache`], [`node`], [`protocol`], [`http`], [`zookeeper`]; beside them [`config`],
//! [`metrics`] and [`show`].

mod cache;
mod config;
mod http;
mod metrics;
mod node;
mod protocol;
mod show;
mod tree;
mod zookeeper;

use std::io::Write;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use config::Config;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use http::client::Client;
use http::server::{self, Server};
use http::{api, sentinel};
use node::{Node, durable, join};

/// How long `tree-cache health` waits.
const HEALTH_LIMIT: Duration = Duration::from_secs(2);

/// A signal that comes sooner after the first one is the same: Ctrl-C comes twice through a shell.
const SECOND_SIGNAL: Duration = Duration::from_secs(1);

/// What the program ends with goes here.
type End = mpsc::Sender<Result<(), String>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        [] => run(),
        ["health"] => health(),
        ["show"] => show::show(None),
        ["show", url] => show::show(Some(url)),
        ["--version"] => {
            // Whoever asked may have stopped reading.
            let _ = writeln!(std::io::stdout(), "tree-cache {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        _ => {
            eprintln!("usage: tree-cache [health | show [URL] | --version]");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tree-cache: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs this node until something ends it.
fn run() -> Result<(), String> {
    let config = Config::from_env()?;
    start_log(&config);
    let signals = Signals::new([SIGTERM, SIGINT]).map_err(|error| format!("could not wait for signals: {error}"))?;
    // A connection takes two descriptors, and the usual 1,024 are soon gone. Where more may not be had, so be it.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        log::warn!("could not raise the limit of descriptors: {error}");
    }
    let address = SocketAddr::new(config.bind_addr, config.api_port);
    let listener = server::listen(address).map_err(|error| format!("could not listen on {address}: {error}"))?;
    let address = listener.local_addr().map_err(|error| format!("could not listen on {address}: {error}"))?;
    if !config.bind_addr.is_loopback() && config.token.is_none() {
        log::warn!("{address} can be reached from other machines, and without TREE_TOKEN anybody can pose as a node");
    }

    // Serving comes before joining: the root asks a node that joins whether it can be reached.
    let node = Arc::new(Node::new(config, address));
    let answering = Arc::clone(&node);
    let handler = move |incoming: Result<server::Incoming, _>| api::handle(&answering, incoming);
    let (end, ended) = mpsc::channel();
    let fatal = end.clone();
    let report = move |error| drop(fatal.send(Err(error)));
    let server = server::serve(listener, node.config.max_value_bytes, Box::new(handler), report)
        .map_err(|error| format!("could not serve {address}: {error}"))?;

    let (leaving, swept) = (Arc::clone(&node), Arc::clone(&node));
    start_thread("signals", &end, move |end| leave_when_told(leaving, server, signals, end))?;
    start_thread("sweep", &end, move |_| swept.keep_swept())?;
    start_thread("join", &end, move |end| take_part(&node, address, end))?;
    ended.recv().expect("the server never lets go of its sender")
}

/// Gets this node its place, and keeps it.
fn take_part(node: &Arc<Node>, address: SocketAddr, end: &End) -> Result<(), String> {
    if node.config.is_root() {
        let (durable, lease) = durable::take_over(node)?;
        join::expect_alone(node)?;
        let places = crate::zookeeper::find_tree(node)?;
        node.take_table(places, lease);
        if let Some(durable) = durable {
            let committing = Arc::clone(node);
            start_thread("commit", end, move |_| durable::keep_committing(&committing, &durable))?;
        }
    }
    join::join_root(node)?;
    // Whoever started us may have stopped reading.
    let _ = writeln!(std::io::stdout(), "{} listening on http://{address}", node.myself.name);
    let registered = Arc::clone(node);
    start_thread("registry", end, move |_| crate::zookeeper::keep_registered(&registered))?;
    join::keep_joined(node)
}

/// Waits for the signal to leave, and has the program end with 0 when it has left; at a second signal it ends at once.
fn leave_when_told(node: Arc<Node>, server: Arc<Server>, mut signals: Signals, end: &End) -> Result<(), String> {
    let mut signals = signals.forever();
    signals.next();
    let began = Instant::now();
    log::info!("leaving: waiting until no other node has this one on record");
    start_thread("leave", end, move |end| {
        let limit = join::leave(&node);
        server.close(limit);
        log::info!("left after {:.1?}", began.elapsed());
        // Nobody else waits for the end.
        let _ = end.send(Ok(()));
        Ok(())
    })?;
    signals.find(|_| began.elapsed() >= SECOND_SIGNAL);
    Err("ended at once, by a second signal".to_owned())
}

/// Starts a thread. An error in which its work ends is one for the whole program, and so is a panic: without this thread
/// a node would live on that does half of its work.
fn start_thread(
    name: &str,
    end: &End,
    work: impl FnOnce(&End) -> Result<(), String> + Send + 'static,
) -> Result<(), String> {
    let end = end.clone();
    let panicked = format!("the thread {name:?} panicked");
    let work = move || {
        let ended = catch_unwind(AssertUnwindSafe(|| work(&end))).unwrap_or(Err(panicked));
        ended.unwrap_or_else(|error| drop(end.send(Err(error))));
    };
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(drop).map_err(|error| format!("could not start the thread {name:?}: {error}"))
}

/// Logs go to stderr, one line each, with the node's name: several nodes may share a terminal.
fn start_log(config: &Config) {
    let name = config.node_name();
    env_logger::Builder::new()
        // The libraries only warn: ureq would trace every byte that is sent, the token's among them.
        .filter_level(config.log_level.min(log::LevelFilter::Warn))
        .filter_module("tree_cache", config.log_level)
        // Without its server this crate logs 65,000 lines a second; what they mean is logged by us.
        .filter_module("zookeeper", log::LevelFilter::Off)
        // What it says before it stops accepting is said by us, if we did not ask it to.
        .filter_module("tiny_http", log::LevelFilter::Off)
        .format(move |out, record| writeln!(out, "{name} {}: {}", record.level(), record.args()))
        .init();
    // A panic is a broken invariant, or one that tiny_http is known for, which a client causes by a reset.
    std::panic::set_hook(Box::new(|panic| {
        let is_ours = panic.location().is_none_or(|location| !location.file().contains("tiny_http"));
        let level = if is_ours { log::Level::Error } else { log::Level::Debug };
        log::log!(level, "{}", panic.to_string().replace('\n', " "));
    }));
}

/// Exits with 0 if the node of this configuration runs and has its place.
fn health() -> Result<(), String> {
    let config = Config::of_any_node()?;
    let url = format!("http://{}", sentinel::reachable(SocketAddr::new(config.bind_addr, config.api_port)));
    match Client::new(None).ask_identity(&url, HEALTH_LIMIT) {
        Ok(identity) if identity.joined => Ok(()),
        Ok(_) => Err(format!("the node at {url} has not joined yet")),
        Err(error) => Err(format!("no node at {url}: {error}")),
    }
}
