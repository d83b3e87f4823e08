//! What a node can be asked: method and target of a request become a [`Call`]. Pure.
//!
//! Invariant: keys are decoded here and nowhere else. Left out: bodies, and doing it (`api.rs`).

use std::time::Duration;

use crate::config::base_url;
use crate::error::Error;
use crate::holders::Holder;
use crate::key;

/// Keys in one listing.
pub const MAX_LISTED: usize = 1000;

/// One thing that a node can be asked.
#[derive(Debug, PartialEq)]
pub enum Call {
    /// Who and where this node is.
    Describe,
    /// The tree.
    Nodes,
    /// The counters.
    Metrics,
    /// What clients can ask.
    DescribeApi,
    /// Some of what this node holds.
    List {
        /// At most so many keys.
        limit: usize,
    },
    /// Read a key.
    Get {
        /// The key, decoded.
        key: String,
    },
    /// Write a key.
    Put {
        /// The key, decoded.
        key: String,
    },
    /// Remove a key.
    Delete {
        /// The key, decoded.
        key: String,
    },
    /// Give a node its place.
    Join,
    /// Read a key for another node.
    Fetch {
        /// The key, decoded.
        key: String,
        /// Who asks, and will hold a copy.
        holder: Holder,
        /// How long it waits.
        wait: Duration,
    },
    /// Drop the copies of a key, here and below.
    Invalidate {
        /// The key, decoded.
        key: String,
        /// The run that this is meant for.
        run: u64,
        /// The level of the node that sends it, who must be above.
        level: u32,
    },
}

impl Call {
    /// The call that this method and target are.
    ///
    /// # Errors
    /// There is no such path or method, or the key or a parameter is wrong.
    pub fn read(method: &str, target: &str) -> Result<Self, Error> {
        let (path, query) = split_target(target);
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let reads = method == "GET" || method == "HEAD";
        let no_method = |allow| Err(Error::NoSuchMethod { method: method.to_owned(), allow });
        match segments[..] {
            [""] if reads => Ok(Self::Describe),
            ["nodes"] if reads => Ok(Self::Nodes),
            ["nodes"] if method == "POST" => Ok(Self::Join),
            ["metrics"] if reads => Ok(Self::Metrics),
            ["openapi.json"] if reads => Ok(Self::DescribeApi),
            ["store"] if reads => Ok(Self::List { limit: read_limit(query)? }),
            ["store", segment] => {
                let key = key::decode(segment).map_err(Error::BadKey);
                match method {
                    "GET" | "HEAD" => Ok(Self::Get { key: key? }),
                    "PUT" => Ok(Self::Put { key: key? }),
                    "DELETE" => Ok(Self::Delete { key: key? }),
                    _ => no_method("GET, HEAD, PUT, DELETE"),
                }
            }
            ["copies", segment] => {
                let key = key::decode(segment).map_err(Error::BadKey);
                match method {
                    "GET" => Ok(Self::Fetch {
                        key: key?,
                        holder: Holder {
                            name: read_name(query)?,
                            url: read_url(query)?,
                            run: read_number(query, "run")?,
                        },
                        wait: Duration::from_millis(read_number(query, "wait_ms")?),
                    }),
                    "DELETE" => Ok(Self::Invalidate {
                        key: key?,
                        run: read_number(query, "run")?,
                        level: read_number(query, "level")?.try_into().unwrap_or(u32::MAX),
                    }),
                    _ => no_method("GET, DELETE"),
                }
            }
            ["nodes"] => no_method("GET, HEAD, POST"),
            ["" | "metrics" | "openapi.json" | "store"] => no_method("GET, HEAD"),
            _ => Err(Error::NoSuchPath(path.chars().take(100).collect())),
        }
    }
}

/// Whether only other nodes may ask this.
#[must_use]
pub fn is_between_nodes(method: &str, target: &str) -> bool {
    let (path, _) = split_target(target);
    path.starts_with("/copies/") || (path == "/nodes" && method == "POST")
}

/// Path and query of a request's target, be it `/path` or `http://host/path`.
fn split_target(target: &str) -> (&str, &str) {
    let target = match target.strip_prefix("http://") {
        Some(absolute) => absolute.find('/').map_or("/", |start| &absolute[start..]),
        None => target,
    };
    target.split_once('?').unwrap_or((target, ""))
}

fn read_parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn read_number(query: &str, name: &str) -> Result<u64, Error> {
    let text = read_parameter(query, name).unwrap_or_default();
    text.parse().map_err(|_| Error::BadQuery(format!("{name}={text:?} is not a whole number")))
}

fn read_name(query: &str) -> Result<String, Error> {
    let name = read_parameter(query, "holder").unwrap_or_default();
    let is_name = name.strip_prefix("NODE-").is_some_and(|id| id.parse::<u32>().is_ok());
    is_name
        .then(|| name.to_owned())
        .ok_or_else(|| Error::BadQuery(format!("holder={name:?} is not the name of a node")))
}

fn read_url(query: &str) -> Result<String, Error> {
    let text = read_parameter(query, "url").unwrap_or_default();
    let url = key::decode(text).ok().and_then(|url| base_url(&url));
    url.ok_or_else(|| Error::BadQuery(format!("url={text:?} is not a URL of the form http://host:port")))
}

fn read_limit(query: &str) -> Result<usize, Error> {
    let Some(text) = read_parameter(query, "limit") else { return Ok(MAX_LISTED) };
    match text.parse() {
        Ok(limit @ 1..=MAX_LISTED) => Ok(limit),
        _ => Err(Error::BadQuery(format!("limit={text:?} is not a whole number from 1 to {MAX_LISTED}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &str, target: &str) -> Result<Call, String> {
        Call::read(method, target).map_err(|error| error.to_string())
    }

    #[test]
    fn each_path_and_method_is_one_call() {
        let key = || "a/b".to_owned();
        let holder = Holder { name: "NODE-4".to_owned(), url: "http://h:1".to_owned(), run: 7 };
        let fetch = Call::Fetch { key: key(), holder, wait: Duration::from_millis(900) };
        for (method, target, call) in [
            ("GET", "/", Call::Describe),
            ("GET", "/?x", Call::Describe),
            ("HEAD", "/nodes", Call::Nodes),
            ("POST", "/nodes", Call::Join),
            ("GET", "/metrics", Call::Metrics),
            ("GET", "/openapi.json", Call::DescribeApi),
            ("GET", "/store", Call::List { limit: 1000 }),
            ("GET", "/store?x=1&limit=7", Call::List { limit: 7 }),
            ("GET", "/store/a%2Fb", Call::Get { key: key() }),
            ("HEAD", "/store/a%2fb?x=1", Call::Get { key: key() }),
            ("GET", "http://elsewhere:1/store/a%2Fb", Call::Get { key: key() }),
            ("GET", "http://elsewhere:1", Call::Describe),
            ("PUT", "/store/a%2Fb", Call::Put { key: key() }),
            ("DELETE", "/store/a%2Fb", Call::Delete { key: key() }),
            ("GET", "/copies/a%2Fb?holder=NODE-4&url=http%3A%2F%2Fh%3A1&run=7&wait_ms=900", fetch),
            ("DELETE", "/copies/a%2Fb?run=7&level=2", Call::Invalidate { key: key(), run: 7, level: 2 }),
        ] {
            assert_eq!(read(method, target), Ok(call), "{method} {target}");
        }
    }

    #[test]
    fn what_is_no_call_is_refused_with_its_operand() {
        for (method, target, detail) in [
            ("GET", "/store/a/b", "there is no path \"/store/a/b\""),
            ("GET", "//", "there is no path \"//\""),
            ("GET", "*", "there is no path \"*\""),
            ("GET", "", "there is no path \"\""),
            ("GET", "/store/", "the key is empty"),
            ("GET", "/store/%zz", "the key has a % without two hexadecimal digits"),
            ("GET", "/store?limit=0", "limit=\"0\" is not a whole number from 1 to 1000"),
            ("get", "/store/k", "the method \"get\" is not one of GET, HEAD, PUT, DELETE"),
            ("PUT", "/nodes", "the method \"PUT\" is not one of GET, HEAD, POST"),
            ("POST", "/", "the method \"POST\" is not one of GET, HEAD"),
            ("PUT", "/copies/k", "the method \"PUT\" is not one of GET, DELETE"),
            ("GET", "/copies/k?holder=me", "holder=\"me\" is not the name of a node"),
            ("GET", "/copies/k?holder=NODE-4&url=h", "url=\"h\" is not a URL of the form http://host:port"),
            ("DELETE", "/copies/k?run=-1", "run=\"-1\" is not a whole number"),
        ] {
            assert_eq!(read(method, target), Err(detail.to_owned()), "{method} {target}");
        }
    }

    #[test]
    fn what_nodes_ask_each_other_is_known_by_its_path() {
        for (method, target, expected) in [
            ("POST", "/nodes", true),
            ("GET", "/nodes", false),
            ("GET", "/copies/", true),
            ("PUT", "http://h/copies/k?run=1", true),
            ("GET", "/store/copies", false),
        ] {
            assert_eq!(is_between_nodes(method, target), expected, "{method} {target}");
        }
    }
}
