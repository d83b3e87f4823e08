//! The configuration: environment variables, turned into a checked [`Config`] at the start.
//!
//! Invariant: a `Config` that exists is usable as a whole. Nothing else in the program reads the
//! environment, and every wrong value is refused here, before a socket is opened.
//! Left out: `STARTUP_DELAY`, which only the Vagrantfile reads.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use log::LevelFilter;
use ureq::http::Uri;

use crate::tree;

/// What one node is told from outside.
#[derive(Debug, Clone)]
pub struct Config {
    /// Depth of the tree; a root alone has depth 1.
    pub tree_depth: u32,
    /// Port of the API; 0 takes a free one.
    pub api_port: u16,
    /// Id of the root.
    pub root_id: u32,
    /// Id of this node.
    pub node_id: u32,
    /// Address to listen on.
    pub bind_addr: IpAddr,
    /// How other nodes reach this one, where it was given; see [`Config::url_at`].
    pub node_url: Option<String>,
    /// Where to join.
    pub root_url: String,
    /// A copy's life; only the root's counts.
    pub lease: Duration,
    /// Largest body of a `PUT`.
    pub max_value_bytes: usize,
    /// What this node holds at most.
    pub max_store_bytes: usize,
    /// ZooKeeper's servers, `host:port` each; none: this node does not register.
    pub zookeeper: Vec<String>,
    /// The shared secret of the nodes.
    pub token: Option<String>,
    /// How much is logged.
    pub log_level: LevelFilter,
}

/// A variable with a value that is not allowed.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    variable: &'static str,
    value: String,
    allowed: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={:?}: must be {}", self.variable, self.value, self.allowed)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads the environment of this process.
    ///
    /// # Errors
    /// The first variable whose value is not allowed.
    pub fn from_env() -> Result<Self, ConfigError> {
        // A value that is no UTF-8 becomes one with a replacement character, which no variable allows.
        Self::from_lookup(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    /// Reads the variables through `lookup`, so that tests need not touch the real environment.
    ///
    /// # Errors
    /// The first variable whose value is not allowed.
    pub fn from_lookup(lookup: impl Fn(&'static str) -> Option<String>) -> Result<Self, ConfigError> {
        let env = Lookup(lookup);
        let tree_depth = env.number("TREE_DEPTH", 3, 1, tree::MAX_DEPTH)?;
        let last_id = tree::size(tree_depth);
        let root_id = env.number("ROOT_NODE_ID", 1, 1, last_id)?;
        let api_port = env.number("API_PORT", 5000, 0, u16::MAX)?;
        let bind_addr = env.parse("BIND_ADDR", "127.0.0.1", "an IP address, such as 127.0.0.1 or 0.0.0.0")?;
        let root_url = match env.url("ROOT_URL")? {
            Some(url) => url,
            None if IpAddr::is_loopback(&bind_addr) => "http://127.0.0.1:5000".to_owned(),
            None => format!("http://{}:{api_port}", tree::name(root_id)),
        };
        Ok(Self {
            tree_depth,
            api_port,
            root_id,
            node_id: env.number("NODE_ID", root_id, 1, last_id)?,
            bind_addr,
            node_url: env.url("NODE_URL")?,
            root_url,
            lease: env.seconds("LEASE_SECONDS", 5.0, 0.1, 3600.0)?,
            max_value_bytes: env.number("MAX_VALUE_BYTES", 1 << 20, 1, 1 << 30)?,
            max_store_bytes: env.number("MAX_STORE_BYTES", 256 << 20, 1, usize::MAX)?,
            zookeeper: env.servers("ZOOKEEPER")?,
            token: env.token("TREE_TOKEN")?,
            log_level: env.parse("RUST_LOG", "info", "off, error, warn, info, debug or trace")?,
        })
    }

    /// Whether this node is the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.node_id == self.root_id
    }

    /// The name of this node.
    #[must_use]
    pub fn node_name(&self) -> String {
        tree::name(self.node_id)
    }

    /// The URL at which other nodes reach this one, once it listens on `port`.
    #[must_use]
    pub fn url_at(&self, port: u16) -> String {
        match &self.node_url {
            Some(url) => url.clone(),
            None if self.bind_addr.is_unspecified() => format!("http://{}:{port}", self.node_name()),
            None => format!("http://{}", SocketAddr::new(self.bind_addr, port)),
        }
    }
}

struct Lookup<F>(F);

impl<F: Fn(&'static str) -> Option<String>> Lookup<F> {
    fn parse<T: FromStr>(&self, variable: &'static str, default: &str, allowed: &str) -> Result<T, ConfigError> {
        let value = (self.0)(variable).unwrap_or_else(|| default.to_owned());
        value.parse().map_err(|_| refuse(variable, value, allowed))
    }

    fn number<T>(&self, variable: &'static str, default: T, least: T, most: T) -> Result<T, ConfigError>
    where
        T: FromStr + PartialOrd + fmt::Display + Copy,
    {
        let Some(value) = (self.0)(variable) else { return Ok(default) };
        match value.parse() {
            Ok(number) if number >= least && number <= most => Ok(number),
            _ => Err(refuse(variable, value, &format!("a whole number from {least} to {most}"))),
        }
    }

    fn seconds(&self, variable: &'static str, default: f64, least: f64, most: f64) -> Result<Duration, ConfigError> {
        let Some(value) = (self.0)(variable) else { return Ok(Duration::from_secs_f64(default)) };
        match value.parse() {
            Ok(seconds) if seconds >= least && seconds <= most => Ok(Duration::from_secs_f64(seconds)),
            _ => Err(refuse(variable, value, &format!("a number of seconds from {least} to {most}"))),
        }
    }

    fn url(&self, variable: &'static str) -> Result<Option<String>, ConfigError> {
        let Some(value) = (self.0)(variable) else { return Ok(None) };
        match base_url(&value) {
            Some(url) => Ok(Some(url)),
            None => Err(refuse(variable, value, "a URL of the form http://host:port")),
        }
    }

    fn servers(&self, variable: &'static str) -> Result<Vec<String>, ConfigError> {
        let Some(value) = (self.0)(variable) else { return Ok(Vec::new()) };
        if value.split(',').all(is_server) {
            Ok(value.split(',').map(str::to_owned).collect())
        } else {
            Err(refuse(variable, value, "host:port[,host:port…]"))
        }
    }

    fn token(&self, variable: &'static str) -> Result<Option<String>, ConfigError> {
        match (self.0)(variable) {
            Some(token) if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) => {
                // The value is a secret, even when it is a wrong one.
                Err(refuse(variable, "…".to_owned(), "visible ASCII characters without a space"))
            }
            token => Ok(token),
        }
    }
}

fn refuse(variable: &'static str, value: String, allowed: &str) -> ConfigError {
    ConfigError { variable, value, allowed: allowed.to_owned() }
}

/// The part of `text` that a path can be appended to, if it is a plain `http://host[:port]`.
#[must_use]
pub fn base_url(text: &str) -> Option<String> {
    let uri = Uri::from_str(text).ok()?;
    let authority = uri.authority()?;
    let plain = uri.scheme_str() == Some("http")
        && matches!(uri.path(), "" | "/")
        && uri.query().is_none()
        && (authority.as_str() == authority.host() || authority.port_u16().is_some())
        && !authority.host().is_empty()
        && !authority.as_str().contains('@');
    plain.then(|| format!("http://{authority}"))
}

/// Whether `text` is a plain `host:port`.
fn is_server(text: &str) -> bool {
    let uri = Uri::from_str(&format!("http://{text}")).ok();
    uri.as_ref().and_then(Uri::authority).is_some_and(|authority| {
        authority.as_str() == text
            && !authority.host().is_empty()
            && authority.port_u16().is_some_and(|port| port > 0)
            && !text.contains('@')
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wrong_values::WRONG_VALUES;

    fn config(variables: &[(&str, &str)]) -> Result<Config, String> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Config::from_lookup(find).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_set_is_a_root_on_its_own() {
        let config = config(&[]).unwrap();
        assert!(config.is_root());
        assert_eq!((config.tree_depth, config.api_port, config.root_id), (3, 5000, 1));
        assert_eq!(config.lease, Duration::from_secs(5));
        assert_eq!(config.root_url, "http://127.0.0.1:5000");
        assert_eq!(config.url_at(5000), "http://127.0.0.1:5000");
    }

    #[test]
    fn the_urls_follow_the_bind_address() {
        let inside =
            config(&[("BIND_ADDR", "0.0.0.0"), ("NODE_ID", "4"), ("ROOT_NODE_ID", "3"), ("API_PORT", "6000")]).unwrap();
        assert_eq!(inside.url_at(6000), "http://NODE-4:6000");
        assert_eq!(inside.root_url, "http://NODE-3:6000");
        assert_eq!(config(&[("BIND_ADDR", "::1")]).unwrap().url_at(7), "http://[::1]:7");
        let told = config(&[("NODE_URL", "http://here:1/"), ("ROOT_URL", "http://[::1]:2")]).unwrap();
        assert_eq!((told.url_at(9).as_str(), told.root_url.as_str()), ("http://here:1", "http://[::1]:2"));
    }

    #[test]
    fn every_wrong_value_is_named_with_what_is_allowed() {
        for (variable, allowed, values) in WRONG_VALUES {
            for value in *values {
                let expected = format!("{variable}={value:?}: must be {allowed}");
                assert_eq!(config(&[(*variable, *value)]).map(|_| ()), Err(expected));
            }
        }
    }

    #[test]
    fn zookeeper_may_be_several_servers() {
        assert!(config(&[]).unwrap().zookeeper.is_empty());
        let config = config(&[("ZOOKEEPER", "here:2181,10.0.0.1:2182,[::1]:2183")]).unwrap();
        assert_eq!(config.zookeeper, ["here:2181", "10.0.0.1:2182", "[::1]:2183"]);
    }

    #[test]
    fn a_wrong_token_is_refused_and_not_shown() {
        for token in ["", "two words", "čtyři"] {
            let error = config(&[("TREE_TOKEN", token)]).unwrap_err();
            assert_eq!(error, "TREE_TOKEN=\"…\": must be visible ASCII characters without a space");
        }
        assert_eq!(config(&[("TREE_TOKEN", "s3cret")]).unwrap().token.as_deref(), Some("s3cret"));
    }
}
