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

/// What a client gets that shows the password, or that does not.
fn get_by_tls(port: u16, login: &[&str], arguments: &[&str], path: &str) -> (u16, String) {
    let url = format!("https://127.0.0.1:{port}{path}");
    let fixed = ["-sk", "--path-as-is", "--max-time", "20", "-w", "\n%{http_code}"];
    let mut curl = Process::spawn_command(command("curl").args(fixed).args(login).args(arguments).arg(url), &[]);
    let (_, printed, _) = curl.wait_for_end(2 * PROCESS_LIMIT);
    let (text, status) = printed.trim_end().rsplit_once('\n').unwrap_or_else(|| panic!("curl printed {printed:?}"));
    (status.parse().expect("a number"), text.to_owned())
}

#[test]
#[ignore = "needs nginx, openssl and curl: run make test-page"]
fn behind_nginx_as_it_is_given_clients_need_a_password_and_cannot_pose_as_nodes() {
    let root = Node::start(&[("TREE_DEPTH", "1"), ("TREE_TOKEN", "s3cret")]);
    let (folder, port) = (Folder::new("tls"), free_ports(1));
    let dir = folder.path();
    // The commands of `docs/operating.md`.
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 \
                  -subj /CN=cache.example.org -addext subjectAltName=DNS:cache.example.org \
                  -keyout tree-cache.key -out tree-cache.crt 2>/dev/null && \
                  echo \"alice:$(echo 'pass word' | openssl passwd -apr1 -stdin)\" >tree-cache.htpasswd";
    let mut made = Process::spawn_command(command("sh").args(["-c", script]).current_dir(dir), &[]);
    assert_eq!(made.wait_for_end(PROCESS_LIMIT).0, Some(0));
    let site = include_str!("../../deploy/nginx.conf")
        .replace("127.0.0.1:5000", &format!("127.0.0.1:{}", root.port))
        .replace("listen 443", &format!("listen 127.0.0.1:{port}"))
        .replace("/etc/nginx/tree-cache", &format!("{dir}/tree-cache"));
    let temporary =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path {dir}/{kind};"));
    let site = folder.write("site.conf", &site);
    let conf = folder.write(
        "nginx.conf",
        &format!(
            "daemon off; master_process off; pid {dir}/nginx.pid; events {{}}
            http {{ access_log off; {} include {site}; }}",
            temporary.concat()
        ),
    );
    let nginx = start("nginx", &["-p", dir, "-c", &conf, "-e", "stderr"], port);

    let ask = |arguments: &[&str], path: &str| get_by_tls(port, &["-u", "alice:pass word"], arguments, path);
    let ok = |text: &str| (200, text.to_owned());
    assert_eq!(ask(&["-X", "PUT", "-d", r#"{"value":1}"#], "/store/a%2Fb"), ok(r#"{"key":"a/b","value":1}"#));
    // As a browser or a client with the certificate's name calls it.
    assert_eq!(ask(&["-H", "Host: cache.example.org"], "/store/a%2Fb"), ok(r#"{"value":1}"#));
    assert_eq!(ask(&["-X", "DELETE"], "/store/a%2Fb"), ok(r#"{"key":"a/b"}"#));
    for path in ["/", "/nodes", "/metrics", "/openapi.json", "/store?limit=1"] {
        assert_eq!(ask(&[], path).0, 200, "{path}");
    }
    // The longest body that a node takes.
    let body = folder.write("body", &format!(r#"{{"value":"{}"}}"#, "x".repeat((1 << 20) - 12)));
    assert_eq!(ask(&["-X", "PUT", "-T", &body], "/store/long").0, 200);

    let passed_on = |root: &Node| root.metric("refused_total{status=\"401\"}");
    root.call("POST", "/nodes", b"{}").expect_error(401, "this call needs the token of the nodes");
    let before = passed_on(&root);
    let token = "Authorization: Bearer s3cret";
    for (login, path, status) in [
        (&[][..], "/health", 200),
        (&[], "/store/long", 401),
        (&[], "/nodes", 401),
        (&[], "/", 401),
        (&["-u", "alice:word pass"], "/store/long", 401),
        (&["-H", token], "/store/long", 401),
    ] {
        assert_eq!(get_by_tls(port, login, &[], path).0, status, "{path}");
    }
    for (arguments, path, status) in [
        (&["-X", "POST", "-d", "{}"][..], "/nodes", 403),
        (&["-X", "PUT", "-d", "{}"], "/health", 403),
        (&[], "/copies/k?to=1", 404),
        (&["-X", "DELETE"], "/copies/k?to=1&level=0", 404),
        (&[], "//copies/k?to=1", 404),
        (&[], "/copies/..%2Fstore?to=1", 404),
        (&["-X", "DELETE"], "/copies/..%2Fstore?to=1&level=0", 404),
    ] {
        assert_eq!(ask(arguments, path).0, status, "{path}");
    }
    assert_eq!(passed_on(&root), before, "no call between nodes has reached the node");
    stop(nginx);
}
