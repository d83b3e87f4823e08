//! The page that a node shows to a browser.

use crate::harness::Node;

#[test]
fn a_browser_gets_the_page_and_everybody_else_json() {
    let root = Node::alone();
    let accept = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    for method in ["GET", "HEAD"] {
        let page = root.call_with(method, "/", &[("Accept", accept)], b"");
        assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
        assert_eq!((page.header("x-content-type-options"), page.header("vary")), (Some("nosniff"), Some("Accept")));
        let policy = page.header("content-security-policy").expect("the page has a policy");
        for rule in ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "script-src 'sha256-"] {
            assert!(policy.contains(rule), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
    }
    for accept in ["*/*", "application/json"] {
        let answer = root.call_with("GET", "/", &[("Accept", accept)], b"");
        assert_eq!((answer.header("content-type"), answer.header("vary")), (Some("application/json"), Some("Accept")));
        assert_eq!(answer.json()["node"], "NODE-1");
    }
}
