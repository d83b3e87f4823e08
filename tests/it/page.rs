//! The page that a node shows to a browser, in a real one; and the API's description, held against nodes.
//!
//! What needs Chromium or schemathesis is for `make test-page`, which installs them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::client::{copy_path, try_call};
use crate::harness::{Node, PROCESS_LIMIT, Process, Tree, command, poll_until};

/// Keys of a keyboard, as `WebDriver` names them.
const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";

/// How long schemathesis may take: it asks about 700 times.
const DESCRIPTION_LIMIT: Duration = Duration::from_mins(3);

/// A browser that shows the node's page.
fn look_at(node: &Node) -> Browser {
    let browser = Browser::open(1100, 900, &[]);
    browser.visit(&node.url);
    browser.wait_for("h1", &node.name);
    browser
}

#[test]
fn a_browser_gets_the_page_and_everybody_else_json() {
    let root = Node::alone();
    let accept = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    for method in ["GET", "HEAD"] {
        let page = root.call_with(method, "/", &[("Accept", accept)], b"");
        assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
        assert_eq!(
            (page.header("x-content-type-options"), page.header("vary")),
            (Some("nosniff"), Some("Accept, Sec-Fetch-Mode"))
        );
        let policy = page.header("content-security-policy").expect("the page has a policy");
        for rule in ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "script-src 'sha256-"] {
            assert!(policy.contains(rule), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
    }
    for accept in ["*/*", "application/json"] {
        let answer = root.call_with("GET", "/", &[("Accept", accept)], b"");
        assert_eq!(
            (answer.header("content-type"), answer.header("vary")),
            (Some("application/json"), Some("Accept, Sec-Fetch-Mode"))
        );
        assert_eq!(answer.json()["node"], "NODE-1");
    }
}

#[test]
#[ignore = "needs Chromium: run make test-page"]
fn seven_nodes_stand_in_their_places_and_the_one_asked_is_marked() {
    let tree = Tree::start(3, &[]);
    let browser = look_at(tree.node(4));
    browser.wait_for("#status", "7 of 7 nodes alive");
    assert_eq!(browser.text("h1"), "tree-cache at NODE-4");
    // The middle of each node: one row for each level, a parent over the middle of its children.
    let script = "return [...Array(7).keys()].map((position) => {
        const card = document.getElementById(`place-${position}`), box = card.getBoundingClientRect();
        const name = card.querySelector('b').textContent;
        return [name, Math.round(box.left + box.width / 2), Math.round(box.bottom), card.className];
    })";
    let places = browser.run(script);
    let at = |position: usize, what: usize| places[position][what].as_i64().expect("a number");
    for position in 0..7 {
        assert_eq!(places[position][0], format!("NODE-{}", position + 1), "{places}");
        assert_eq!(places[position][3], if position == 3 { "node alive mine" } else { "node alive" });
    }
    for above in 0..3 {
        let (left, right) = (2 * above + 1, 2 * above + 2);
        assert_eq!(at(left, 2), at(right, 2), "{places}");
        assert!(at(above, 2) < at(left, 2) && at(left, 1) < at(right, 1), "{places}");
        assert!((at(left, 1) + at(right, 1) - 2 * at(above, 1)).abs() <= 2, "{places}");
    }
    assert_eq!(browser.text("#place-3 .here"), "this page");
    browser.expect_no_complaint();
}

#[test]
#[ignore = "needs Chromium: run make test-page"]
fn the_form_puts_gets_and_deletes_with_the_keyboard_alone_and_says_what_answered() {
    let tree = Tree::start(2, &[]);
    let (leaf, browser) = (tree.leaf(), look_at(tree.leaf()));
    browser.write("#key", "it's a/ř");
    let number = "123456789012345678901234567890";
    // From the key on to the value, to Get and to Put.
    browser.press(&format!("{TAB}{number}{TAB}{TAB}{ENTER}"));
    let path = "/store/it'\\''s%20a%2F%C5%99";
    browser.wait_for("#curl", &format!("curl -X PUT '{}{path}' -d '{{\"value\":{number}}}'", leaf.url));
    browser.wait_for("#outcome", "200 OK");
    assert_eq!(browser.text("#answer"), format!(r#"{{"key":"it's a/ř","value":{number}}}"#));
    tree.root().expect_value("it's%20a%2F%C5%99", number);

    // Enter in a field is Get, which harms nothing.
    browser.click("button[value=GET]");
    browser.wait_for("#outcome", "NODE-3 answered by a fetch from above");
    assert_eq!(browser.text("#answer"), format!(r#"{{"value":{number}}}"#));
    browser.write("#key", &format!("it's a/ř{ENTER}"));
    browser.wait_for("#outcome", "NODE-3 answered from a copy that it held");
    // The counters show it, too.
    browser.wait_for("#counters", "reads_total{from=\"copy\"}\n1");
    assert_eq!(leaf.metric(r#"reads_total{from="fetch"}"#), 1);

    browser.click("button[value=DELETE]");
    browser.wait_for("#curl", &format!("curl -X DELETE '{}{path}'", leaf.url));
    browser.wait_for("#outcome", "200 OK");
    browser.click("button[value=GET]");
    browser.wait_for("#outcome", "404 Not Found");
    assert_eq!(browser.text("#answer"), r#"{"detail":"Key not found"}"#);
    browser.expect_no_complaint();
}

#[test]
#[ignore = "needs Chromium: run make test-page"]
fn the_curl_line_of_any_key_does_the_same_as_the_form() {
    let root = Node::alone();
    let browser = look_at(&root);
    for (key, outcome) in [
        ("a/b?c=d#e&f%2F+", "200 OK"),
        ("$(id) `id` \"'\\", "200 OK"),
        ("[1-3]{a,b}", "200 OK"),
        ("漢字 🌳", "200 OK"),
        (".", "no browser can send the key .;"),
        ("..", "no browser can send the key ..;"),
    ] {
        browser.write("#key", key);
        browser.write("#value", key);
        browser.click("button[value=PUT]");
        browser.wait_for("#outcome", outcome);
        let expected = json!({ "key": key, "value": key });
        if outcome == "200 OK" {
            assert_eq!(serde_json::from_str::<Value>(&browser.text("#answer")).ok(), Some(expected.clone()));
        }
        let line = browser.run("return document.getElementById('curl').textContent");
        let mut shell = Process::spawn_command(
            command("sh").args(["-c", &format!("{} --silent", line.as_str().expect("text"))]),
            &[],
        );
        let (code, printed, log) = shell.wait_for_end(PROCESS_LIMIT);
        assert_eq!((code, log.as_str()), (Some(0), ""), "{line}");
        assert_eq!(serde_json::from_str::<Value>(&printed).ok(), Some(expected), "{line}");
    }
}

#[test]
#[ignore = "needs Chromium: run make test-page"]
fn a_killed_node_shows_as_lost_and_started_again_as_alive() {
    let mut tree = Tree::start(3, &[]);
    let browser = look_at(tree.node(4));
    browser.wait_for("#status", "7 of 7 nodes alive");
    assert_eq!(browser.text("#changes"), "nothing yet");
    tree.nodes[1].kill();
    browser.wait_for("#place-1 .state", "lost ");
    // It shows that it did change.
    assert_ne!(browser.text("#place-1.lost.changed"), "");
    browser.wait_for("#status", "6 of 7 nodes alive");
    assert!(browser.text("#changes").ends_with("NODE-2 is lost"));
    tree.nodes[1].restart();
    browser.wait_for("#place-1 .state", "alive");
    browser.wait_for("#status", "7 of 7 nodes alive");
    assert!(browser.text("#changes li").ends_with("NODE-2 is alive"));
    browser.expect_no_complaint();
}

#[test]
#[ignore = "needs Chromium: run make test-page"]
fn the_page_outlives_its_node_and_the_root() {
    let mut tree = Tree::start(2, &[]);
    let browser = look_at(tree.node(2));
    browser.wait_for("#status", "3 of 3 nodes alive");
    tree.nodes[1].kill();
    browser.wait_for("#status", "no answer from NODE-2 since ");
    assert_eq!(browser.text("#place-0 b"), "NODE-1", "what was known last is still drawn");
    tree.nodes[1].restart();
    browser.wait_for("#status", "3 of 3 nodes alive");
    tree.nodes[0].kill();
    browser.wait_for("#status", "NODE-2 answers, but not with the tree: could not pass GET /nodes on to the root");
    tree.nodes[0].restart();
    browser.wait_for("#status", "3 of 3 nodes alive");
    browser.expect_no_complaint();
}

#[test]
#[ignore = "needs Chromium: run make test-page"]
fn what_users_type_stays_text() {
    let root = Node::alone();
    let browser = look_at(&root);
    let text = "<img src=x onerror=\"window.hit=1\">";
    browser.write("#key", text);
    browser.write("#value", text);
    browser.click("button[value=PUT]");
    browser.wait_for("#outcome", "200 OK");
    browser.wait_for("#answer", &json!({ "key": text, "value": text }).to_string());
    browser.write("#key", &format!("{text}\n"));
    browser.wait_for("#answer", &json!({ "value": text }).to_string());
    assert_eq!(browser.run("return [document.images.length, window.hit ?? null]"), json!([0, null]));
    browser.expect_no_complaint();

    // And could not be otherwise: the browser refuses to make HTML of it, and to run a script that is not the page's.
    let refused =
        browser.run("try { document.body.innerHTML = '<b>'; return 'made' } catch (error) { return error.name }");
    assert_eq!(refused, "TypeError");
    assert_eq!(browser.complaints().len(), 1);
}

#[test]
#[ignore = "needs Chromium: run make test-page"]
fn nothing_is_wider_than_a_phone() {
    for depth in [1, 3, 4] {
        let tree = Tree::start(depth, &[]);
        let browser = Browser::open(360, 740, &[]);
        browser.visit(&tree.leaf().url);
        browser.wait_for("#status", "nodes alive");
        browser.write("#value", &"w".repeat(500));
        browser.click("button[value=PUT]");
        browser.wait_for("#outcome", "200 OK");
        assert_eq!(browser.run("return [innerWidth, document.documentElement.scrollWidth]"), json!([360, 360]));
        let overlapping = "const boxes = [...document.querySelectorAll('.node')].map((card) => card.getBoundingClientRect());
            return boxes.some((a) => boxes.some((b) => a !== b && a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom))";
        assert_eq!(browser.run(overlapping), false, "depth {depth}");
    }
}

#[test]
#[ignore = "needs Chromium: run make test-page"]
fn a_page_of_a_foreign_name_can_do_nothing_and_one_of_an_allowed_name_all() {
    let root = Node::start(&[("TREE_DEPTH", "1"), ("ALLOWED_HOSTS", "cache.example.org")]);
    root.write("k", "1");
    let browser = Browser::open(1100, 900, &["rebound.example", "cache.example.org"]);
    let url_at = |host: &str| format!("http://{host}:{}", root.port);
    // Its address was resolved to this machine after it had been read elsewhere.
    browser.visit(&url_at("rebound.example"));
    browser.wait_for("body", "is not known as a name of NODE-1; if it is one, set ALLOWED_HOSTS=rebound.example");
    assert_eq!(ask_all(&browser, ""), json!(vec![403; 9]));
    // And of the page of another name.
    assert_eq!(ask_all(&browser, &url_at("127.0.0.1")), json!(vec!["TypeError"; 9]));
    assert_eq!(["grants_total", "holders"].map(|name| root.metric(name)), [0, 0]);
    root.expect_value("k", "1");

    for host in ["localhost", "127.0.0.1", "cache.example.org"] {
        browser.visit(&url_at(host));
        browser.wait_for("#status", "1 of 1 nodes alive");
        browser.write("#key", host);
        browser.write("#value", host);
        browser.click("button[value=PUT]");
        browser.wait_for("#outcome", "200 OK");
    }
    assert_eq!(root.metric("entries"), 4);
}

/// What comes of each call that a page of that browser makes, with its status or the name of its error.
fn ask_all(browser: &Browser, base: &str) -> Value {
    let calls = [
        ("GET", "/"),
        ("GET", "/store/k"),
        ("PUT", "/store/k"),
        ("DELETE", "/store/k"),
        ("GET", "/store"),
        ("GET", "/nodes"),
        ("GET", &copy_path(1, 2, 7, "http://127.0.0.1:9")),
        ("DELETE", "/copies/k?to=1&level=1"),
        ("POST", "/nodes"),
    ];
    let calls = calls.map(|(method, path)| (method, format!("{base}{path}")));
    let script = "return (async () => {
        const outcomes = [];
        for (const [method, url] of CALLS) {
            const body = ['PUT', 'POST'].includes(method) ? '{\"value\":2}' : undefined;
            outcomes.push(await fetch(url, { method, body }).then((answer) => answer.status, (error) => error.name));
        }
        return outcomes;
    })()";
    browser.run(&script.replace("CALLS", &json!(calls).to_string()))
}

#[test]
#[ignore = "needs Chromium: run make test-page"]
fn a_hidden_page_asks_nothing() {
    let root = Node::alone();
    let browser = look_at(&root);
    let script = "Object.defineProperty(document, 'hidden', { get: () => window.isAway ?? false, configurable: true });
        window.asked = 0; const before = window.fetch; window.fetch = (...all) => { asked += 1; return before(...all) };";
    browser.run(script);
    let asked = || browser.run("return asked").as_u64().expect("a number");
    poll_until(Duration::from_secs(10), "the page asks", || asked() > 0);
    browser.run("window.isAway = true; document.dispatchEvent(new Event('visibilitychange'))");
    poll_until(Duration::from_secs(10), "the page has stopped", || browser.run("return followed") == false);
    let then = asked();
    root.write("k", "1");
    browser.run("window.isAway = false; document.dispatchEvent(new Event('visibilitychange'))");
    assert!(asked() <= then + 3);
    browser.wait_for("#counters", "entries\n1");
}

#[test]
#[ignore = "needs schemathesis: run make test-page"]
fn the_description_is_true_at_a_root_alone_and_at_a_leaf() {
    let (alone, tree) = (Node::alone(), Tree::start(2, &[]));
    for node in [&alone, tree.leaf()] {
        let manifest = env!("CARGO_MANIFEST_DIR");
        let mut program = command(format!("{manifest}/target/page-venv/bin/schemathesis"));
        program.current_dir(env!("CARGO_TARGET_TMPDIR"));
        program.args(["--config-file", &format!("{manifest}/tests/schemathesis.toml"), "run"]);
        program.args([&format!("{}/openapi.json", node.url), "--max-examples", "100", "--no-color"]);
        program.args(["--generation-database", "none"]);
        let mut process = Process::spawn_command(&mut program, &[]);
        let (code, printed, log) = process.wait_for_end(DESCRIPTION_LIMIT);
        assert_eq!(code, Some(0), "{printed}{log}");
        assert!(printed.contains("9 selected / 9 total"), "{printed}");
        // It still answers.
        assert!(try_call("GET", &node.url, &[], b"").is_ok_and(|answer| answer.status == 200));
    }
}
