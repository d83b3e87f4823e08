//! Who may ask what, and who is shown the token of the nodes.

use crate::client::{Answer, copy_path, join_body, raw_call};
use crate::harness::{Env, Node, Process, Tree};
use crate::impostor::Impostor;
use crate::tree::places;

const TOKEN: &str = "n0b0dy-Knows/This=1";

/// Run of the impostor.
const RUN: u64 = 7;

/// A request exactly as it is written here.
fn ask(node: &Node, method: &str, target: &str, headers: Env, body: &str) -> Answer {
    let headers = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<Vec<_>>().concat();
    let length = body.len();
    let request = format!("{method} {target} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
    raw_call(node.port, request.as_bytes())
}

#[test]
fn no_spelling_opens_a_call_between_nodes_to_a_stranger() {
    // Two of three places are taken, so that there is one to be had.
    let tree = Tree::start(1, &[("TREE_DEPTH", "2"), ("TREE_TOKEN", TOKEN)]);
    let leaf = tree.start_node(2, &[("TREE_DEPTH", "2"), ("TREE_TOKEN", TOKEN)]);
    tree.root().write("k", "1");
    let impostor = Impostor::start(RUN);
    let join = join_body(3, RUN, &impostor.url(), None);
    let fetch = |node: &Node| copy_path(node.run(), 3, RUN, &impostor.url());
    let invalidate = format!("/copies/k?to={}&level=1", leaf.run());

    let strangers: [(u16, Env); 5] = [
        (401, &[]),
        (401, &[("Authorization", "Bearer wrong")]),
        (401, &[("Via", "1.1 NODE-2")]),
        (403, &[("Origin", "http://localhost:5000")]),
        (403, &[("Sec-Fetch-Site", "same-origin"), ("Authorization", "Bearer wrong")]),
    ];
    for node in [tree.root(), &leaf] {
        for (method, path, body) in
            [("POST", "nodes", join.as_str()), ("GET", &fetch(node)[1..], ""), ("DELETE", &invalidate[1..], "")]
        {
            for (refused, headers) in strangers {
                for (start, status) in [
                    ("/", refused),
                    ("http://x/", refused),
                    ("http://x:5000/", refused),
                    ("http://nodes/", refused),
                    ("", 400),
                    ("x/", 400),
                    ("*/", 400),
                    ("*", 400),
                    ("?/", 400),
                    ("#/", 400),
                    ("http:/", 400),
                    ("http:", 400),
                    ("http:///", 400),
                    ("HTTP://x/", 400),
                    ("https://x/", 400),
                    ("x:5000/", 400),
                    ("//", 404),
                    ("/x/", 404),
                    ("/./", 404),
                    ("/x/../", 404),
                    ("/%2F", 404),
                    ("/http://x/", 404),
                    ("http://x//", 404),
                    ("http://x/x/", 404),
                ] {
                    let answer = ask(node, method, &format!("{start}{path}"), headers, body);
                    let said = format!("{method} {start}{path} {headers:?} at {}: {}", node.name, answer.text());
                    assert_eq!(answer.status, status, "{said}");
                    assert!(answer.json()["detail"].is_string(), "{said}");
                }
            }
        }
    }
    assert_eq!(impostor.heard(), [""; 0], "nobody is even asked who it is");
    let nodes = |ids: u32| (1..=ids).map(|id| (u64::from(id) - 1, format!("NODE-{id}"))).collect::<Vec<_>>();
    assert_eq!(places(tree.root()), nodes(2));
    for node in [tree.root(), &leaf] {
        let counted = ["grants_total", "holders", "invalidations_received_total"].map(|name| node.metric(name));
        assert_eq!(counted, [0, 0, 0], "at {}", node.name);
    }

    // They are calls, and to a node they are open.
    let token = [("Authorization", &*format!("Bearer {TOKEN}"))];
    assert_eq!(ask(tree.root(), "POST", "http://x/nodes", &token, &join).status, 200);
    assert_eq!(places(tree.root()), nodes(3));
    assert_eq!(ask(tree.root(), "GET", &fetch(tree.root()), &token, "").status, 200);
    assert_eq!(ask(&leaf, "DELETE", &invalidate, &token, "").status, 200);
}

#[test]
fn calls_between_nodes_need_the_token_and_no_log_shows_it() {
    let tree = Tree::start(2, &[("TREE_TOKEN", TOKEN), ("RUST_LOG", "trace")]);
    tree.node(2).write("k", "1");
    tree.node(3).expect_value("k", "1");
    // Told with the token, its holder lets go at once.
    tree.node(2).write("k", "2");
    let told = ["invalidations_sent_total", "silent_holder_waits_total"].map(|name| tree.root().metric(name));
    assert_eq!(told, [1, 0]);
    tree.root().get("/nodes");

    let copy = |node: &Node| copy_path(node.run(), 9, 9, "http://127.0.0.1:9");
    let join = join_body(3, tree.leaf().run(), &tree.leaf().url, Some(2));
    let right = format!("Bearer {TOKEN}");
    for node in [tree.root(), tree.leaf()] {
        let copy = copy(node);
        for (method, path, body) in
            [("GET", copy.as_str(), ""), ("DELETE", "/copies/k?to=9", ""), ("POST", "/nodes", join.as_str())]
        {
            for wrong in [
                None,
                Some(""),
                Some("Bearer "),
                Some("Bearer wrong"),
                Some(&right[..right.len() - 1]),
                Some(&format!("{right}1")),
                Some(&right.to_uppercase()),
                Some(TOKEN),
                Some(&format!("Basic {TOKEN}")),
            ] {
                let headers: Vec<_> = wrong.map(|value| ("Authorization", value)).into_iter().collect();
                let answer = node.call_with(method, path, &headers, body.as_bytes());
                answer.expect_error(401, "this call needs the token of the nodes");
                assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            }
        }
        assert_eq!(node.call_with("GET", &copy, &[("Authorization", &right)], b"").status, 200);
    }
    assert_eq!(tree.root().call_with("POST", "/nodes", &[("Authorization", &right)], join.as_bytes()).status, 200);

    for (token, rest) in [("0ther-T0ken", [("TREE_TOKEN", "0ther-T0ken")].as_slice()), (TOKEN, &[])] {
        let root_url = tree.root().url.as_str();
        let env = [("TREE_DEPTH", "2"), ("NODE_ID", "3"), ("API_PORT", "0"), ("ROOT_URL", root_url)];
        let line = format!("NODE-3 cannot join at {root_url}: this call needs the token of the nodes (401)");
        Process::expect_failure(&[], &[&env, rest].concat(), &line);
        assert!(!line.contains(token));
    }
    for node in &tree.nodes {
        let log = node.process.log();
        // ureq would write what it sends as hexadecimal dumps, a line for each sixteen bytes.
        for part in [TOKEN, "Bearer", &TOKEN[..6], "TRACE"] {
            assert!(!log.contains(part), "{} shows {part}: {log}", node.name);
        }
    }
    // The level is heeded.
    tree.root().process.wait_for_log("DEBUG: 401: this call needs the token of the nodes", 1);
}

#[test]
fn the_token_is_shown_only_to_who_showed_it() {
    let tree = Tree::start(1, &[("TREE_DEPTH", "2"), ("TREE_TOKEN", TOKEN)]);
    let impostor = Impostor::start(RUN);
    let asked_who_it_is = |target: &str, what: &str| {
        let heard = impostor.heard();
        assert_eq!(heard.len(), 1, "{what}: {heard:?}");
        assert!(heard[0].starts_with(&format!("GET {target} HTTP/1.1\r\n")), "{what}: {heard:?}");
        let shown = heard[0].to_lowercase().contains("authorization") || heard[0].contains(TOKEN);
        assert!(!shown, "{what}: {heard:?}");
    };
    let token = format!("Bearer {TOKEN}");
    let join = |id, run, url: &str| {
        let body = join_body(id, run, url, None);
        tree.root().call_with("POST", "/nodes", &[("Authorization", &token)], body.as_bytes())
    };

    // Its URL is stated by somebody else: nothing is told of what answers there either.
    join(2, RUN + 1, &impostor.url()).expect_error(503, &format!("cannot reach you at {}", impostor.url()));
    asked_who_it_is("/", "whose URL a join states");
    assert_eq!(join(2, RUN, &impostor.url()).status, 200);
    asked_who_it_is("/", "a joining node");
    // Another process wants its place.
    join(2, RUN + 1, &tree.root().url).expect_error(409, &format!("another NODE-2 is alive at {}", impostor.url()));
    asked_who_it_is("/", "a former node");

    let port = impostor.port().to_string();
    let env = [("API_PORT", port.as_str()), ("TREE_TOKEN", TOKEN), ("ROOT_URL", &impostor.url())];
    for (arguments, target) in [(&["health"][..], "/"), (&["show"], "/nodes"), (&["show", &impostor.url()], "/nodes")] {
        let (code, _, log) = Process::run_to_end(arguments, &env);
        assert_eq!((code, log.as_str()), (Some(0), ""), "{arguments:?}");
        asked_who_it_is(target, &arguments.join(" "));
    }
}

#[test]
fn a_root_that_lost_its_token_is_shown_none_by_those_below_it() {
    let env = [("TREE_DEPTH", "3"), ("TREE_TOKEN", TOKEN)];
    let mut tree = Tree::start(1, &env);
    for id in 2..=4 {
        tree.nodes.push(tree.start_node(id, &env));
    }
    let root_url = tree.root().url.clone();
    let port = tree.root().port.to_string();
    tree.nodes[0].kill();
    tree.nodes[1].kill();
    tree.nodes[0] = Node::start(&[("TREE_DEPTH", "3"), ("API_PORT", &port)]);

    // Whoever comes now may join, and has the place above NODE-4.
    let impostor = Impostor::start(RUN);
    let join = join_body(2, RUN, &impostor.url(), Some(1));
    assert_eq!(tree.root().call("POST", "/nodes", join.as_bytes()).status, 200);
    assert_eq!(impostor.heard().len(), 1, "it was asked who it is");

    let refused = "this call shows a token, and this node has no TREE_TOKEN";
    let warned = format!("WARN: no place from the root at {root_url} any more: answered 401 {refused:?}");
    tree.node(4).process.wait_for_log(&warned, 1);
    let answer = tree.node(4).get("/store/k");
    assert_eq!(answer.status, 503, "{}", answer.text());
    let env = [&env[..], &[("NODE_ID", "5"), ("API_PORT", "0"), ("ROOT_URL", &root_url)]].concat();
    Process::expect_failure(&[], &env, &format!("NODE-5 cannot join at {root_url}: {refused} (401)"));
    assert_eq!(impostor.heard(), [""; 0]);
}

#[test]
fn a_host_that_may_be_a_strangers_is_403_for_whatever_is_asked() {
    let env = [("TREE_DEPTH", "2"), ("TREE_TOKEN", TOKEN), ("ALLOWED_HOSTS", "cache.example.org")];
    let tree = Tree::start(1, &env);
    let leaf = tree.start_node(2, &env);
    leaf.write("k", "1");
    let refused = |node: &Node, host: &str| {
        (403, format!("Host {host:?} is not known as a name of {}; if it is one, set ALLOWED_HOSTS={host}", node.name))
    };
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    for node in [tree.root(), &leaf] {
        for (method, target) in [
            ("GET", "/"),
            ("GET", "/store/k"),
            ("PUT", "/store/k"),
            ("DELETE", "/store/k"),
            ("GET", "/store"),
            ("GET", "/nodes"),
            ("POST", "/nodes"),
            ("GET", "/metrics"),
            ("GET", "/health"),
            ("GET", "/openapi.json"),
            ("GET", &copy_path(1, 2, RUN, "http://127.0.0.1:9")),
            ("DELETE", "/copies/k?to=1&level=1"),
            ("OPTIONS", "*"),
            ("GET", "/elsewhere"),
        ] {
            for (headers, (status, detail)) in [
                ("Host: rebound.example:5000\r\n", refused(node, "rebound.example")),
                ("Host: Rebound.Example.\r\nAuthorization: Bearer wrong\r\n", refused(node, "rebound.example")),
                ("Host: localhost\r\nHost: localhost\r\n", (400, "there is more than one Host".to_owned())),
                ("Host: a/b\r\n", (400, "Host \"a/b\" is no host".to_owned())),
            ] {
                let request =
                    format!("{method} {target} HTTP/1.1\r\n{headers}Content-Length: 11\r\n\r\n{{\"value\":2}}");
                let answer = raw_call(node.port, request.as_bytes());
                assert_eq!(answer.status, status, "{method} {target} {headers}");
                answer.expect_error(status, &detail);
            }
        }
        for headers in ["", "Host:\r\n", "Host: cache.example.org\r\n", &format!("Host: rebound.example\r\n{token}")] {
            raw_call(node.port, format!("GET /store/k HTTP/1.1\r\n{headers}\r\n").as_bytes())
                .expect(200, r#"{"value":1}"#);
        }
    }
    // A target that names a host wins over the header.
    for (target, host, status) in [("rebound.example", "localhost", 403), ("localhost:1", "rebound.example", 200)] {
        let request = format!("GET http://{target}/store/k HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(raw_call(leaf.port, request.as_bytes()).status, status, "{target} {host}");
    }
    // Its URL is known where one joined, whatever the others know.
    let env = [("TREE_DEPTH", "2"), ("NODE_URL", "http://node.example.org:5000")];
    let root = Node::start(&env);
    raw_call(root.port, b"GET /health HTTP/1.1\r\nHost: node.example.org\r\n\r\n").expect(200, r#"{"status":"ok"}"#);
}
