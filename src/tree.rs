//! The shape of the tree: positions, names, and the root's child table. Pure: no lock, no I/O.
//!
//! Positions are those of a binary heap in an array, level by level: 0 is the root, and the
//! children of `p` are `2p + 1` and `2p + 2`. So a parent is arithmetic, not a pointer.
//!
//! Invariant of the [`ChildTable`]: each id and each position is taken once, and position 0 is the
//! root's. Left out: whether a node that wants a place can be reached; `join.rs` asks it.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The deepest tree: 65,535 nodes.
pub const MAX_DEPTH: u32 = 16;

/// A node that was heard within this time is alive.
pub const ALIVE: Duration = Duration::from_secs(3);

/// The number of nodes of a tree of that depth.
pub fn size(depth: u32) -> u32 {
    (1 << depth) - 1
}

/// The name of the node with that id.
pub fn name(id: u32) -> String {
    format!("NODE-{id}")
}

/// The id in such a name.
pub fn id_of(text: &str) -> Option<u32> {
    text.strip_prefix("NODE-")?.parse().ok().filter(|id| name(*id) == text)
}

/// The position above; the root has none.
pub fn parent(position: u32) -> Option<u32> {
    position.checked_sub(1).map(|left| left / 2)
}

/// The positions above, nearest first, ending with the root.
pub fn ancestors(position: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(parent(position), |above| parent(*above))
}

/// The level of a position, the root's being 1.
pub fn level(position: u32) -> u32 {
    (position + 1).ilog2() + 1
}

/// One node as others see it: the process that has its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRef {
    pub name: String,
    pub url: String,
    pub run: u64,
}

/// Where a node stands: part of what the root answers to a join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub position: u32,
    /// The names from the root down to it; absent while one above is unknown.
    pub path: Option<Vec<String>>,
    /// Those above it, nearest first. One that has not joined this run of the root is left out: what is asked of
    /// an ancestor shows the token. The root never is.
    pub ancestors: Vec<NodeRef>,
    /// Those right below it, likewise.
    pub children: Vec<NodeRef>,
}

/// The tree as `GET /nodes` shows it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Listing {
    /// How many levels it has.
    pub depth: u32,
    /// How many places.
    pub size: u32,
    /// The taken places, by position.
    #[serde(rename = "nodes")]
    pub places: Vec<ListedNode>,
}

/// One taken place as `GET /nodes` shows it.
#[derive(Debug, Serialize, Deserialize)]
pub struct ListedNode {
    pub position: u32,
    /// Its level, the root's being 1.
    pub depth: u32,
    pub name: String,
    pub id: u32,
    /// `None` if the place is only remembered.
    pub url: Option<String>,
    /// The name of the node right above, if it is known.
    pub parent: Option<String>,
    /// Whether the root heard it lately.
    pub alive: bool,
    /// Since when not; `None` if the place is only remembered.
    pub seconds_since_heard: Option<f64>,
}

/// One taken place in the child table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub id: u32,
    /// The process that joined last; `None` if none has joined this run of the root, which then only remembers
    /// the place, from ZooKeeper.
    pub process: Option<Process>,
}

/// A process that has joined, by its run and URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub run: u64,
    pub url: String,
    /// When the root last heard it.
    pub heard: Instant,
}

/// The root's record of which node has which position.
pub struct ChildTable {
    depth: u32,
    members: BTreeMap<u32, Member>,
    position_of: HashMap<u32, u32>,
}

impl ChildTable {
    /// A table of that depth which has only the root.
    pub fn new(depth: u32, root: Member) -> Self {
        let (position_of, members) = (HashMap::from([(root.id, 0)]), BTreeMap::from([(0, root)]));
        Self { depth, members, position_of }
    }

    /// The process that joined last under this id.
    pub fn process(&self, id: u32) -> Option<&Process> {
        self.members.get(self.position_of.get(&id)?)?.process.as_ref()
    }

    /// Gives the node its place: the one that the table has for its id, else the one that it
    /// `stated` if that is free, else the first free one. The id must be one of this tree.
    pub fn admit(&mut self, member: Member, stated: Option<u32>) -> u32 {
        let free = |position: &u32| *position < size(self.depth) && !self.members.contains_key(position);
        let known = self.position_of.get(&member.id).copied();
        let position = known
            .or(stated.filter(free))
            .or_else(|| (0..size(self.depth)).find(free))
            .expect("there are as many positions as ids");
        self.position_of.insert(member.id, position);
        self.members.insert(position, member);
        position
    }

    /// The taken places, by position.
    pub fn members(&self) -> impl Iterator<Item = (u32, &Member)> {
        self.members.iter().map(|(position, member)| (*position, member))
    }

    /// The table as others see it.
    pub fn listing(&self, now: Instant) -> Listing {
        let listed = |(position, member): (u32, &Member)| {
            let process = member.process.as_ref();
            // The root hears itself.
            let heard = if position == 0 { Some(now) } else { process.map(|process| process.heard) };
            let silence = heard.map(|heard| now.saturating_duration_since(heard));
            ListedNode {
                position,
                depth: level(position),
                name: name(member.id),
                id: member.id,
                url: process.map(|process| process.url.clone()),
                parent: parent(position).and_then(|above| self.members.get(&above)).map(|above| name(above.id)),
                alive: silence.is_some_and(|silence| silence <= ALIVE),
                seconds_since_heard: silence.map(|silence| (silence.as_secs_f64() * 10.0).round() / 10.0),
            }
        };
        let places = self.members().map(listed).collect();
        Listing { depth: self.depth, size: size(self.depth), places }
    }

    /// What the node at a position is told of its place.
    pub fn place(&self, position: u32) -> Place {
        let known = |position: u32| self.members.get(&position).map(|member| name(member.id));
        let joined = |position: u32| {
            let Member { id, process } = self.members.get(&position)?;
            process.as_ref().map(|Process { url, run, .. }| NodeRef { name: name(*id), url: url.clone(), run: *run })
        };
        let above: Vec<u32> = ancestors(position).collect();
        Place {
            position,
            path: above.iter().rev().chain([&position]).map(|position| known(*position)).collect(),
            ancestors: above.into_iter().filter_map(joined).collect(),
            children: [2 * position + 1, 2 * position + 2].into_iter().filter_map(joined).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
