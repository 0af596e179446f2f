//! Tells a peer that is connected again what it has missed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use crate::{
    chain::Chain,
    clock::later,
    identity::PeerId,
    message::{Answer, Op},
    peer::{
        link::Link,
        table::{Call, Outcome, Reply},
    },
    shared::Shared,
    sync::Mutex,
    undelivered::Missed,
};

/// Writes that are under way at once: far fewer than wait for a peer in normal times.
const AT_ONCE: usize = 1000;

/// How long one of them may take: nobody waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tells it; what it does not acknowledge it has still missed.
pub(super) async fn catch_up(shared: Arc<Shared>, peer: PeerId, link: Arc<Link>) {
    let indices: BTreeMap<_, _> = shared.local.hello().groups.iter().map(|g| (Arc::clone(&g.name), g.index)).collect();
    let missed = shared.undelivered.take(&peer, |group| indices.contains_key(group));
    if missed.is_empty() {
        return;
    }
    let mut writes: Vec<(Arc<str>, Option<Arc<str>>)> = Vec::new();
    for (group, missed) in missed {
        match missed {
            Missed::Everything => writes.push((group, None)),
            Missed::Keys(keys) => writes.extend(keys.into_iter().map(|key| (Arc::clone(&group), Some(key)))),
        }
    }
    tracing::info!(%peer, writes = writes.len(), "telling a peer what it has missed");
    for some in writes.chunks(AT_ONCE) {
        let told: Vec<_> = some
            .iter()
            .map(|(group, key)| {
                let index = *indices.get(group)?;
                Some((group, key, tell(&shared, &link, index, key.as_ref())))
            })
            .collect();
        for (group, key, answer) in told.into_iter().flatten() {
            let is_told = match answer {
                Some(answer) => matches!(answer.await, Ok(Outcome::Answered(Answer::Done | Answer::Declined(_)))),
                None => false,
            };
            if !is_told {
                shared.undelivered.missed(&peer, group, key.as_ref());
            }
        }
    }
}

fn tell(shared: &Shared, link: &Link, group: u32, key: Option<&Arc<str>>) -> Option<oneshot::Receiver<Outcome>> {
    let (answer, told) = oneshot::channel();
    let call = Call {
        op: if key.is_some() { Op::Remove { hold: Duration::ZERO } } else { Op::Clear },
        group,
        key: key.cloned().unwrap_or_else(|| "".into()),
        deadline_ms: later(shared.local.clock.read_ms(), PATIENCE),
        rank: 0,
        chain: Chain::EMPTY,
        reply: Arc::new(Acknowledged(Mutex::new(Some(answer)))),
    };
    link.send(call).ok().map(|()| told)
}

struct Acknowledged(Mutex<Option<oneshot::Sender<Outcome>>>);

impl Reply for Acknowledged {
    fn reply(self: Arc<Self>, outcome: Outcome, _: Instant) {
        if let Some(waiting) = self.0.lock().take() {
            let _ = waiting.send(outcome);
        }
    }
}
