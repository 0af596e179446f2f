//! Scenario: a cluster and its faults, drawn from one seed.

use std::time::Duration;

use fastrand::Rng;

/// Time in which faults happen.
pub(crate) const SAFETY: Duration = Duration::from_secs(24);
/// Time after the last fault in which the cluster must become well.
pub(crate) const RECOVERY: Duration = Duration::from_secs(10);
/// Tick of the simulation, coarse enough to be fast. The nodes' own clock is coarser.
pub(crate) const TICK: Duration = Duration::from_millis(5);
/// Maximum number of nodes in a cluster.
pub(crate) const MAX_NODES: usize = 7;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// A cluster and its faults.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) keys: usize,
    /// Number of callers at each node.
    pub(crate) callers: usize,
    /// Scale of the pause between two calls of a caller. Range of a pause: 0 to twice this time.
    pub(crate) think: Duration,
    /// Node without callers, which must not send a fetch.
    pub(crate) quiet: Option<usize>,
    /// Number of writes in 1,000 calls.
    pub(crate) writes: u32,
    pub(crate) latency: (Duration, Duration),
    pub(crate) time_to_live: Option<Duration>,
    pub(crate) negative: Option<Duration>,
    pub(crate) stale_while_revalidate: Duration,
    /// Bound on the staleness of values, in two of three seeds.
    pub(crate) max_staleness: Option<Duration>,
    /// Budget of a node in bytes. A small budget evicts entries all the time.
    pub(crate) capacity: u64,
    /// Whether the budget holds all values.
    pub(crate) is_roomy: bool,
    pub(crate) largest_value: usize,
    pub(crate) loads: Loads,
    /// Whether the provider follows each snapshot at once with a hint, as if a watch had seen a change.
    pub(crate) has_hints: bool,
    pub(crate) faults: Vec<(Duration, Fault)>,
}

/// Behaviour of the loaders.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loads {
    pub(crate) slow: Duration,
    /// Number of loads in 1,000 that fail. The next four numbers have the same unit.
    pub(crate) errors: u32,
    pub(crate) panics: u32,
    pub(crate) hangs: u32,
    pub(crate) nothing: u32,
    pub(crate) not_kept: u32,
    pub(crate) deadline: Duration,
}

#[derive(Clone, Debug)]
pub(crate) enum Fault {
    Crash(usize),
    /// Starts a machine that has crashed or was stopped.
    Start(usize),
    /// Shuts a node down in good order.
    Stop(usize),
    Drain(usize),
    /// Delays packets until the release.
    Hold(usize, usize),
    Release(usize, usize),
    /// Drops the packets of a pair, or of all links of a machine that is paired with itself.
    Cut(usize, usize),
    /// Drops packets in one direction.
    CutOneWay(usize, usize),
    Repair(usize, usize),
    Slow(usize, usize, Duration),
    Fast(usize, usize),
    Discovery(usize, DiscoveryFault),
    DiscoveryRepair(usize),
    /// Lets a client that is no node connect and send this many bytes of garbage.
    Garbage(usize, usize),
}

impl Fault {
    /// Returns the name under which the fault is counted.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Crash(_) => "crashes",
            Self::Start(_) => "starts",
            Self::Stop(_) => "stops",
            Self::Drain(_) => "drains",
            Self::Hold(..) => "holds",
            Self::Release(..) => "releases",
            Self::Cut(a, b) if a == b => "islands",
            Self::Cut(..) => "cuts",
            Self::CutOneWay(..) => "one-way cuts",
            Self::Repair(..) => "repairs",
            Self::Slow(..) => "slow links",
            Self::Fast(..) => "links restored",
            Self::Discovery(_, fault) => match fault {
                DiscoveryFault::Empty => "discovery: empty set",
                DiscoveryFault::Alone => "discovery: own node only",
                DiscoveryFault::Without(_) => "discovery: peer missing",
                DiscoveryFault::Ghosts => "discovery: dead addresses",
                DiscoveryFault::Fails => "discovery: failure",
                DiscoveryFault::Left(_) => "discovery: false departure",
            },
            Self::DiscoveryRepair(_) => "discovery: repairs",
            Self::Garbage(..) => "garbage connections",
        }
    }
}

/// A wrong report of discovery to one node.
#[derive(Clone, Debug)]
pub(crate) enum DiscoveryFault {
    /// An empty set, which discovery corrects when the node asks again.
    Empty,
    /// A set of the node itself only, which discovery corrects when the node asks again.
    Alone,
    /// A set without one peer, which discovery repeats when the node asks again.
    Without(usize),
    /// Addresses without a process behind them.
    Ghosts,
    /// A failure of the provider, which is run again.
    Fails,
    /// A notice that a peer has left, although the peer is up.
    Left(usize),
}

fn up_to(rng: &mut Rng, least: Duration, most: Duration) -> Duration {
    Duration::from_micros(rng.u64(least.as_micros() as u64..=most.as_micros() as u64))
}

fn one_of<T: Clone>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())].clone()
}

impl Scenario {
    pub(crate) fn of(seed: u64) -> Self {
        let rng = &mut Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let nodes = rng.usize(3..=MAX_NODES);
        let is_roomy = rng.u32(..4) > 0;
        let has_bad_loads = rng.u32(..3) > 0;
        let often = |rng: &mut Rng, most: u32| if has_bad_loads { rng.u32(..=most) } else { 0 };
        let loads = Loads {
            slow: one_of(rng, &[MS, 20 * MS, 300 * MS, 2 * SECOND]),
            errors: often(rng, 150),
            panics: often(rng, 20),
            hangs: often(rng, 10),
            nothing: often(rng, 100),
            not_kept: often(rng, 50),
            deadline: one_of(rng, &[3 * SECOND, 5 * SECOND]),
        };
        let largest_value = one_of(rng, &[20, 500, 4_000]);
        let keys = one_of(rng, &[3, 12, 40, 200]);
        let mut scenario = Self {
            seed,
            nodes,
            keys,
            callers: rng.usize(1..=4),
            quiet: (rng.u32(..3) == 0).then_some(0),
            think: one_of(rng, &[10 * MS, 40 * MS, 200 * MS]),
            writes: one_of(rng, &[0, 5, 40, 150]),
            latency: one_of(rng, &[(MS, MS), (MS, 10 * MS), (2 * MS, 50 * MS)]),
            time_to_live: one_of(rng, &[None, None, Some(4 * SECOND)]),
            negative: one_of(rng, &[None, Some(2 * SECOND)]),
            stale_while_revalidate: one_of(rng, &[Duration::ZERO, Duration::ZERO, SECOND]),
            max_staleness: [None, Some(3 * SECOND), Some(6 * SECOND)][(seed % 3) as usize],
            capacity: if is_roomy { 16 << 20 } else { (largest_value as u64 * 8).max(8 << 10) },
            is_roomy,
            largest_value,
            loads,
            has_hints: rng.bool(),
            faults: Vec::new(),
        };
        scenario.draw_faults(rng);
        scenario
    }

    /// Returns whether discovery reports the truth to all nodes throughout.
    pub(crate) fn has_true_discovery(&self) -> bool {
        !self.faults.iter().any(|(_, fault)| matches!(fault, Fault::Discovery(..)))
    }

    fn draw_faults(&mut self, rng: &mut Rng) {
        let episodes = one_of(rng, &[0, 2, 4, 8, 16]);
        let kinds = Episode::some(rng);
        for _ in 0..episodes {
            let begin = up_to(rng, 3 * SECOND, SAFETY - 2 * SECOND);
            let kind = one_of(rng, &kinds);
            // A discovery fault takes effect once it outlasts the grace of the peers that it hides.
            let shortest = if matches!(kind, Episode::Discovery) { 2 * SECOND } else { 50 * MS };
            let longest = one_of(rng, &[2 * SECOND, 4 * SECOND, 12 * SECOND]);
            let end = (begin + up_to(rng, shortest, longest)).min(SAFETY - MS);
            let (first, last) = kind.begin_and_end(rng, self.nodes);
            self.faults.extend(first.map(|fault| (begin, fault)));
            self.faults.extend(last.into_iter().map(|fault| (end, fault)));
        }
        self.faults.sort_by_key(|(at, _)| *at);
    }
}

#[derive(Clone, Copy, Debug)]
enum Episode {
    Crash,
    Stop,
    Drain,
    Hold,
    Cut,
    CutOneWay,
    Island,
    Slow,
    Discovery,
    Garbage,
}

impl Episode {
    /// Returns the kinds of faults of a seed. A seed has only some kinds, because a kind alone shows what the mix of
    /// all kinds hides.
    fn some(rng: &mut Rng) -> Vec<Self> {
        use Episode::{Crash, Cut, CutOneWay, Discovery, Drain, Garbage, Hold, Island, Slow, Stop};
        let all = [Crash, Stop, Drain, Hold, Cut, CutOneWay, Island, Slow, Discovery, Garbage];
        let some: Vec<_> = all.into_iter().filter(|_| rng.u32(..3) == 0).collect();
        if some.is_empty() { vec![one_of(rng, &all)] } else { some }
    }

    fn begin_and_end(self, rng: &mut Rng, nodes: usize) -> (Option<Fault>, Vec<Fault>) {
        let (a, b) = two_of(rng, nodes);
        match self {
            Self::Crash => (Some(Fault::Crash(a)), vec![Fault::Start(a)]),
            Self::Stop => (Some(Fault::Stop(a)), vec![Fault::Start(a)]),
            Self::Drain => (Some(Fault::Drain(a)), vec![Fault::Stop(a), Fault::Start(a)]),
            Self::Hold => (Some(Fault::Hold(a, b)), vec![Fault::Release(a, b)]),
            Self::Cut => (Some(Fault::Cut(a, b)), vec![Fault::Repair(a, b)]),
            Self::CutOneWay => (Some(Fault::CutOneWay(a, b)), vec![Fault::Repair(a, b)]),
            // An island is one machine against all others, so that `b` is not used.
            Self::Island => (Some(Fault::Cut(a, a)), vec![Fault::Repair(a, a)]),
            Self::Slow => {
                let slow = one_of(rng, &[30 * MS, 150 * MS, 500 * MS]);
                (Some(Fault::Slow(a, b, slow)), vec![Fault::Fast(a, b)])
            }
            Self::Discovery => {
                let faults = [
                    DiscoveryFault::Empty,
                    DiscoveryFault::Alone,
                    DiscoveryFault::Without(b),
                    DiscoveryFault::Ghosts,
                    DiscoveryFault::Fails,
                    DiscoveryFault::Left(b),
                ];
                (Some(Fault::Discovery(a, one_of(rng, &faults))), vec![Fault::DiscoveryRepair(a)])
            }
            Self::Garbage => (Some(Fault::Garbage(a, rng.usize(1..5_000))), Vec::new()),
        }
    }
}

/// Returns two different machines.
fn two_of(rng: &mut Rng, nodes: usize) -> (usize, usize) {
    let a = rng.usize(..nodes);
    (a, (a + rng.usize(1..nodes)) % nodes)
}
