//! The root's entries on disk: what is in `DATA_DIR` is found again at the start, and nothing is shown before it is there
//! (rule 12). One thread commits, and one commit serves all writes that were decided meanwhile.
//!
//! One file, which `redb` keeps: a table of the entries, and one of a few notes. Times are kept by the wall clock, in
//! nanoseconds, so that an entry ends on disk at the very moment at which it ends in memory. That clock is read at a start
//! only: where it was set forward meanwhile, entries end early by as much.
//!
//! Invariants: one process at a time uses the folder. A file that is there is whole: it gets its name last.
//! Left out: what is committed and when it is put in place (`cache/writes.rs`).

use std::error::Error;
use std::fmt::Display;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redb::{Builder, Database, ReadableTable, StorageError, TableDefinition};

use super::Node;
use crate::cache::value::Value;
use crate::cache::writes::Batch;

const FILE: &str = "tree-cache.redb";

/// Its name while it is made.
const BEGUN: &str = "tree-cache.new";

/// When each entry ends (0: never), and its JSON.
const ENTRIES: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("entries");

const NOTES: TableDefinition<&str, u64> = TableDefinition::new("notes");

/// A note: how all this is to be read.
const FORMAT: &str = "format";

/// A file of another format is refused.
const OUR_FORMAT: u64 = 1;

const NOT_OURS: &str = "is damaged, or no file of this program";

/// A note: what ends until then has ended for good.
const MARK: &str = "mark_ns";

/// A note: the longest lease that may be outstanding (rule 10).
const LEASE: &str = "lease_ns";

/// All entries are in memory as well, so `redb` need not keep them; its own default is 1 GiB.
const CACHE_BYTES: usize = 16 << 20;

/// Between two looks at what has ended, if nobody asks.
const COMMIT_PAUSE: Duration = Duration::from_secs(1);

/// The open folder of a root.
pub struct Durable {
    database: Database,
    /// Locked while it is open.
    _folder: File,
    /// The same moment on both clocks.
    started: (Instant, u64),
}

/// Gives the root the entries in `DATA_DIR`, if it has one; returns who commits from then on, and the longest lease that
/// a former root may have outstanding.
pub fn take_over(node: &Node) -> Result<(Option<Durable>, Duration), String> {
    let Some(folder) = &node.config.data_dir else { return Ok((None, node.config.lease)) };
    let (durable, lease) = Durable::open(node, folder).map_err(|cause| about(folder, &cause))?;
    Ok((Some(durable), lease))
}

/// Commits what is decided, for ever. Called when the root has its table: before that it is not young, and would note as
/// over what its former self may have outstanding. A disk that hangs ends nothing; one that fails ends the process.
pub fn keep_committing(node: &Node, durable: &Durable) -> Result<(), String> {
    node.committer.get_or_init(thread::current);
    loop {
        let batch = node.store().take_batch(Instant::now());
        let Some(batch) = batch else {
            thread::park_timeout(COMMIT_PAUSE);
            continue;
        };
        durable.commit(&batch).map_err(|cause| {
            let folder = node.config.data_dir.as_ref().expect("it was opened");
            about(folder, &format!("could not commit, so what is there is unknown: {cause}"))
        })?;
        node.metrics.commits.count();
        let woken = node.store().end_batch(batch);
        woken.iter().for_each(Thread::unpark);
    }
}

/// What is to be said of the folder.
fn about(folder: &Path, text: &dyn Display) -> String {
    format!("DATA_DIR={:?}: {text}", folder.display().to_string())
}

impl Durable {
    /// Opens the folder and puts into the store what is there; returns the longest lease that may be outstanding.
    fn open(node: &Node, folder: &Path) -> Result<(Self, Duration), Box<dyn Error>> {
        fs::create_dir_all(folder)?;
        let lock = File::open(folder)?;
        lock.try_lock().map_err(|cause| match cause {
            TryLockError::WouldBlock => "another process uses it".to_owned(),
            TryLockError::Error(cause) => format!("could not lock it: {cause}"),
        })?;
        let path = folder.join(FILE);
        // A link that leads nowhere is there, too: what it led to may only not be mounted.
        let is_new = fs::symlink_metadata(&path).is_err_and(|error| error.kind() == ErrorKind::NotFound);
        let is_empty = is_new && is_empty(folder)?;
        if is_new {
            create(&path)?;
            lock.sync_all()?;
        }
        // What keeps us from it need not be damage.
        File::options().read(true).write(true).open(&path)?;
        let database = Builder::new().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).open(&path);
        let database = database.map_err(|cause| format!("{FILE} {NOT_OURS}: {cause}"))?;
        let wall = whole_ns(SystemTime::now().duration_since(UNIX_EPOCH)?);
        let mut durable = Self { database, _folder: lock, started: (Instant::now(), wall) };
        let outstanding = durable.read(node)?;
        let (entries, new) = (node.gauges().entries, if is_new { ", a new file" } else { "" });
        log::info!("{}", about(folder, &format!("{entries} entries{new}")));
        Ok((durable, if is_empty && node.config.new_tree { Duration::ZERO } else { outstanding }))
    }

    fn read(&mut self, node: &Node) -> Result<Duration, Box<dyn Error>> {
        let transaction = self.database.begin_write()?;
        let mut notes = transaction.open_table(NOTES)?;
        let find = |name| Ok::<_, StorageError>(notes.get(name)?.map(|note| note.value()));
        match find(FORMAT)? {
            Some(OUR_FORMAT) => {}
            Some(other) => return Err(format!("{FILE} has format {other}, and this program reads {OUR_FORMAT}").into()),
            None => return Err(format!("{FILE} {NOT_OURS}: it has no format").into()),
        }
        // A file that was just made has none, and does not prove that there was no tree: the old disk may be lost.
        let outstanding = find(LEASE)?.map_or(node.config.lease, Duration::from_nanos);
        let mark = find(MARK)?.unwrap_or(0);
        // The clock begins no earlier than what was shown as ended.
        self.started.1 = self.started.1.max(mark);
        let lease = outstanding.max(node.config.lease);
        node.store().be_durable(self.started.0, lease);
        let mut entries = transaction.open_table(ENTRIES)?;
        // What had ended for good.
        entries.retain(|_, (ends, _)| !(1..=mark).contains(&ends))?;
        for entry in entries.iter()? {
            let (key, entry) = entry?;
            let (ends, json) = entry.value();
            // The lock is taken anew for each: `GET /`, by which the sentinel looks whether all is well, waits for no more.
            node.store().restore(key.value(), Value::from_raw(json), self.to_instant(ends))?;
        }
        notes.insert(LEASE, whole_ns(lease))?;
        drop((notes, entries));
        // In any case: what was found need not be durable yet.
        transaction.commit()?;
        Ok(outstanding)
    }

    fn commit(&self, batch: &Batch) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        let mut entries = transaction.open_table(ENTRIES)?;
        for change in &batch.changes {
            match &change.entry {
                Some((value, ends)) => {
                    let ends = ends.map_or(0, |ends| self.to_wall(ends));
                    entries.insert(&*change.key, (ends, value.raw()))?;
                }
                None => drop(entries.remove(&*change.key)?),
            }
        }
        drop(entries);
        let mark = batch.ended_until.map(|mark| (MARK, self.to_wall(mark)));
        let lease = batch.lease.map(|lease| (LEASE, whole_ns(lease)));
        for (name, note) in mark.into_iter().chain(lease) {
            transaction.open_table(NOTES)?.insert(name, note)?;
        }
        Ok(transaction.commit()?)
    }

    fn to_wall(&self, time: Instant) -> u64 {
        self.started.1 + whole_ns(time - self.started.0)
    }

    /// When an entry ends. If that is over, just after the start: nobody has been told yet that it ended.
    fn to_instant(&self, ends: u64) -> Option<Instant> {
        let left = Duration::from_nanos(ends.saturating_sub(self.started.1).max(1));
        (ends > 0).then(|| self.started.0 + left)
    }
}

/// Whether nothing is in a folder but what a start that broke off, or the file system, has left. A file that was moved
/// aside tells of a tree that was there before.
fn is_empty(folder: &Path) -> io::Result<bool> {
    let names: Vec<_> =
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>()?;
    Ok(names.iter().all(|name| name == BEGUN || name == "lost+found"))
}

/// Makes the file. Its name comes last: one that was begun and left would be refused for ever.
fn create(path: &Path) -> Result<(), Box<dyn Error>> {
    let begun = path.with_file_name(BEGUN);
    // What is left of an earlier attempt; the folder is ours.
    File::options().write(true).create(true).truncate(true).mode(0o600).open(&begun)?;
    let database = Database::create(&begun)?;
    let transaction = database.begin_write()?;
    transaction.open_table(ENTRIES)?;
    transaction.open_table(NOTES)?.insert(FORMAT, OUR_FORMAT)?;
    transaction.commit()?;
    database.close()?;
    Ok(fs::rename(begun, path)?)
}

fn whole_ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::tests::{root_with, young_root};

    #[test]
    fn a_root_says_how_it_is_while_it_finds_its_entries() {
        let folder = std::env::temp_dir().join(format!("tree-cache-{}", young_root().myself.run));
        fs::create_dir(&folder).unwrap();
        create(&folder.join(FILE)).unwrap();
        let transaction = Database::open(folder.join(FILE)).unwrap().begin_write().unwrap();
        let mut entries = transaction.open_table(ENTRIES).unwrap();
        for number in 0..50_000 {
            entries.insert(&*format!("k{number}"), (0, &b"1"[..])).unwrap();
        }
        drop(entries);
        transaction.commit().unwrap();
        let root = root_with(&[("DATA_DIR", folder.to_str().unwrap())]);
        let seen = thread::scope(|threads| {
            let found = threads.spawn(|| take_over(&root).map(drop));
            let mut seen = Vec::new();
            while !found.is_finished() {
                seen.push(root.gauges().entries);
            }
            found.join().unwrap().unwrap();
            seen
        });
        fs::remove_dir_all(&folder).unwrap();
        assert!(seen.iter().any(|entries| (1..50_000).contains(entries)), "asked {} times", seen.len());
        assert_eq!(root.gauges().entries, 50_000);
    }
}
