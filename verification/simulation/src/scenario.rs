//! What happens to a cluster, drawn from one seed.

use std::time::Duration;

use fastrand::Rng;

/// For how long there are faults.
pub(crate) const SAFETY: Duration = Duration::from_secs(24);
/// How long after the last fault everything is to be well again.
pub(crate) const RECOVERY: Duration = Duration::from_secs(10);
/// Coarse enough to be fast; the nodes' own clock is coarser.
pub(crate) const TICK: Duration = Duration::from_millis(5);
/// Most nodes of a cluster.
pub(crate) const MAX_NODES: usize = 7;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// One cluster and its fate.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) keys: usize,
    /// Callers of each node, and the longest that one thinks between two calls.
    pub(crate) callers: usize,
    pub(crate) think: Duration,
    /// A node at which nobody calls: it asks nobody either.
    pub(crate) quiet: Option<usize>,
    /// Writes among a thousand calls.
    pub(crate) writes: u32,
    pub(crate) latency: (Duration, Duration),
    pub(crate) time_to_live: Option<Duration>,
    pub(crate) negative: Option<Duration>,
    pub(crate) stale_while_revalidate: Duration,
    /// Of a node, in bytes; with little room entries are evicted all the time.
    pub(crate) capacity: u64,
    pub(crate) is_roomy: bool,
    pub(crate) largest_value: usize,
    pub(crate) loads: Loads,
    /// A provider that follows a snapshot at once by what it has watched.
    pub(crate) has_hints: bool,
    pub(crate) faults: Vec<(Duration, Fault)>,
}

/// What the loaders are like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loads {
    pub(crate) slow: Duration,
    /// Of a thousand.
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
    /// A machine that crashed, or was stopped, begins a new life.
    Start(usize),
    /// Leaves in good order.
    Stop(usize),
    Drain(usize),
    /// Packets wait, and come when it is over.
    Hold(usize, usize),
    Release(usize, usize),
    /// Packets are lost, in both directions or in one.
    Cut(usize, usize),
    CutOneWay(usize, usize),
    Repair(usize, usize),
    Slow(usize, usize, Duration),
    Fast(usize, usize),
    Lie(usize, Lie),
    Truth(usize),
    /// Somebody who is no node connects, and says this many bytes of nonsense.
    Nonsense(usize, usize),
}

impl Fault {
    /// What it is counted as.
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
            Self::Fast(..) => "links that are fast again",
            Self::Lie(_, lie) => match lie {
                Lie::Empty => "lies: empty",
                Lie::Alone => "lies: alone",
                Lie::Without(_) => "lies: one is missing",
                Lie::Ghosts => "lies: ghosts",
                Lie::Fails => "lies: discovery fails",
                Lie::Left(_) => "lies: one has left",
            },
            Self::Truth(_) => "truths",
            Self::Nonsense(..) => "nonsense",
        }
    }
}

/// What discovery tells one node that is not so.
#[derive(Clone, Debug)]
pub(crate) enum Lie {
    /// An empty set; asked again it tells the truth.
    Empty,
    /// A set of the node itself only; the same.
    Alone,
    /// A set without one peer, which it insists on.
    Without(usize),
    /// Addresses at which nobody is.
    Ghosts,
    /// It fails, and is run again.
    Fails,
    /// It says that a peer which is there has left.
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

    fn draw_faults(&mut self, rng: &mut Rng) {
        let episodes = one_of(rng, &[0, 2, 4, 8, 16]);
        let kinds = Episode::some(rng);
        for _ in 0..episodes {
            let begin = up_to(rng, 3 * SECOND, SAFETY - 2 * SECOND);
            let kind = one_of(rng, &kinds);
            // A lie matters once it has outlived the grace of those whom it leaves out.
            let shortest = if matches!(kind, Episode::Lie) { 2 * SECOND } else { 50 * MS };
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
    Lie,
    Nonsense,
}

impl Episode {
    /// A seed has some kinds of faults and not others: each alone shows what the crowd of them hides.
    fn some(rng: &mut Rng) -> Vec<Self> {
        use Episode::{Crash, Cut, CutOneWay, Drain, Hold, Island, Lie, Nonsense, Slow, Stop};
        let all = [Crash, Stop, Drain, Hold, Cut, CutOneWay, Island, Slow, Lie, Nonsense];
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
            // One machine against all others: `b` is not of interest.
            Self::Island => (Some(Fault::Cut(a, a)), vec![Fault::Repair(a, a)]),
            Self::Slow => {
                let slow = one_of(rng, &[30 * MS, 150 * MS, 500 * MS]);
                (Some(Fault::Slow(a, b, slow)), vec![Fault::Fast(a, b)])
            }
            Self::Lie => {
                let lie = [Lie::Empty, Lie::Alone, Lie::Without(b), Lie::Ghosts, Lie::Fails, Lie::Left(b)];
                (Some(Fault::Lie(a, one_of(rng, &lie))), vec![Fault::Truth(a)])
            }
            Self::Nonsense => (Some(Fault::Nonsense(a, rng.usize(1..5_000))), Vec::new()),
        }
    }
}

/// Two different ones.
fn two_of(rng: &mut Rng, nodes: usize) -> (usize, usize) {
    let a = rng.usize(..nodes);
    (a, (a + rng.usize(1..nodes)) % nodes)
}
