//! A client that speaks proper HTTP.

use std::time::Duration;

use crate::process::Env;

/// No answer is waited for longer than this: above everything that a node promises.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// What a node answered.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The bytes of the body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header, whose name is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is UTF-8")
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Fails the test unless status and body are these.
    #[track_caller]
    pub fn expect(&self, status: u16, body: &str) {
        assert_eq!((self.status, self.text()), (status, body));
    }

    /// Fails the test unless this is that error, and JSON.
    #[track_caller]
    pub fn expect_error(&self, status: u16, detail: &str) {
        assert_eq!((self.status, self.json()), (status, serde_json::json!({ "detail": detail })));
        assert_eq!(self.header("content-type"), Some("application/json"));
    }
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
    Ok(Answer { status: response.status().as_u16(), headers, body: response.body_mut().read_to_vec()? })
}
