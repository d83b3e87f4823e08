//! Positions, and the child table.

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
    assert_eq!(table.process(2), None, "whoever says so has to be asked");
    table.admit(member(4), Some(3));
    let place = table.place(3);
    assert_eq!(place.path.unwrap(), ["NODE-1", "NODE-2", "NODE-4"]);
    assert_eq!((names(&place.ancestors), names(&table.place(0).children)), (vec!["NODE-1"], vec![]));
    let listing = table.listing(Instant::now());
    assert_eq!((listing.places[1].id, &listing.places[1].url, listing.places[1].alive), (2, &None, false));

    assert_eq!(table.admit(member(3), None), 2, "its place is not free");
    assert_eq!(table.admit(member(2), Some(5)), 1, "and its own");
    assert_eq!(names(&table.place(3).ancestors), ["NODE-2", "NODE-1"]);
    assert_eq!(table.process(2).map(|process| process.run), Some(200));
}
