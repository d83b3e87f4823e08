//! Roots that are young, and what is meant for another run.

use super::*;

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

#[test]
fn rule_10_a_root_waits_from_when_it_takes_its_table() {
    let root = young_root();
    assert_eq!(root.young_for(), Duration::ZERO);
    root.take_table(vec![(1, 2)], root.config.lease);
    let young_for = root.young_for();
    assert!(young_for > Duration::from_secs(65) && young_for <= Duration::from_secs(66), "{young_for:?}");
}

#[test]
fn rule_8_a_node_that_started_again_does_not_answer_for_its_former_self() {
    let node = young_root();
    node.store().restore("k", Value::from("1"), None).expect("there is room");
    let refused = node.invalidate("k", node.myself.run + 1, 0);
    assert_eq!(refused.map_err(|error| error.text), Err("NODE-1 is another process now".to_owned()));
    assert_eq!(node.list(1).len(), 1, "what is meant for another run changes nothing");
    node.invalidate("k", node.myself.run, 0).expect("it is meant for this one");
    assert_eq!(node.list(1).len(), 0);
}
