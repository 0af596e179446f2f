//! Pauses: the times in which the upstream gets no request, because a rate limit is spent.
//!
//! GitHub counts several resources apart, such as `core`, `search` and `code_search`, and names the resource of a path in
//! its answer only. A spent resource pauses the paths that are known to be its own. A secondary limit, which names no
//! spent resource, pauses all paths.
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use axum::http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use tokio::time::Instant;

use crate::time::now_us;

/// Minimum pause after a rate limit is spent, whatever pause the upstream names.
const SHORTEST: Duration = Duration::from_secs(1);
/// Maximum pause after a rate limit is spent, whatever pause the upstream names.
const LONGEST: Duration = Duration::from_secs(3_600);

/// Resource of the paths of which no answer has named another one.
const CORE: &str = "core";

/// Maximum number of kinds of paths with a resource of their own. GitHub has a dozen.
const MAX_KINDS: usize = 64;

/// Ends of the pauses.
#[derive(Debug, Default)]
pub(crate) struct Pauses(Mutex<Ends>);

#[derive(Debug, Default)]
struct Ends {
    of_all: Option<Instant>,
    of_resource: BTreeMap<String, Instant>,
    /// Resources by kind of path, except for the core.
    resources: BTreeMap<String, String>,
}

/// Returns the kind of a path: its first two segments, which select the resource.
fn kind(path: &str) -> String {
    let path = path.split('?').next().unwrap_or_default();
    path.split('/').filter(|part| !part.is_empty()).take(2).collect::<Vec<_>>().join("/")
}

pub(crate) fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

impl Pauses {
    /// Returns the rest of the pause of a path, or `None` when a request may be sent.
    pub(crate) fn of(&self, path: &str) -> Option<Duration> {
        let ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let resource = ends.resources.get(&kind(path)).map_or(CORE, String::as_str);
        let until = ends.of_resource.get(resource).copied().max(ends.of_all);
        until.map(|until| until.saturating_duration_since(Instant::now())).filter(|pause| !pause.is_zero())
    }

    /// Learns the resource of a path from an answer, and starts a pause if the answer reports that the rate limit is spent,
    /// because GitHub bans clients that go on.
    pub(crate) fn heed(&self, path: &str, status: StatusCode, headers: &HeaderMap) {
        let resource = headers.get("x-ratelimit-resource").and_then(|name| name.to_str().ok());
        let mut ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match resource {
            Some(CORE) => _ = ends.resources.remove(&kind(path)),
            Some(resource) if ends.resources.len() < MAX_KINDS || ends.resources.contains_key(&kind(path)) => {
                ends.resources.insert(kind(path), resource.to_owned());
            }
            _ => {}
        }
        let after = number(headers, RETRY_AFTER.as_str());
        let is_empty = number(headers, "x-ratelimit-remaining") == Some(0);
        if !(is_empty || after.is_some()) || ![StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS].contains(&status) {
            return;
        }
        let reset = number(headers, "x-ratelimit-reset");
        let until_reset = reset.map(|reset| reset.saturating_sub(now_us() / 1_000_000).saturating_add(1));
        let pause = Duration::from_secs(after.or(until_reset).unwrap_or(60)).clamp(SHORTEST, LONGEST);
        let until = Instant::now() + pause;
        let of = match resource.filter(|_| is_empty && ends.of_resource.len() < MAX_KINDS) {
            Some(resource) => {
                let end = ends.of_resource.entry(resource.to_owned()).or_insert(until);
                *end = until.max(*end);
                resource
            }
            None => {
                ends.of_all = ends.of_all.max(Some(until));
                "all"
            }
        };
        drop(ends);
        tracing::warn!(
            resource = of,
            seconds = pause.as_secs(),
            "a rate limit of the upstream is spent; no request of the resource is sent meanwhile"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heed(pauses: &Pauses, path: &str, headers: &[(&'static str, &'static str)]) {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        pauses.heed(path, StatusCode::FORBIDDEN, &headers);
    }

    #[test]
    fn spent_resource_pauses_its_own_paths() {
        let pauses = Pauses::default();
        let spent = |resource| [("x-ratelimit-remaining", "0"), ("x-ratelimit-resource", resource)];
        heed(&pauses, "/search/code?q=a", &spent("code_search"));
        assert!(pauses.of("/search/code?q=b").is_some());
        assert!(pauses.of("/search/issues?q=b").is_none() && pauses.of("/orgs/Netflix").is_none());
        heed(&pauses, "/orgs/Netflix", &spent("core"));
        assert!(pauses.of("/users/chali").is_some() && pauses.of("/").is_some());
        assert!(pauses.of("/search/code").is_some());
        heed(&pauses, "/search/code", &[("x-ratelimit-resource", "core")]);
        heed(&pauses, "/users/chali", &spent("code_search"));
        assert!(pauses.of("/search/code").is_some(), "the core is spent");
    }

    #[test]
    fn secondary_limit_pauses_all_paths() {
        let pauses = Pauses::default();
        heed(&pauses, "/search/code", &[("retry-after", "60"), ("x-ratelimit-resource", "code_search")]);
        assert!(pauses.of("/orgs/Netflix").is_some_and(|pause| pause > Duration::from_secs(50)));
    }
}
