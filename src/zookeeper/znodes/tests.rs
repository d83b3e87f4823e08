//! Tables of znodes: what is wanted, what disagrees with the child table, and what can become one.

use std::time::Instant;

use super::*;
use crate::protocol::messages;
use crate::tree::{Member, Process};

fn from_json<T: for<'a> Deserialize<'a>>(data: &[u8]) -> Option<T> {
    messages::from_json(data).ok()
}

fn path(text: &str) -> String {
    full_path(&names(text))
}

fn names(text: &str) -> Vec<String> {
    text.split('/').map(|id| format!("NODE-{id}")).collect()
}

fn znode(ids: &str, id: u32, position: u32) -> (String, Option<ZnodeData>) {
    let data = ZnodeData { id, url: format!("http://h:{id}"), run: u64::from(id) * 100, position };
    (path(ids), Some(data))
}

fn tree() -> Found {
    [("1", 1, 0), ("1/2", 2, 1), ("1/2/4", 4, 3), ("1/2/5", 5, 4), ("1/3", 3, 2), ("1/3/6", 6, 5), ("1/3/7", 7, 6)]
        .map(|(ids, id, position)| znode(ids, id, position))
        .into()
}

fn table(places: &[(u32, u32)]) -> Wanted {
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
    let mut place = Place { position: 3, path: Some(names("1/2/4")), ancestors: vec![], children: vec![] };
    let znodes = wanted(&place, 4, "http://h:4", 44).unwrap();
    let text = |(path, data)| format!("{path} {}", String::from_utf8_lossy(&messages::to_json(data)));
    assert_eq!(
        znodes.iter().map(text).collect::<Vec<_>>(),
        [
            r#"/tree-cache/tree/NODE-1 {"id":1,"url":"","run":0,"position":0}"#,
            r#"/tree-cache/tree/NODE-1/NODE-2 {"id":2,"url":"","run":0,"position":1}"#,
            r#"/tree-cache/tree/NODE-1/NODE-2/NODE-4 {"id":4,"url":"http://h:4","run":44,"position":3}"#,
        ]
    );
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
        // Free places, but on no path that leads there.
        (&[(2, 1), (3, 2), (4, 3), (5, 4), (7, 6)], Some(znode("1/2/6", 6, 5)), &["1/2/6"]),
        (&[(4, 3), (5, 4), (6, 5), (7, 6)], Some(znode("1/2/3", 3, 2)), &["1/2/3"]),
        // Children stay where they are, below another node.
        (&swapped, None, &["1/2/4", "1/2/5", "1/3/6", "1/3/7"]),
        // Unknown to the table: their places are free, so they stay.
        (&[(2, 1), (4, 3)], None, &[]),
        // NODE-7 has the place that NODE-4 had.
        (&[(2, 1), (7, 3)], None, &["1/2/4", "1/3/7"]),
    ] {
        let znodes = tree().into_iter().chain(extra).collect();
        let expected: Vec<_> = expected.iter().map(|ids| path(ids)).collect();
        assert_eq!(misplaced(3, &table(table_of), &znodes), expected.iter().collect::<Vec<_>>());
    }
    let unreadable = [(path("1/9"), None)].into();
    assert_eq!(misplaced(3, &table(&right), &unreadable).len(), 0);
}

#[test]
fn the_root_says_what_nobody_else_does() {
    let right = [(2, 1), (3, 2), (4, 3), (5, 4), (6, 5), (7, 6)];
    let mut znodes = tree();
    znodes.extend([znode("1/2", 2, 2), (path("1/2/4"), None)]);
    znodes.insert(path("1/2/5"), from_json(br#"{"id":5,"url":"http://h:5","run":0,"position":4}"#));
    znodes.remove(&path("1/3/7"));
    let table = table(&right);
    let unsaid: Vec<_> = unsaid(&table, &znodes).iter().map(|(path, _)| (*path).clone()).collect();
    assert_eq!(unsaid, ["1/2", "1/2/4", "1/2/5", "1/3/7"].map(path), "all other runs differ");
}

const SHAPE: Shape = Shape { depth: 3, root_id: 1 };

#[test]
fn a_tree_that_fits_becomes_the_child_table() {
    let places = [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7)];
    assert_eq!(fit(SHAPE, from_json(br#"{"depth":3,"root_id":1}"#), &tree()), Ok(places.into()));
    assert_eq!(fit(SHAPE, None, &Found::new()), Ok(vec![]), "none is one that fits");
}

#[test]
fn what_cannot_be_read_is_left_out() {
    for data in
        [&b""[..], b"{", b"[]", br#"[2,"http://h:2",200,1]"#, br#"{"id":2,"url":"http://h:2","run":-1,"position":1}"#]
    {
        assert_eq!(from_json::<ZnodeData>(data), None);
    }
    assert_eq!(from_json::<Shape>(b"no shape either"), None);
    let mut znodes = tree();
    znodes.insert(path("1/2"), None);
    let places = [(2, 3), (3, 4), (4, 5), (5, 6), (6, 7)];
    assert_eq!(fit(SHAPE, None, &znodes), Ok(places.into()), "those below it count");
}

#[test]
fn a_tree_that_does_not_fit_is_refused_with_the_reason() {
    let shape = |depth, root_id| Some(Shape { depth, root_id });
    for (kept, extra, cause) in [
        (shape(2, 1), None, "its depth is 2 and its root is NODE-1"),
        (shape(3, 2), None, "its depth is 3 and its root is NODE-2"),
        (None, Some(znode("1/8", 8, 1)), "NODE-1/NODE-8 has id 8 and position 1, of 7"),
        (None, Some(znode("1/2", 2, 7)), "NODE-1/NODE-2 has id 2 and position 7, of 7"),
        (None, Some(znode("1/2", 3, 1)), "NODE-1/NODE-2 has id 3 and position 1, of 7"),
        (None, Some(znode("1/2/3", 3, 2)), "NODE-1/NODE-2/NODE-3 has id 3 and position 2, of 7"),
        (None, Some(znode("1", 1, 1)), "NODE-1 has id 1 and position 1, of 7"),
        (None, Some(znode("2", 2, 0)), "NODE-2 has id 2 and position 0, and another, too"),
        (None, Some(znode("1/4", 4, 2)), "NODE-1/NODE-4 has id 4 and position 2, and another, too"),
        (None, Some(znode("1/3", 3, 1)), "NODE-1/NODE-3 has id 3 and position 1, and another, too"),
        (None, Some(znode("1/3/4", 4, 5)), "NODE-1/NODE-3/NODE-4 has id 4 and position 5, and another, too"),
    ] {
        let cause = if extra.is_some() { format!("/tree-cache/tree/{cause}") } else { cause.to_owned() };
        let znodes = tree().into_iter().chain(extra).collect();
        assert_eq!(fit(SHAPE, kept, &znodes), Err(cause));
    }
}
