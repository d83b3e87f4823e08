//! Processes that are watched while they live and gone when the test is.
//!
//! Nothing here sleeps for a fixed time: whatever is waited for is polled, with a deadline, and a
//! process that was to live is looked at meanwhile, so that its own last words are the test's failure.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_tree-cache");

/// How long a process may take to start or to end; generous, for the machine may be busy.
pub const PROCESS_LIMIT: Duration = Duration::from_secs(20);

/// What a process has of the caller's environment: where programs, homes and temporary files are, and how `make soak`
/// has memory allocated.
const KEPT: [&str; 4] = ["PATH", "HOME", "TMPDIR", "MALLOC_ARENA_MAX"];

/// Environment variables, or headers, and their values.
pub type Env<'a> = &'a [(&'a str, &'a str)];

pub fn poll_until(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The first of `count` free ports in a row, no two callers the same. They lie below those that the kernel
/// gives to outgoing connections: so a port is still free when its node is killed and started again.
pub fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Two suites that run at once begin at different places.
    let offset = std::process::id() % 180 * 100;
    let mut tries = (0..1000).map(|_| (offset + NEXT.fetch_add(u32::from(count), Ordering::Relaxed)) % 18_000);
    let first = tries.find_map(|place| {
        let first = 12_000 + u16::try_from(place).expect("below 18,000");
        // A listener, opened to try, would live on for a moment in a process that another thread is just forking.
        (first..first + count).all(|port| TcpStream::connect(("127.0.0.1", port)).is_err()).then_some(first)
    });
    first.expect("some ports are free")
}

/// A command whose environment is [`KEPT`] and nothing else: the caller's own must not leak into a test.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command
}

/// Fails the test unless that command succeeds.
#[track_caller]
pub fn run(arguments: &[&str]) {
    let status = command(arguments[0]).args(&arguments[1..]).status();
    assert!(status.is_ok_and(|status| status.success()), "{arguments:?}");
}

/// Says that it is over when dropped, and so also when the test fails: else the threads that go on until then would be waited
/// for, for ever.
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A folder that is gone with the test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tree-cache-{name}-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("the temporary directory can be written");
        Self(path)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().expect("it is ASCII")
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.join(name);
        fs::write(&path, text).expect("it is ours");
        path.to_str().expect("it is ASCII").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Sends a signal to a process, by its name. The command spares us unsafe code.
pub fn signal(id: u32, name: &str) {
    let status = command("kill").args([&format!("-{name}"), &id.to_string()]).status();
    assert!(status.expect("kill can be started").success(), "kill -{name}");
}

/// A process whose output is collected; killed and reaped when dropped.
pub struct Process {
    child: Child,
    stdout: Pipe,
    stderr: Pipe,
}

/// What has come out of a pipe so far, and the thread that reads it: the pipe stays open until the process ends.
struct Pipe {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Pipe {
    fn new(source: impl Read + Send + 'static) -> Self {
        let text = Arc::<Mutex<String>>::default();
        let sink = Arc::clone(&text);
        let reader = thread::spawn(move || {
            for line in BufReader::new(source).split(b'\n').map_while(Result::ok) {
                let mut text = sink.lock().expect("no reader panics");
                text.extend([&*String::from_utf8_lossy(&line), "\n"]);
            }
        });
        Self { text, reader: Some(reader) }
    }

    fn text(&self) -> String {
        self.text.lock().expect("no reader panics").clone()
    }
}

impl Process {
    /// Starts the program.
    pub fn spawn(arguments: &[&str], env: Env) -> Self {
        Self::spawn_command(command(PROGRAM).args(arguments), env)
    }

    /// Starts the program and waits for its end: see [`Process::wait_for_end`].
    pub fn run_to_end(arguments: &[&str], env: Env) -> (Option<i32>, String, String) {
        Self::spawn(arguments, env).wait_for_end(PROCESS_LIMIT)
    }

    /// Fails the test unless the program, started so, fails with that one line and prints nothing.
    #[track_caller]
    pub fn expect_failure(arguments: &[&str], env: Env, line: &str) {
        assert_eq!(Self::run_to_end(arguments, env), (Some(1), String::new(), format!("tree-cache: {line}\n")));
    }

    /// Starts a [`command`].
    pub fn spawn_command(command: &mut Command, env: Env) -> Self {
        command.envs(env.iter().copied()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program can be started");
        let stdout = Pipe::new(child.stdout.take().expect("it is piped"));
        let stderr = Pipe::new(child.stderr.take().expect("it is piped"));
        Self { child, stdout, stderr }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How many entries Linux lists for it: of its `task`s (threads) or `fd`s.
    pub fn entries_of(&self, what: &str) -> usize {
        std::fs::read_dir(format!("/proc/{}/{what}", self.id())).map_or(0, Iterator::count)
    }

    /// The memory that it takes, as Linux counts it: resident, in kB.
    pub fn memory_kb(&self) -> u64 {
        self.status_of("VmRSS:")
    }

    /// The most that it has ever taken.
    pub fn most_memory_kb(&self) -> u64 {
        self.status_of("VmHWM:")
    }

    fn status_of(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }

    /// What it has printed so far.
    pub fn printed(&self) -> String {
        self.stdout.text()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.stderr.text()
    }

    /// Waits until that many lines it has logged contain `text`, and returns all that it has logged: what it
    /// writes takes a moment to get here.
    pub fn wait_for_log(&self, text: &str, lines: usize) -> String {
        poll_until(PROCESS_LIMIT, &format!("{lines} lines in the log with {text:?}"), || {
            self.log().lines().filter(|line| line.contains(text)).count() >= lines
        });
        self.log()
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }

    pub fn expect_alive(&mut self) {
        if let Some(status) = self.child.try_wait().expect("it is our child") {
            self.hear_out();
            panic!("ended with {status}: {}", self.log());
        }
    }

    /// Waits until the process has printed `text`, and returns all that it has printed.
    pub fn wait_for_output(&mut self, text: &str) -> String {
        poll_until(PROCESS_LIMIT, &format!("the output {text:?}"), || {
            self.expect_alive();
            self.printed().contains(text)
        });
        self.printed()
    }

    /// Waits for the end: its exit code, what it printed, what it logged.
    pub fn wait_for_end(&mut self, limit: Duration) -> (Option<i32>, String, String) {
        let mut status = None;
        poll_until(limit, "the end of the process", || {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        self.hear_out();
        (status.and_then(|status| status.code()), self.printed(), self.log())
    }

    /// Reads what a process that has ended said last.
    fn hear_out(&mut self) {
        for reader in [&mut self.stdout, &mut self.stderr].into_iter().filter_map(|pipe| pipe.reader.take()) {
            reader.join().expect("no reader panics");
        }
    }

    /// Sends a signal by its name, such as `STOP`.
    pub fn signal(&self, name: &str) {
        signal(self.id(), name);
    }

    /// Has a node leave, and waits until it does.
    pub fn begin_leaving(&self) -> Instant {
        let began = Instant::now();
        self.signal("TERM");
        self.wait_for_log("leaving: ", 1);
        began
    }

    /// Waits for the end of a node that leaves, which must be in good order.
    #[track_caller]
    pub fn expect_left(&mut self) {
        let (code, _, log) = self.wait_for_end(PROCESS_LIMIT);
        assert_eq!(code, Some(0), "{log}");
    }

    /// Has a node leave, waits for its end, and says how long it took.
    #[track_caller]
    pub fn leave(&mut self) -> Duration {
        let began = self.begin_leaving();
        self.expect_left();
        began.elapsed()
    }

    /// Fails the test unless the process ends by itself with an error, and this is the last that it says.
    #[track_caller]
    pub fn expect_end(&mut self, line: &str) {
        let (code, _, log) = self.wait_for_end(PROCESS_LIMIT);
        assert!(code == Some(1) && log.lines().last() == Some(&format!("tree-cache: {line}")), "{code:?} {log}");
    }

    /// Stops the process where it stands, all its threads: a signal that was sent is not yet heeded.
    pub fn pause(&self) {
        self.signal("STOP");
        poll_until(PROCESS_LIMIT, "all threads have stopped", || {
            let threads = std::fs::read_dir(format!("/proc/{}/task", self.id())).expect("it lives");
            threads.filter_map(Result::ok).all(|thread| {
                // `28728 (sweep) T 1 …`; one that has just ended counts for nothing.
                let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
                stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['T', 'Z', 'X']))
            })
        });
    }

    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Ends the process without warning.
    pub fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Held by the tests that load the machine, so that no two of them measure each other.
pub fn load_alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
