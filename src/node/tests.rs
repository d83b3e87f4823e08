//! Roots that are young.

use super::*;
use crate::cache::store::{Condition, Turn};

/// A root that has not joined yet, of a tree of depth 2 with a lease of a minute.
pub fn young_root() -> Arc<Node> {
    let variables = |name| match name {
        "TREE_DEPTH" => Some("2".to_owned()),
        "LEASE_SECONDS" => Some("60".to_owned()),
        _ => None,
    };
    let config = Config::from_lookup(variables).expect("these are allowed");
    Arc::new(Node::new(config, "127.0.0.1:9".parse().expect("an address")))
}

/// When the root will finish a write.
pub fn quiet_until(root: &Node) -> Option<Instant> {
    let mut store = root.store();
    let ticket = store.queue_write("key", Condition::None, thread::current());
    let turn = store.take_turn("key", ticket, Instant::now());
    store.finish_write("key", ticket, None, Instant::now()).0.expect("nothing is put");
    if let Turn::NotBefore(then) = turn { Some(then) } else { None }
}

#[test]
fn rule_8_a_young_root_waits_from_when_nodes_can_join() {
    let root = young_root();
    let before = Instant::now();
    root.take_table(FormerTree::None);
    assert!(quiet_until(&root).expect("it waits") >= before + JOINS_TAKE);
    for former in [FormerTree::Unknown, FormerTree::Places(vec![(1, 2)])] {
        let root = young_root();
        root.take_table(former);
        assert_eq!(quiet_until(&root), Some(root.started + Duration::from_secs(66)));
    }
}
