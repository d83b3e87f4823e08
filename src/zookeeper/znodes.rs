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

use crate::config::base_url;
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
    /// What the node of that name says of itself in a znode that this `session` holds: what is copied into another's
    /// proves nothing.
    pub fn new(name: &str, url: &str, run: u64, session: i64, token: Option<&str>) -> Self {
        let proof = HMAC::mac(format!("live {name} {url} {run} {session}"), token.unwrap_or_default());
        Self { url: url.to_owned(), run, proof }
    }

    /// Whether a node of that name and of this tree wrote it.
    pub fn is_proven(&self, name: &str, session: i64, token: Option<&str>) -> bool {
        *self == Self::new(name, &self.url, self.run, session, token) && base_url(&self.url).as_ref() == Some(&self.url)
    }
}

/// What the tree's own znode says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub depth: u32,
    pub root_id: u32,
}

/// Znodes of the tree as they should be, by path, and so parents first.
pub type Wanted = BTreeMap<String, ZnodeData>;

/// Znodes of the tree as they were found; without data if that cannot be read.
pub type Found = BTreeMap<String, Option<ZnodeData>>;

/// Where the znode of a node is whose path has these names.
fn full_path(names: &[String]) -> String {
    format!("{TREE}/{}", names.join("/"))
}

/// The znodes of a node with that place, its own last. Those above say what their paths do: the rest is theirs to say.
/// `None` while a node above is unknown.
pub fn wanted(place: &Place, id: u32, url: &str, run: u64) -> Option<Wanted> {
    let names = place.path.as_ref()?;
    let own = ZnodeData { id, url: url.to_owned(), run, position: place.position };
    let above = tree::ancestors(place.position).zip((1..names.len()).rev()).map(|(position, length)| {
        let id = tree::id_of(&names[length - 1]).unwrap_or_default();
        (full_path(&names[..length]), ZnodeData { id, url: String::new(), run: UNKNOWN_RUN, position })
    });
    Some(above.chain([(full_path(names), own)]).collect())
}

/// The znodes of all nodes in the table whose path is known.
pub fn wanted_of_table(table: &ChildTable) -> Wanted {
    let wanted = table.members().filter_map(|(position, member)| {
        let process = member.process.as_ref().map(|process| (process.url.clone(), process.run));
        let (url, run) = process.unwrap_or((String::new(), UNKNOWN_RUN));
        Some((full_path(&table.place(position).path?), ZnodeData { id: member.id, url, run, position }))
    });
    wanted.collect()
}

/// How many names a path in the tree has.
pub fn level(path: &str) -> u32 {
    u32::try_from(path[TREE.len()..].matches('/').count()).unwrap_or(u32::MAX)
}

/// Whether a znode at that path may say that: its id and position are of a tree of that size, and the path is as long as
/// the position is deep, and ends with its name.
fn is_sound(size: u32, path: &str, ZnodeData { id, position, .. }: &ZnodeData) -> bool {
    (1..=size).contains(id)
        && *position < size
        && level(path) == tree::level(*position)
        && path.ends_with(&format!("/{}", tree::name(*id)))
}

/// The paths of znodes that disagree with the table. One of a node that the table does not have stays while its position
/// is free, and below the node that the table has above it.
pub fn misplaced<'a>(depth: u32, table: &Wanted, found: &'a Found) -> Vec<&'a String> {
    let path_of: HashMap<_, _> = table.iter().map(|(path, data)| (data.id, path)).collect();
    let path_at: HashMap<_, _> = table.iter().map(|(path, data)| (data.position, path)).collect();
    let may_stay = |path: &String, data: &Option<ZnodeData>| {
        let (above, name) = path.rsplit_once('/').expect("it is below the tree's own");
        match (tree::id_of(name).and_then(|id| path_of.get(&id)), data) {
            (Some(wanted), _) => *wanted == path,
            // What says nothing is let be.
            (None, None) => true,
            (None, Some(data)) => {
                let wanted_above = tree::parent(data.position).and_then(|above| path_at.get(&above));
                is_sound(tree::size(depth), path, data)
                    && !path_at.contains_key(&data.position)
                    && wanted_above.is_none_or(|wanted| *wanted == above)
            }
        }
    };
    found.iter().filter(|(path, data)| !may_stay(path, data)).map(|(path, _)| path).collect()
}

/// What the table says and no znode does. The run and URL of a node that has its place are its own to say:
/// it may have started again since the table was looked at.
pub fn unsaid<'a>(table: &'a Wanted, found: &Found) -> Vec<(&'a String, &'a ZnodeData)> {
    let is_said = |path: &String, data: &ZnodeData| {
        found
            .get(path)
            .and_then(Option::as_ref)
            .is_some_and(|said| (said.id, said.position) == (data.id, data.position) && said.run != UNKNOWN_RUN)
    };
    table.iter().filter(|(path, data)| !is_said(path, data)).collect()
}

/// The places of a tree of that shape, position and id, the root's own left out; or why they are not a child table, with
/// each id and each position once. A znode that cannot be read counts for nothing.
pub fn fit(shape: Shape, kept_shape: Option<Shape>, found: &Found) -> Result<Vec<(u32, u32)>, String> {
    if let Some(kept) = kept_shape.filter(|kept| *kept != shape) {
        return Err(format!("its depth is {} and its root is {}", kept.depth, tree::name(kept.root_id)));
    }
    let size = tree::size(shape.depth);
    let (mut id_at, mut position_of) = (BTreeMap::from([(0, shape.root_id)]), HashMap::from([(shape.root_id, 0)]));
    for (path, data) in found {
        let Some(data @ ZnodeData { id, position, .. }) = data else { continue };
        if !is_sound(size, path, data) {
            return Err(format!("{path} has id {id} and position {position}, of {size}"));
        }
        if id_at.entry(*position).or_insert(*id) != id || position_of.entry(*id).or_insert(*position) != position {
            return Err(format!("{path} has id {id} and position {position}, and another, too"));
        }
    }
    id_at.remove(&0);
    Ok(id_at.into_iter().collect())
}

#[cfg(test)]
mod tests;
