//! The lease rules under a clock that is made up: the real [`Store`] of seven nodes, four levels deep,
//! with random latencies, lost and very late messages, cut links, pauses (the root's, and between a look at the clock
//! and the lock), crashes and restarts, places that are swapped, and clocks of different speed. Clients put, delete,
//! put for a while, create only, and read what is there or absent.
//!
//! In half of the schedules the root has a disk, and it crashes as well: the process alone, or the machine, whose disk then
//! has lost some of what was not synced. It comes back with another lease, and its wall clock may have jumped.
//!
//! In further schedules nodes leave as well, the root too, which then has nothing outstanding for the next one to wait for.
//!
//! What stood at the root, and when, is on record. Each read must have given what stood there at some moment between
//! its beginning and its end. No write may be decided after its client was told that it was given up on. And a root that
//! comes back has what stood when it went, or what was decided after that and never seen.
//! Left out: a root without a disk that crashes, since its entries are gone; two roots.
//!
//! A process is an `async` block, for that is how Rust writes a routine that stops in the middle; the
//! loop that runs them is [`World::run`]. A schedule follows from its seed alone. To see one again:
//! `SEED=1234 cargo test simulation`.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::leases::{Holder, Record};
use super::store::{Leased, Reading, Setup, Step, Store};
use super::value::Value;
use super::writes::{Batch, Condition, Refusal, Write};

const LEASE: Duration = Duration::from_secs(5);
const READ_LIMIT: Duration = Duration::from_secs(5);
const KEY: &str = "key";

/// The places above each place, nearest first. Place and node 0 are the root's.
const ABOVE: [&[usize]; 7] = [&[], &[0], &[0], &[1, 0], &[1, 0], &[2, 0], &[3, 1, 0]];

/// What is read of a key that is not there.
const ABSENT: u64 = 0;

/// What a client learns of a key that it wanted to create.
const PRESENT: u64 = u64::MAX;

/// The root's leases, one for each of its lives.
const ROOT_LEASES: [Duration; 3] = [Duration::from_secs(3), LEASE, Duration::from_secs(8)];

/// From this number on nodes leave.
const LEAVING_SEEDS: u64 = 1 << 32;

/// How long a node that leaves waits at most.
const LEAVE_LIMIT: Duration = Duration::from_secs(11);

/// No answer came; whether the call took effect is unknown.
#[derive(Debug)]
struct NoAnswer;

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Time, the network, the nodes and the processes that run on them.
struct World {
    random: Cell<u64>,
    /// The true time; nodes see their own clocks.
    now: Cell<Duration>,
    epoch: Instant,
    events: RefCell<BinaryHeap<Reverse<(Duration, u64, u64)>>>,
    last_event: Cell<u64>,
    tasks: RefCell<HashMap<u64, (Option<Owner>, Task)>>,
    current: Cell<u64>,
    cuts: RefCell<HashSet<(usize, usize)>>,
    nodes: Vec<Node>,
    /// Which node has which place.
    node_at: RefCell<[usize; 7]>,
    reads: RefCell<Vec<Read>>,
    /// What stood at the root, from when on, and the number of the write.
    stood: RefCell<Vec<(Duration, u64, u64)>>,
    /// When what stands there expires.
    expires: Cell<Option<Duration>>,
    /// When the time of each write was over, and when it was decided, by number.
    given_up: RefCell<HashMap<u64, Duration>>,
    decided: RefCell<HashMap<u64, Duration>>,
    /// The writes by their tickets in this life of the root.
    tickets: RefCell<HashMap<u64, u64>>,
    disk: RefCell<Disk>,
    /// Whether nodes leave, and how often one has ended in good order.
    leaves: bool,
    left: Cell<usize>,
    /// What a root has shown that came back, if it may not.
    undone: RefCell<Option<String>>,
}

/// What the root's disk has been given.
#[derive(Default)]
struct Disk {
    /// None: the root has no disk.
    commits: Option<Vec<Commit>>,
    /// How many of them a crash of the machine leaves.
    synced: usize,
    /// The same moment on both clocks of this life of the root: `node/durable.rs` likewise.
    started: Option<(Instant, Duration)>,
    /// By how much the machine's wall clock is ahead.
    ahead: Duration,
    /// The process that commits.
    committer: u64,
}

#[derive(Clone, Default)]
struct Commit {
    /// What the key is, until when by the wall clock, and the number of the write.
    entry: Option<(u64, Option<Duration>, u64)>,
    mark: Option<Duration>,
    lease: Option<Duration>,
}

/// What is found on a disk.
#[derive(Default)]
struct Found {
    value: u64,
    ends: Option<Duration>,
    number: u64,
    mark: Duration,
    lease: Duration,
}

/// What a client asks for.
#[derive(Clone, Copy)]
struct Change {
    number: u64,
    /// What is put, for how long; absent: it is deleted.
    value: u64,
    ttl: Option<Duration>,
    condition: Condition,
}

/// The node that a process runs on, and the life in which it began: a crash ends it in silence.
type Owner = (usize, u64);

struct Node {
    number: usize,
    store: RefCell<Store<u64>>,
    life: Cell<u64>,
    down: Cell<bool>,
    paused_until: Cell<Duration>,
    leaving: Cell<bool>,
    /// Its place, as far as it knows, and the nodes above it.
    place: Cell<usize>,
    above: RefCell<Vec<usize>>,
    /// Its clock's speed, in thousandths of the true one's.
    clock_speed: u32,
}

struct Read {
    value: u64,
    began: Duration,
    ended: Duration,
}

/// Returns when the process is woken, for whatever reason, and at `until` at the latest.
struct Woken<'a> {
    world: &'a World,
    until: Duration,
    waits: bool,
}

impl Future for Woken<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.waits {
            return Poll::Ready(());
        }
        self.waits = true;
        self.world.wake_at(self.until, self.world.current.get());
        Poll::Pending
    }
}

impl Disk {
    fn found(&self) -> Found {
        let mut found = Found::default();
        for Commit { entry, mark, lease } in self.commits.iter().flatten() {
            if let Some((value, ends, number)) = *entry {
                (found.value, found.ends, found.number) = (value, ends, number);
            }
            found.mark = mark.unwrap_or(found.mark);
            found.lease = lease.unwrap_or(found.lease);
        }
        found
    }
}

impl Found {
    fn entry(&self) -> Option<(u64, Option<Duration>, u64)> {
        (self.number > 0).then_some((self.value, self.ends, self.number))
    }
}

impl World {
    fn new(seed: u64) -> Rc<Self> {
        let mut world = Self {
            random: Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            now: Cell::new(Duration::ZERO),
            epoch: Instant::now(),
            events: RefCell::default(),
            last_event: Cell::new(0),
            tasks: RefCell::default(),
            current: Cell::new(0),
            cuts: RefCell::default(),
            nodes: Vec::new(),
            node_at: RefCell::new([0, 1, 2, 3, 4, 5, 6]),
            reads: RefCell::default(),
            stood: RefCell::new(vec![(Duration::ZERO, ABSENT, 0)]),
            expires: Cell::new(None),
            given_up: RefCell::default(),
            decided: RefCell::default(),
            tickets: RefCell::default(),
            disk: RefCell::default(),
            leaves: seed >= LEAVING_SEEDS,
            left: Cell::new(0),
            undone: RefCell::default(),
        };
        for (number, above) in ABOVE.iter().enumerate() {
            // The fastest and the slowest differ by less than a tenth.
            let clock_speed = 956 + u32::try_from(world.below(88)).unwrap();
            let node = Node {
                number,
                store: RefCell::new(new_store(number, LEASE)),
                life: Cell::new(1),
                down: Cell::new(false),
                paused_until: Cell::new(Duration::ZERO),
                leaving: Cell::new(false),
                place: Cell::new(number),
                above: RefCell::new(above.to_vec()),
                clock_speed,
            };
            world.nodes.push(node);
        }
        Rc::new(world)
    }

    // -- chance ---------------------------------------------------------------------------------

    fn below(&self, limit: u64) -> u64 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        (x >> 11) % limit
    }

    fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn up_to(&self, longest: Duration) -> Duration {
        Duration::from_micros(self.below(u64::try_from(longest.as_micros()).unwrap() + 1))
    }

    fn latency(&self) -> Duration {
        let longest = [1, 10, 50, 200, 600][usize::try_from(self.below(5)).unwrap()];
        self.up_to(Duration::from_millis(longest))
    }

    // -- processes ------------------------------------------------------------------------------

    fn wake_at(&self, time: Duration, task: u64) {
        self.last_event.set(self.last_event.get() + 1);
        self.events.borrow_mut().push(Reverse((time, self.last_event.get(), task)));
    }

    fn wake(&self, tasks: impl IntoIterator<Item = u64>) {
        for task in tasks {
            self.wake_at(self.now.get(), task);
        }
    }

    fn spawn(&self, owner: Option<Owner>, task: impl Future<Output = ()> + 'static) {
        self.wake_at(self.now.get(), 0);
        let number = self.last_event.get();
        self.tasks.borrow_mut().insert(number, (owner, Box::pin(task)));
        self.wake_at(self.now.get(), number);
    }

    fn run(&self, until: Duration) {
        loop {
            let Some(Reverse((time, _, task))) = self.events.borrow_mut().pop() else { return };
            if time > until {
                return;
            }
            self.now.set(self.now.get().max(time));
            let Some((owner, mut future)) = self.tasks.borrow_mut().remove(&task) else { continue };
            if let Some((number, life)) = owner {
                let node = &self.nodes[number];
                if node.life.get() != life {
                    continue;
                }
                if node.paused_until.get() > self.now.get() {
                    self.wake_at(node.paused_until.get(), task);
                    self.tasks.borrow_mut().insert(task, (owner, future));
                    continue;
                }
            }
            self.current.set(task);
            if future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                self.tasks.borrow_mut().insert(task, (owner, future));
            }
        }
    }

    fn woken(&self, until: Duration) -> Woken<'_> {
        Woken { world: self, until, waits: false }
    }

    async fn sleep(&self, time: Duration) {
        let end = self.now.get() + time;
        while self.now.get() < end {
            self.woken(end).await;
        }
    }

    // -- the network ----------------------------------------------------------------------------

    fn is_cut(&self, one: usize, other: usize) -> bool {
        self.cuts.borrow().contains(&(one.min(other), one.max(other)))
    }

    /// Calls a handler on another node. Callers outside the tree have no number.
    async fn call<T: 'static, F>(
        self: &Rc<Self>,
        from: Option<usize>,
        to: usize,
        limit: Duration,
        handler: impl FnOnce(Rc<Self>, usize) -> F + 'static,
    ) -> Result<T, NoAnswer>
    where
        F: Future<Output = Result<T, NoAnswer>> + 'static,
    {
        let answer: Rc<RefCell<Option<Result<T, NoAnswer>>>> = Rc::default();
        let (world, slot, caller) = (Rc::clone(self), Rc::clone(&answer), self.current.get());
        let is_cut = move |world: &World| from.is_some_and(|from| world.is_cut(from, to));
        self.spawn(None, async move {
            world.sleep(world.latency()).await;
            let node = &world.nodes[to];
            if node.down.get() || is_cut(&world) {
                if world.chance(50) {
                    *slot.borrow_mut() = Some(Err(NoAnswer));
                    world.wake_at(world.now.get(), caller);
                }
                return;
            }
            let there = Rc::clone(&world);
            world.spawn(Some((to, node.life.get())), async move {
                let result = handler(Rc::clone(&there), to).await;
                let network = Rc::clone(&there);
                there.spawn(None, async move {
                    network.sleep(network.latency()).await;
                    if !is_cut(&network) {
                        *slot.borrow_mut() = Some(result);
                        network.wake_at(network.now.get(), caller);
                    }
                });
            });
        });
        let deadline = self.now.get() + limit;
        loop {
            let answered = answer.borrow_mut().take();
            match answered {
                Some(result) => return result,
                None if self.now.get() >= deadline => return Err(NoAnswer),
                None => self.woken(deadline).await,
            }
        }
    }

    // -- what node/walk.rs does, but for its time limits and whom it passes over ------------------------

    /// What the clock of a node shows.
    fn clock(&self, number: usize) -> Instant {
        self.epoch + self.now.get() * self.nodes[number].clock_speed / 1000
    }

    /// What the clock of a node has shown before it has the lock: anything may happen in between.
    async fn look(&self, number: usize) -> Instant {
        let now = self.clock(number);
        if self.chance(10) {
            self.sleep(self.latency()).await;
        }
        now
    }

    /// When the clock of a node will show that.
    fn true_time(&self, number: usize, clock: Instant) -> Duration {
        clock.saturating_duration_since(self.epoch) * 1000 / self.nodes[number].clock_speed + Duration::from_nanos(1)
    }

    async fn read(self: Rc<Self>, number: usize, holder: Option<Holder>, limit: Duration) -> Result<Leased, NoAnswer> {
        let (node, deadline) = (&self.nodes[number], self.now.get() + limit);
        let mut reading = Reading::new(KEY, holder.as_ref(), self.current.get());
        loop {
            let now = self.look(number).await;
            let step = node.store.borrow_mut().step_read(&mut reading, now);
            match step {
                Step::Answer(answer, _) => return Ok(answer),
                Step::Fetch(fetch) => {
                    let fetched = self.ask_ancestors(number, deadline).await;
                    let now = self.look(number).await;
                    let (answer, waiting) = node.store.borrow_mut().end_fetch(&reading, fetch, fetched.as_ref(), now);
                    self.wake(waiting);
                    return answer.ok_or(NoAnswer);
                }
                Step::Wait if self.now.get() >= deadline => return Err(NoAnswer),
                Step::Wait => {
                    self.wake([self.disk.borrow().committer]);
                    self.woken(deadline).await;
                }
            }
        }
    }

    async fn ask_ancestors(self: &Rc<Self>, number: usize, deadline: Duration) -> Option<(Leased, Instant)> {
        let holder = Holder { name: String::new(), url: number.to_string(), run: self.nodes[number].life.get() };
        let above = self.nodes[number].above.borrow().clone();
        for ancestor in above {
            let left = deadline.saturating_sub(self.now.get());
            let limit = if ancestor == 0 { left } else { left / 2 };
            let (asked, holder) =
                (self.clock(number), Some(holder.clone()).filter(|_| !self.nodes[number].leaving.get()));
            let to = self.nodes[ancestor].life.get();
            let read = move |world: Rc<Self>, there: usize| async move {
                // Rule 8: it is meant for that run.
                if world.nodes[there].life.get() == to && !(there > 0 && world.nodes[there].leaving.get()) {
                    world.read(there, holder, limit).await
                } else {
                    Err(NoAnswer)
                }
            };
            if let Ok(answer) = self.call(Some(number), ancestor, limit, read).await {
                return Some((answer, asked));
            }
        }
        None
    }

    /// Does a write for a client, whose deadline it tells in the root's clock as the last join has shown it (rule 11).
    async fn forward(self: Rc<Self>, number: usize, change: Change) -> Result<bool, NoAnswer> {
        let speed = |number: usize| self.nodes[number].clock_speed;
        let heard_ago = self.up_to(Duration::from_secs(3)).min(self.now.get());
        // 1.21 leases and two seconds.
        let write_limit = self.nodes[0].store.borrow().setup.lease * 121 / 100 + Duration::from_secs(2);
        let in_its_time = (heard_ago * speed(number) / 1000 + write_limit) * 10 / 11;
        // What its clock showed then, and what may have passed since.
        let heard = self.epoch + (self.now.get().saturating_sub(heard_ago)) * speed(0) / 1000;
        let deadline = heard + in_its_time;
        let limit = write_limit * 1000 / speed(number);
        self.given_up.borrow_mut().insert(change.number, self.now.get() + limit);
        // What is not delivered in time is delivered much later.
        let late = if self.chance(10) { self.up_to(Duration::from_secs(40)) } else { Duration::ZERO };
        let (world, answered, waiter) = (Rc::clone(&self), Rc::new(Cell::new(None)), self.current.get());
        let (answer, to) = (Rc::clone(&answered), self.nodes[0].life.get());
        self.spawn(None, async move {
            world.sleep(late).await;
            let (from, longest) = (late.is_zero().then_some(number), Duration::from_mins(2));
            let write = move |world: Rc<Self>, _| async move {
                // Rule 8, as above.
                if world.nodes[0].life.get() == to { world.write(change, deadline).await } else { Err(NoAnswer) }
            };
            answer.set(Rc::clone(&world).call(from, 0, longest, write).await.ok());
            world.wake_at(world.now.get(), waiter);
        });
        let end = self.now.get() + limit;
        while answered.get().is_none() && self.now.get() < end {
            self.woken(end).await;
        }
        answered.get().ok_or(NoAnswer)
    }

    /// Whether it was done; else its condition did not hold.
    async fn write(self: Rc<Self>, change: Change, deadline: Instant) -> Result<bool, NoAnswer> {
        let root = &self.nodes[0];
        if root.leaving.get() {
            return Err(NoAnswer);
        }
        let ticket = root.store.borrow_mut().queue_write(KEY, change.condition, deadline, self.current.get());
        self.tickets.borrow_mut().insert(ticket, change.number);
        let end = self.true_time(0, deadline);
        let give_up = |refusal: &Refusal| {
            let waiting = root.store.borrow_mut().abandon(KEY, ticket);
            self.wake(waiting);
            if matches!(refusal, Refusal::Condition(_)) { Ok(false) } else { Err(NoAnswer) }
        };
        let holders = loop {
            let now = self.look(0).await;
            let turn = root.store.borrow_mut().take_turn(KEY, ticket, now);
            match turn {
                Ok(holders) => break holders,
                Err(Refusal::NotYet(then)) => {
                    self.wake([self.disk.borrow().committer]);
                    self.woken(then.map_or(end, |then| self.true_time(0, then))).await;
                }
                Err(refusal) => return give_up(&refusal),
            }
        };
        self.invalidate_holders(0, holders).await;
        let Change { number, value, ttl, .. } = change;
        let put = || Write::Put(Value::from(value.to_string().as_str()), ttl);
        let what = if value == ABSENT { Write::Delete } else { put() };
        let end = end + Duration::from_secs(2);
        loop {
            let now = self.clock(0);
            let finished = root.store.borrow_mut().finish_write(KEY, ticket, &what, now);
            if root.store.borrow_mut().find_writer(KEY, ticket).is_none_or(|(_, writer)| writer.is_decided) {
                self.decided.borrow_mut().entry(number).or_insert(self.now.get());
            }
            match finished {
                Ok(next) => {
                    self.wake(next);
                    if self.disk.borrow().commits.is_none() {
                        self.note_expiry();
                        self.stood.borrow_mut().push((self.now.get(), value, number));
                        self.expires.set(ttl.map(|ttl| self.true_time(0, now + ttl)));
                    }
                    return Ok(true);
                }
                Err(Refusal::NotYet(_)) if self.now.get() >= end => return Err(NoAnswer),
                Err(Refusal::NotYet(then)) => {
                    self.wake([self.disk.borrow().committer]);
                    self.woken(then.map_or(end, |then| self.true_time(0, then))).await;
                }
                Err(refusal) => return give_up(&refusal),
            }
        }
    }

    // -- the disk, as node/durable.rs has it -----------------------------------------------------

    async fn be_committing(self: Rc<Self>) {
        let root = &self.nodes[0];
        self.disk.borrow_mut().committer = self.current.get();
        loop {
            let now = self.look(0).await;
            // Another thread does this, whenever it likes.
            root.store.borrow_mut().sweep(now);
            let batch = root.store.borrow_mut().take_batch(now);
            let Some(batch) = batch else {
                self.woken(self.now.get() + Duration::from_secs(1)).await;
                continue;
            };
            let commit = self.commit_of(&batch);
            self.disk.borrow_mut().commits.as_mut().expect("it has a disk").push(commit);
            self.sync().await;
            let placed: Vec<_> = batch.changes.iter().filter_map(|change| change.ticket).collect();
            let woken = root.store.borrow_mut().end_batch(batch);
            self.wake(woken);
            let number = placed.first().map_or(0, |ticket| self.tickets.borrow()[ticket]);
            self.note_what_stands(number);
        }
    }

    async fn sync(&self) {
        let written = self.disk.borrow().commits.as_ref().map_or(0, Vec::len);
        self.sleep(self.latency()).await;
        let mut disk = self.disk.borrow_mut();
        disk.synced = disk.synced.max(written);
    }

    fn commit_of(&self, batch: &Batch) -> Commit {
        let disk = self.disk.borrow();
        let (started, wall) = disk.started.expect("it has a disk");
        let to_wall = |time: Instant| wall + (time - started);
        let mut entry = disk.found().entry();
        for change in &batch.changes {
            let number =
                change.ticket.map_or(entry.map_or(0, |(.., number)| number), |ticket| self.tickets.borrow()[&ticket]);
            let value = change.entry.as_ref().map_or(ABSENT, |(value, _)| number_of(Some(value.clone())));
            entry = Some((value, change.entry.as_ref().and_then(|(_, ends)| ends.map(to_wall)), number));
        }
        Commit { entry, mark: batch.ended_until.map(to_wall), lease: batch.lease }
    }

    /// Puts on record what the store shows now, if it is something else, or the change of that number.
    fn note_what_stands(&self, number: u64) {
        let store = self.nodes[0].store.borrow();
        let value = number_of(store.list(self.clock(0)).next().map(|(_, value)| value.clone()));
        let last = self.stood.borrow().last().expect("there is a first").1;
        if number > 0 || value != last {
            self.stood.borrow_mut().push((self.now.get(), value, number));
        }
    }

    /// A process that ends in good order leaves to the machine what it has written, as half of those do that crash.
    fn end_root(self: &Rc<Self>, may_lose: bool) {
        let root = &self.nodes[0];
        root.down.set(true);
        root.leaving.set(false);
        root.life.set(root.life.get() + 1);
        let mut disk = self.disk.borrow_mut();
        if may_lose && self.chance(50) {
            let (synced, commits) = (disk.synced, disk.commits.as_mut().expect("it has a disk"));
            let left = self.below((commits.len() - synced) as u64 + 1);
            commits.truncate(synced + usize::try_from(left).unwrap());
        }
        disk.ahead = self.up_to(Duration::from_secs(20));
        let world = Rc::clone(self);
        self.spawn(None, async move {
            world.sleep(world.up_to(Duration::from_secs(4))).await;
            world.start_root().await;
        });
    }

    async fn start_root(self: &Rc<Self>) {
        let root = &self.nodes[0];
        let lease = ROOT_LEASES[usize::try_from(self.below(3)).unwrap()];
        let found = self.disk.borrow().found();
        let (now, noted) = (self.clock(0), found.lease.max(lease));
        self.disk
            .borrow_mut()
            .commits
            .as_mut()
            .expect("it has a disk")
            .push(Commit { lease: Some(noted), ..Commit::default() });
        // What was found need not be durable yet.
        self.sync().await;
        let wall = (Duration::from_hours(1) + self.now.get() + self.disk.borrow().ahead).max(found.mark);
        self.disk.borrow_mut().started = Some((now, wall));
        let mut store = new_store(0, lease);
        store.be_durable(now, noted);
        if found.value != ABSENT && found.ends.is_none_or(|ends| ends > found.mark) {
            let ends = found.ends.map(|ends| now + ends.saturating_sub(wall).max(Duration::from_nanos(1)));
            store.restore(KEY, Value::from(found.value.to_string().as_str()), ends).expect("there is room");
        }
        if found.lease > Duration::ZERO {
            store.wait_for_leases(found.lease, self.clock(0));
        }
        root.store.replace(store);
        self.tickets.borrow_mut().clear();
        self.expect_nothing_undone(found.number);
        root.down.set(false);
        self.spawn(Some((0, root.life.get())), Rc::clone(self).be_committing());
    }

    /// What was seen before a crash is there after it. More may be, if it was decided.
    fn expect_nothing_undone(&self, number: u64) {
        let stood = self.stood.borrow().clone();
        let placed: Vec<u64> = stood.iter().map(|(.., number)| *number).filter(|number| *number > 0).collect();
        let is_last = number == placed.last().copied().unwrap_or(0);
        self.note_what_stands(if is_last { 0 } else { number });
        let (_, value, _) = *self.stood.borrow().last().expect("there is a first");
        let (_, before, _) = *stood.last().expect("there is a first");
        let came_back = is_last && value != before && value != ABSENT;
        if came_back || (!is_last && (placed.contains(&number) || !self.decided.borrow().contains_key(&number))) {
            let text = format!("a root found {value} of write {number} at {:?}, after {stood:?}", self.now.get());
            self.undone.borrow_mut().get_or_insert(text);
        }
    }

    /// Puts on record that what stood at the root has expired, if it has.
    fn note_expiry(&self) {
        if let Some(expired) = self.expires.take().filter(|expires| *expires <= self.now.get()) {
            self.stood.borrow_mut().push((expired, ABSENT, 0));
        }
    }

    async fn invalidate(self: Rc<Self>, number: usize, run: u64, sender_level: usize) -> Result<(), NoAnswer> {
        let now = self.look(number).await;
        // Rule 8, too.
        if self.level(number) <= sender_level || run != self.nodes[number].life.get() {
            return Err(NoAnswer);
        }
        let holders = self.nodes[number].store.borrow_mut().invalidate(KEY, now);
        self.invalidate_holders(number, holders).await;
        Ok(())
    }

    async fn invalidate_holders(self: &Rc<Self>, number: usize, holders: Vec<Record>) {
        let waiting = Rc::new(Cell::new(holders.len()));
        for record in holders {
            let (world, waiting, waiter) = (Rc::clone(self), Rc::clone(&waiting), self.current.get());
            self.spawn(Some((number, self.nodes[number].life.get())), async move {
                world.tell_holder(number, &record).await;
                waiting.set(waiting.get() - 1);
                world.wake_at(world.now.get(), waiter);
            });
        }
        while waiting.get() > 0 {
            self.woken(Duration::from_hours(1)).await;
        }
    }

    fn level(&self, number: usize) -> usize {
        1 + ABOVE[self.nodes[number].place.get()].len()
    }

    async fn tell_holder(self: &Rc<Self>, number: usize, record: &Record) {
        let (node, ends) = (&self.nodes[number], self.true_time(number, record.ends));
        let (to, run) = (record.holder.url.parse().unwrap(), record.holder.run);
        let mut acknowledged = false;
        while !acknowledged && self.now.get() < ends {
            let level = self.level(number);
            let invalidate = move |world: Rc<Self>, there| world.invalidate(there, run, level);
            let limit = ends.saturating_sub(self.now.get());
            acknowledged = self.call(Some(number), to, limit, invalidate).await.is_ok();
            if !acknowledged {
                self.sleep((ends.saturating_sub(self.now.get())).min(Duration::from_millis(100))).await;
            }
        }
        let now = self.look(number).await;
        node.store.borrow_mut().end_telling(KEY, record, acknowledged, now);
    }

    /// Learns its place, as a join tells it: now and then, and not while it is cut off.
    async fn be_joining(self: Rc<Self>, number: usize) {
        loop {
            self.sleep(self.up_to(Duration::from_secs(3))).await;
            let node = &self.nodes[number];
            if !node.down.get() && node.paused_until.get() <= self.now.get() && !self.is_cut(0, number) {
                self.take_place(number);
            }
        }
    }

    fn take_place(&self, number: usize) {
        let (node, node_at) = (&self.nodes[number], self.node_at.borrow());
        node.place.set(node_at.iter().position(|at| *at == number).expect("each has its place"));
        node.above.replace(ABOVE[node.place.get()].iter().map(|place| node_at[*place]).collect());
    }

    // -- clients and chaos ------------------------------------------------------------------------

    async fn be_client(self: Rc<Self>, numbers: Rc<Cell<u64>>) {
        let limit = Duration::from_secs(30);
        for _ in 0..14 {
            let longest = [50, 500, 2000][usize::try_from(self.below(3)).unwrap()];
            self.sleep(self.up_to(Duration::from_millis(longest))).await;
            let began = self.now.get();
            let at = usize::try_from(self.below(7)).unwrap();
            if self.chance(30) {
                numbers.set(numbers.get() + 1);
                let number = numbers.get();
                let value = if self.chance(20) { ABSENT } else { number };
                let ttl = self.chance(30).then(|| self.up_to(Duration::from_secs(8)) + Duration::from_millis(1));
                let condition = if self.chance(30) { Condition::Absent } else { Condition::None };
                let change = Change { number, value, ttl: ttl.filter(|_| value != ABSENT), condition };
                // What came of it the root's record shows, but for what was refused.
                let done = self.call(None, at, limit, move |world, there| world.forward(there, change)).await;
                if let Ok(false) = done {
                    self.reads.borrow_mut().push(Read { value: PRESENT, began, ended: self.now.get() });
                }
                continue;
            }
            let read = |world: Rc<Self>, there| world.read(there, None, READ_LIMIT);
            if let Ok(answer) = self.call(None, at, limit, read).await {
                let value = number_of(answer.value);
                self.reads.borrow_mut().push(Read { value, began, ended: self.now.get() });
            }
        }
    }

    async fn be_chaos(self: Rc<Self>) {
        loop {
            self.sleep(self.up_to(Duration::from_secs(2))).await;
            let number = 1 + usize::try_from(self.below(6)).unwrap();
            let node = &self.nodes[number];
            if self.leaves && self.chance(40) {
                let is_root = self.chance(50) && self.disk.borrow().commits.is_some();
                self.spawn(None, Rc::clone(&self).leave(if is_root { 0 } else { number }));
                continue;
            }
            match self.below(8) {
                0 | 1 if !node.down.get() => self.end_node(number),
                2 => node.paused_until.set(self.now.get() + self.up_to(Duration::from_secs(8))),
                3 => self.nodes.iter().for_each(|node| {
                    node.store.borrow_mut().sweep(self.clock(node.number));
                }),
                7 if !self.nodes[0].down.get() && self.disk.borrow().commits.is_some() => self.end_root(true),
                4 => self.nodes[0].paused_until.set(self.now.get() + self.up_to(Duration::from_secs(4))),
                5 => {
                    // Two restarted nodes have got each other's places.
                    let other = 1 + usize::try_from(self.below(6)).unwrap();
                    self.node_at.borrow_mut().swap(number, other);
                }
                _ => {
                    let above = node.above.borrow().clone();
                    let other = above[usize::try_from(self.below(above.len() as u64)).unwrap()];
                    self.cuts.borrow_mut().insert((other.min(number), other.max(number)));
                    let world = Rc::clone(&self);
                    self.spawn(None, async move {
                        world.sleep(world.up_to(Duration::from_secs(6))).await;
                        world.cuts.borrow_mut().remove(&(other.min(number), other.max(number)));
                    });
                }
            }
        }
    }

    fn end_node(self: &Rc<Self>, number: usize) {
        let node = &self.nodes[number];
        node.down.set(true);
        node.leaving.set(false);
        node.life.set(node.life.get() + 1);
        let world = Rc::clone(self);
        self.spawn(None, async move {
            world.sleep(world.up_to(Duration::from_secs(4))).await;
            let node = &world.nodes[number];
            node.store.replace(new_store(number, LEASE));
            world.take_place(number);
            node.down.set(false);
        });
    }

    /// What `node/join.rs` does.
    async fn leave(self: Rc<Self>, number: usize) {
        let (node, began) = (&self.nodes[number], self.now.get());
        let life = node.life.get();
        if node.down.get() || node.leaving.replace(true) {
            return;
        }
        node.store.borrow_mut().leave();
        let mut may_end = false;
        while !may_end && self.now.get() < began + LEAVE_LIMIT {
            self.wake([self.disk.borrow().committer]);
            self.sleep(Duration::from_millis(20)).await;
            if node.life.get() != life {
                return;
            }
            may_end = node.paused_until.get() <= self.now.get() && node.store.borrow().may_end(self.clock(number));
        }
        self.left.set(self.left.get() + usize::from(may_end));
        // What is in hand takes its time.
        self.sleep(self.up_to(Duration::from_secs(2))).await;
        if node.life.get() != life {
            return;
        }
        if number == 0 { self.end_root(false) } else { self.end_node(number) }
    }

    /// The first read that gave what did not stand at the root within it, or the first write that came too late.
    fn find_violation(&self) -> Option<String> {
        self.note_expiry();
        let (stood, given_up) = (self.stood.borrow(), self.given_up.borrow());
        let reads = self.reads.borrow();
        let stale = reads.iter().find(|read| {
            let ends = stood.iter().skip(1).map(|(ends, ..)| *ends).chain([Duration::MAX]);
            let fits = |value: u64| value == read.value || (read.value == PRESENT && value != ABSENT);
            let mut spans = stood.iter().zip(ends).filter(|((_, value, _), _)| fits(*value));
            !spans.any(|((began, ..), ended)| *began <= read.ended && ended >= read.began)
        });
        if let Some(Read { value, began, ended }) = stale {
            return Some(format!("from {began:?} to {ended:?} {value} was read, of {stood:?}"));
        }
        if let Some(undone) = self.undone.borrow().as_ref() {
            return Some(undone.clone());
        }
        let decided = self.decided.borrow();
        let late = given_up.iter().find(|(number, end)| decided.get(number).is_some_and(|decided| decided > end));
        late.map(|(number, end)| format!("write {number} was decided after {end:?}"))
    }
}

fn new_store(number: usize, lease: Duration) -> Store<u64> {
    Store::new(Setup { is_root: number == 0, max_bytes: 1 << 20, lease })
}

fn number_of(value: Option<Value>) -> u64 {
    value.map_or(0, |value| serde_json::from_slice(value.raw()).expect("values are numbers here"))
}

/// Runs one schedule; returns how many reads it had and how often a node left, or what went wrong.
fn run_schedule(seed: u64) -> Result<(usize, usize), String> {
    let (world, numbers) = (World::new(seed), Rc::new(Cell::new(0)));
    for _ in 0..5 {
        world.spawn(None, Rc::clone(&world).be_client(Rc::clone(&numbers)));
    }
    for number in 1..ABOVE.len() {
        world.spawn(None, Rc::clone(&world).be_joining(number));
    }
    if seed % 4 >= 2 {
        world.disk.borrow_mut().commits = Some(Vec::new());
        world.nodes[0].down.set(true);
        let starting = Rc::clone(&world);
        world.spawn(None, async move { starting.start_root().await });
    }
    world.spawn(None, Rc::clone(&world).be_chaos());
    world.run(Duration::from_mins(2));
    // The processes that are left hold the world, and it them.
    let tasks = world.tasks.take();
    drop(tasks);
    let done = (world.reads.borrow().len(), world.left.get());
    world.find_violation().map_or(Ok(done), |violation| Err(format!("seed {seed}: {violation}")))
}

#[test]
fn no_schedule_sees_the_past() {
    if let Ok(seed) = std::env::var("SEED") {
        println!("{:?}", run_schedule(seed.parse().expect("SEED is a number")));
    }
    let schedules = std::env::var("SCHEDULES").map_or(20_000, |number| number.parse().expect("SCHEDULES is a number"));
    run_schedules(0..schedules);
    let left = run_schedules(LEAVING_SEEDS..LEAVING_SEEDS + schedules / 4);
    assert!(left as u64 > schedules / 4, "nodes must leave");
}

/// Returns how often a node has left.
fn run_schedules(seeds: Range<u64>) -> usize {
    let schedules = seeds.end - seeds.start;
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
    let shares: Vec<_> = (0..threads)
        .map(|share| {
            let seeds = seeds.clone();
            std::thread::spawn(move || {
                let seeds = seeds.filter(|seed| seed % threads == share);
                seeds.map(run_schedule).collect::<Vec<_>>()
            })
        })
        .collect();
    let ends: Vec<_> = shares.into_iter().flat_map(|share| share.join().unwrap()).collect();
    let done = ends.iter().filter_map(|end| end.as_ref().ok());
    let (reads, left) = done.fold((0, 0), |(reads, left), done| (reads + done.0, left + done.1));
    let violations: Vec<_> = ends.iter().filter_map(|end| end.as_ref().err()).collect();
    println!("{schedules} schedules, {reads} reads, {left} times left, {} violations", violations.len());
    assert_eq!(violations.first(), None, "{} of {schedules}", violations.len());
    assert!(reads as u64 > schedules * 30, "the schedules must do something");
    left
}
