//! Roots: that they are young, and that nobody invalidates there.

use super::*;

/// A root that has not joined yet, of a tree of depth 2 with a lease of a minute.
pub fn young_root() -> Arc<Node> {
    root_with(&[])
}

/// The same, with more variables set.
pub fn root_with(more: &[(&str, &str)]) -> Arc<Node> {
    let variables = [&[("TREE_DEPTH", "2"), ("LEASE_SECONDS", "60")], more].concat();
    let value_of =
        |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    let config = Config::from_lookup(value_of).expect("these are allowed");
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
fn nobody_invalidates_at_the_root() {
    let root = young_root();
    root.store().restore("k", Value::from("1"), None).expect("there is room");
    for level in [0, 1, 2] {
        let refused = root.invalidate("k", root.myself.run, level);
        assert_eq!(refused.map_err(|error| error.text), Err("NODE-1 is not below the node that sends this".to_owned()));
    }
    assert_eq!(root.list(1).len(), 1);
}
