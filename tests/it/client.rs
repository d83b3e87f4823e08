//! Two clients: one that speaks proper HTTP, and a connection on which anything can be sent.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::process::Env;

/// No answer is waited for longer than this: above everything that a node promises.
const CALL_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case, and values.
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header, whose name is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether any of its headers says that the connection is over.
    pub fn closes(&self) -> bool {
        self.headers.iter().any(|(name, value)| name == "connection" && value == "close")
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is UTF-8")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// What an error says of itself.
    pub fn detail(&self) -> String {
        self.json()["detail"].as_str().expect("an error has a text").to_owned()
    }

    #[track_caller]
    pub fn expect(&self, status: u16, body: &str) {
        assert_eq!((self.status, self.text()), (status, body));
        self.expect_no_store();
    }

    /// Fails the test if an HTTP cache may keep this.
    #[track_caller]
    pub fn expect_no_store(&self) {
        assert_eq!(self.header("cache-control"), Some("no-store"));
    }

    /// Fails the test unless this is that error, and JSON.
    #[track_caller]
    pub fn expect_error(&self, status: u16, detail: &str) {
        assert_eq!((self.status, self.json()), (status, serde_json::json!({ "detail": detail })));
        assert_eq!(self.header("content-type"), Some("application/json"));
        self.expect_no_store();
    }

    /// The same for an error that will pass: it says when to try again.
    #[track_caller]
    pub fn expect_retry(&self, detail: &str) {
        self.expect_error(503, detail);
        assert_eq!(self.header("retry-after"), Some("1"));
    }
}

/// The value of a line of `GET /metrics`, named without its prefix.
pub fn find_metric(text: &str, name: &str) -> u64 {
    let start = format!("tree_cache_{name} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// The path of the call by which a node asks another, of the run `to`, for a copy of the key `k`.
pub fn copy_path(to: u64, id: usize, run: u64, url: &str) -> String {
    let url = url.replace(':', "%3A").replace('/', "%2F");
    format!("/copies/k?to={to}&holder=NODE-{id}&url={url}&run={run}&wait_ms=1000")
}

/// The body of a join, as the node with that id sends it.
pub fn join_body(id: u32, run: u64, url: &str, position: Option<u64>) -> String {
    serde_json::json!({ "protocol": 3, "id": id, "run": run, "url": url, "position": position, "holds_ms": 0 })
        .to_string()
}

/// Any request to any URL, on a connection of its own.
pub fn try_call(method: &str, url: &str, headers: Env, body: &[u8]) -> Result<Answer, ureq::Error> {
    let agent = ureq::Agent::config_builder()
        .proxy(None)
        .http_status_as_error(false)
        .max_redirects(0)
        .timeout_global(Some(CALL_LIMIT))
        .allow_non_standard_methods(true)
        .build()
        .new_agent();
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    // Without a body these would be sent in chunks.
    let has_body = !body.is_empty() || ["PUT", "POST", "PATCH"].contains(&method);
    let mut response = if has_body { agent.run(request.body(body)?)? } else { agent.run(request.body(())?)? };
    let header = |(name, value): (&ureq::http::HeaderName, &ureq::http::HeaderValue)| {
        (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let headers = response.headers().iter().map(header).collect();
    Ok(Answer {
        status: response.status().as_u16(),
        headers,
        body: response.body_mut().with_config().limit(u64::MAX).read_to_vec()?,
    })
}

/// A connection on which anything can be sent.
pub struct Raw(BufReader<TcpStream>);

impl Raw {
    pub fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(CALL_LIMIT))?;
        stream.set_write_timeout(Some(CALL_LIMIT))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// From that port.
    pub fn connect_from(own: u16, port: u16) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], own)).into())?;
        socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into())?;
        Ok(Self(BufReader::new(socket.into())))
    }

    /// Ends it by a reset, so that its port is free at once.
    pub fn reset(self) {
        SockRef::from(self.0.get_ref()).set_linger(Some(Duration::ZERO)).expect("Linux knows it");
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    /// Waits no longer than that for an answer.
    pub fn limit_reads(&self, limit: Duration) -> io::Result<()> {
        self.0.get_ref().set_read_timeout(Some(limit))
    }

    pub fn end_sending(&self) -> io::Result<()> {
        self.0.get_ref().shutdown(Shutdown::Write)
    }

    /// Reads one answer that has a `Content-Length`, or needs none; a `100 Continue` before it is passed over.
    pub fn read_answer(&mut self) -> io::Result<Answer> {
        self.read_final().map(|(answer, _)| answer)
    }

    /// The same, and whether there was a `100 Continue`.
    pub fn read_final(&mut self) -> io::Result<(Answer, bool)> {
        let mut was_told_to_go_on = false;
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line)?;
            match line.trim_end() {
                "" if lines.first().is_some_and(|line: &String| line.contains(" 100 ")) => {
                    was_told_to_go_on = true;
                    lines.clear();
                }
                "" if lines.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let status = lines[0].split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
        let header = |line: &String| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        let mut answer = Answer { status, headers: lines[1..].iter().filter_map(header).collect(), body: Vec::new() };
        let length = answer.header("content-length").and_then(|length| length.parse().ok());
        // A 204 must not have one (RFC 9110, 8.6).
        assert_eq!(length.is_none(), status == 204, "{lines:?}");
        answer.body = vec![0; length.unwrap_or(0)];
        self.0.read_exact(&mut answer.body)?;
        Ok((answer, was_told_to_go_on))
    }
}

/// Sends bytes on a connection of their own and reads one answer.
pub fn raw_call(port: u16, request: &[u8]) -> Answer {
    let mut raw = Raw::connect(port).expect("the node accepts connections");
    raw.send(request).expect("the node takes the request");
    raw.read_answer().expect("the node answers")
}
