//! The configuration: environment variables, turned into a checked [`Config`] at the start.
//!
//! Invariant: a `Config` that exists is usable as a whole. Nothing else in the program reads the
//! environment, and every wrong value is refused here, before a socket is opened.
//! Left out: `STARTUP_DELAY`, which only the Vagrantfile reads.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use log::LevelFilter;
use ureq::http::uri::Authority;

use crate::tree;

/// What one node is told from outside.
#[derive(Debug, Clone)]
pub struct Config {
    /// 1 is a tree of the root alone.
    pub tree_depth: u32,
    /// 0 takes a free one.
    pub api_port: u16,
    pub root_id: u32,
    pub node_id: u32,
    /// Where to listen.
    pub bind_addr: IpAddr,
    /// How other nodes reach this one, where it was given; see [`Config::url_at`].
    pub node_url: Option<String>,
    /// Where to join.
    pub root_url: String,
    /// Whether that was given, and is not the default.
    pub is_root_url_given: bool,
    /// A copy's life; only the root's counts.
    pub lease: Duration,
    /// The largest body of a `PUT`.
    pub max_value_bytes: usize,
    /// What this node holds at most.
    pub max_store_bytes: usize,
    /// Where the root keeps its entries; none: in memory alone.
    pub data_dir: Option<PathBuf>,
    /// There was no tree before: an empty `data_dir` need not be waited for.
    pub new_tree: bool,
    /// ZooKeeper's servers, `host:port` each; none: this node does not register.
    pub zookeeper: Vec<String>,
    /// The shared secret of the nodes.
    pub token: Option<String>,
    /// Names of this node in a `Host` beyond those that [`Config::allows_host`] knows; `*`: any.
    pub allowed_hosts: Vec<String>,
    pub log_level: LevelFilter,
}

impl Config {
    /// Reads the environment of this process. The error names the first variable whose value is not allowed, the
    /// value, and what is allowed.
    pub fn from_env() -> Result<Self, String> {
        Self::from_lookup(from_env)
    }

    /// The same for whoever is no node, and needs no id.
    pub fn of_any_node() -> Result<Self, String> {
        Self::from_lookup(|name| if name == "NODE_ID" { Some("1".to_owned()) } else { from_env(name) })
    }

    /// Reads the variables through `lookup`, so that tests need not touch the real environment.
    pub fn from_lookup(lookup: impl Fn(&'static str) -> Option<String>) -> Result<Self, String> {
        let env = Lookup(lookup);
        let (whole, url) = ("a whole number", "a URL of the form http://host:port");
        let tree_depth = env.number("TREE_DEPTH", 3, (whole, 1, tree::MAX_DEPTH))?;
        let last_id = tree::size(tree_depth);
        let root_id = env.number("ROOT_NODE_ID", 1, (whole, 1, last_id))?;
        let api_port = env.number("API_PORT", 5000, (whole, 0, u16::MAX))?;
        let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let bind_addr = env.parse("BIND_ADDR", localhost, "an IP address, such as 127.0.0.1 or 0.0.0.0")?;
        let default_url = match bind_addr {
            IpAddr::V4(address) if address.is_loopback() => "http://127.0.0.1:5000".to_owned(),
            IpAddr::V6(address) if address.is_loopback() => "http://[::1]:5000".to_owned(),
            _ => format!("http://{}:{api_port}", tree::name(root_id)),
        };
        let root_url = env.get("ROOT_URL", url, base_url)?;
        let is_root_url_given = root_url.is_some();
        let node_id = env.number("NODE_ID", if is_root_url_given { 0 } else { root_id }, (whole, 1, last_id))?;
        if node_id == 0 {
            // Whoever joins somewhere and forgets who it is must not become a second root.
            return Err(format!("NODE_ID must be {whole} from 1 to {last_id} where ROOT_URL is set"));
        }
        let lease = env.number("LEASE_SECONDS", 5.0, ("a number of seconds", 0.1, 3600.0))?;
        Ok(Self {
            tree_depth,
            api_port,
            root_id,
            node_id,
            bind_addr,
            node_url: env.get("NODE_URL", url, base_url)?,
            root_url: root_url.unwrap_or(default_url),
            is_root_url_given,
            lease: Duration::from_secs_f64(lease),
            max_value_bytes: env.number("MAX_VALUE_BYTES", 1 << 20, (whole, 1, 1 << 30))?,
            max_store_bytes: env.number("MAX_STORE_BYTES", 256 << 20, (whole, 1, usize::MAX))?,
            data_dir: env.get("DATA_DIR", "a folder, in UTF-8", |text| Some(text.into()))?,
            new_tree: env.get("NEW_TREE", "1, or unset", |text| Some(()).filter(|()| text == "1"))?.is_some(),
            zookeeper: env.get("ZOOKEEPER", "host:port[,host:port…]", servers)?.unwrap_or_default(),
            token: env.token()?,
            allowed_hosts: env.get("ALLOWED_HOSTS", "names of hosts, by commas, or *", hosts)?.unwrap_or_default(),
            log_level: env.parse("RUST_LOG", LevelFilter::Info, "off, error, warn, info, debug or trace")?,
        })
    }

    pub fn is_root(&self) -> bool {
        self.node_id == self.root_id
    }

    pub fn node_name(&self) -> String {
        tree::name(self.node_id)
    }

    /// Whether a `Host` can be a name of this node. Else it may be a name that a stranger had resolved to this address, so
    /// that a browser takes the stranger's page for one of ours (DNS rebinding). Addresses, names without a dot and
    /// these two endings nobody can have resolved for others.
    pub fn allows_host(&self, host: &str) -> bool {
        let is_of = |url: &String| url.strip_prefix("http://").and_then(host_of).as_deref() == Some(host);
        !host.contains('.')
            || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
            || host.ends_with(".localhost")
            || host.ends_with(".internal")
            || self.allowed_hosts.iter().any(|name| name == host || name == "*")
            || is_of(&self.root_url)
            || self.node_url.as_ref().is_some_and(is_of)
    }

    /// The URL at which other nodes reach this one, once it listens on `port`.
    pub fn url_at(&self, port: u16) -> String {
        match &self.node_url {
            Some(url) => url.clone(),
            None if self.bind_addr.is_unspecified() => format!("http://{}:{port}", self.node_name()),
            None => format!("http://{}", SocketAddr::new(self.bind_addr, port)),
        }
    }
}

/// A value that is no UTF-8 becomes one with a replacement character, which no variable allows: it would be another value.
fn from_env(name: &'static str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

struct Lookup<F>(F);

impl<F: Fn(&'static str) -> Option<String>> Lookup<F> {
    /// What `read` makes of a variable's value.
    fn get<T>(&self, name: &'static str, allowed: &str, read: impl Fn(&str) -> Option<T>) -> Result<Option<T>, String> {
        // An empty variable counts as unset: Compose files and units have no other way to unset one.
        let Some(value) = (self.0)(name).filter(|value| !value.is_empty()) else { return Ok(None) };
        let read = read(&value).filter(|_| !value.contains(char::REPLACEMENT_CHARACTER));
        read.map(Some).ok_or_else(|| refuse(name, &value, allowed))
    }

    fn parse<T: FromStr>(&self, name: &'static str, default: T, allowed: &str) -> Result<T, String> {
        Ok(self.get(name, allowed, |value| value.parse().ok())?.unwrap_or(default))
    }

    fn number<T>(&self, name: &'static str, default: T, (kind, least, most): (&str, T, T)) -> Result<T, String>
    where
        T: FromStr + PartialOrd + Display,
    {
        let is_allowed = |value: &T| *value >= least && *value <= most;
        let allowed = format!("{kind} from {least} to {most}");
        // Rust takes a sign for a part of a number; here it is a mistake.
        let read = |value: &str| Some(value).filter(|value| !value.starts_with('+'))?.parse().ok().filter(is_allowed);
        Ok(self.get(name, &allowed, read)?.unwrap_or(default))
    }

    /// The token, or what the file has that is named in its place. An empty one would open the tree to anybody.
    fn token(&self) -> Result<Option<String>, String> {
        let allowed = "visible ASCII characters without a space";
        let is_token = |token: &String| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        let file = self.get("TREE_TOKEN_FILE", "a file", |file| Some(file.to_owned()))?;
        match ((self.0)("TREE_TOKEN"), file) {
            // The value is a secret, even when it is a wrong one.
            (Some(token), None) if !is_token(&token) => Err(refuse("TREE_TOKEN", "…", allowed)),
            (token, None) => Ok(token),
            (Some(_), Some(file)) => Err(refuse("TREE_TOKEN_FILE", &file, "unset where TREE_TOKEN is set")),
            (None, Some(file)) => {
                let refused = |allowed: String| refuse("TREE_TOKEN_FILE", &file, &allowed);
                // A token is short, and some files have no end.
                let text = File::open(&file).and_then(|file| io::read_to_string(file.take(4096)));
                let text = text.map_err(|error| refused(format!("a file that can be read: {error}")))?;
                let token = Some(text.trim_end().to_owned()).filter(is_token);
                token.map(Some).ok_or_else(|| refused(format!("a file with {allowed}")))
            }
        }
    }
}

fn refuse(variable: &str, value: &str, allowed: &str) -> String {
    format!("{variable}={value:?}: must be {allowed}")
}

fn servers(text: &str) -> Option<Vec<String>> {
    let read = |server: &str| split_authority(server)?.1.filter(is_port).map(|_| server.to_owned());
    text.split(',').map(read).collect()
}

fn hosts(text: &str) -> Option<Vec<String>> {
    // Any host, or this one: no patterns, and no other separators, which would match nothing.
    let is_label = |label: &str| !label.is_empty() && !label.contains(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let is_name = |host: &String| host.starts_with('[') || host.split('.').all(is_label);
    let read = |host: &str| if host == "*" { Some(host.to_owned()) } else { host_of(host).filter(is_name) };
    text.split(',').map(read).collect()
}

/// The host in the value of a `Host`, in lower case and without its port; none: it is malformed.
pub fn host_of(text: &str) -> Option<String> {
    let (host, _) = split_authority(text)?;
    Some(host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()).filter(|host| !host.is_empty())
}

/// The part of `text` that a path can be appended to, if it is a plain `http://host[:port]`.
pub fn base_url(text: &str) -> Option<String> {
    let authority = text.strip_prefix("http://")?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let (_, port) = split_authority(authority)?;
    port.as_ref().is_none_or(is_port).then(|| format!("http://{authority}"))
}

/// Host and port, which is digits, of a plain `host[:port]`.
fn split_authority(text: &str) -> Option<(&str, Option<&str>)> {
    let authority = Authority::from_str(text).ok()?;
    let (host, rest) = text.split_at_checked(authority.host().len())?;
    let port = rest.strip_prefix(':').filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    // Where somebody is named before the host, as in `me@host`, the text begins with another one.
    let is_plain = host == authority.host() && !host.is_empty() && (rest.is_empty() || port.is_some());
    is_plain.then_some((host, port))
}

/// Whether one can connect to it.
fn is_port(port: &&str) -> bool {
    port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests;
