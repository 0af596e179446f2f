//! Watch: observes views, goodbyes and bounds after each tick and judges them at once.

use std::{collections::BTreeMap, time::Duration};

use groupcache_core::{Node, PeerId, discovery::Incarnation};

use crate::{
    history::Moment,
    machine::STAMPEDE,
    world::{Belief, Machine, Phase, State, id},
};

#[derive(Clone, Default)]
pub(crate) struct View {
    epoch: u64,
    fingerprint: u64,
    members: BTreeMap<PeerId, Incarnation>,
}

/// Time for which the cluster must have been well until no event is put down to a fault.
const CALM: Duration = Duration::from_secs(3);

impl State {
    /// Observes all nodes. Called after each tick.
    pub(crate) fn observe(&mut self) {
        self.observe_views();
        self.check_bounds();
        let now = self.log.now();
        let moment = Moment { n: self.log.number(), at: now };
        let agreed = if self.agree() { self.live().next().map(|(_, it, _)| it.seen.fingerprint) } else { None };
        // All nodes may go from one view to another within one tick.
        self.agreed_since = match (self.agreed_since, agreed) {
            (Some((since, before)), Some(on)) if before == on => Some((since, on)),
            (_, agreed) => agreed.map(|on| (moment, on)),
        };
        let since = self.agreed_since.map(|(since, _)| since);
        let agreed_since = since.map(|since| since.n);
        let is_moving = self.live().any(|(_, it, _)| it.is_leaving);
        let well = agreed.is_some() && self.network_faults == 0 && !is_moving && self.all_reach_all();
        if well {
            self.calm_since.get_or_insert(now);
        } else {
            self.calm_since = None;
        }
        let is_calm = self.calm_since.is_some_and(|since| now >= since.max(self.last_fault) + CALM);
        for load in std::mem::take(&mut self.fresh_loads) {
            let load = &mut self.log.sources[load];
            (load.agreed_since, load.is_calm) = (agreed_since, is_calm);
            load.agreed_for = since.map_or(Duration::ZERO, |since| now - since.at);
        }
        if is_calm {
            self.log.count("calm ticks");
        }
        if self.agreed_since.is_some() {
            self.log.count("ticks in which all views agree");
        }
        self.log.count("ticks");
    }

    /// Returns whether all nodes have one view, and all of them are in it.
    fn agree(&self) -> bool {
        let here: BTreeMap<_, _> = self.live().map(|(at, _, node)| (id(at), node)).collect();
        let mut views = self.live().map(|(_, it, _)| &it.seen);
        let Some(first) = views.next() else { return true };
        first.members.len() >= here.len()
            && here.keys().all(|id| first.members.contains_key(id))
            && views.all(|view| view.fingerprint == first.fingerprint && view.members == first.members)
    }

    /// Returns a description of all views for a human reader.
    pub(crate) fn views(&self) -> String {
        let view = |(at, it, node): (usize, &Machine, &Node)| {
            let members: Vec<_> = node
                .members()
                .iter()
                .map(|m| {
                    format!(
                        "{}@{}{}{}",
                        m.id,
                        m.incarnation.0,
                        if m.owns { "" } else { " owns nothing" },
                        if m.reachable { "" } else { " unreachable" }
                    )
                })
                .collect();
            format!("\n  {} (up since {:?}, {:?}): {members:?}", id(at), it.up_at, node.state())
        };
        self.live().map(view).collect()
    }

    pub(crate) fn begin_stage(&mut self, stage: u32) {
        self.stage = (stage, self.log.number());
        self.stage_done.clear();
    }

    /// Checks P1 after a stampede: without a fault, every key is loaded once.
    pub(crate) fn judge_stage(&mut self, stage: u32) {
        if stage != STAMPEDE || !self.scenario.is_roomy {
            return;
        }
        let mut loads: BTreeMap<usize, u32> = BTreeMap::new();
        for source in self.log.sources.iter().filter(|source| source.begin.n > self.stage.1) {
            *loads.entry(source.key).or_default() += 1;
        }
        self.log.add("stampedes", loads.len() as u64);
        let wrong: Vec<_> = loads.into_iter().filter(|(_, n)| *n != 1).collect();
        if !wrong.is_empty() {
            self.log.broken(format!("P1: a stampede has loaded keys more than once: {wrong:?}"));
        }
    }

    fn all_reach_all(&self) -> bool {
        self.live().all(|(_, _, node)| node.members().iter().all(|member| member.reachable))
    }

    /// Returns whether the cluster is well: all nodes are up, agree on one view, and reach all members.
    pub(crate) fn is_well(&self) -> bool {
        self.live().count() == self.machines.len() && self.agree() && self.all_reach_all()
    }

    fn observe_views(&mut self) {
        for at in 0..self.machines.len() {
            let Some(node) = self.machines[at].node.clone() else { continue };
            if node.epoch() == self.machines[at].seen.epoch {
                continue;
            }
            let members = node.members().into_iter().map(|member| (member.id, member.incarnation)).collect();
            let seen = View { epoch: node.epoch(), fingerprint: node.fingerprint(), members };
            self.log.trace(&(7, at, seen.epoch, seen.fingerprint));
            self.log.count("views");
            self.log
                .print(|| format!("{} has view {} {:016x}: {:?}", id(at), seen.epoch, seen.fingerprint, seen.members));
            let before = std::mem::replace(&mut self.machines[at].seen, seen);
            self.judge_removals(at, &before);
        }
        self.judge_goodbyes();
    }

    /// Checks that no node that is up and listed is removed from a view.
    fn judge_removals(&mut self, at: usize, before: &View) {
        let now = self.log.now();
        let quiet = self.network_faults == 0 && now >= self.last_fault + 2 * CALM;
        let mut wrong = Vec::new();
        for (other, machine, node) in self.live() {
            let is_gone =
                before.members.contains_key(&id(other)) && !self.machines[at].seen.members.contains_key(&id(other));
            let is_listed = match &self.machines[at].last_set {
                Some((set, Belief::Meant)) => set.contains(&other),
                Some((_, Belief::Doubtful)) => true,
                None => false,
            };
            if is_gone && is_listed && quiet && !machine.is_leaving && now >= machine.up_at + 3 * CALM {
                wrong.push(format!("membership: {} has removed {}, which is up and listed", id(at), node.id()));
            }
        }
        wrong.into_iter().for_each(|wrong| self.log.broken(wrong));
    }

    /// Checks that a node is out of every view 1 s after its goodbye, while the network is whole.
    fn judge_goodbyes(&mut self) {
        const HEARD: Duration = Duration::from_secs(1);
        let now = self.log.now();
        if self.network_faults > 0 || now < self.last_fault + CALM {
            self.goodbyes.clear();
        }
        let due: Vec<_> = self.goodbyes.extract_if(.., |(at, ..)| now >= *at + HEARD).collect();
        for (_, gone, incarnation) in due {
            self.log.count("goodbyes judged");
            let holder = self.live().find(|(_, it, _)| it.seen.members.get(&gone) == Some(&incarnation));
            if let Some((at, ..)) = holder {
                let broken = format!("goodbye: {gone} has shut down, and {} still has it in its view", id(at));
                self.log.broken(broken);
            }
        }
    }

    /// Checks P6, one hop, and the budget of second attempts.
    fn check_bounds(&mut self) {
        let (mut wrong, now) = (Vec::new(), self.log.now());
        let is_before_the_check = self.phase < Phase::LivenessCheck;
        for (at, it) in self.machines.iter_mut().enumerate() {
            let (Some(node), Some(group)) = (&it.node, &it.group) else { continue };
            if group.inspect().bytes() > self.scenario.capacity {
                wrong.push(format!(
                    "P6: {} holds {} bytes, and its budget is {}",
                    id(at),
                    group.inspect().bytes(),
                    self.scenario.capacity
                ));
            }
            if self.scenario.quiet == Some(at) && is_before_the_check && group.stats().fetches > 0 {
                wrong.push(format!("one hop: {} has no callers and has sent a fetch", id(at)));
            }
            let stats = node.stats();
            if let Some(excess) = it.attempts.take(now, stats.fallback_attempts, stats.requests_sent) {
                wrong.push(format!("budget: {} made {excess} second attempts too many", id(at)));
            }
        }
        wrong.into_iter().for_each(|wrong| self.log.broken(wrong));
    }
}

/// Budget of second attempts: 10 per second, of which those of one second may be saved up, and a tenth of the requests.
#[derive(Default)]
pub(crate) struct Attempts {
    seen: u64,
    tokens: f64,
    /// Time of the last attempts, and the number of requests until then.
    last: Option<(Duration, u64)>,
}

/// Maximum number of attempts that may be saved up, as of one second.
const SAVED_UP: f64 = 10.0;
/// Tolerance in attempts, because the order within a tick is not observed.
const UNSEEN: f64 = 2.0;

impl Attempts {
    /// Returns the number of attempts beyond the budget, if there are any.
    fn take(&mut self, now: Duration, attempts: u64, requests: u64) -> Option<f64> {
        let new = (attempts - self.seen) as f64;
        self.seen = attempts;
        if new == 0.0 {
            return None;
        }
        let available = match self.last {
            None => SAVED_UP.max(requests as f64 / 10.0),
            Some((at, before)) => {
                let by_requests = (requests - before) as f64 / 10.0;
                (self.tokens + (now - at).as_secs_f64() * 10.0 + by_requests).min(SAVED_UP.max(by_requests))
            }
        };
        self.last = Some((now, requests));
        self.tokens = (available - new).max(0.0);
        (new > available + UNSEEN).then_some(new - available)
    }
}
