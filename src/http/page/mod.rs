//! What a node shows of itself: a page that draws the tree, for people, and the API's description, for programs.
//!
//! Invariant: the page's policy lets the script and the style run that are in `page.html`, and nothing
//! else: no other origin is asked, no HTML is made from text, and no site can frame the page. Left out:
//! drawing. The page does that itself, from what everybody can ask.

use super::server::Answer;

/// The page; one file, so that a node needs nothing beside its program.
const PAGE: &str = include_str!("page.html");

/// The hashes are those of the texts between `<style>` and `</style>`, `<script>` and `</script>`; a test
/// says the right ones. Worked out at each start, they would cost a hash function that nothing else needs.
const POLICY: &str = "default-src 'none'; \
    style-src 'sha256-YtFg0Rdh7d064ZSacX59YMD0ZiWaSi7sV5CaO67IDXc='; \
    script-src 'sha256-8ypyBeSLmogaVGr6b3WCG1VZ6AwCO4UNQ8pjNbenVfk='; \
    connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// Whether the client of a `GET /` wants the page: one that says that it navigates, or names XHTML, as every browser
/// does. Others name `text/html` too: Java's default `Accept` begins with it.
pub fn is_wanted(accept: Option<&str>, fetch_mode: Option<&str>) -> bool {
    let names_xhtml = |accept: &str| accept.to_ascii_lowercase().contains("application/xhtml+xml");
    fetch_mode == Some("navigate") || accept.is_some_and(names_xhtml)
}

pub fn page() -> Answer {
    Answer::new(200, "text/html; charset=utf-8", PAGE.as_bytes().to_vec())
        .with_header("Content-Security-Policy", POLICY)
        .with_header("X-Content-Type-Options", "nosniff")
}

/// What clients can ask, as `OpenAPI` 3.1.
pub fn description() -> Answer {
    Answer::json(200, include_bytes!("openapi.json").to_vec())
}

#[cfg(test)]
#[cfg(target_os = "linux")] // which has coreutils to hash with
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// SHA-256 in base64, as a policy writes it; these commands spare us a package for one test.
    fn hash(text: &str) -> String {
        let command = "sha256sum | cut -c1-64 | tr a-f A-F | basenc --base16 --decode | base64";
        let mut child = Command::new("sh")
            .args(["-c", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("there is a shell");
        child.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("the command reads");
        let output = child.wait_with_output().expect("the command ends");
        let hash = String::from_utf8(output.stdout).expect("base64 is ASCII").trim().to_owned();
        assert_eq!(hash.len(), 44, "{command} does not work here");
        hash
    }

    fn between<'a>(start: &str, end: &str) -> &'a str {
        let mut parts = PAGE.split(start);
        let (_, rest) = (parts.next(), parts.next().unwrap_or_else(|| panic!("the page has no {start}")));
        assert_eq!(parts.next(), None, "the page has one {start}");
        rest.split_once(end).unwrap_or_else(|| panic!("the page has no {end}")).0
    }

    #[test]
    fn the_policy_allows_the_style_and_the_script_of_the_page() {
        for (directive, start, end) in [("style-src", "<style>", "</style>"), ("script-src", "<script>", "</script>")] {
            let right = format!("{directive} 'sha256-{}';", hash(between(start, end)));
            assert!(POLICY.contains(&right), "page.html has changed; POLICY must say {right}");
        }
    }

    #[test]
    fn the_page_is_small_and_names_no_other_place() {
        assert!(PAGE.len() < 16 << 10, "{} bytes", PAGE.len());
        // The name of a format, which nobody asks.
        let page = PAGE.replace("http://www.w3.org/2000/svg", "");
        for elsewhere in ["src=", "http:", "https:", "@import", "url("] {
            assert!(!page.contains(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn browsers_want_the_page_and_others_do_not() {
        for (accept, fetch_mode, wanted) in [
            (None, None, false),
            (Some("*/*"), None, false),
            (Some("application/json"), None, false),
            (Some("text/html"), None, false),
            (Some("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"), None, false),
            (Some("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"), None, true),
            (Some("text/html, Application/XHTML+xml"), None, true),
            (Some("*/*"), Some("navigate"), true),
            (Some("*/*"), Some("cors"), false),
        ] {
            assert_eq!(is_wanted(accept, fetch_mode), wanted, "{accept:?} {fetch_mode:?}");
        }
    }
}
