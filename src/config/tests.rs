//! What is read from variables, and what is refused.

use super::*;
use wrong_values::WRONG_VALUES;

#[path = "../../tests/it/wrong_values.rs"]
mod wrong_values;

fn config(variables: &[(&str, &str)]) -> Result<Config, String> {
    let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    Config::from_lookup(find)
}

#[test]
fn nothing_set_is_a_root_on_its_own() {
    let config = config(&[]).unwrap();
    assert!(config.is_root());
    assert_eq!((config.tree_depth, config.api_port, config.root_id), (3, 5000, 1));
    assert_eq!(config.lease, Duration::from_secs(5));
    assert_eq!(config.root_url, "http://127.0.0.1:5000");
    assert_eq!(config.url_at(5000), "http://127.0.0.1:5000");
}

#[test]
fn the_urls_follow_the_bind_address() {
    let inside =
        config(&[("BIND_ADDR", "0.0.0.0"), ("NODE_ID", "4"), ("ROOT_NODE_ID", "3"), ("API_PORT", "6000")]).unwrap();
    assert_eq!(inside.url_at(6000), "http://NODE-4:6000");
    assert_eq!(inside.root_url, "http://NODE-3:6000");
    let v6 = config(&[("BIND_ADDR", "::1")]).unwrap();
    assert_eq!((v6.url_at(7).as_str(), v6.root_url.as_str()), ("http://[::1]:7", "http://[::1]:5000"));
    let told = config(&[("NODE_ID", "2"), ("NODE_URL", "http://here:1/"), ("ROOT_URL", "http://[::1]:2")]).unwrap();
    assert_eq!((told.url_at(9).as_str(), told.root_url.as_str()), ("http://here:1", "http://[::1]:2"));
}

#[test]
fn every_wrong_value_is_named_with_what_is_allowed() {
    for (variable, allowed, values) in WRONG_VALUES {
        for value in *values {
            let expected = format!("{variable}={value:?}: must be {allowed}");
            assert_eq!(config(&[(*variable, *value)]).map(|_| ()), Err(expected));
        }
    }
}

#[test]
fn an_empty_variable_counts_as_unset_but_the_token() {
    let (unset, empty) =
        (config(&[]).unwrap(), |name: &str| Some(name).filter(|name| *name != "TREE_TOKEN").map(|_| String::new()));
    assert_eq!(format!("{:?}", Config::from_lookup(empty).unwrap()), format!("{unset:?}"));
    assert!(config(&[("TREE_TOKEN", "")]).is_err());
}

#[test]
fn zookeeper_may_be_several_servers() {
    assert!(config(&[]).unwrap().zookeeper.is_empty());
    let config = config(&[("ZOOKEEPER", "here:2181,10.0.0.1:2182,[::1]:2183")]).unwrap();
    assert_eq!(config.zookeeper, ["here:2181", "10.0.0.1:2182", "[::1]:2183"]);
}

#[test]
fn a_wrong_token_is_refused_and_not_shown() {
    for token in ["", "two words", "čtyři"] {
        let error = config(&[("TREE_TOKEN", token)]).unwrap_err();
        assert_eq!(error, "TREE_TOKEN=\"…\": must be visible ASCII characters without a space");
    }
    assert_eq!(config(&[("TREE_TOKEN", "s3cret")]).unwrap().token.as_deref(), Some("s3cret"));
}

#[test]
fn a_token_may_be_in_a_file_and_not_in_both() {
    let path = std::env::temp_dir().join(format!("tree-cache-token-{}", std::process::id()));
    let file = path.to_str().expect("it is ASCII");
    for (text, token) in
        [("s3cret", Some("s3cret")), ("s3cret\n", Some("s3cret")), ("", None), ("\n", None), ("a b", None)]
    {
        std::fs::write(&path, text).expect("there is a folder for such files");
        let found = config(&[("TREE_TOKEN_FILE", file)]).map(|config| config.token.expect("it has one"));
        let allowed = "a file with visible ASCII characters without a space";
        let refused = || format!("TREE_TOKEN_FILE={file:?}: must be {allowed}");
        assert_eq!(found, token.map(ToOwned::to_owned).ok_or_else(refused), "{text:?}");
    }
    let both = config(&[("TREE_TOKEN_FILE", file), ("TREE_TOKEN", "s3cret")]).map(|_| ());
    assert_eq!(both, Err(format!("TREE_TOKEN_FILE={file:?}: must be unset where TREE_TOKEN is set")));
    std::fs::remove_file(path).expect("it is ours");
}

#[test]
fn a_host_is_known_if_no_stranger_can_have_it_resolved_to_this_one() {
    let bare = config(&[]).unwrap();
    let named = config(&[
        ("NODE_ID", "4"),
        ("NODE_URL", "http://Cache-4.example.org:5000"),
        ("ROOT_URL", "http://root.example.org:5000"),
        ("ALLOWED_HOSTS", "cache.example.org,Tree.example.org:80"),
    ]);
    let (named, any) = (named.unwrap(), config(&[("ALLOWED_HOSTS", "*")]).unwrap());
    for host in [
        "localhost",
        "LOCALHOST:5000",
        "127.0.0.1",
        "10.1.2.3:80",
        "[::1]:5000",
        "NODE-4:5000",
        "zookeeper",
        "a.localhost",
        "host.docker.internal:5000",
        "localhost.",
    ] {
        let host = host_of(host).expect(host);
        assert!([&bare, &named, &any].iter().all(|config| config.allows_host(&host)), "{host}");
    }
    for host in ["cache-4.example.org:5000", "ROOT.example.org", "cache.example.org:6000", "tree.example.org."] {
        let host = host_of(host).expect(host);
        assert!(!bare.allows_host(&host) && named.allows_host(&host) && any.allows_host(&host), "{host}");
    }
    for host in [
        "evil.example",
        "evil.example.org:5000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "internal.example",
        "xcache.example.org",
        "example.org",
        "127.1",
    ] {
        let host = host_of(host).expect(host);
        assert!(!bare.allows_host(&host) && !named.allows_host(&host) && any.allows_host(&host), "{host}");
    }
    for malformed in [
        "",
        ".",
        "a b",
        "a/b",
        "me@localhost",
        "localhost:x:y",
        "[::1",
        "ř",
        "127.0.0.1:80.evil.example",
        "[::1]evil.example",
        "::1",
    ] {
        assert_eq!(host_of(malformed), None, "{malformed}");
    }
}
