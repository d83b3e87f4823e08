//! The lease rules under a clock that is made up: the real [`Store`] of seven nodes, four levels deep,
//! with random latencies, lost messages, cut links, pauses, crashes and restarts, and clocks of
//! different speed. Each schedule records what its clients saw and must be linearizable: no read gives a
//! value older than one that was acknowledged, or read, before it began.
//!
//! A process is an `async` block, for that is how Rust writes a routine that stops in the middle; the
//! loop that runs them is [`World::run`]. A schedule follows from its seed alone. To see one again:
//! `SEED=1234 cargo test simulation`.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::leases::{Holder, Record};
use super::store::{Condition, Leased, Reading, Setup, Step, Store, Turn, Write};
use super::value::Value;

const LEASE: Duration = Duration::from_secs(5);
const READ_LIMIT: Duration = Duration::from_secs(5);
const KEY: &str = "key";

/// The ancestors of each node, nearest first. Number 0 is the root, and does not crash.
const ANCESTORS: [&[usize]; 7] = [&[], &[0], &[0], &[1, 0], &[1, 0], &[2, 0], &[3, 1, 0]];

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
    history: RefCell<Vec<Operation>>,
    /// The values in the order in which the root put them in place.
    order: RefCell<Vec<u64>>,
}

/// The node that a process runs on, and the life in which it began: a crash ends it in silence.
type Owner = (usize, u64);

struct Node {
    number: usize,
    store: RefCell<Store<u64>>,
    life: Cell<u64>,
    down: Cell<bool>,
    paused_until: Cell<Duration>,
    /// Its clock's speed, in thousandths of the true one's.
    clock_speed: u32,
}

struct Operation {
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
            history: RefCell::default(),
            order: RefCell::default(),
        };
        for number in 0..ANCESTORS.len() {
            // The fastest and the slowest differ by less than a tenth.
            let clock_speed = 956 + u32::try_from(world.below(88)).unwrap();
            let node = Node {
                number,
                store: RefCell::new(new_store(number, 1)),
                life: Cell::new(1),
                down: Cell::new(false),
                paused_until: Cell::new(Duration::ZERO),
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

    /// When the clock of a node will show that.
    fn true_time(&self, number: usize, clock: Instant) -> Duration {
        clock.saturating_duration_since(self.epoch) * 1000 / self.nodes[number].clock_speed + Duration::from_nanos(1)
    }

    async fn read(self: Rc<Self>, number: usize, holder: Option<Holder>, limit: Duration) -> Result<Leased, NoAnswer> {
        let (node, deadline) = (&self.nodes[number], self.now.get() + limit);
        let mut reading = Reading::new(KEY, holder.as_ref(), self.current.get());
        loop {
            let now = self.clock(number);
            let step = node.store.borrow_mut().step_read(&mut reading, now);
            match step {
                Step::Answer(answer, _) => return Ok(answer),
                Step::Fetch(fetch) => {
                    let fetched = self.ask_ancestors(number, deadline).await;
                    let now = self.clock(number);
                    let (answer, waiting) = node.store.borrow_mut().end_fetch(&reading, fetch, fetched.as_ref(), now);
                    self.wake(waiting);
                    return answer.ok_or(NoAnswer);
                }
                Step::Wait if self.now.get() >= deadline => return Err(NoAnswer),
                Step::Wait => self.woken(deadline).await,
            }
        }
    }

    async fn ask_ancestors(self: &Rc<Self>, number: usize, deadline: Duration) -> Option<(Leased, Instant)> {
        let holder = Holder { name: String::new(), url: number.to_string(), run: self.nodes[number].life.get() };
        for ancestor in ANCESTORS[number] {
            let left = deadline.saturating_sub(self.now.get());
            let limit = if *ancestor == 0 { left } else { left / 2 };
            let (asked, holder) = (self.clock(number), holder.clone());
            let read = move |world: Rc<Self>, there| world.read(there, Some(holder), limit);
            if let Ok(answer) = self.call(Some(number), *ancestor, limit, read).await {
                return Some((answer, asked));
            }
        }
        None
    }

    async fn write(self: Rc<Self>, value: u64) -> Result<(), NoAnswer> {
        let root = &self.nodes[0];
        let ticket = root.store.borrow_mut().queue_write(
            KEY,
            Condition::None,
            self.clock(0) + Duration::from_hours(1),
            self.current.get(),
        );
        let holders = loop {
            let turn = root.store.borrow_mut().take_turn(KEY, ticket, self.clock(0));
            match turn {
                Turn::Go(holders) => break holders,
                Turn::NotBefore(_) | Turn::Refused(_) => unreachable!("no former self, no condition"),
                Turn::Wait => self.woken(Duration::from_hours(1)).await,
            }
        };
        self.invalidate_holders(0, holders).await;
        let change = Write::Put(Value::from(value.to_string().as_str()), None);
        let (result, next) = root.store.borrow_mut().finish_write(KEY, ticket, Some(change), self.clock(0));
        result.expect("there is room");
        self.order.borrow_mut().push(value);
        self.wake(next);
        Ok(())
    }

    async fn invalidate(self: Rc<Self>, number: usize, run: u64) -> Result<(), NoAnswer> {
        let told = self.nodes[number].store.borrow_mut().invalidate(KEY, run, self.clock(number));
        let holders = told.ok_or(NoAnswer)?;
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

    async fn tell_holder(self: &Rc<Self>, number: usize, record: &Record) {
        let (node, ends) = (&self.nodes[number], self.true_time(number, record.ends));
        let (to, run) = (record.holder.url.parse().unwrap(), record.holder.run);
        let mut acknowledged = false;
        while !acknowledged && self.now.get() < ends {
            let invalidate = move |world: Rc<Self>, there| world.invalidate(there, run);
            let limit = ends.saturating_sub(self.now.get());
            acknowledged = self.call(Some(number), to, limit, invalidate).await.is_ok();
            if !acknowledged {
                self.sleep((ends.saturating_sub(self.now.get())).min(Duration::from_millis(100))).await;
            }
        }
        node.store.borrow_mut().end_telling(KEY, record, acknowledged, self.clock(number));
    }

    // -- clients and chaos ------------------------------------------------------------------------

    async fn be_client(self: Rc<Self>, values: Rc<Cell<u64>>) {
        let limit = Duration::from_secs(30);
        for _ in 0..14 {
            let longest = [50, 500, 2000][usize::try_from(self.below(3)).unwrap()];
            self.sleep(self.up_to(Duration::from_millis(longest))).await;
            let began = self.now.get();
            let value = if self.chance(30) {
                values.set(values.get() + 1);
                let value = values.get();
                self.call(None, 0, limit, move |world, _| world.write(value)).await.map(|()| value)
            } else {
                let at = usize::try_from(self.below(7)).unwrap();
                let read = |world: Rc<Self>, there| world.read(there, None, READ_LIMIT);
                self.call(None, at, limit, read).await.map(|answer| number_of(answer.value))
            };
            // A read that failed says nothing; a write that failed may stand or not.
            if let Ok(value) = value {
                self.history.borrow_mut().push(Operation { value, began, ended: self.now.get() });
            }
        }
    }

    async fn be_chaos(self: Rc<Self>) {
        loop {
            self.sleep(self.up_to(Duration::from_secs(2))).await;
            let number = 1 + usize::try_from(self.below(6)).unwrap();
            let node = &self.nodes[number];
            match self.below(5) {
                0 | 1 if !node.down.get() => {
                    node.down.set(true);
                    node.life.set(node.life.get() + 1);
                    let world = Rc::clone(&self);
                    self.spawn(None, async move {
                        world.sleep(world.up_to(Duration::from_secs(4))).await;
                        let node = &world.nodes[number];
                        node.store.replace(new_store(number, node.life.get()));
                        node.down.set(false);
                    });
                }
                2 => node.paused_until.set(self.now.get() + self.up_to(Duration::from_secs(8))),
                3 => self.nodes.iter().for_each(|node| {
                    node.store.borrow_mut().sweep(self.clock(node.number));
                }),
                _ => {
                    let ancestors = ANCESTORS[number];
                    let other = ancestors[usize::try_from(self.below(ancestors.len() as u64)).unwrap()];
                    self.cuts.borrow_mut().insert((other, number));
                    let world = Rc::clone(&self);
                    self.spawn(None, async move {
                        world.sleep(world.up_to(Duration::from_secs(6))).await;
                        world.cuts.borrow_mut().remove(&(other, number));
                    });
                }
            }
        }
    }

    /// The first operation that saw the past: that gave a value older than one which was read or
    /// acknowledged before it began.
    fn find_violation(&self) -> Option<String> {
        let order = self.order.borrow();
        let place = |value: u64| order.iter().position(|other| *other == value).map_or(0, |position| position + 1);
        let history = self.history.borrow();
        history.iter().find_map(|operation| {
            let ended_before = |other: &&Operation| other.ended < operation.began;
            let newest = history.iter().filter(ended_before).map(|other| place(other.value)).max().unwrap_or(0);
            (place(operation.value) < newest).then(|| {
                format!("at {:?} value {} was seen, older than {}", operation.ended, operation.value, order[newest - 1])
            })
        })
    }
}

fn new_store(number: usize, life: u64) -> Store<u64> {
    Store::new(Setup { is_root: number == 0, run: life, max_bytes: 1 << 20, lease: LEASE })
}

fn number_of(value: Option<Value>) -> u64 {
    value.map_or(0, |value| serde_json::from_slice(value.raw()).expect("values are numbers here"))
}

/// Runs one schedule; returns how many operations it had, or what went wrong.
fn run_schedule(seed: u64) -> Result<usize, String> {
    let (world, values) = (World::new(seed), Rc::new(Cell::new(0)));
    for _ in 0..5 {
        world.spawn(None, Rc::clone(&world).be_client(Rc::clone(&values)));
    }
    world.spawn(None, Rc::clone(&world).be_chaos());
    world.run(Duration::from_mins(2));
    // The processes that are left hold the world, and it them.
    let tasks = world.tasks.take();
    drop(tasks);
    world
        .find_violation()
        .map_or(Ok(world.history.borrow().len()), |violation| Err(format!("seed {seed}: {violation}")))
}

#[test]
fn no_schedule_sees_the_past() {
    if let Ok(seed) = std::env::var("SEED") {
        println!("{:?}", run_schedule(seed.parse().expect("SEED is a number")));
    }
    let schedules = 20_000;
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
    let shares: Vec<_> = (0..threads)
        .map(|share| {
            std::thread::spawn(move || {
                let seeds = (0..schedules).filter(|seed| seed % threads == share);
                seeds.map(run_schedule).sum::<Result<usize, String>>()
            })
        })
        .collect();
    let operations: Result<usize, String> = shares.into_iter().map(|share| share.join().unwrap()).sum();
    let operations = operations.unwrap();
    println!("{schedules} schedules, {operations} operations");
    assert!(operations as u64 > schedules * 50, "the schedules must do something");
}
