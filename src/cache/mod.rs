//! What a node holds and has promised: entries at the root, copies elsewhere, and records of who was granted a copy.
//!
//! Pure: no lock, no I/O, no clock of its own. What a rule says must happen in one hold of the lock is one method
//! of the [`store::Store`], and `node/walk.rs` only calls these in turn. So `simulation.rs` can run the rules under
//! a clock that it makes up.
//!
//! # The lease rules
//!
//! They make copies coherent: a read that begins after a write was acknowledged never gives a value from before it,
//! whichever nodes crash, pause, restart or are cut off, the root included if it keeps its entries on disk. Each number
//! stands in the code beside the line that keeps the rule. A *run* is a random number that a process draws at its
//! start; a *holder* is a process, by its URL and run, that was granted a copy.
//!
//! 1. **Grant.** Whoever answers a fetch with a lease L has, in one step, read the value, read L, and recorded the
//!    holder until now + 1.1 L. The root grants a full lease, any other node what is left of its own copy's less a
//!    twentieth, so that a node that waits for a silent holder can still answer in time. A record is only ever extended,
//!    and each grant gives it a new number. Without room for a record, L is 0. That a key is absent is granted like a
//!    value.
//! 2. **Count from the asking.** A copy ends at (the moment before the fetch was sent) + L, so never later than its
//!    record, while two clocks differ by less than a tenth.
//! 3. **No grant during a write.** From when a write of a key queues until the last in the queue is done, the root
//!    answers fetches with the value that stands and L = 0: answer it, keep nothing.
//! 4. **Invalidate first.** A write tells every holder, waits for all, and only then puts the value in place.
//!    Writes of one key queue, and the ban on grants is handed from one to the next.
//! 5. **Descend.** A node that is told drops its copy, marks its fetches under way so that what they bring is not
//!    kept, and lists its holders, in one step; then it tells these, and acknowledges when all have.
//! 6. **Wait for the silent.** A holder that does not acknowledge counts as told when its record has run out; it
//!    is granted nothing for one lease after that.
//! 7. **Forget late.** A record goes only when its holder has acknowledged *that* grant, or its time is over.
//!    Records live apart from copies.
//! 8. **To the run.** An invalidation, a fetch and a write that is passed on name the run that they are meant for: a
//!    restarted node must not answer for its former self, nor a stranger on a port that has become free for anybody.
//! 9. **Share what is fresh.** Of several readers of a key at one node one fetches. A reader takes the answer of a
//!    fetch that was sent after it asked, never that of an earlier one, which may be older than a write that was
//!    acknowledged before.
//! 10. **Wait for former selves.** What another root has granted (its former self is one) this one does not know. So it
//!     finishes no write before 1.1 times the longest lease have passed that may be outstanding, which it has on disk,
//!     nor before 1.1 times what a node holds that joins with a place of another root. It may answer and grant
//!     meanwhile: until it finishes a write there is nothing that an old copy could contradict.
//! 11. **No late writes.** A write that is passed on carries a deadline in the root's clock. The kernel may deliver it
//!     long after whoever sent it has given up.
//! 12. **One decision, and durable before visible.** One step looks at all that may refuse a write. Then it is made durable,
//!     if there is a disk, and only then put in place: what was seen once is never undone.
//!
//! **Expiry.** The end of an entry is seen like a write, so it is durable first, too: one mark on the clock, up to which
//! all that ends has ended for good. Nothing ends while a root is young, for copies live by its former self's clock.

pub mod leases;
pub mod store;
pub mod value;
pub mod writes;

#[cfg(test)]
mod simulation;
