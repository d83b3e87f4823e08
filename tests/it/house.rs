//! The rooms of `src/`, and the arrows between them that must not be.

use std::fs;
use std::path::{Path, PathBuf};

/// A room, and what it must not use; `*` is all but the room itself.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("tree", &["*"]),
    ("cache", &["*"]),
    ("node", &["zookeeper", "http::api", "http::server", "http::sentinel", "http::page"]),
    ("protocol", &["http", "node"]),
    ("http::server", &["node", "cache", "tree"]),
    ("http::sentinel", &["node", "cache", "tree"]),
];

/// Whether a module is that room, or in it.
fn is_in(module: &str, room: &str) -> bool {
    module.strip_prefix(room).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn is_forbidden(module: &str, used: &str) -> bool {
    FORBIDDEN.iter().filter(|(room, _)| is_in(module, room)).any(|(room, others)| {
        others.iter().any(|other| if *other == "*" { !is_in(used, room) } else { is_in(used, other) })
    })
}

/// The module of a file, such as `http::page` of `http/page/mod.rs`; empty for `main.rs`.
fn module_of(file: &Path) -> String {
    let names: Vec<_> = file.with_extension("").iter().map(|name| name.to_string_lossy().into_owned()).collect();
    names.into_iter().filter(|name| name != "mod" && name != "main").collect::<Vec<_>>().join("::")
}

/// What a text uses of the crate, by `use` or in passing, from the crate's root on.
fn used_by(module: &str, text: &str) -> Vec<String> {
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).map(str::trim).collect();
    let parent = module.rsplit_once("::").map_or(String::new(), |(parent, _)| format!("{parent}::"));
    let starts = [("crate::", String::new()), ("super::", parent), ("self::", format!("{module}::"))];
    assert!(!code.contains("super::super"), "{module} is read one step up only");
    let mut used = Vec::new();
    for (start, room) in starts {
        for (position, _) in code.match_indices(start) {
            let is_whole = !code[..position].ends_with(|before: char| before == ':' || before.is_alphanumeric());
            if is_whole {
                expand(&room, &code[position + start.len()..], &mut used);
            }
        }
    }
    used
}

/// Reads one path, or all of a group in braces; returns what stands behind it.
fn expand<'a>(before: &str, text: &'a str, used: &mut Vec<String>) -> &'a str {
    if let Some(mut rest) = text.strip_prefix('{') {
        while !rest.starts_with('}') {
            rest = expand(before, rest, used).trim_start_matches([',', ' ']);
        }
        return &rest[1..];
    }
    let end = text.find(|next: char| next != '_' && !next.is_alphanumeric()).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let path = format!("{before}{name}");
    if let Some(below) = rest.strip_prefix("::") {
        return expand(&format!("{path}::"), below, used);
    }
    used.push(path);
    // `name as other`, or the rest of an expression.
    rest.strip_prefix(" as ").map_or(rest, |rest| rest.trim_start_matches(char::is_alphanumeric))
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder can be read").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

#[test]
fn no_arrow_points_where_none_must() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut arrows = 0;
    for file in files_below(&src).iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
        let module = module_of(file.strip_prefix(&src).expect("it is below"));
        for used in used_by(&module, &fs::read_to_string(file).expect("it can be read")) {
            assert!(!is_forbidden(&module, &used), "{module} must not use {used}");
            arrows += 1;
        }
    }
    assert!(arrows > 100, "only {arrows} were found");
}

#[test]
fn an_arrow_is_seen_however_it_is_written() {
    for (module, text, forbidden) in [
        ("tree", "use std::time::Duration;\nuse serde::Serialize;", None),
        ("tree", "let x = crate::config::base_url(text);", Some("config::base_url")),
        ("cache::store", "use super::leases::{Holder, Holders};\n// use crate::node::Node;", None),
        (
            "cache::store",
            "use super::{leases::Holder, value};\nuse crate::{config::Config, tree};",
            Some("config::Config"),
        ),
        ("cache", "use super::tree;", Some("tree")),
        ("node::walk", "use crate::http::client::{CallError, Sent};", None),
        ("node::walk", "use crate::http::{\n    client::Sent,\n    api,\n};", Some("http::api")),
        ("node", "use crate::zookeeper as keeper;", Some("zookeeper")),
        ("protocol::call", "use crate::nodes::x;\nuse crate::tree;", None),
        ("protocol::call", "use crate::{tree, http};", Some("http")),
        ("http::server", "use super::{sentinel::Sentinel, api};\nuse crate::metrics;", None),
        ("http::server::tests", "use super::*;\nfn f() -> crate::node::Node {", Some("node::Node")),
    ] {
        let used = used_by(module, text);
        assert_eq!(used.iter().map(String::as_str).find(|used| is_forbidden(module, used)), forbidden, "{used:?}");
    }
}
