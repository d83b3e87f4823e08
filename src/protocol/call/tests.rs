//! Tables of targets, odd ones among them, and a fuzz that a second reader of URLs looks over.

use ureq::http::Uri;

use super::*;

/// What a request is to a node of this tree, and to whoever is none.
fn read(method: &str, target: &str) -> (Result<Call, String>, Who) {
    let Request { who, call, .. } = Request::read(method, target);
    (call.map_err(|error| error.text), who)
}

fn holder() -> Holder {
    Holder { name: "NODE-4".to_owned(), url: "http://h:1".to_owned(), run: 7 }
}

#[test]
fn each_path_and_method_is_one_call_that_says_who_may_ask_it() {
    let key = || "a/b".to_owned();
    let passed_on = Some(PassedOn { to: 5, until_ms: 6 });
    let fetch = || Call::Fetch { key: key(), to: 5, holder: Some(holder()), wait: Duration::from_millis(900) };
    let fetch_target = "copies/a%2Fb?to=5&wait_ms=900&holder=NODE-4&url=http%3A%2F%2Fh%3A1&run=7";
    for (method, target, call, who) in [
        ("GET", "/", Call::Describe, Who::Anybody),
        ("GET", "/?x", Call::Describe, Who::Anybody),
        ("HEAD", "/nodes", Call::Nodes, Who::Anybody),
        ("GET", "/nodes?copies/k", Call::Nodes, Who::Anybody),
        ("GET", "/health", Call::Health, Who::Anybody),
        ("GET", "/metrics", Call::Metrics, Who::Anybody),
        ("OPTIONS", "/metrics", Call::Options("GET, HEAD, OPTIONS"), Who::Anybody),
        ("OPTIONS", "/store/%zz", Call::Options("GET, HEAD, PUT, DELETE, OPTIONS"), Who::Anybody),
        ("OPTIONS", "/nodes", Call::Options("GET, HEAD, POST, OPTIONS"), Who::Anybody),
        ("OPTIONS", "/copies/k", Call::Options("GET, DELETE, OPTIONS"), Who::Nodes),
        ("OPTIONS", "*", Call::Options("GET, HEAD, PUT, POST, DELETE, OPTIONS"), Who::Anybody),
        ("GET", "/openapi.json", Call::DescribeApi, Who::Anybody),
        ("GET", "/store", Call::List(1000), Who::Anybody),
        ("GET", "/store?x=1&limit=7", Call::List(7), Who::Anybody),
        ("GET", "/store/a%2Fb", Call::Get(key()), Who::Anybody),
        ("HEAD", "/store/a%2fb?x=1", Call::Get(key()), Who::Anybody),
        ("PUT", "/store/a%2Fb", Call::Put(key(), None), Who::Anybody),
        ("PUT", "/store/a%2Fb?to=5&until_ms=6", Call::Put(key(), passed_on), Who::Anybody),
        // Clients' own parameters.
        ("PUT", "/store/a%2Fb?to=here&until_ms=6", Call::Put(key(), None), Who::Anybody),
        ("DELETE", "/store/a%2Fb?until_ms=6", Call::Delete(key(), None), Who::Anybody),
        ("DELETE", "/store/a%2Fb", Call::Delete(key(), None), Who::Anybody),
        ("GET", "/store/copies", Call::Get("copies".to_owned()), Who::Anybody),
        ("GET", "/store/copies%2Fk", Call::Get("copies/k".to_owned()), Who::Anybody),
        ("POST", "/nodes", Call::Join, Who::Nodes),
        ("POST", "/nodes?x", Call::Join, Who::Nodes),
        ("GET", &format!("/{fetch_target}"), fetch(), Who::Nodes),
        ("DELETE", "/copies/a%2Fb?to=7&level=2", Call::Invalidate { key: key(), to: 7, level: 2 }, Who::Nodes),
        // To one who leaves nothing is granted.
        (
            "GET",
            "/copies/a%2Fb?to=5&wait_ms=900",
            Call::Fetch { key: key(), to: 5, holder: None, wait: Duration::from_millis(900) },
            Who::Nodes,
        ),
        // The same with a host in front, as a proxy is asked.
        ("GET", "http://elsewhere:1", Call::Describe, Who::Anybody),
        ("GET", "http://elsewhere:1?/nodes", Call::Describe, Who::Anybody),
        ("GET", "http://elsewhere:1/store/a%2Fb", Call::Get(key()), Who::Anybody),
        ("POST", "http://nodes/nodes", Call::Join, Who::Nodes),
        ("POST", "http://me:secret@elsewhere/nodes", Call::Join, Who::Nodes),
        ("GET", &format!("http://elsewhere:1/{fetch_target}"), fetch(), Who::Nodes),
    ] {
        assert_eq!(read(method, target), (Ok(call), who), "{method} {target}");
    }
}

#[test]
fn what_is_written_is_read() {
    let key = || "a/b ř?".to_owned();
    for call in [
        Call::Describe,
        Call::Health,
        Call::Nodes,
        Call::Metrics,
        Call::DescribeApi,
        Call::Options(ALL_METHODS),
        Call::List(7),
        Call::Get(key()),
        Call::Put(key(), None),
        Call::Put(key(), Some(PassedOn { to: 5, until_ms: 6 })),
        Call::Delete(key(), None),
        Call::Delete(key(), Some(PassedOn { to: 5, until_ms: 6 })),
        Call::Join,
        Call::Fetch { key: key(), to: 5, holder: Some(holder()), wait: Duration::from_millis(900) },
        Call::Invalidate { key: key(), to: 7, level: 2 },
    ] {
        let (method, target) = call.write();
        let Request { who, call: read, .. } = Request::read(method, &target);
        assert!(who == Who::Anybody || call.shows_token(), "{target}");
        assert_eq!(read, Ok(call));
    }
}

#[test]
fn what_is_no_call_is_refused_with_its_operand() {
    for (method, target, detail, who) in [
        ("GET", "/store/a/b", "there is no path \"/store/a/b\"", Who::Anybody),
        ("GET", "//", "there is no path \"//\"", Who::Anybody),
        ("POST", "//nodes", "there is no path \"//nodes\"", Who::Anybody),
        ("POST", "/nodes/", "there is no path \"/nodes/\"", Who::Anybody),
        ("POST", "/Nodes", "there is no path \"/Nodes\"", Who::Anybody),
        ("POST", "/%6eodes", "there is no path \"/%6eodes\"", Who::Anybody),
        ("POST", "/./nodes", "there is no path \"/./nodes\"", Who::Anybody),
        ("POST", "/store/../nodes", "there is no path \"/store/../nodes\"", Who::Anybody),
        ("POST", "/x/nodes", "there is no path \"/x/nodes\"", Who::Anybody),
        ("POST", "http://h//nodes", "there is no path \"//nodes\"", Who::Anybody),
        ("GET", "/x/copies/k", "there is no path \"/x/copies/k\"", Who::Anybody),
        ("GET", "/copies", "there is no path \"/copies\"", Who::Anybody),
        ("GET", "/copies/a/b", "there is no path \"/copies/a/b\"", Who::Nodes),
        ("GET", "/copies/", "the key is empty", Who::Nodes),
        ("GET", "/store/", "the key is empty", Who::Anybody),
        ("GET", "/store/%zz", "the key has a % without two hexadecimal digits", Who::Anybody),
        ("GET", "/store?limit=0", "limit=\"0\" is not a whole number from 1 to 1000", Who::Anybody),
        ("get", "/store/k", "the method \"get\" is not one of GET, HEAD, PUT, DELETE, OPTIONS", Who::Anybody),
        ("PUT", "/nodes", "the method \"PUT\" is not one of GET, HEAD, POST, OPTIONS", Who::Anybody),
        ("post", "/nodes", "the method \"post\" is not one of GET, HEAD, POST, OPTIONS", Who::Anybody),
        ("POST", "/", "the method \"POST\" is not one of GET, HEAD, OPTIONS", Who::Anybody),
        ("PUT", "/copies/k", "the method \"PUT\" is not one of GET, DELETE, OPTIONS", Who::Nodes),
        ("HEAD", "/copies/k", "the method \"HEAD\" is not one of GET, DELETE, OPTIONS", Who::Nodes),
        ("GET", "/copies/k?to=5&holder=me", "holder=\"me\" is not the name of a node", Who::Nodes),
        (
            "GET",
            "/copies/k?to=5&holder=NODE-4&url=h",
            "url=\"h\" is not a URL of the form http://host:port",
            Who::Nodes,
        ),
        ("DELETE", "/copies/k?to=-1", "to=\"-1\" is not a whole number", Who::Nodes),
        ("DELETE", "/copies/k?to=+11", "to=\"+11\" is not a whole number", Who::Nodes),
        ("DELETE", "/copies/k?to=", "to=\"\" is not a whole number", Who::Nodes),
        ("GET", "/store?limit=+7", "limit=\"+7\" is not a whole number from 1 to 1000", Who::Anybody),
        ("GET", "/copies/k?to=5&holder=NODE-+4", "holder=\"NODE-+4\" is not the name of a node", Who::Nodes),
    ] {
        assert_eq!(read(method, target), (Err(detail.to_owned()), who), "{method} {target}");
    }
}

#[test]
fn a_target_that_is_neither_a_path_nor_an_http_url_is_nothing() {
    for target in [
        "",
        "*",
        "nodes",
        "x/nodes",
        "*/nodes",
        "*/copies/k",
        "x/copies/k?run=7&level=2",
        "http:/nodes",
        "http:nodes",
        "http://",
        "http:///nodes",
        "http://?/nodes",
        "HTTP://h/nodes",
        "https://h/nodes",
        "ftp://h/nodes",
        "h:5000",
        "?/nodes",
        "#/nodes",
        "\\nodes",
        "%2Fnodes",
        " /nodes",
        ".//nodes",
    ] {
        let refused = format!("the target {target:?} is neither a path nor an http:// URL");
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "post", ""] {
            if (method, target) == ("OPTIONS", "*") {
                continue;
            }
            assert_eq!(read(method, target), (Err(refused.clone()), Who::Anybody), "{method} {target}");
        }
    }
}

#[test]
fn whoever_is_no_node_learns_nothing_of_a_call_between_nodes() {
    for (method, target) in [("POST", "/nodes"), ("GET", "/copies/k?to=5&holder=me"), ("PUT", "http://h/copies/%zz")] {
        let refused =
            Request::read(method, target).open(|| Err(Kind::Unauthorized.error("no"))).expect_err("a stranger asks");
        assert_eq!(refused, Kind::Unauthorized.error("no"), "{method} {target}");
    }
    let open = |method, target| Request::read(method, target).open(|| panic!("anybody may ask this")).expect("a call");
    assert_eq!(open("GET", "/nodes"), Call::Nodes);
    assert_eq!(open("GET", "/store/copies"), Call::Get("copies".to_owned()));
    assert_eq!(Request::read("POST", "/nodes").open(|| Ok(())).expect("a node asks"), Call::Join);
}

/// A small generator of numbers that look random: the same ones in every run.
struct XorShift(u64);

impl XorShift {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits fit") % limit
    }

    /// One of the parts, every second time the first or the second.
    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        let among = if self.below(2) == 0 { 2 } else { of.len() };
        of[self.below(among)]
    }

    /// Method and target, put together from parts; every fourth time with one character more or less.
    fn request(&mut self) -> (&'static str, String) {
        let [methods, starts, paths, queries] =
            [METHODS, STARTS, PATHS, QUERIES].map(|parts| parts.split('|').collect::<Vec<_>>());
        let mut target: Vec<char> = [starts, paths, queries].map(|parts| self.pick(&parts)).concat().chars().collect();
        let place = self.below(target.len() + 1);
        match self.below(8) {
            0 => target.insert(place, ODD[self.below(ODD.len())]),
            1 if place < target.len() => drop(target.remove(place)),
            _ => {}
        }
        (self.pick(&methods), target.into_iter().collect())
    }
}

const METHODS: &str = "GET|POST|DELETE|PUT|HEAD|OPTIONS|CONNECT|get|pOST||GET /";
const STARTS: &str = "/|http://h/||//|x/|*/|*|http:/|http://|http://h|HTTP://h/|http:///|https://h/|http://[::1]:5000/|\
    http://h:1?|/./|/../|\\|%2F|?|#| /|é/|http://u@h/|http://http://h/|/http://h/";
const PATHS: &str = "nodes|copies/k|copies/|copies|copies/a%2Fb|copies/a/b|copies//k|store|store/k|store/|store/é||\
    store/copies%2Fk|store/../nodes|store/%2e%2e%2Fnodes|store/%zz|store/%ff|metrics|openapi.json|nodes/|nodes;x|\
    Nodes|n%6Fdes|x/nodes|x/copies/k|/nodes|./nodes|nodes%00|copies%2Fk|store/nodes|http://h/nodes|\0|\
    copies/k/../../nodes";
const QUERIES: &str = "|?holder=NODE-4&url=http%3A%2F%2Fh%3A1&run=7&wait_ms=900|?run=7&level=2|?/nodes|?x/copies/k|?#|\
    ?run=99999999999999999999&level=-1|?limit=7|?limit=-7|?run=7&run=8&level=2&level=x|??|?run|?&&=&|/..|%| HTTP/1.1|\
    ?holder=NODE-&url=%zz&run=é|?url=http%3A%2F%2Fu%40h";
const ODD: [char; 14] = ['/', '?', '#', '%', '*', '.', ':', '@', '\\', ' ', '\0', 'é', ';', '&'];

/// Who may ask what another reader of URLs sees there; `None` if it cannot read it. A fragment, which no
/// target has, is cut off by it, and to us a part of the path.
fn second_opinion(method: &str, target: &str) -> Option<Who> {
    let uri: Uri = target.parse().ok().filter(|_| !target.contains('#'))?;
    let between_nodes = uri.path().starts_with("/copies/") || (method == "POST" && uri.path() == "/nodes");
    Some(if between_nodes { Who::Nodes } else { Who::Anybody })
}

/// `FUZZ_REQUESTS=20000000 cargo test --release fuzz` tries more.
#[test]
fn a_fuzz_finds_no_panic_and_no_call_between_nodes_that_is_open_to_a_stranger() {
    let requests = std::env::var("FUZZ_REQUESTS").map_or(200_000, |count| count.parse().expect("a number"));
    let mut random = XorShift(0x2545_F491_4F6C_DD1D);
    let (mut for_nodes, mut for_anybody) = (0, 0);
    for _ in 0..requests {
        let (method, target) = random.request();
        let (call, who) = read(method, &target);
        let said = format!("{method:?} {target:?}: {call:?} for {who:?}");
        match call {
            Ok(Call::Join | Call::Fetch { .. } | Call::Invalidate { .. }) => {
                assert_eq!(who, Who::Nodes, "{said}");
                for_nodes += 1;
            }
            Ok(
                Call::Describe
                | Call::Health
                | Call::Nodes
                | Call::Metrics
                | Call::DescribeApi
                | Call::List(_)
                | Call::Get(_)
                | Call::Put(..)
                | Call::Delete(..),
            ) => {
                assert_eq!(who, Who::Anybody, "{said}");
                for_anybody += 1;
            }
            Ok(Call::Options(_)) | Err(_) => continue,
        }
        assert!(target.starts_with('/') || target.starts_with("http://"), "{said}");
        assert_eq!(who, second_opinion(method, &target).unwrap_or(who), "{said}");
    }
    assert!(for_nodes > requests / 100 && for_anybody > requests / 100, "{for_nodes} and {for_anybody} calls");
}
