//! Servers that one would take instead, each with its defaults, where Debian's packages are installed: Varnish
//! (`varnish`), Redis behind HTTP (`webdis`, `redis-server`) and etcd (`etcd-server`).

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;

use crate::harness::{PROCESS_LIMIT, Process, command, free_ports, poll_until};

/// Those that were found, until they are dropped.
#[derive(Default)]
pub struct Others {
    processes: Vec<Process>,
    /// Title, script and port of what each is asked.
    pub loads: Vec<(&'static str, &'static str, u16)>,
}

impl Others {
    /// Starts what is installed; `bare_port` is a server whose answers Varnish may keep.
    pub fn start(bare_port: u16) -> Self {
        let (mut others, first) = (Self::default(), free_ports(5));
        let ports: [u16; 5] = std::array::from_fn(|number| first + u16::try_from(number).expect("five"));
        let [varnish, redis, webdis, etcd, etcd_peer] = ports.map(|port| port.to_string());
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("others");
        // Of an earlier run, if there was one.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("the target folder can be written");
        let path = |name: &str| folder.join(name).to_str().expect("it is UTF-8").to_owned();
        let local = |port: &str| format!("127.0.0.1:{port}");

        let (listen, backend) = (local(&varnish), local(&bare_port.to_string()));
        let arguments = ["-F", "-a", &listen, "-b", &backend, "-n", &path("varnish"), "-s", "malloc,64m", "-j", "none"];
        if others.run("varnishd", &arguments, ports[0]) {
            others.loads.push(("Varnish, hits", "hit", ports[0]));
        }
        let arguments = ["--port", &redis, "--save", "", "--appendonly", "no", "--dir", &path("")];
        let conf = format!(
            r#"{{"redis_host":"127.0.0.1","redis_port":{redis},"http_host":"127.0.0.1","http_port":{webdis},
            "threads":5,"pool_size":20,"daemonize":false,"logfile":"/dev/null","verbosity":0}}"#
        );
        fs::write(path("webdis.json"), conf).expect("the target folder can be written");
        if others.run("redis-server", &arguments, ports[1]) && others.run("webdis", &[&path("webdis.json")], ports[2]) {
            others.loads.extend([
                ("webdis and Redis, GET", "webdis get", ports[2]),
                ("webdis and Redis, SET", "webdis set", ports[2]),
            ]);
        }
        let (url, peer) = (format!("http://{}", local(&etcd)), format!("http://{}", local(&etcd_peer)));
        let own = ["--data-dir", &path("etcd"), "--listen-client-urls", &url, "--advertise-client-urls", &url];
        let peers = ["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer, "--initial-cluster"];
        let cluster = format!("default={peer}");
        let arguments = [&own[..], &peers, &[&cluster, "--enable-v2=true", "--log-level", "error"]].concat();
        if others.run("etcd", &arguments, ports[3]) {
            others
                .loads
                .extend([("etcd (v2), PUT, durable", "etcd put", ports[3]), ("etcd (v2), GET", "etcd get", ports[3])]);
        }
        others
    }

    /// Starts a program, if it is there, and waits until it serves.
    fn run(&mut self, program: &str, arguments: &[&str], port: u16) -> bool {
        let paths = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
        let Some(found) = paths.split(':').map(|path| PathBuf::from(path).join(program)).find(|path| path.is_file())
        else {
            eprintln!("{program} is not installed, and left out");
            return false;
        };
        let mut process = Process::spawn_command(command(found).args(arguments), &[]);
        poll_until(PROCESS_LIMIT, &format!("{program} serves"), || {
            process.expect_alive();
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        self.processes.push(process);
        true
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        for mut process in self.processes.drain(..) {
            // In good order: Varnish has a child of its own.
            process.signal("TERM");
            process.wait_for_end(PROCESS_LIMIT);
        }
    }
}
