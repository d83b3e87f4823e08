//! Every row of the HTTP tables, at the root and at a leaf; but joins are in `tree.rs`, the token is in `door.rs`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Raw, raw_call};
use crate::harness::{Node, Tree, poll_until};
use crate::impostor::Impostor;

const JSON: Option<&str> = Some("application/json");

#[test]
fn a_value_written_at_one_leaf_is_read_at_every_node_and_gone_after_its_delete() {
    let tree = Tree::start(2, &[]);
    let put = tree.node(2).put("colour", r#""teal""#);
    put.expect(200, r#"{"key":"colour","value":"teal"}"#);
    assert_eq!(put.header("content-type"), JSON);
    for node in &tree.nodes {
        let answer = node.get("/store/colour");
        answer.expect(200, r#"{"value":"teal"}"#);
        assert_eq!(answer.header("content-type"), JSON);
    }
    // The path that was taken: the root alone wrote, and the leaf asked for what it did not have.
    assert_eq!(tree.root().metric("writes_total"), 1);
    assert_eq!(tree.root().metric(r#"reads_total{from="entry"}"#), 1);
    assert_eq!(tree.leaf().metric(r#"reads_total{from="fetch"}"#), 1);
    assert_eq!(tree.leaf().metric("fetches_sent_total"), 1);
    assert_eq!(tree.leaf().metric("writes_total"), 0);

    tree.leaf().delete("colour").expect(200, r#"{"key":"colour"}"#);
    for node in &tree.nodes {
        node.get("/store/colour").expect_error(404, "Key not found");
        assert_eq!(node.metric(r#"reads_total{from="none"}"#), 1);
        // Whether or not it was there, it is gone now.
        let answer = node.delete("colour");
        answer.expect(200, r#"{"key":"colour"}"#);
        assert_eq!(answer.header("content-type"), JSON);
    }
}

#[test]
fn a_read_climbs_from_parent_to_parent() {
    let tree = Tree::start(3, &[]);
    tree.root().write("k", "1");
    tree.node(7).expect_value("k", "1");
    let fetches = |id| tree.node(id).metric("fetches_sent_total");
    assert_eq!([7, 3, 1, 2, 4, 5, 6].map(fetches), [1, 1, 0, 0, 0, 0, 0]);
    assert_eq!(tree.node(3).metric(r#"reads_total{from="fetch"}"#), 0, "NODE-3 served a node, not a client");
}

#[test]
fn values_come_back_byte_for_byte() {
    let tree = Tree::start(2, &[]);
    for (number, value) in [
        "123456789012345678901234567890",
        "1e400",
        "-0.10e-0",
        r#""\u0000""#,
        r#""\ud83c\udf33 žluťoučký 木""#,
        r#"{ "a" :  [1,2 , {"b":null}],"a":2 }"#,
        "null",
        "true",
        "[]",
        r#""""#,
    ]
    .iter()
    .enumerate()
    {
        let key = format!("value-{number}");
        tree.node(2).write(&key, value);
        for node in [tree.leaf(), tree.root()] {
            node.expect_value(&key, value);
        }
    }
}

#[test]
fn spaces_around_a_value_are_not_its_own_and_unknown_fields_are_ignored() {
    let root = Node::alone();
    let body = b" \n{ \"other\" : [1] , \"value\" :  { \"a\" : 1 }  , \"more\":2}\r\n";
    root.call("PUT", "/store/k", body).expect(200, r#"{"key":"k","value":{ "a" : 1 }}"#);
    root.expect_value("k", r#"{ "a" : 1 }"#);
}

#[test]
fn any_character_may_stand_in_a_key() {
    let tree = Tree::start(2, &[]);
    let longest = "k".repeat(1024);
    for key in [
        "a/b",
        "a b",
        "a+b",
        "100%",
        "%2F",
        "a\nb",
        "\0",
        "žluťoučký kůň",
        "木構造",
        "🌳",
        "?q=1&x#y",
        ".",
        "..",
        "\"\\",
        &longest,
    ] {
        let encoded = key.bytes().map(|byte| format!("%{byte:02X}")).collect::<Vec<_>>().concat();
        let value = json!({ "of": key }).to_string();
        let written: Value = tree.node(2).put(&encoded, &value).json();
        assert_eq!(written, json!({ "key": key, "value": { "of": key } }));
        tree.node(3).expect_value(&encoded, &value);
    }
    // The same key, however much of it is encoded; a plus sign is a plus sign.
    tree.node(3).expect_value("a+b", r#"{"of":"a+b"}"#);
    tree.node(3).expect_value("a%2bb", r#"{"of":"a+b"}"#);
    // One path segment, and no other slash than an encoded one.
    tree.node(3).get("/store/a/b").expect_error(404, r#"there is no path "/store/a/b""#);
    assert_eq!(tree.root().metric("entries"), 15);
}

#[test]
fn what_is_no_key_is_400_and_says_why() {
    let tree = Tree::start(2, &[]);
    let too_long = "k".repeat(1025);
    for node in [tree.root(), tree.leaf()] {
        for (key, detail) in [
            ("", "the key is empty"),
            (too_long.as_str(), "the key has 1025 bytes; at most 1024 are allowed"),
            ("%zz", "the key has a % without two hexadecimal digits"),
            ("a%2", "the key has a % without two hexadecimal digits"),
            ("%ff", "the key is not UTF-8"),
        ] {
            for method in ["GET", "PUT", "DELETE"] {
                let request =
                    format!("{method} /store/{key} HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n{{\"value\":1}}");
                raw_call(node.port, request.as_bytes()).expect_error(400, detail);
            }
        }
    }
}

#[test]
fn head_is_get_without_its_body() {
    let tree = Tree::start(2, &[]);
    tree.root().write("k", "[1,2]");
    for node in [tree.root(), tree.leaf()] {
        for (path, status) in [("/store/k", 200), ("/store/other", 404), ("/", 200), ("/nodes", 200), ("/store", 200)] {
            let answer = node.call("HEAD", path, b"");
            answer.expect(status, "");
            assert_eq!(answer.header("content-type"), JSON);
        }
        assert_eq!(node.call("HEAD", "/store/k", b"").header("content-length"), Some("15"));
    }
}

#[test]
fn a_target_may_be_absolute() {
    let root = Node::alone();
    root.put("k", "1");
    let port = root.port;
    let get = |target: &str| raw_call(port, format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    get("http://somewhere/store/k").expect(200, r#"{"value":1}"#);
    get("http://somewhere/store/k?x=y").expect(200, r#"{"value":1}"#);
    assert_eq!(get("http://somewhere").json()["node"], "NODE-1");
    for target in ["*", "store/k", "x/store/k", "HTTP://somewhere/store/k"] {
        get(target).expect_error(400, &format!("the target {target:?} is neither a path nor an http:// URL"));
    }
    for target in ["//store/k", "/store/k/", "/Store/k", "/copies", "/healthy"] {
        get(target).expect_error(404, &format!("there is no path {target:?}"));
    }
}

#[test]
fn another_method_is_405_and_allow_names_the_ones_there_are() {
    let tree = Tree::start(2, &[]);
    for node in [tree.root(), tree.leaf()] {
        for (method, path, allow) in [
            ("POST", "/store/k", "GET, HEAD, PUT, DELETE, OPTIONS"),
            ("PATCH", "/store/k", "GET, HEAD, PUT, DELETE, OPTIONS"),
            ("BREW", "/store/k", "GET, HEAD, PUT, DELETE, OPTIONS"),
            ("PUT", "/store", "GET, HEAD, OPTIONS"),
            ("DELETE", "/store", "GET, HEAD, OPTIONS"),
            ("POST", "/", "GET, HEAD, OPTIONS"),
            ("DELETE", "/metrics", "GET, HEAD, OPTIONS"),
            ("PUT", "/nodes", "GET, HEAD, POST, OPTIONS"),
        ] {
            let answer = node.call(method, path, b"");
            answer.expect_error(405, &format!("the method {method:?} is not one of {allow}"));
            assert_eq!(answer.header("allow"), Some(allow));
        }
        let answer = node.call("PUT", "/copies/k", b"{}");
        assert_eq!(answer.status, 405);
        assert!(answer.header("allow").is_some_and(|allow| allow.contains("GET") && !allow.contains("PUT")));
    }
}

#[test]
fn a_body_that_is_not_asked_for_is_422_and_says_what_is_wrong() {
    let tree = Tree::start(2, &[]);
    for node in [tree.root(), tree.leaf()] {
        for (body, named) in [
            ("", "not a JSON object"),
            ("[1]", "not a JSON object"),
            ("7", "not a JSON object"),
            ("\"value\"", "not a JSON object"),
            ("{}", "`value`"),
            ("{\"valeu\":1}", "`value`"),
            ("{\"value\":}", "line 1 column 10"),
            ("{\"value\":1", "line 1 column 10"),
            ("{\"value\":1}x", "line 1 column 12"),
            ("{\"value\":01}", "line 1 column"),
            ("{\"value\":1,\"value\":2}", "`value`"),
        ] {
            let answer = node.call("PUT", "/store/k", body.as_bytes());
            assert_eq!(answer.status, 422, "{body}: {}", answer.text());
            assert!(answer.detail().contains(named), "{}", answer.text());
            assert_eq!(answer.header("content-type"), JSON);
        }
    }
    assert_eq!(tree.root().metric("writes_total"), 0);
    for (body, named) in [("{\"id\":2}", "`run`"), ("{\"id\":\"2\",\"run\":1,\"url\":\"x\"}", "invalid type: string")] {
        let answer = tree.root().call("POST", "/nodes", body.as_bytes());
        assert_eq!(answer.status, 422);
        assert!(answer.detail().contains(named), "{}", answer.text());
    }
}

#[test]
fn a_body_of_another_content_type_is_read_all_the_same() {
    let root = Node::alone();
    for content_type in ["application/x-www-form-urlencoded", "text/plain", "nonsense"] {
        let answer = root.call_with("PUT", "/store/k", &[("Content-Type", content_type)], br#"{"value":1}"#);
        answer.expect(200, r#"{"key":"k","value":1}"#);
    }
}

#[test]
fn a_body_over_the_limit_is_413_and_one_at_the_limit_is_kept() {
    let tree = Tree::start(2, &[("MAX_VALUE_BYTES", "3000")]);
    let body = |bytes: usize| format!(r#"{{"value":"{}"}}"#, "x".repeat(bytes - r#"{"value":""}"#.len()));
    for node in [tree.root(), tree.leaf()] {
        assert_eq!(node.call("PUT", "/store/k", body(3000).as_bytes()).status, 200);
        let answer = node.call("PUT", "/store/k", body(3001).as_bytes());
        answer.expect_error(413, "the body has 3001 bytes; at most 3000 are allowed");
        node.get("/store/k").expect(200, &body(3000));
    }
}

#[test]
fn a_full_store_is_507_and_the_old_value_still_stands() {
    let tree = Tree::start(2, &[("MAX_STORE_BYTES", "1000")]);
    tree.root().write("k", "1");
    let bytes = tree.root().metric("bytes");
    for node in [tree.root(), tree.leaf()] {
        for key in ["k", "other"] {
            let answer = node.put(key, &format!("\"{}\"", "x".repeat(1000)));
            assert_eq!(answer.status, 507);
            let detail = answer.detail();
            assert!(detail.starts_with("the store is full: ") && detail.ends_with(" 1000 are allowed"), "{detail}");
        }
        node.expect_value("k", "1");
        node.get("/store/other").expect_error(404, "Key not found");
    }
    assert_eq!((tree.root().metric("entries"), tree.root().metric("writes_total")), (1, 1));
    tree.root().write("k", "2");
    tree.root().delete("k");
    assert!(bytes > 0 && tree.root().metric("entries") == 0);
}

#[test]
fn a_content_length_that_is_no_number_is_400() {
    let tree = Tree::start(2, &[]);
    for node in [tree.root(), tree.leaf()] {
        for length in ["-1", "abc", "1e3", "18446744073709551616"] {
            let request = format!("PUT /store/k HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
            let answer = raw_call(node.port, request.as_bytes());
            let said = format!("Content-Length [{length:?}] and Transfer-Encoding []");
            answer.expect_error(400, &format!("{said} do not say where the body ends"));
        }
    }
}

#[test]
fn the_listing_holds_every_entry_up_to_its_limit() {
    let tree = Tree::start(2, &[]);
    tree.root().get("/store").expect(200, "{}");
    for (key, value) in [("a", "1"), ("b%2Fc", "[ 2 ]"), ("%22", "null")] {
        tree.root().put(key, value);
    }
    let answer = tree.root().get("/store");
    assert_eq!(answer.json(), json!({ "a": 1, "b/c": [2], "\"": null }));
    assert!(answer.text().contains(r#""b/c":[ 2 ]"#), "values stand as they were sent: {}", answer.text());
    assert_eq!(answer.header("content-type"), JSON);
    for (limit, listed) in [("1", 1), ("2", 2), ("3", 3), ("1000", 3)] {
        let answer = tree.root().get(&format!("/store?limit={limit}"));
        assert_eq!(answer.json().as_object().map(serde_json::Map::len), Some(listed));
    }
    for node in [tree.root(), tree.leaf()] {
        assert_eq!((node.get("/store").status, node.get("/store").json().is_object()), (200, true));
        for limit in ["0", "1001", "-1", "x", ""] {
            let answer = node.get(&format!("/store?limit={limit}"));
            answer.expect_error(400, &format!("limit={limit:?} is not a whole number from 1 to 1000"));
        }
    }
}

#[test]
fn a_listing_has_at_most_one_mebibyte() {
    let root = Node::alone();
    let value = format!("\"{}\"", "x".repeat(400_000));
    for key in ["a", "b", "c"] {
        root.put(key, &value);
    }
    for key in ["short", "shorter"] {
        root.put(key, "1");
    }
    let answer = root.get("/store");
    assert_eq!((answer.status, answer.json().as_object().map(serde_json::Map::len)), (200, Some(4)));
    assert_eq!((&answer.json()["short"], &answer.json()["shorter"]), (&json!(1), &json!(1)), "wherever they stand");
    assert!(answer.body.len() <= 1 << 20);
}

#[test]
fn a_node_describes_itself() {
    let tree = Tree::start(3, &[]);
    let refer =
        |id: usize| json!({ "name": format!("NODE-{id}"), "url": tree.node(id).url, "run": tree.node(id).run() });
    // NODE-3 hears of its children with its next join.
    let node = tree.node(3);
    poll_until(Duration::from_secs(5), "both children at NODE-3", || {
        node.get("/").json()["children"].as_array().is_some_and(|children| children.len() == 2)
    });
    for (id, role, position, depth, path, ancestors, children) in [
        (1, "root", 0, 1, json!(["NODE-1"]), json!([]), json!([refer(2), refer(3)])),
        (3, "node", 2, 2, json!(["NODE-1", "NODE-3"]), json!([refer(1)]), json!([refer(6), refer(7)])),
        (7, "node", 6, 3, json!(["NODE-1", "NODE-3", "NODE-7"]), json!([refer(3), refer(1)]), json!([])),
    ] {
        let answer = tree.node(id).get("/");
        assert_eq!((answer.status, answer.header("content-type")), (200, JSON));
        let described = answer.json();
        for (field, expected) in [
            ("node", json!(format!("NODE-{id}"))),
            ("id", json!(id)),
            ("role", json!(role)),
            ("joined", json!(true)),
            ("position", json!(position)),
            ("depth", json!(depth)),
            ("url", json!(tree.node(id).url)),
            ("path", path),
            ("parent", ancestors[0].clone()),
            ("ancestors", ancestors),
            ("children", children),
            ("zookeeper", json!("off")),
            ("entries", json!(0)),
            ("version", json!(env!("CARGO_PKG_VERSION"))),
        ] {
            assert_eq!(described[field], expected, "{field} of NODE-{id}");
        }
        for field in ["run", "bytes", "uptime_seconds"] {
            assert!(described[field].is_u64(), "{field} of NODE-{id}");
        }
    }
}

#[test]
fn every_node_lists_the_whole_tree() {
    let tree = Tree::start(2, &[]);
    for node in &tree.nodes {
        let answer = node.get("/nodes");
        assert_eq!((answer.status, answer.header("content-type")), (200, JSON));
        let listing = answer.json();
        assert_eq!((&listing["depth"], &listing["size"]), (&json!(2), &json!(3)));
        for (listed, (id, parent)) in listing["nodes"].as_array().expect("a list").iter().zip([
            (1, json!(null)),
            (2, json!("NODE-1")),
            (3, json!("NODE-1")),
        ]) {
            assert!(listed["seconds_since_heard"].as_f64().is_some_and(|seconds| seconds < 3.0), "{listed}");
            let expected = json!({
                "position": id - 1, "depth": if id == 1 { 1 } else { 2 }, "name": format!("NODE-{id}"), "id": id,
                "url": tree.node(id).url, "parent": parent, "alive": true,
                "seconds_since_heard": listed["seconds_since_heard"],
            });
            assert_eq!(listed, &expected);
        }
        assert_eq!(listing["nodes"].as_array().map(Vec::len), Some(3));
    }
}

#[test]
fn metrics_are_in_the_text_format_of_prometheus() {
    let tree = Tree::start(2, &[]);
    for node in [tree.root(), tree.leaf()] {
        let answer = node.get("/metrics");
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/plain; version=0.0.4")));
        let mut lines = answer.text().lines().peekable();
        while let Some(line) = lines.next() {
            let name = line.strip_prefix("# HELP ").and_then(|rest| rest.split(' ').next()).expect(line);
            assert!(name.starts_with("tree_cache_"));
            let kind = lines.next().and_then(|line| line.strip_prefix(&format!("# TYPE {name} "))).expect(line);
            assert!(kind == "gauge" || kind == "counter" && name.ends_with("_total"), "{name} {kind}");
            while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
                let (series, value) = sample.rsplit_once(' ').expect(sample);
                assert!(series.starts_with(name) && value.parse::<u64>().is_ok(), "{sample}");
            }
        }
        for name in [r#"reads_total{from="entry"}"#, "fetches_sent_total", "entries", "bytes", "threads"] {
            node.metric(name);
        }
    }
}

#[test]
fn no_answer_may_be_kept_by_an_http_cache_in_between() {
    let tree = Tree::start(2, &[]);
    tree.root().put("k", "1");
    let page = [("Accept", "text/html")];
    for node in [tree.root(), tree.leaf()] {
        for path in ["/", "/metrics", "/openapi.json", "/nodes", "/store", "/store/k", "/store/other", "/store/a/b"] {
            for (method, headers) in [("GET", &[][..]), ("HEAD", &[]), ("GET", &page), ("POST", &[])] {
                node.call_with(method, path, headers, b"").expect_no_store();
            }
        }
        node.call("PUT", "/store/k", b"").expect_no_store();
        // Also what is answered without reading the body.
        let absurd = format!("PUT /store/k HTTP/1.1\r\nContent-Length: {}\r\n\r\n", 1_u64 << 40);
        raw_call(node.port, absurd.as_bytes()).expect_no_store();
    }
}

#[test]
fn every_known_path_says_how_it_can_be_asked() {
    let tree = Tree::start(2, &[]);
    for node in [tree.root(), tree.leaf()] {
        for (target, allow) in [
            ("/", "GET, HEAD, OPTIONS"),
            ("/health", "GET, HEAD, OPTIONS"),
            ("/store", "GET, HEAD, OPTIONS"),
            ("/store/k", "GET, HEAD, PUT, DELETE, OPTIONS"),
            ("/nodes", "GET, HEAD, POST, OPTIONS"),
            ("/copies/k", "GET, DELETE, OPTIONS"),
            ("*", "GET, HEAD, PUT, POST, DELETE, OPTIONS"),
        ] {
            let mut raw = Raw::connect(node.port).expect("it accepts");
            raw.send(format!("OPTIONS {target} HTTP/1.1\r\n\r\nGET /health HTTP/1.1\r\n\r\n").as_bytes())
                .expect("it is open");
            let answer = raw.read_answer().expect("it answers");
            assert_eq!((answer.status, answer.header("allow"), answer.text()), (204, Some(allow), ""), "{target}");
            raw.read_answer().expect("it answers").expect(200, r#"{"status":"ok"}"#);
        }
        node.call("OPTIONS", "/other", b"").expect_error(404, "there is no path \"/other\"");
    }
}

#[test]
fn an_answer_says_whether_its_connection_stays() {
    let root = Node::alone();
    root.put("k", "1");
    let long = format!("\"{}\"", "x".repeat(100_000));
    root.put("long", &long);
    for (version, asked, said, stays) in [
        ("1.1", "", None, true),
        ("1.1", "Connection: keep-alive\r\n", None, true),
        ("1.1", "Connection: close\r\n", Some("close"), false),
        ("1.1", "connection: Close\r\nTE: chunked\r\n", Some("close"), false),
        ("1.1", "TE: chunked\r\n", None, true),
        ("1.0", "", Some("close"), false),
        // As `ab -k` asks.
        ("1.0", "Connection: Keep-Alive\r\n", Some("keep-alive"), true),
        ("1.0", "Connection: close\r\n", Some("close"), false),
    ] {
        let mut raw = Raw::connect(root.port).expect("it accepts");
        let mut ask = |method: &str, path: &str| {
            raw.send(format!("{method} {path} HTTP/{version}\r\nHost: h\r\n{asked}\r\n").as_bytes())?;
            raw.read_answer()
        };
        let first = ask("GET", "/store/long").expect("it answers");
        first.expect(200, &format!(r#"{{"value":{long}}}"#));
        assert_eq!((first.header("connection"), first.header("transfer-encoding")), (said, None), "{version} {asked}");
        assert!(first.header("date").is_some_and(|date| date.ends_with(" GMT")));
        match ask("GET", "/store/k") {
            Ok(second) => {
                second.expect(200, r#"{"value":1}"#);
                assert!(stays, "{version} {asked}");
            }
            Err(_) => assert!(!stays, "{version} {asked}"),
        }
    }
}

#[test]
fn a_write_on_a_condition_is_done_or_412_from_every_node_alike() {
    let tree = Tree::start(2, &[]);
    let (any, tag) = ("*", "\"a\"");
    let (exists, missing, never) =
        ("the key exists already", "the key does not exist", "no value can meet this condition");
    for node in [tree.root(), tree.leaf()] {
        for method in ["PUT", "DELETE"] {
            for (headers, there, refused) in [
                (&[("If-None-Match", any)][..], false, None),
                (&[("If-None-Match", any)], true, Some(exists)),
                (&[("If-None-Match", tag)], true, None),
                (&[("If-Match", any)], true, None),
                (&[("If-Match", any)], false, Some(missing)),
                (&[("If-Match", tag)], true, Some(never)),
                (&[("If-Match", any), ("If-None-Match", any)], true, Some(never)),
                (&[("If-Match", any), ("If-None-Match", tag)], true, None),
                (&[], true, None),
            ] {
                if there {
                    tree.root().put("k", "1")
                } else {
                    tree.root().delete("k")
                };
                let body = if method == "PUT" { &br#"{"value":2}"#[..] } else { b"" };
                let answer = node.call_with(method, "/store/k", headers, body);
                let now = tree.root().get("/store/k");
                if let Some(detail) = refused {
                    answer.expect_error(412, detail);
                    assert_eq!(now.status, if there { 200 } else { 404 }, "{method} {headers:?}");
                    assert_ne!(now.text(), r#"{"value":2}"#);
                } else {
                    assert_eq!(answer.status, 200, "{method} {headers:?}: {}", answer.text());
                    assert_eq!(now.status, if method == "PUT" { 200 } else { 404 }, "{method} {headers:?}");
                }
            }
            let body = br#"{"value":2}"#;
            let answer = node.call_with(method, "/store/k", &[("Content-Range", "bytes 0-1/2")], body);
            answer.expect_error(400, "a value is written whole: Content-Range is not known here");
            let answer = node.call_with(method, "/store/k", &[("Content-Encoding", "gzip")], body);
            answer.expect_error(415, "Content-Encoding \"gzip\" is not kept");
        }
    }
}

#[test]
fn of_thirty_racing_creates_exactly_one_wins() {
    let tree = Tree::start(3, &[]);
    for round in 0..10 {
        let path = format!("/store/k{round}");
        let create = |number: usize| {
            let body = format!(r#"{{"value":{number}}}"#);
            let answer = tree.nodes[number % 7].call_with("PUT", &path, &[("If-None-Match", "*")], body.as_bytes());
            assert!(answer.status == 200 || answer.status == 412, "{}", answer.text());
            (answer.status == 200).then_some(number)
        };
        let won: Vec<usize> = std::thread::scope(|threads| {
            let racing: Vec<_> = (0..30).map(|number| threads.spawn(move || create(number))).collect();
            racing.into_iter().filter_map(|thread| thread.join().expect("no panic")).collect()
        });
        assert_eq!(won.len(), 1, "{won:?}");
        for node in &tree.nodes {
            node.get(&path).expect(200, &format!(r#"{{"value":{}}}"#, won[0]));
        }
    }
}

#[test]
fn what_is_refused_is_counted_by_status_and_what_is_passed_on_once() {
    let tree = Tree::start(2, &[]);
    let (root, leaf) = (tree.root(), tree.leaf());
    leaf.put("k", "1").expect(200, r#"{"key":"k","value":1}"#);
    assert_eq!(leaf.get("/nodes").status, 200);
    assert_eq!((leaf.metric("forwarded_total"), root.metric("forwarded_total")), (2, 0));
    assert!(!leaf.get("/metrics").text().contains("tree_cache_refused_total"));
    // By the node itself, before it is read, and by the root, which the leaf passes on.
    assert_eq!(leaf.get("/store/a/b").status, 404);
    assert_eq!(leaf.get("/store/other").status, 404);
    assert_eq!(leaf.call_with("PUT", "/store/k", &[("Transfer-Encoding", "gzip")], b"").status, 400);
    assert_eq!(leaf.call("PUT", "/store/k", b"{}").status, 422);
    for (node, counts) in [(leaf, [(404, 2), (400, 1), (422, 1)]), (root, [(404, 0), (422, 1), (400, 0)])] {
        let text = node.get("/metrics").text().to_owned();
        for (status, count) in counts {
            let line = format!("tree_cache_refused_total{{status=\"{status}\"}} {count}\n");
            assert_eq!(text.contains(&line), count > 0, "{line} in {text}");
        }
    }
}

#[test]
fn a_node_fetches_for_another_and_gives_a_lease_with_the_value() {
    let tree = Tree::start(2, &[]);
    tree.root().put("k", "[ 1 ]");
    let query = "holder=NODE-9&url=http%3A%2F%2F127.0.0.1%3A9&run=9";
    for node in [tree.root(), tree.leaf()] {
        let (run, none) = (node.run(), node.run() + 1);
        let query = format!("to={run}&{query}");
        let answer = node.get(&format!("/copies/k?{query}&wait_ms=2000"));
        assert_eq!((answer.status, answer.header("content-type")), (200, JSON));
        assert!(answer.text().ends_with(r#","value":[ 1 ]}"#), "{}", answer.text());
        assert!(answer.json()["lease_ms"].as_u64().is_some_and(|lease_ms| (1..=5000).contains(&lease_ms)));
        // That a key is absent is granted like a value.
        let absent = node.get(&format!("/copies/other?{query}&wait_ms=2000")).json();
        assert_eq!((&absent["run"], absent.get("value")), (&json!(run), None));
        assert!(absent["lease_ms"].as_u64().is_some_and(|lease_ms| (1..=5000).contains(&lease_ms)));
        // Whoever does not say who it is holds nothing.
        let once = node.get(&format!("/copies/k?to={run}&wait_ms=2000")).json();
        assert_eq!((&once["lease_ms"], &once["value"]), (&json!(0), &json!([1])));
        let refused = format!("{} is run {run} now, and not {none}", node.name);
        node.get(&format!("/copies/k?to={none}&wait_ms=2000")).expect_error(409, &refused);
        node.get(&format!("/copies/k?{query}")).expect_error(400, r#"wait_ms="" is not a whole number"#);
        node.get(&format!("/copies/k?{query}&wait_ms=x")).expect_error(400, r#"wait_ms="x" is not a whole number"#);
        // What nodes ask of each other is not what clients read.
        assert_eq!(node.metric(r#"reads_total{from="entry"}"#), 0);
    }
}

#[test]
fn what_a_node_passed_on_goes_no_further_and_what_a_proxy_did_goes_on() {
    let tree = Tree::start(2, &[]);
    let leaf = tree.node(2);
    for (method, path, body) in
        [("PUT", "/store/k", &br#"{"value":1}"#[..]), ("DELETE", "/store/k", b""), ("GET", "/nodes", b"")]
    {
        for vias in [
            &["1.1 NODE-3"][..],
            &["1.1 varnish, 1.1 NODE-3"],
            &["1.1 NODE-3, 1.1 caddy"],
            &["1.1 varnish", "1.1 NODE-3"],
        ] {
            let headers: Vec<_> = vias.iter().map(|via| ("Via", *via)).collect();
            leaf.call_with(method, path, &headers, body).expect_error(421, "NODE-2 is not the root");
            if path == "/nodes" {
                assert_eq!(tree.root().call_with(method, path, &headers, body).status, 200, "the root is the root");
            }
        }
    }
    assert_eq!(tree.root().metric("writes_total"), 0);
    for via in ["1.1 varnish (Varnish/7.1)", "2.0 NODE-3", "1.1 NODE-x", "1.1 NODE-03", "HTTP/1.1 NODE-3", ""] {
        let answer = leaf.call_with("PUT", "/store/k", &[("Via", via)], br#"{"value":1}"#);
        answer.expect(200, r#"{"key":"k","value":1}"#);
    }
}

#[test]
fn what_is_no_answer_of_a_root_to_a_write_does_not_reach_the_client() {
    let impostor = Impostor::start(1);
    // It takes a stranger for its root, which has a place for it and then answers nothing that a root would.
    let node = Node::start(&[("NODE_ID", "2"), ("ROOT_URL", &impostor.url()), ("TREE_DEPTH", "2")]);
    for (status, names_run, expected) in [
        (200, true, None),
        (422, true, None),
        (507, true, None),
        (404, true, Some("it was not applied")),
        (421, true, Some("it was not applied")),
        (302, true, Some("it was not applied")),
        (409, true, Some("it was not applied")),
        (500, true, Some("whether it was applied is unknown")),
        // Another process answers there, or a proxy that may have passed it on.
        (200, false, Some("it was not applied")),
        (412, false, Some("it was not applied")),
        (503, false, Some("whether it was applied is unknown")),
    ] {
        impostor.answer_writes_with(status, names_run);
        let answer = node.put("k", "1");
        assert_eq!(answer.status, if expected.is_none() { status } else { 503 }, "{status} {names_run}");
        if let Some(text) = expected {
            let detail = answer.detail();
            assert!(detail.contains(&format!("answered {status}")) || status == 503, "{detail}");
            assert!(detail.ends_with(text), "{detail}");
        }
    }
}

#[test]
fn a_ttl_out_of_range_is_422_in_few_words() {
    let root = Node::alone();
    for (ttl, shown) in
        [("0", "0.0"), ("-1", "-1.0"), ("5e-324", "5e-324"), ("1e300", "1e300"), ("1000000001", "1000000001.0")]
    {
        let detail = format!("ttl={shown} is not a number of seconds over 0 and at most 1000000000");
        root.call("PUT", "/store/k", format!(r#"{{"value":1,"ttl":{ttl}}}"#).as_bytes()).expect_error(422, &detail);
    }
    root.call("PUT", "/store/k", br#"{"value":1,"ttl":1e9}"#).expect(200, r#"{"key":"k","value":1}"#);
}

#[test]
fn a_read_says_what_answered_it() {
    let tree = Tree::start(2, &[]);
    tree.root().write("k", "1");
    let status = |node: &Node, key: &str| node.get(&format!("/store/{key}")).header("cache-status").map(str::to_owned);
    assert_eq!(status(tree.root(), "k").as_deref(), Some("tree-cache; hit; detail=entry"));
    assert_eq!(status(tree.leaf(), "k").as_deref(), Some("tree-cache; fwd=uri-miss; detail=fetch"));
    assert_eq!(status(tree.leaf(), "k").as_deref(), Some("tree-cache; hit; detail=copy"));
    assert_eq!(status(tree.leaf(), "none"), None);
}
