//! A real Chromium, told what to do through chromedriver. `WebDriver` is JSON over HTTP: no library is needed.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::try_call;
use crate::harness::{Process, command, poll_until};

/// How long the page may take to show something. A node is lost after 3 s, and the page looks once a second.
const PAGE_LIMIT: Duration = Duration::from_secs(15);

/// Chromium with one window; closed when dropped.
pub struct Browser {
    session: String,
    profile: PathBuf,
    _driver: Process,
}

impl Browser {
    /// Opens a window of that size. These names are resolved to this machine.
    pub fn open(width: u32, height: u32, names: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let profile =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("browser-{}-{number}", std::process::id()));
        let mut driver = Process::spawn_command(command("chromedriver").arg("--port=0"), &[]);
        let started = "was started successfully on port ";
        let printed = driver.wait_for_output(started);
        let rest = printed.split_once(started).expect("it was waited for").1;
        let port: String = rest.chars().take_while(char::is_ascii_digit).collect();

        let profile_flag = format!("--user-data-dir={}", profile.display());
        let rules = names.iter().map(|name| format!("MAP {name} 127.0.0.1")).collect::<Vec<_>>().join(",");
        let rules_flag = format!("--host-resolver-rules={rules}");
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            &profile_flag,
            &rules_flag,
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let url = format!("http://127.0.0.1:{port}/session");
        let id = call("POST", &url, &wanted)["sessionId"].as_str().expect("a session has an id").to_owned();
        let browser = Self { session: format!("{url}/{id}"), profile, _driver: driver };
        // A window of Chromium cannot be as narrow as a phone; what is drawn in it can.
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500 });
        browser.post("/goog/cdp/execute", &json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": size }));
        browser
    }

    pub fn visit(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// Runs a script and gives what it returns.
    pub fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// The text of the first element that the selector finds, as the reader sees it; empty if there is none.
    pub fn text(&self, selector: &str) -> String {
        let text = self.run(&format!("return document.querySelector({})?.innerText", json!(selector)));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until that text is there.
    pub fn wait_for(&self, selector: &str, text: &str) {
        poll_until(PAGE_LIMIT, &format!("{selector} says {text:?}"), || self.text(selector).contains(text));
    }

    /// Types into a field, in place of what is there.
    pub fn write(&self, selector: &str, text: &str) {
        let element = self.find(selector);
        self.post(&format!("{element}/clear"), &json!({}));
        self.post(&format!("{element}/value"), &json!({ "text": text }));
    }

    pub fn click(&self, selector: &str) {
        self.post(&format!("{}/click", self.find(selector)), &json!({}));
    }

    /// Presses keys, as `WebDriver` names them, wherever the focus is.
    pub fn press(&self, keys: &str) {
        let actions: Vec<_> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() })))
            .collect();
        self.post("/actions", &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] }));
    }

    /// What the page complained of, be it a broken script or a broken policy. That an answer was not 200,
    /// or that there was none, is the network's complaint and not the page's.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.post("/se/log", &json!({ "type": "browser" }));
        let entries = log.as_array().expect("a log is a list").iter();
        entries.filter(|entry| entry["source"] != "network").map(Value::to_string).collect()
    }

    #[track_caller]
    pub fn expect_no_complaint(&self) {
        assert_eq!(self.complaints(), [""; 0]);
    }

    fn find(&self, selector: &str) -> String {
        let found = self.post("/element", &json!({ "using": "css selector", "value": selector }));
        let id = found.as_object().and_then(|found| found.values().next()).and_then(Value::as_str);
        format!("/element/{}", id.expect("an element has an id"))
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        call("POST", &format!("{}{path}", self.session), body)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // This ends Chromium, which chromedriver started and we do not know.
        let _ = try_call("DELETE", &self.session, &[], b"");
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

fn call(method: &str, url: &str, body: &Value) -> Value {
    let answer = try_call(method, url, &[], body.to_string().as_bytes()).expect("chromedriver answers");
    assert_eq!(answer.status, 200, "{method} {url} {body}: {}", answer.text());
    answer.json()["value"].take()
}
