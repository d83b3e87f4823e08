//! The tree as ZooKeeper has it: what a znode says, and what the child table makes of it. Pure.
//!
//! Below `/tree-cache/tree` the path of a node's znode is its path in the tree, and the data is a
//! [`ZnodeData`]. `/tree-cache/tree` itself has a [`Shape`] as its data: from places alone nobody could
//! tell the tree of another depth from a part of this one.
//!
//! Invariant: what the root's child table says wins, but a node's own run and URL are its own to say.
//! Left out: how znodes are read and written (`session.rs`).

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::tree::{self, ChildTable, Place};

/// Where the tree is kept.
pub const TREE: &str = "/tree-cache/tree";

/// Where those that live are named.
pub const LIVE: &str = "/tree-cache/live";

/// The run in the data of a node whose run its writer did not know; likewise an empty URL. The node itself
/// writes what is true.
const UNKNOWN_RUN: u64 = 0;

/// What a node's znode says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZnodeData {
    /// Id of the node.
    pub id: u32,
    /// Where it answers.
    pub url: String,
    /// The random number of its process.
    pub run: u64,
    /// Its position in the tree.
    pub position: u32,
}

/// What the tree's own znode says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// `TREE_DEPTH`.
    pub depth: u32,
    /// `ROOT_NODE_ID`.
    pub root_id: u32,
}

/// A znode of the tree as it was read.
#[derive(Debug, Clone)]
pub struct Znode {
    /// The names from the root's down to its own.
    pub path: Vec<String>,
    /// Its data.
    pub data: Vec<u8>,
}

/// A znode of the tree as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its full path.
    pub path: String,
    /// Its data.
    pub data: Vec<u8>,
}

impl Znode {
    /// What it says, if that can be read.
    #[must_use]
    pub fn read(&self) -> Option<ZnodeData> {
        serde_json::from_slice(&self.data).ok()
    }

    /// Its full path.
    #[must_use]
    pub fn full_path(&self) -> String {
        full_path(&self.path)
    }
}

impl Wanted {
    fn new(path: &[String], id: u32, url: &str, run: u64, position: u32) -> Self {
        let data = ZnodeData { id, url: url.to_owned(), run, position };
        Self { path: full_path(path), data: to_json(&data) }
    }
}

impl Shape {
    /// The tree's own znode.
    #[must_use]
    pub fn wanted(self) -> Wanted {
        Wanted { path: TREE.to_owned(), data: to_json(&self) }
    }
}

fn full_path(path: &[String]) -> String {
    format!("{TREE}/{}", path.join("/"))
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("numbers and strings are JSON")
}

/// The znodes of a node with that place, its own last. Those above say all but the run, which the join's
/// answer does not tell. `None` while a node above is unknown.
#[must_use]
pub fn wanted(place: &Place, id: u32, url: &str, run: u64) -> Option<Vec<Wanted>> {
    let path = place.path.as_ref()?;
    let mut positions: Vec<u32> = tree::ancestors(place.position).collect();
    positions.reverse();
    let above = positions.into_iter().zip(1..path.len()).map(|(position, length)| {
        let name = &path[length - 1];
        let id = name.strip_prefix("NODE-").and_then(|id| id.parse().ok()).unwrap_or_default();
        let url = place.ancestors.iter().find(|node| node.name == *name).map_or("", |node| &node.url);
        Wanted::new(&path[..length], id, url, UNKNOWN_RUN, position)
    });
    let mut znodes: Vec<_> = above.collect();
    znodes.push(Wanted::new(path, id, url, run, place.position));
    Some(znodes)
}

/// The znodes of all nodes in the table whose path is known, parents first.
#[must_use]
pub fn wanted_of_table(table: &ChildTable) -> Vec<Wanted> {
    let members = table.members().into_iter();
    let wanted = members.filter_map(|(position, member)| {
        let path = table.place(position).path?;
        let process = member.process.as_ref();
        let (url, run) = process.map_or(("", UNKNOWN_RUN), |process| (&process.url, process.run));
        Some(Wanted::new(&path, member.id, url, run, position))
    });
    wanted.collect()
}

/// The topmost znodes that disagree with the table, of znodes listed parents first. One of a node that the
/// table does not have stays while its position is free.
#[must_use]
pub fn misplaced<'a>(depth: u32, table: &[Wanted], znodes: &'a [Znode]) -> Vec<&'a Znode> {
    let wanted_data = table.iter().filter_map(|wanted| serde_json::from_slice(&wanted.data).ok());
    let position_of: HashMap<String, u32> =
        wanted_data.map(|data: ZnodeData| (tree::name(data.id), data.position)).collect();
    let is_free = |position: &u32| *position < tree::size(depth) && position_of.values().all(|taken| taken != position);
    let mut kept: HashMap<&[String], u32> = HashMap::new();
    let mut misplaced = Vec::new();
    for znode in znodes {
        let Some((name, names_above)) = znode.path.split_last() else { continue };
        let above = match kept.get(names_above) {
            _ if names_above.is_empty() => None,
            Some(position) => Some(*position),
            // What is below one that goes, goes with it; what is below one that says nothing is let be.
            None => continue,
        };
        let position = match (position_of.get(name), znode.read()) {
            (Some(position), _) => Some(*position),
            (None, Some(data)) => Some(data.position).filter(is_free),
            (None, None) => continue,
        };
        match position {
            Some(position) if tree::parent(position) == above => drop(kept.insert(&znode.path, position)),
            _ => misplaced.push(znode),
        }
    }
    misplaced
}

/// What the table says and no znode does. The run and URL of a node that has its place are its own to say:
/// it may have started again since the table was looked at.
#[must_use]
pub fn unsaid<'a>(table: &'a [Wanted], znodes: &[Znode]) -> Vec<&'a Wanted> {
    let known: HashMap<String, &Znode> = znodes.iter().map(|znode| (znode.full_path(), znode)).collect();
    let is_said = |wanted: &&Wanted| {
        let said = known.get(&wanted.path).and_then(|znode| znode.read());
        let (Some(said), Ok(table)) = (said, serde_json::from_slice::<ZnodeData>(&wanted.data)) else { return false };
        (said.id, said.position) == (table.id, table.position) && said.run != UNKNOWN_RUN
    };
    table.iter().filter(|wanted| !is_said(wanted)).collect()
}

/// Trees for tests, here and in `recovery.rs`.
#[cfg(test)]
pub mod samples {
    use super::*;

    pub fn path(text: &str) -> Vec<String> {
        text.split('/').map(|id| format!("NODE-{id}")).collect()
    }

    pub fn znode(ids: &str, id: u32, position: u32) -> Znode {
        let data = ZnodeData { id, url: format!("http://h:{id}"), run: u64::from(id) * 100, position };
        Znode { path: path(ids), data: to_json(&data) }
    }

    pub fn tree() -> Vec<Znode> {
        [("1", 1, 0), ("1/2", 2, 1), ("1/2/4", 4, 3), ("1/2/5", 5, 4), ("1/3", 3, 2), ("1/3/6", 6, 5), ("1/3/7", 7, 6)]
            .map(|(ids, id, position)| znode(ids, id, position))
            .into()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::samples::{path, tree, znode};
    use super::*;
    use crate::tree::{Member, Process};

    fn table(places: &[(u32, u32)]) -> Vec<Wanted> {
        let process = Process { run: 9, url: String::new(), heard: Instant::now() };
        let member = |id| Member { id, process: Some(process.clone()) };
        let mut table = ChildTable::new(3, member(1));
        for (id, position) in places {
            table.admit(member(*id), Some(*position));
        }
        wanted_of_table(&table)
    }

    #[test]
    fn a_node_wants_its_own_znode_and_those_above() {
        let node_ref = |id: u32| tree::NodeRef { name: tree::name(id), url: format!("http://h:{id}") };
        let ancestors = vec![node_ref(2), node_ref(1)];
        let mut place = Place { position: 3, path: Some(path("1/2/4")), ancestors, children: vec![] };
        let znodes = wanted(&place, 4, "http://h:4", 44).unwrap();
        let text = |wanted: &Wanted| format!("{} {}", wanted.path, String::from_utf8_lossy(&wanted.data));
        assert_eq!(
            znodes.iter().map(text).collect::<Vec<_>>(),
            [
                r#"/tree-cache/tree/NODE-1 {"id":1,"url":"http://h:1","run":0,"position":0}"#,
                r#"/tree-cache/tree/NODE-1/NODE-2 {"id":2,"url":"http://h:2","run":0,"position":1}"#,
                r#"/tree-cache/tree/NODE-1/NODE-2/NODE-4 {"id":4,"url":"http://h:4","run":44,"position":3}"#,
            ]
        );
        // Its parent has not joined this run of the root.
        place.ancestors.remove(0);
        let znodes = wanted(&place, 4, "http://h:4", 44).unwrap();
        assert_eq!(text(&znodes[1]), r#"/tree-cache/tree/NODE-1/NODE-2 {"id":2,"url":"","run":0,"position":1}"#);
        place.path = None;
        assert_eq!(wanted(&place, 4, "http://h:4", 44), None);
    }

    #[test]
    fn what_disagrees_with_the_table_is_misplaced() {
        let right = [(2, 1), (3, 2), (4, 3), (5, 4), (6, 5), (7, 6)];
        let swapped = [(3, 1), (2, 2), (4, 3), (5, 4), (6, 5), (7, 6)];
        for (table_of, extra, expected) in [
            (&right[..], None, &[][..]),
            (&right, Some(znode("2", 2, 0)), &["2"]),
            (&right, Some(znode("1/4", 4, 1)), &["1/4"]),
            (&right, Some(znode("1/8", 8, 7)), &["1/8"]),
            // Children stay where they are, below another node.
            (&swapped, None, &["1/2/4", "1/2/5", "1/3/6", "1/3/7"]),
            // Unknown to the table: their places are free, so they stay.
            (&[(2, 1), (4, 3)], None, &[]),
            // NODE-7 has the place that NODE-4 had.
            (&[(2, 1), (7, 3)], None, &["1/2/4", "1/3/7"]),
        ] {
            let znodes: Vec<_> = tree().into_iter().chain(extra).collect();
            let found = misplaced(3, &table(table_of), &znodes);
            let expected: Vec<_> = expected.iter().map(|ids| path(ids)).collect();
            assert_eq!(found.iter().map(|znode| znode.path.clone()).collect::<Vec<_>>(), expected);
        }
        let unreadable = Znode { path: path("1/9"), data: vec![] };
        assert_eq!(misplaced(3, &table(&right), &[unreadable]).len(), 0);
    }

    #[test]
    fn the_root_says_what_nobody_else_does() {
        let right = [(2, 1), (3, 2), (4, 3), (5, 4), (6, 5), (7, 6)];
        let mut znodes = tree();
        znodes[1] = znode("1/2", 2, 2);
        znodes[2].data = b"{".to_vec();
        znodes[3].data = br#"{"id":5,"url":"http://h:5","run":0,"position":4}"#.to_vec();
        znodes.remove(6);
        let table = table(&right);
        let unsaid: Vec<_> = unsaid(&table, &znodes).iter().map(|wanted| wanted.path.clone()).collect();
        assert_eq!(
            unsaid,
            ["1/2", "1/2/4", "1/2/5", "1/3/7"].map(|ids| full_path(&path(ids))),
            "all other runs differ"
        );
    }
}
