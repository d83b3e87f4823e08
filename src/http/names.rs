//! Addresses of names, believed for a while: `ureq` alone looks each name up before each call.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// How long an address is believed.
const NAME_LIFE: Duration = Duration::from_secs(1);

/// Guards the addresses of each authority, and when they were found.
#[derive(Debug, Default)]
pub struct Names(Mutex<HashMap<String, (Instant, ResolvedSocketAddrs)>>);

impl Resolver for Names {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let name = uri.authority().ok_or(Error::HostNotFound)?.as_str();
        let is_fresh = |(found_at, _): &(Instant, _)| found_at.elapsed() < NAME_LIFE;
        let lock = || self.0.lock().expect("nothing panics under this lock");
        if let Some((_, addresses)) = lock().get(name).filter(|found| is_fresh(found)) {
            return Ok(addresses.clone());
        }
        // Whatever goes wrong here, nobody was reached.
        let addresses = DefaultResolver::default().resolve(uri, config, timeout).map_err(|_| Error::HostNotFound)?;
        let mut found = lock();
        found.retain(|_, found| is_fresh(found));
        found.insert(name.to_owned(), (Instant::now(), addresses.clone()));
        Ok(addresses)
    }
}
