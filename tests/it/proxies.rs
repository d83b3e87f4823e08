//! What may stand between a node and its clients: an HTTP cache, and proxies that give several clients one connection.
//!
//! Each is the real program from Debian's packages, one process on free ports: `make test-page` installs them.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::client::{Raw, try_call};
use crate::harness::{Folder, Node, PROCESS_LIMIT, Process, Tree, command, free_ports, poll_until};

const HAPROXY_DEFAULTS: &str = "defaults
                mode http
                timeout connect 5s
                timeout client 20s
                timeout server 20s";

/// Starts a program that serves on that port.
fn start(program: &str, arguments: &[&str], port: u16) -> Process {
    // Where Debian has servers, and an ordinary user's path does not.
    let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let mut process = Process::spawn_command(command(program).args(arguments).env("PATH", path), &[]);
    poll_until(PROCESS_LIMIT, &format!("{program} serves"), || {
        process.expect_alive();
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    process
}

/// Ends it in good order, for what it has started must end as well.
fn stop(mut process: Process) {
    process.signal("TERM");
    process.wait_for_end(PROCESS_LIMIT);
}

fn get(port: u16, path: &str) -> (u16, String) {
    let answer = try_call("GET", &format!("http://127.0.0.1:{port}{path}"), &[], b"").expect("the proxy answers");
    (answer.status, answer.text().to_owned())
}

#[test]
#[ignore = "needs varnishd: run make test-page"]
fn an_http_cache_with_its_defaults_gives_nothing_that_is_old() {
    let mut tree = Tree::start(1, &[("TREE_DEPTH", "2")]);
    tree.nodes.push(tree.start_node(2, &[("TREE_DEPTH", "2")]));
    let (folder, port) = (Folder::new("varnish"), free_ports(1));
    for node in [0, 1] {
        let (listen, backend) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{}", tree.nodes[node].port));
        let varnish = start(
            "varnishd",
            &[
                "-F",
                "-a",
                &listen,
                "-b",
                &backend,
                "-n",
                &format!("{}/work", folder.path()),
                "-s",
                "malloc,10m",
                "-j",
                "none",
            ],
            port,
        );
        let url = format!("http://127.0.0.1:{port}/store/k");
        for round in 0..20 {
            // Written through it, and past it, at another node.
            let body = format!(r#"{{"value":{round}}}"#);
            let answer = try_call("PUT", &url, &[], body.as_bytes()).expect("the cache answers");
            answer.expect(200, &format!(r#"{{"key":"k","value":{round}}}"#));
            assert_eq!(get(port, "/store/k"), (200, body));
            tree.root().write("k", "\"past it\"");
            assert_eq!(get(port, "/store/k"), (200, r#"{"value":"past it"}"#.to_owned()));
            tree.root().delete("k");
            assert_eq!(get(port, "/store/k"), (404, r#"{"detail":"Key not found"}"#.to_owned()));
        }
        tree.root().write("k", "7");
        assert_eq!(get(port, "/store/k"), (200, r#"{"value":7}"#.to_owned()));
        // The page is another answer of the same URL.
        let accept = [("Accept", "text/html,application/xhtml+xml")];
        let front = format!("http://127.0.0.1:{port}/");
        for (headers, content_type) in [(&[][..], "application/json"), (&accept, "text/html; charset=utf-8")] {
            for _ in 0..2 {
                let answer = try_call("GET", &front, headers, b"").expect("the cache answers");
                assert_eq!(answer.header("content-type"), Some(content_type));
            }
        }
        let (nodes, metrics) = (get(port, "/nodes").1, get(port, "/metrics").1);
        let reads =
            |text: &str| text.lines().find(|line| line.contains("reads_total{from=\"none\"}")).map(str::to_owned);
        assert_eq!(get(port, "/store/missing").0, 404);
        assert_ne!(reads(&get(port, "/metrics").1), reads(&metrics));
        if tree.nodes.len() == 2 {
            assert!(!nodes.contains("NODE-3"));
            let third = tree.start_node(3, &[("TREE_DEPTH", "2")]);
            assert!(get(port, "/nodes").1.contains("NODE-3"));
            tree.nodes.push(third);
        }
        stop(varnish);
    }
}

/// Where a proxy gives several clients one connection to a node of that port, and what serves there.
fn start_sharing_proxies(node: u16, folder: &Folder) -> (Vec<Process>, Vec<(&'static str, u16)>) {
    let first = free_ports(3);
    let (nginx, always, two) = (first, first + 1, first + 2);
    let dir = folder.path();
    let temporary =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path {dir}/{kind};"));
    let conf = folder.write(
        "nginx.conf",
        &format!(
            "daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/error.log;
            events {{}}
            http {{
                access_log off; {}
                upstream node {{ server 127.0.0.1:{node}; keepalive 2; }}
                server {{
                    listen 127.0.0.1:{nginx}; client_max_body_size 0;
                    location / {{
                        proxy_pass http://node; proxy_http_version 1.1; proxy_set_header Connection '';
                        proxy_request_buffering off;
                    }}
                }}
            }}",
            temporary.concat()
        ),
    );
    let cfg = folder.write(
        "haproxy.cfg",
        &format!(
            "{HAPROXY_DEFAULTS}
            listen always
                bind 127.0.0.1:{always}
                http-reuse always
                server node 127.0.0.1:{node}
            listen two
                bind 127.0.0.1:{two}
                http-reuse always
                server node 127.0.0.1:{node} maxconn 2\n"
        ),
    );
    let processes = vec![
        start("nginx", &["-p", dir, "-c", &conf, "-e", "stderr"], nginx),
        start("haproxy", &["-db", "-f", &cfg], two),
    ];
    (processes, vec![("nginx", nginx), ("haproxy, http-reuse always", always), ("haproxy, maxconn 2", two)])
}

/// Sends what a node refuses, one of several kinds; each says its own length, so that its answer is known.
fn send_refused(port: u16, number: usize) {
    let length = 4000 + number;
    let body = "x".repeat(length);
    let head = format!(
        "PUT /store/refused HTTP/1.1\r\nHost: localhost\r\nConnection: {}\r\n",
        ["close", "keep-alive"][number % 2]
    );
    let sized = format!("{head}Content-Length: {length}\r\n");
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n");
    let (sent, is_whole) = match number % 7 {
        0 | 1 => (format!("{sized}\r\n{body}"), true),
        2 => (format!("{chunked}{body}\r\n0\r\n\r\n"), true),
        3 => (format!("{sized}Expect: 100-continue\r\n\r\n{body}"), false),
        4 => (format!("{sized}\r\n{}", &body[..3500]), false),
        5 => (format!("{chunked}{}", &body[..2000]), false),
        _ => (format!("{head}Content-Length: {}\r\n\r\n{{\"value\":1", 10 + number % 2000), false),
    };
    let mut raw = Raw::connect(port).expect("the proxy accepts connections");
    let sent = raw.send(sent.as_bytes());
    // Others may be refused by the proxy, or before they have been sent.
    if is_whole {
        sent.expect("the proxy takes it all");
        let answer = raw.read_answer().unwrap_or_else(|error| panic!("refused body {number}: {error}"));
        // A proxy may know the length of what came in one chunk.
        let texts = [format!("{length}"), "more".to_owned()]
            .map(|length| format!("the body has {length} bytes; at most 3000 are allowed"));
        assert!(answer.status == 413 && texts.contains(&answer.detail()), "{number}: {}", answer.text());
    }
}

#[test]
#[ignore = "needs nginx and haproxy: run make test-page"]
fn behind_a_proxy_no_answer_reaches_another_client() {
    const READERS: usize = 8;
    let tree = Tree::start(2, &[("MAX_VALUE_BYTES", "3000")]);
    for number in 0..READERS {
        tree.root().write(&format!("k{number}"), &number.to_string());
    }
    for node in [tree.root(), tree.leaf()] {
        let folder = Folder::new("proxies");
        let (processes, ports) = start_sharing_proxies(node.port, &folder);
        for (proxy, port) in ports {
            let (done, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
            thread::scope(|threads| {
                for number in 0..READERS {
                    let (done, reads) = (&done, &reads);
                    threads.spawn(move || {
                        let mut raw = Raw::connect(port).expect("the proxy accepts connections");
                        while !done.load(Ordering::Relaxed) {
                            let get = format!("GET /store/k{number} HTTP/1.1\r\nHost: localhost\r\n\r\n");
                            let answer = raw.send(get.as_bytes()).and_then(|()| raw.read_answer());
                            // HAProxy answers 502 itself where a node has closed a connection that it was about to use.
                            let Ok(answer) = answer else {
                                raw = Raw::connect(port).expect("the proxy accepts connections");
                                continue;
                            };
                            answer.expect(200, &format!(r#"{{"value":{number}}}"#));
                            reads.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
                let senders: Vec<_> = (0..3)
                    .map(|sender| {
                        threads.spawn(move || (0..120).for_each(|round| send_refused(port, 3 * round + sender)))
                    })
                    .collect();
                let ends: Vec<_> = senders.into_iter().map(thread::ScopedJoinHandle::join).collect();
                done.store(true, Ordering::Relaxed);
                assert!(ends.iter().all(Result::is_ok), "{proxy} at {}", node.name);
            });
            let reads = reads.load(Ordering::Relaxed);
            eprintln!(
                "{proxy} at {}: {reads} reads beside 360 refused and cut bodies, each answer its reader's",
                node.name
            );
            assert!(reads > 100, "{proxy}: {reads} reads");
        }
        processes.into_iter().for_each(stop);
    }
}

#[test]
#[ignore = "needs haproxy: run make test-page"]
fn haproxy_finds_a_node_up_and_follows_its_readiness() {
    let mut tree = Tree::start(2, &[]);
    let (folder, first) = (Folder::new("checks"), free_ports(3));
    let node = tree.leaf().port;
    let cfg = folder.write(
        "haproxy.cfg",
        &format!(
            "{HAPROXY_DEFAULTS}
                default-server inter 200ms fall 1 rise 1
            listen stats
                bind 127.0.0.1:{first}
                stats enable
                stats uri /
            listen plain
                bind 127.0.0.1:{}
                server node 127.0.0.1:{node} check
            listen ready
                bind 127.0.0.1:{}
                option httpchk GET /health
                server node 127.0.0.1:{node} check\n",
            first + 1,
            first + 2
        ),
    );
    let haproxy = start("haproxy", &["-db", "-f", &cfg], first);
    // `plain,node,…,UP,…`: the eighteenth column.
    let state = |name: &str| {
        let (_, text) = get(first, "/;csv");
        let line =
            text.lines().find(|line| line.starts_with(&format!("{name},node,"))).expect("it is listed").to_owned();
        (line.split(',').nth(17).expect("it has a state").to_owned(), line.contains("L7OK") || line.contains("L4OK"))
    };
    let becomes = |name: &str, expected: &str| {
        poll_until(PROCESS_LIMIT, &format!("{name} is {expected}"), || {
            let (state, is_checked) = state(name);
            state == expected && (expected == "DOWN" || is_checked)
        });
    };
    becomes("plain", "UP");
    becomes("ready", "UP");
    tree.nodes[0].kill();
    becomes("ready", "DOWN");
    assert_eq!(state("plain").0, "UP");
    tree.nodes[0].restart();
    becomes("ready", "UP");
    // Its checks cost no line in the log.
    let log = tree.leaf().process.log();
    assert!(!log.contains("ERROR"), "{log}");
    stop(haproxy);
}

#[test]
#[ignore = "needs ab: run make test-page"]
fn a_client_of_http_1_0_keeps_its_connections() {
    let root = Node::alone();
    root.write("k", "1");
    let url = format!("http://127.0.0.1:{}/store/k", root.port);
    let mut ab = Process::spawn_command(command("ab").args(["-k", "-q", "-c", "16", "-n", "20000", &url]), &[]);
    let (code, printed, log) = ab.wait_for_end(Duration::from_mins(1));
    assert_eq!(code, Some(0), "{printed}{log}");
    let figure = |name: &str| {
        let line = printed
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("no {name} in {printed}"));
        line.trim().to_owned()
    };
    let figures = ["Complete requests:", "Failed requests:", "Keep-Alive requests:"].map(figure);
    assert_eq!(figures, ["20000", "0", "20000"]);
}
