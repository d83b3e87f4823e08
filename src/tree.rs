//! The shape of the tree: positions, names, and the root's child table. Pure: no lock, no I/O.
//!
//! Positions are those of a binary heap in an array, level by level: 0 is the root, and the
//! children of `p` are `2p + 1` and `2p + 2`. So a parent is arithmetic, not a pointer.
//!
//! Invariant of the [`ChildTable`]: each id and each position is taken once, and position 0 is the
//! root's. Left out: whether a node that wants a place can be reached; `join.rs` asks it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The deepest tree: 65,535 nodes.
pub const MAX_DEPTH: u32 = 16;

/// A node that was heard within this time is alive.
pub const ALIVE: Duration = Duration::from_secs(3);

/// The number of nodes of a tree of that depth.
#[must_use]
pub fn size(depth: u32) -> u32 {
    (1 << depth) - 1
}

/// The name of the node with that id.
#[must_use]
pub fn name(id: u32) -> String {
    format!("NODE-{id}")
}

/// The position above; the root has none.
#[must_use]
pub fn parent(position: u32) -> Option<u32> {
    position.checked_sub(1).map(|left| left / 2)
}

/// The positions above, nearest first, ending with the root.
pub fn ancestors(position: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(parent(position), |above| parent(*above))
}

/// The level of a position, the root's being 1.
#[must_use]
pub fn level(position: u32) -> u32 {
    (position + 1).ilog2() + 1
}

/// One node as others see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRef {
    /// `NODE-<id>`.
    pub name: String,
    /// Where it answers.
    pub url: String,
}

/// Where a node stands: what the root answers to a join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its position in the tree.
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
    /// The taken ones, by position.
    #[serde(rename = "nodes")]
    pub places: Vec<ListedNode>,
}

/// One taken place as `GET /nodes` shows it.
#[derive(Debug, Serialize, Deserialize)]
pub struct ListedNode {
    /// Its position.
    pub position: u32,
    /// Its level, the root's being 1.
    pub depth: u32,
    /// `NODE-<id>`.
    pub name: String,
    /// Id of the node.
    pub id: u32,
    /// Where it answers; `None` if the place is only remembered.
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
    /// Id of the node.
    pub id: u32,
    /// The process that joined last; `None` if none has joined this run of the root, which then only remembers
    /// the place, from ZooKeeper.
    pub process: Option<Process>,
}

/// A process that has joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its random number; another process has another one.
    pub run: u64,
    /// Where it answers.
    pub url: String,
    /// When the root last heard it.
    pub heard: Instant,
}

impl Member {
    /// The node's name and URL, once it has joined.
    fn node_ref(&self) -> Option<NodeRef> {
        let process = self.process.as_ref()?;
        Some(NodeRef { name: name(self.id), url: process.url.clone() })
    }
}

/// How the child table stands to a node that wants to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// The same process again.
    Known,
    /// An id of which the table has no process.
    New,
    /// Another process has the id: a former run of this node, or a second node of that name.
    Restarted {
        /// That process's URL.
        url: String,
        /// That process's run.
        run: u64,
    },
}

/// The root's record of which node has which position.
#[derive(Debug)]
pub struct ChildTable {
    depth: u32,
    members: HashMap<u32, Member>,
    position_of: HashMap<u32, u32>,
}

impl ChildTable {
    /// A table of that depth which has only the root.
    #[must_use]
    pub fn new(depth: u32, root: Member) -> Self {
        Self { depth, position_of: HashMap::from([(root.id, 0)]), members: HashMap::from([(0, root)]) }
    }

    /// How the table stands to the node `id` with that `run` at that `url`.
    #[must_use]
    pub fn standing(&self, id: u32, run: u64, url: &str) -> Standing {
        let member = self.position_of.get(&id).and_then(|position| self.members.get(position));
        match member.and_then(|member| member.process.as_ref()) {
            None => Standing::New,
            Some(process) if process.run == run && process.url == url => Standing::Known,
            Some(process) => Standing::Restarted { url: process.url.clone(), run: process.run },
        }
    }

    /// Gives the node its place: the one that the table has for its id, else the one that it
    /// `stated` if that is free, else the first free one.
    ///
    /// # Panics
    /// The id is not one of this tree.
    pub fn admit(&mut self, member: Member, stated: Option<u32>) -> u32 {
        let free = |position: &u32| *position < size(self.depth) && !self.members.contains_key(position);
        let known = self.position_of.get(&member.id).copied();
        let position = known
            .or_else(|| stated.filter(free))
            .or_else(|| (0..size(self.depth)).find(free))
            .expect("there are as many positions as ids");
        self.position_of.insert(member.id, position);
        self.members.insert(position, member);
        position
    }

    /// The taken places, by position.
    #[must_use]
    pub fn members(&self) -> Vec<(u32, &Member)> {
        let mut members: Vec<_> = self.members.iter().map(|(position, member)| (*position, member)).collect();
        members.sort_by_key(|(position, _)| *position);
        members
    }

    /// The table as others see it.
    #[must_use]
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
        let places = self.members().into_iter().map(listed).collect();
        Listing { depth: self.depth, size: size(self.depth), places }
    }

    /// What the node at a position is told of its place.
    #[must_use]
    pub fn place(&self, position: u32) -> Place {
        let known = |position: u32| self.members.get(&position).map(|member| name(member.id));
        let joined = |position: u32| self.members.get(&position).and_then(Member::node_ref);
        let mut path: Option<Vec<_>> = ancestors(position).map(known).collect();
        if let Some(names) = &mut path {
            names.reverse();
            names.extend(known(position));
        }
        Place {
            position,
            path,
            ancestors: ancestors(position).filter_map(joined).collect(),
            children: [2 * position + 1, 2 * position + 2].into_iter().filter_map(joined).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u32) -> Member {
        let process = Process { run: u64::from(id) * 100, url: format!("http://h:{id}"), heard: Instant::now() };
        Member { id, process: Some(process) }
    }

    fn names(nodes: &[NodeRef]) -> Vec<&str> {
        nodes.iter().map(|node| node.name.as_str()).collect()
    }

    #[test]
    fn positions_are_those_of_a_heap() {
        for (position, above, level_of) in
            [(0, None, 1), (1, Some(0), 2), (2, Some(0), 2), (3, Some(1), 3), (6, Some(2), 3), (14, Some(6), 4)]
        {
            assert_eq!((parent(position), level(position)), (above, level_of), "position {position}");
        }
        assert_eq!(ancestors(11).collect::<Vec<_>>(), [5, 2, 0]);
        assert_eq!((1..=4).map(size).collect::<Vec<_>>(), [1, 3, 7, 15]);
        assert_eq!((size(MAX_DEPTH), level(size(MAX_DEPTH) - 1)), (65_535, 16));
    }

    #[test]
    fn nodes_take_their_places_level_by_level() {
        let mut table = ChildTable::new(2, member(3));
        assert_eq!(table.admit(member(1), None), 1);
        assert_eq!(table.admit(member(2), None), 2);
        assert_eq!(table.admit(member(1), None), 1, "the same id has the same place");
        assert_eq!(names(&table.place(0).children), ["NODE-1", "NODE-2"]);
    }

    #[test]
    fn a_stated_position_counts_for_an_unknown_id_if_it_is_free() {
        let mut table = ChildTable::new(3, member(1));
        assert_eq!(table.admit(member(5), Some(4)), 4, "free: honoured");
        assert_eq!(table.admit(member(6), Some(4)), 1, "another's: as if it had stated none");
        assert_eq!(table.admit(member(7), Some(0)), 2, "the root's");
        assert_eq!(table.admit(member(2), Some(7)), 3, "out of the tree");
        assert_eq!(table.admit(member(5), Some(6)), 4, "the table's position stands");
    }

    #[test]
    fn a_place_tells_those_above_and_below_and_leaves_out_the_unknown() {
        let mut table = ChildTable::new(3, member(1));
        table.admit(member(4), Some(3));
        let place = table.place(3);
        assert_eq!((place.path, names(&place.ancestors)), (None, vec!["NODE-1"]));
        table.admit(member(2), Some(1));
        let place = table.place(3);
        assert_eq!(place.path.unwrap(), ["NODE-1", "NODE-2", "NODE-4"]);
        assert_eq!(names(&place.ancestors), ["NODE-2", "NODE-1"]);
        assert_eq!(names(&table.place(1).children), ["NODE-4"]);
    }

    #[test]
    fn a_remembered_place_is_kept_and_its_node_is_nobodys_ancestor_before_it_has_joined() {
        let mut table = ChildTable::new(3, member(1));
        table.admit(Member { id: 2, process: None }, Some(1));
        assert_eq!(table.standing(2, 200, "http://h:2"), Standing::New, "whoever says so has to be asked");
        table.admit(member(4), Some(3));
        let place = table.place(3);
        assert_eq!(place.path.unwrap(), ["NODE-1", "NODE-2", "NODE-4"]);
        assert_eq!((names(&place.ancestors), names(&table.place(0).children)), (vec!["NODE-1"], vec![]));
        let listing = table.listing(Instant::now());
        assert_eq!((listing.places[1].id, &listing.places[1].url, listing.places[1].alive), (2, &None, false));

        assert_eq!(table.admit(member(3), None), 2, "its place is not free");
        assert_eq!(table.admit(member(2), Some(5)), 1, "and its own");
        assert_eq!(names(&table.place(3).ancestors), ["NODE-2", "NODE-1"]);
        assert_eq!(table.standing(2, 200, "http://h:2"), Standing::Known);
    }

    #[test]
    fn another_run_of_a_known_id_is_a_restart() {
        let mut table = ChildTable::new(2, member(1));
        assert_eq!(table.standing(2, 200, "http://h:2"), Standing::New);
        table.admit(member(2), None);
        assert_eq!(table.standing(2, 200, "http://h:2"), Standing::Known);
        let restarted = Standing::Restarted { url: "http://h:2".to_owned(), run: 200 };
        assert_eq!(table.standing(2, 201, "http://h:2"), restarted);
        assert_eq!(table.standing(2, 200, "http://elsewhere"), restarted, "whoever says so has to be asked");
    }
}
