//! Recovery: how a root that starts finds its child table in the tree that ZooKeeper has. Pure.
//!
//! Only places are taken from it, an id and a position each: being able to write to ZooKeeper does not make
//! one a node, and a URL found there could be anybody's, and would be sent the token.
//!
//! Invariant: what [`fit`] lets through is a child table: each id and each position once, and each path
//! in agreement with its position. Left out: how the tree is read, and deleted if it does not fit (`registry.rs`).

use std::collections::HashMap;

use crate::tree;
use crate::zookeeper::znodes::{Shape, Znode, ZnodeData};

/// A tree that can be a child table.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fitting {
    /// Position and id, the root's own left out.
    pub places: Vec<(u32, u32)>,
    /// The paths of znodes whose data cannot be read. They count for nothing.
    pub unreadable: Vec<String>,
}

/// How a root that started came by its child table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// There is no ZooKeeper to ask.
    Off,
    /// ZooKeeper gave no answer in time.
    NoAnswer,
    /// ZooKeeper had no tree.
    Empty,
    /// ZooKeeper had a tree that does not fit. It is deleted.
    Unfit,
    /// ZooKeeper had these places, position and id, the root's own left out.
    Restored(Vec<(u32, u32)>),
}

/// Reads a tree as the child table of a tree of that shape.
///
/// # Errors
/// It is not such a tree; the text says why.
pub fn fit(shape: Shape, kept_shape: &[u8], znodes: &[Znode]) -> Result<Fitting, String> {
    let kept: Option<Shape> = serde_json::from_slice(kept_shape).ok();
    if let Some(kept) = kept.filter(|kept| *kept != shape) {
        return Err(format!("its depth is {} and its root is {}", kept.depth, tree::name(kept.root_id)));
    }
    let mut fitting = Fitting::default();
    let (mut name_at, mut position_of) = (HashMap::new(), HashMap::new());
    for znode in znodes {
        let Some(ZnodeData { id, position, .. }) = znode.read() else {
            fitting.unreadable.push(znode.full_path());
            continue;
        };
        let refuse = |cause: String| Err(format!("{} {cause}", znode.full_path()));
        let size = tree::size(shape.depth);
        if !(1..=size).contains(&id) || position >= size {
            return refuse(format!("has id {id} and position {position}, of {size}"));
        }
        if znode.path.last() != Some(&tree::name(id)) || znode.path.first() != Some(&tree::name(shape.root_id)) {
            return refuse(format!("is no path from {} to {}", tree::name(shape.root_id), tree::name(id)));
        }
        if u32::try_from(znode.path.len()) != Ok(tree::level(position)) {
            return refuse(format!("is no path to position {position}"));
        }
        // A path also says who is above, and must agree with all that is said elsewhere.
        let positions = std::iter::once(position).chain(tree::ancestors(position));
        for (position, name) in positions.zip(znode.path.iter().rev()) {
            if name_at.insert(position, name).is_some_and(|other| other != name)
                || position_of.insert(name, position).is_some_and(|other| other != position)
            {
                return refuse(format!("disagrees with another about {name} or position {position}"));
            }
        }
        if position > 0 {
            fitting.places.push((position, id));
        }
    }
    Ok(fitting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zookeeper::znodes::samples::{tree, znode};

    const SHAPE: Shape = Shape { depth: 3, root_id: 1 };

    #[test]
    fn a_tree_that_fits_becomes_the_child_table() {
        let Fitting { places, unreadable } = fit(SHAPE, br#"{"depth":3,"root_id":1}"#, &tree()).unwrap();
        assert_eq!(places, [(1, 2), (3, 4), (4, 5), (2, 3), (5, 6), (6, 7)]);
        assert_eq!(unreadable, [""; 0]);
        assert_eq!(fit(SHAPE, b"", &[]), Ok(Fitting::default()), "none is one that fits");
    }

    #[test]
    fn what_cannot_be_read_is_left_out_and_named() {
        for data in [&b""[..], b"{", b"[]", br#"{"id":2,"url":"http://h:2","run":-1,"position":1}"#] {
            let mut znodes = tree();
            znodes[1].data = data.to_vec();
            let Fitting { places, unreadable } = fit(SHAPE, b"no shape either", &znodes).unwrap();
            assert_eq!(places, [(3, 4), (4, 5), (2, 3), (5, 6), (6, 7)], "its path still counts for those below");
            assert_eq!(unreadable, ["/tree-cache/tree/NODE-1/NODE-2"]);
        }
    }

    #[test]
    fn a_tree_that_does_not_fit_is_refused_with_the_reason() {
        let shape = |depth, root_id| Shape { depth, root_id }.wanted().data;
        for (kept, extra, cause) in [
            (shape(2, 1), None, "its depth is 2 and its root is NODE-1"),
            (shape(3, 2), None, "its depth is 3 and its root is NODE-2"),
            (vec![], Some(znode("1/8", 8, 1)), "NODE-1/NODE-8 has id 8 and position 1, of 7"),
            (vec![], Some(znode("1/2", 2, 7)), "NODE-1/NODE-2 has id 2 and position 7, of 7"),
            (vec![], Some(znode("2", 2, 0)), "NODE-2 is no path from NODE-1 to NODE-2"),
            (vec![], Some(znode("1/2", 3, 1)), "NODE-1/NODE-2 is no path from NODE-1 to NODE-3"),
            (vec![], Some(znode("1/2/3", 3, 2)), "NODE-1/NODE-2/NODE-3 is no path to position 2"),
            (vec![], Some(znode("1", 1, 1)), "NODE-1 is no path to position 1"),
            (vec![], Some(znode("1/4", 4, 2)), "NODE-1/NODE-4 disagrees with another about NODE-4 or position 2"),
            (vec![], Some(znode("1/3", 3, 1)), "NODE-1/NODE-3 disagrees with another about NODE-3 or position 1"),
            (
                vec![],
                Some(znode("1/3/4", 4, 5)),
                "NODE-1/NODE-3/NODE-4 disagrees with another about NODE-4 or position 5",
            ),
            (
                vec![],
                Some(znode("1/5/7", 7, 6)),
                "NODE-1/NODE-5/NODE-7 disagrees with another about NODE-5 or position 2",
            ),
        ] {
            let cause = if extra.is_some() { format!("/tree-cache/tree/{cause}") } else { cause.to_owned() };
            let znodes: Vec<_> = tree().into_iter().chain(extra).collect();
            assert_eq!(fit(SHAPE, &kept, &znodes), Err(cause));
        }
    }
}
