//! Values that the configuration refuses. One list for the test of the plain function (`src/config.rs`) and the
//! one of the real program, so that neither knows less than the other.

/// Variable, what is allowed, and values that are not.
pub const WRONG_VALUES: &[(&str, &str, &[&str])] = &[
    ("TREE_DEPTH", "a whole number from 1 to 16", &["0", "17", "+3"]),
    ("API_PORT", "a whole number from 0 to 65535", &["65536", "http", "+5000", "tcp://10.0.0.1:5000"]),
    ("ROOT_NODE_ID", "a whole number from 1 to 7", &["8", "0"]),
    ("NODE_ID", "a whole number from 1 to 7", &["0", "-1", "3.5", "8"]),
    ("BIND_ADDR", "an IP address, such as 127.0.0.1 or 0.0.0.0", &["localhost"]),
    (
        "NODE_URL",
        "a URL of the form http://host:port",
        &["here:5000", "https://here:5000", "http://me:secret@here:5000"],
    ),
    (
        "ROOT_URL",
        "a URL of the form http://host:port",
        &["http://:5000", "http://here:5000/x", "http://here:65536", "http://here:+5000", "http://here:0"],
    ),
    ("LEASE_SECONDS", "a number of seconds from 0.1 to 3600", &["0", "NaN", "soon", "+1"]),
    ("MAX_VALUE_BYTES", "a whole number from 1 to 1073741824", &["1k"]),
    ("MAX_STORE_BYTES", "a whole number from 1 to 18446744073709551615", &["0"]),
    (
        "ZOOKEEPER",
        "host:port[,host:port…]",
        &[
            "here:+2181",
            "here",
            ":2181",
            "here:0",
            "here:65536",
            "here:2181/chroot",
            "here:2181, there:2181",
            "here:2181,",
            "me@here:2181",
        ],
    ),
    (
        "ALLOWED_HOSTS",
        "names of hosts, by commas, or *",
        &[
            "here, there",
            "here,",
            "http://here",
            "me@here",
            "here/x",
            ".",
            "*.here",
            ".here",
            "here;there",
            "here..there",
        ],
    ),
    ("TREE_TOKEN_FILE", "a file that can be read: No such file or directory (os error 2)", &["/nowhere/token"]),
    ("RUST_LOG", "off, error, warn, info, debug or trace", &["loud"]),
];
