//! `tree-cache show [URL]`: the tree as text, drawn from `GET /nodes`.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use crate::config::{Config, base_url};
use crate::http::client::Client;
use crate::tree::{self, ListedNode, Listing};

/// How long the node may take.
const SHOW_LIMIT: Duration = Duration::from_secs(3);

/// Nodes by position.
type Nodes<'a> = BTreeMap<u32, &'a ListedNode>;

/// Prints the tree that the node at `url` belongs to; without one, at this configuration's root.
pub fn show(url: Option<&str>) -> Result<(), String> {
    let url = match url {
        Some(url) => base_url(url).ok_or_else(|| format!("{url:?} is not a URL of the form http://host:port"))?,
        None => Config::of_any_node()?.root_url,
    };
    let listing = Client::new(None)
        .ask_tree(&url, SHOW_LIMIT)
        .map_err(|error| format!("could not ask for the tree at {url}: {error}"))?;
    // Whoever reads it may have seen enough: `show | head -1`.
    let _ = std::io::stdout().write_all(draw(&listing).as_bytes());
    Ok(())
}

fn draw(listing: &Listing) -> String {
    let nodes: Nodes = listing.places.iter().map(|node| (node.position, node)).collect();
    // Whatever a stranger says who listens there: no tree of ours is larger.
    let last = nodes.range(..tree::size(tree::MAX_DEPTH)).next_back().map_or(0, |(position, _)| *position);
    let mut text = format!("{} of {} nodes, depth {}\n", nodes.len(), listing.size, listing.depth);
    draw_below(&nodes, last, 0, "", "", &mut text);
    text
}

/// Draws the node at a position behind `branch`, and those below it, up to the position `last`, behind `indent`.
fn draw_below(nodes: &Nodes, last: u32, position: u32, branch: &str, indent: &str, text: &mut String) {
    let label = nodes.get(&position).map_or_else(|| "(free)".to_owned(), |node| label(node));
    text.extend([branch, &label, "\n"]);
    let (left, right) = (2 * position + 1, 2 * position + 2);
    if left <= last {
        draw_below(nodes, last, left, &format!("{indent}├── "), &format!("{indent}│   "), text);
        draw_below(nodes, last, right, &format!("{indent}└── "), &format!("{indent}    "), text);
    }
}

/// What is said of a node; without control characters, for whatever listens at a URL may have answered.
fn label(node: &ListedNode) -> String {
    let lost = match node.seconds_since_heard {
        _ if node.alive => String::new(),
        Some(seconds) => format!("  lost for {seconds} s"),
        None => "  not heard yet".to_owned(),
    };
    let url = node.url.as_ref().map(|url| format!("  {}", url.escape_debug())).unwrap_or_default();
    format!("{}{url}{lost}", tree::name(node.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(position: u32, id: u32, heard: Option<f64>) -> ListedNode {
        ListedNode {
            position,
            depth: 0,
            id,
            parent: None,
            name: format!("NODE-{id}"),
            url: heard.map(|_| format!("http://h:{id}")),
            alive: heard == Some(0.0),
            seconds_since_heard: heard,
        }
    }

    #[test]
    fn what_a_stranger_says_is_drawn_without_control_characters() {
        let stranger = ListedNode {
            name: "NODE-7\u{1b}[31m".to_owned(),
            url: Some("http://h:7\n\u{7}".to_owned()),
            ..node(0, 7, Some(0.0))
        };
        // Places beyond the tree are not drawn.
        let tree = Listing { depth: 1, size: 1, places: vec![stranger, node(u32::MAX, 8, None)] };
        assert_eq!(draw(&tree), "2 of 1 nodes, depth 1\nNODE-7  http://h:7\\n\\u{7}\n");
    }

    #[test]
    fn the_tree_is_drawn_with_free_places_and_lost_nodes() {
        let nodes = vec![node(0, 1, Some(0.0)), node(1, 2, Some(7.5)), node(4, 5, None)];
        let expected = "\
3 of 7 nodes, depth 3
NODE-1  http://h:1
├── NODE-2  http://h:2  lost for 7.5 s
│   ├── (free)
│   └── NODE-5  not heard yet
└── (free)
";
        assert_eq!(draw(&Listing { depth: 3, size: 7, places: nodes }), expected);
    }
}
