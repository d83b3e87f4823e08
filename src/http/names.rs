//! Addresses of names: looked up with a limit, believed for a while, and the last known ones for as long as a name server
//! fails or is silent. `ureq` alone looks each name up before each call, and waits for as long as that takes.
//!
//! Invariant: a call waits for a look-up [`LOOK_UP_LIMIT`] at most. Where addresses are known it is [`REFRESH_LIMIT`], once;
//! after that, nothing until a look-up has succeeded again. So names that cannot be resolved stop no tree whose addresses
//! have not changed.
//!
//! Left out: which of several addresses answers; `ureq` tries one after another.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// How long addresses are believed without another look-up.
const NAME_LIFE: Duration = Duration::from_secs(1);

/// How long a call waits for the first addresses of a name.
const LOOK_UP_LIMIT: Duration = Duration::from_secs(1);

/// How long a call waits where older ones are known; most name servers answer within a few milliseconds.
const REFRESH_LIMIT: Duration = Duration::from_millis(100);

/// What nobody has asked for in this time is forgotten.
const FORGET_AFTER: Duration = Duration::from_hours(1);

/// So many look-ups are under way at most. Each has a thread of its own, which a silent name server keeps for ten seconds.
const MAX_LOOK_UPS: usize = 64;

/// `ureq` takes no more addresses of one name.
const MAX_ADDRESSES: usize = 16;

#[derive(Debug)]
pub struct Names(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Guards what is known of each `name:port`.
    known: Mutex<HashMap<String, Known>>,
    /// Told of the end of each look-up.
    ended: Condvar,
    look_up: fn(&str) -> io::Result<Vec<SocketAddr>>,
}

#[derive(Debug, Default)]
struct Known {
    /// As they were found last; empty while nothing was.
    addresses: Vec<SocketAddr>,
    looked_up: Option<Instant>,
    is_under_way: bool,
    /// The last look-up failed or was late: nobody waits for the next one who has addresses.
    is_doubtful: bool,
}

impl Default for Names {
    fn default() -> Self {
        Self::new(|name| Ok(name.to_socket_addrs()?.take(MAX_ADDRESSES).collect()))
    }
}

impl Resolver for Names {
    fn resolve(&self, uri: &Uri, _: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let (scheme, authority) = uri.scheme().zip(uri.authority()).ok_or(Error::HostNotFound)?;
        let name = DefaultResolver::host_and_port(scheme, authority).ok_or(Error::HostNotFound)?;
        let literal = name.parse().map(|address| vec![address]);
        let addresses = literal.unwrap_or_else(|_| self.find(&name, LOOK_UP_LIMIT.min(*timeout.after)));
        // Whatever goes wrong here, nobody was reached.
        addresses.first().ok_or(Error::HostNotFound)?;
        let mut resolved = self.empty();
        for address in addresses {
            resolved.push(address);
        }
        Ok(resolved)
    }
}

impl Names {
    fn new(look_up: fn(&str) -> io::Result<Vec<SocketAddr>>) -> Self {
        Self(Arc::new(Shared { known: Mutex::default(), ended: Condvar::new(), look_up }))
    }

    /// The addresses of `name:port`, the last known ones if no others come within the limit; none if none are known.
    fn find(&self, name: &str, limit: Duration) -> Vec<SocketAddr> {
        let mut known = self.0.lock();
        if known.get(name).is_none_or(|found| !found.is_under_way && found.is_stale(NAME_LIFE)) {
            self.start_look_up(&mut known, name);
        }
        let Some(found) = known.get(name) else { return Vec::new() };
        let limit = match found.addresses[..] {
            [] => limit,
            _ if found.is_doubtful => Duration::ZERO,
            _ => limit.min(REFRESH_LIMIT),
        };
        let is_under_way = |known: &mut HashMap<String, Known>| known.get(name).is_some_and(|found| found.is_under_way);
        let waited = self.0.ended.wait_timeout_while(known, limit, is_under_way);
        let mut known = waited.expect("nothing panics under this lock").0;
        let Some(found) = known.get_mut(name) else { return Vec::new() };
        found.is_doubtful |= found.is_under_way;
        found.addresses.clone()
    }

    /// Has a thread look that name up, which may take as long as it likes.
    fn start_look_up(&self, known: &mut HashMap<String, Known>, name: &str) {
        if known.values().filter(|found| found.is_under_way).count() >= MAX_LOOK_UPS {
            return;
        }
        let (shared, asked) = (Arc::clone(&self.0), name.to_owned());
        let look_up = move || {
            let addresses = (shared.look_up)(&asked);
            let mut known = shared.lock();
            let found = known.entry(asked).or_default();
            (found.looked_up, found.is_under_way, found.is_doubtful) =
                (Some(Instant::now()), false, addresses.is_err());
            found.addresses = addresses.unwrap_or_else(|_| std::mem::take(&mut found.addresses));
            known
                .retain(|_, found| found.is_under_way || !(found.addresses.is_empty() || found.is_stale(FORGET_AFTER)));
            drop(known);
            shared.ended.notify_all();
        };
        if thread::Builder::new().name("names".to_owned()).spawn(look_up).is_ok() {
            known.entry(name.to_owned()).or_default().is_under_way = true;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().expect("nothing panics under this lock")
    }
}

impl Known {
    fn is_stale(&self, life: Duration) -> bool {
        self.looked_up.is_none_or(|looked_up| looked_up.elapsed() >= life)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU16, Ordering::SeqCst};

    use super::*;

    /// Which look-up of a name this is, as the port of its only address.
    fn count(counter: &AtomicU16) -> Vec<SocketAddr> {
        vec![SocketAddr::from(([127, 0, 0, 1], 1 + counter.fetch_add(1, SeqCst)))]
    }

    fn found(names: &Names, limit: Duration) -> (Option<u16>, Duration) {
        let began = Instant::now();
        let addresses = names.find("name:80", limit);
        (addresses.first().map(SocketAddr::port), began.elapsed())
    }

    fn make_stale(names: &Names) {
        names.0.lock().get_mut("name:80").expect("it is known").looked_up = None;
    }

    #[test]
    fn addresses_are_believed_for_a_second_and_then_looked_up_anew() {
        static ASKED: AtomicU16 = AtomicU16::new(0);
        let names = Names::new(|_| Ok(count(&ASKED)));
        let find = || found(&names, LOOK_UP_LIMIT).0;
        assert_eq!((find(), find()), (Some(1), Some(1)));
        make_stale(&names);
        assert_eq!((find(), find()), (Some(2), Some(2)));
    }

    #[test]
    fn a_silent_name_server_costs_one_short_wait_where_addresses_are_known() {
        static ASKED: AtomicU16 = AtomicU16::new(0);
        let names = Names::new(|_| {
            if ASKED.load(SeqCst) == 1 {
                thread::sleep(4 * LOOK_UP_LIMIT);
            }
            Ok(count(&ASKED))
        });
        assert_eq!(found(&names, LOOK_UP_LIMIT).0, Some(1));
        make_stale(&names);
        let (port, waited) = found(&names, LOOK_UP_LIMIT);
        assert!(port == Some(1) && (REFRESH_LIMIT..LOOK_UP_LIMIT).contains(&waited), "{port:?} after {waited:?}");
        let (port, waited) = found(&names, LOOK_UP_LIMIT);
        assert!(port == Some(1) && waited < REFRESH_LIMIT, "{port:?} after {waited:?}");
    }

    #[test]
    fn names_that_fail_keep_their_addresses_and_unknown_ones_end_in_their_time() {
        static ASKED: AtomicU16 = AtomicU16::new(0);
        let names =
            Names::new(
                |_| if ASKED.load(SeqCst) == 0 { Ok(count(&ASKED)) } else { Err(io::Error::other("no such name")) },
            );
        for _ in 0..2 {
            assert_eq!(found(&names, LOOK_UP_LIMIT).0, Some(1));
            make_stale(&names);
        }
        let silent = Names::new(|_| {
            thread::sleep(4 * LOOK_UP_LIMIT);
            Ok(Vec::new())
        });
        let (port, waited) = found(&silent, REFRESH_LIMIT);
        assert!(port.is_none() && (REFRESH_LIMIT..LOOK_UP_LIMIT).contains(&waited), "{port:?} after {waited:?}");
    }
}
