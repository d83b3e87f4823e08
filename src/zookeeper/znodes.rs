//! The tree as ZooKeeper has it: what its znodes say, what the child table makes of them, and whether they can
//! become one. Pure.
//!
//! Below `/tree-cache/tree` the path of a node's znode is its path in the tree, and the data is a
//! [`ZnodeData`]. `/tree-cache/tree` itself has a [`Shape`] as its data: from places alone nobody could
//! tell the tree of another depth from a part of this one.
//!
//! Invariants: what the root's child table says wins, but a node's own run and URL are its own to say. Only places are
//! taken from ZooKeeper, an id and a position each: being able to write there does not make one a node, and a URL
//! found there could be anybody's, and would be sent the token.
//!
//! Left out: how znodes are read and written (`session.rs`).

use std::collections::{BTreeMap, HashMap};

use hmac_sha256::HMAC;
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
    pub id: u32,
    pub url: String,
    pub run: u64,
    pub position: u32,
}

/// What a live znode says: which process holds it. That its writer has the nodes' secret is proven, so that the root
/// need not believe, nor even ask, whoever else can write to ZooKeeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    pub url: String,
    pub run: u64,
    proof: [u8; 32],
}

impl Live {
    pub fn new(name: &str, url: &str, run: u64, token: Option<&str>) -> Self {
        let proof = HMAC::mac(format!("live {name} {url} {run}"), token.unwrap_or_default());
        Self { url: url.to_owned(), run, proof }
    }

    /// Whether a node of that name and of this tree wrote it.
    pub fn is_proven(&self, name: &str, token: Option<&str>) -> bool {
        *self == Self::new(name, &self.url, self.run, token)
    }
}

/// What the tree's own znode says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub depth: u32,
    pub root_id: u32,
}

/// A znode of the tree as it was found.
#[derive(Debug, Clone)]
pub struct Znode {
    /// The names from the root's down to its own.
    pub path: Vec<String>,
    /// `None` if it cannot be read.
    pub data: Option<ZnodeData>,
}

/// A znode of the tree as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub path: Vec<String>,
    pub data: ZnodeData,
}

impl Wanted {
    fn new(path: &[String], id: u32, url: &str, run: u64, position: u32) -> Self {
        Self { path: path.to_vec(), data: ZnodeData { id, url: url.to_owned(), run, position } }
    }
}

/// Where the znode of a node with that path is.
pub fn full_path(path: &[String]) -> String {
    std::iter::once(TREE).chain(path.iter().map(String::as_str)).collect::<Vec<_>>().join("/")
}

/// The znodes of a node with that place, its own last. Those above say what their paths do: the rest is theirs to say.
/// `None` while a node above is unknown.
pub fn wanted(place: &Place, id: u32, url: &str, run: u64) -> Option<Vec<Wanted>> {
    let path = place.path.as_ref()?;
    let mut znodes = vec![Wanted::new(path, id, url, run, place.position)];
    for (position, length) in tree::ancestors(place.position).zip((1..path.len()).rev()) {
        let id = tree::id_of(&path[length - 1]).unwrap_or_default();
        znodes.push(Wanted::new(&path[..length], id, "", UNKNOWN_RUN, position));
    }
    znodes.reverse();
    Some(znodes)
}

/// The znodes of all nodes in the table whose path is known, parents first.
pub fn wanted_of_table(table: &ChildTable) -> Vec<Wanted> {
    let wanted = table.members().filter_map(|(position, member)| {
        let process = member.process.as_ref().map(|process| (process.url.as_str(), process.run));
        let (url, run) = process.unwrap_or(("", UNKNOWN_RUN));
        Some(Wanted::new(&table.place(position).path?, member.id, url, run, position))
    });
    wanted.collect()
}

/// Whether a znode at that path may say that: its id and position are of a tree of that size, and the path is as long as
/// the position is deep, and ends with its name.
fn is_sound(size: u32, path: &[String], ZnodeData { id, position, .. }: &ZnodeData) -> bool {
    (1..=size).contains(id)
        && *position < size
        && u32::try_from(path.len()) == Ok(tree::level(*position))
        && path.last() == Some(&tree::name(*id))
}

/// The znodes that disagree with the table. One of a node that the table does not have stays while its position is free,
/// and below the node that the table has above it.
pub fn misplaced<'a>(depth: u32, table: &[Wanted], znodes: &'a [Znode]) -> Vec<&'a Znode> {
    let path_of: HashMap<_, _> = table.iter().map(|wanted| (wanted.path.last(), &wanted.path)).collect();
    let path_at: HashMap<_, _> = table.iter().map(|wanted| (wanted.data.position, &wanted.path)).collect();
    let may_stay = |Znode { path, data }: &Znode| match (path_of.get(&path.last()), data) {
        (Some(wanted), _) => *wanted == path,
        // What says nothing is let be.
        (None, None) => true,
        (None, Some(data)) => {
            let above = tree::parent(data.position).and_then(|above| path_at.get(&above));
            is_sound(tree::size(depth), path, data)
                && !path_at.contains_key(&data.position)
                && above.is_none_or(|above| **above == path[..path.len() - 1])
        }
    };
    znodes.iter().filter(|znode| !may_stay(znode)).collect()
}

/// What the table says and no znode does. The run and URL of a node that has its place are its own to say:
/// it may have started again since the table was looked at.
pub fn unsaid<'a>(table: &'a [Wanted], znodes: &[Znode]) -> Vec<&'a Wanted> {
    let said: HashMap<_, _> = znodes.iter().filter_map(|znode| Some((&znode.path, znode.data.as_ref()?))).collect();
    let is_said = |Wanted { path, data }: &Wanted| {
        said.get(path)
            .is_some_and(|said| (said.id, said.position) == (data.id, data.position) && said.run != UNKNOWN_RUN)
    };
    table.iter().filter(|wanted| !is_said(wanted)).collect()
}

/// The places of a tree of that shape, position and id, the root's own left out; or why they are not a child table, with
/// each id and each position once. A znode that cannot be read counts for nothing.
pub fn fit(shape: Shape, kept_shape: Option<Shape>, znodes: &[Znode]) -> Result<Vec<(u32, u32)>, String> {
    if let Some(kept) = kept_shape.filter(|kept| *kept != shape) {
        return Err(format!("its depth is {} and its root is {}", kept.depth, tree::name(kept.root_id)));
    }
    let size = tree::size(shape.depth);
    let (mut id_at, mut position_of) = (BTreeMap::from([(0, shape.root_id)]), HashMap::from([(shape.root_id, 0)]));
    for Znode { path, data } in znodes {
        let Some(data @ ZnodeData { id, position, .. }) = data else { continue };
        if !is_sound(size, path, data) {
            return Err(format!("{} has id {id} and position {position}, of {size}", full_path(path)));
        }
        if id_at.entry(*position).or_insert(*id) != id || position_of.entry(*id).or_insert(*position) != position {
            return Err(format!("{} has id {id} and position {position}, and another, too", full_path(path)));
        }
    }
    id_at.remove(&0);
    Ok(id_at.into_iter().collect())
}

#[cfg(test)]
mod tests;
