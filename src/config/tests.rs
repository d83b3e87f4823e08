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
    let told = config(&[("NODE_URL", "http://here:1/"), ("ROOT_URL", "http://[::1]:2")]).unwrap();
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
