//! What can be done to a node, and how it is undone.

use std::time::Duration;

use process::{Pid, Signal};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

use crate::{
    Cluster, NODES,
    host::{MemoryLimit, Place},
    impostor::{Impostor, Manner},
};

/// What happens to one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL; a new process when it is over.
    Kill,
    /// SIGSTOP, then SIGCONT.
    Stop,
    /// SIGTERM, and a new process at once.
    Restart,
    /// Nothing gets to its host or from there.
    Cut,
    /// Nothing gets from its host to the others; what they send arrives.
    CutOneWay,
    /// Its host vanishes with it: no FIN, no RST. A new process when it is over.
    PowerLoss,
    /// One packet in twenty is lost, each way.
    Loss,
    /// Its packets take 50 ms, 20 ms more or less.
    Delay,
    /// It may open no more descriptors, while another process is killed and comes back.
    Descriptors,
    /// Instead of it somebody listens who accepts and never answers.
    SilentPeer,
    /// Instead of it somebody listens who answers garbage.
    GarbagePeer,
    /// Its loader does not end.
    LoaderStalls,
    /// A new process has 32 MiB of memory, and values become large.
    MemoryLimit,
}

/// Memory of a process under [`Fault::MemoryLimit`].
const MEMORY_BYTES: u64 = 32 << 20;

/// How long a process that is asked to end may take: its own limit for owed answers is 10 s.
const TO_END: Duration = Duration::from_secs(15);

const LOSES: [&str; 8] = ["-m", "statistic", "--mode", "random", "--probability", "0.05", "-j", "DROP"];

/// What has to be kept until it is over.
#[derive(Debug)]
pub(crate) enum Effect {
    Nothing,
    Impostor(Impostor),
    Memory(MemoryLimit),
    Descriptors(Rlimit),
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Kill,
        Self::Stop,
        Self::Restart,
        Self::Cut,
        Self::CutOneWay,
        Self::PowerLoss,
        Self::Loss,
        Self::Delay,
        Self::Descriptors,
        Self::SilentPeer,
        Self::GarbagePeer,
        Self::LoaderStalls,
        Self::MemoryLimit,
    ];

    /// What it is called on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Cut => "cut",
            Self::CutOneWay => "cut-one-way",
            Self::PowerLoss => "power-loss",
            Self::Loss => "loss",
            Self::Delay => "delay",
            Self::Descriptors => "descriptors",
            Self::SilentPeer => "silent-peer",
            Self::GarbagePeer => "garbage-peer",
            Self::LoaderStalls => "loader-stalls",
            Self::MemoryLimit => "memory-limit",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.name() == name)
    }

    /// Does it; an error says why it cannot be had here.
    pub(crate) fn begin(self, cluster: &mut Cluster, victim: usize) -> Result<Effect, String> {
        let place = cluster.nodes[victim].place.clone();
        match self {
            Self::Kill => cluster.kill(victim),
            Self::Stop => cluster.signal(victim, Signal::STOP),
            Self::Restart => {
                cluster.signal(victim, Signal::TERM);
                let process = cluster.nodes[victim].process.as_mut();
                let status = process.map(|process| process.ends_within(TO_END));
                assert!(status.is_some_and(|status| status.success()), "ended with {status:?}");
                cluster.begin(victim);
            }
            Self::Cut => host(&place)?.cut(),
            Self::CutOneWay => {
                let from = host(&place)?;
                others(cluster, victim).try_for_each(|other| host(other).map(|to| from.cut_to(to)))?;
            }
            Self::PowerLoss => {
                host(&place)?.cut();
                cluster.kill(victim);
            }
            Self::Loss => {
                for chain in ["INPUT", "OUTPUT"] {
                    let words = [&["iptables", "-A", chain][..], &LOSES].concat();
                    host(&place)?.run(&words).map_err(|why| format!("needs iptables with statistic: {why}"))?;
                }
            }
            Self::Delay => {
                let words = ["tc", "qdisc", "add", "dev", "eth0", "root", "netem", "delay", "50ms", "20ms"];
                host(&place)?.run(&words).map_err(|why| format!("needs netem in the kernel: {why}"))?;
            }
            Self::Descriptors => return Ok(exhaust(cluster, victim)),
            Self::SilentPeer => return Ok(replace(cluster, victim, Manner::Silent)),
            Self::GarbagePeer => return Ok(replace(cluster, victim, Manner::Garbage)),
            Self::LoaderStalls => cluster.tell(victim, "loader stalls"),
            Self::MemoryLimit => {
                let limit = MemoryLimit::new(MEMORY_BYTES)?;
                cluster.kill(victim);
                cluster.begin(victim);
                limit.holds(pid(cluster, victim));
                (0..NODES).for_each(|n| cluster.tell(n, "values large"));
                return Ok(Effect::Memory(limit));
            }
        }
        Ok(Effect::Nothing)
    }

    /// Undoes it; what is worth to be known of it.
    pub(crate) fn end(self, cluster: &mut Cluster, victim: usize, effect: Effect) -> Option<String> {
        let place = cluster.nodes[victim].place.clone();
        match (self, effect) {
            (Self::Kill, _) => cluster.begin(victim),
            (Self::Stop, _) => cluster.signal(victim, Signal::CONT),
            (Self::Cut, _) => place.host()?.heal(),
            (Self::CutOneWay, _) => {
                let from = place.host()?;
                others(cluster, victim).filter_map(Place::host).for_each(|to| from.heal_to(to));
            }
            (Self::PowerLoss, _) => {
                place.host()?.heal();
                cluster.begin(victim);
            }
            (Self::Loss, _) => {
                for chain in ["INPUT", "OUTPUT"] {
                    place.host()?.run(&["iptables", "-F", chain]).expect("what was added is removed");
                }
            }
            (Self::Delay, _) => {
                place.host()?.run(&["tc", "qdisc", "del", "dev", "eth0", "root"]).expect("what was added is removed");
            }
            (Self::LoaderStalls, _) => cluster.tell(victim, "loader works"),
            (_, Effect::Descriptors(before)) => {
                prlimit(Some(pid(cluster, victim)), Resource::Nofile, before).expect("the limit is lifted");
            }
            (_, Effect::Impostor(impostor)) => {
                let said = format!("{} connections to the impostor", impostor.accepted());
                drop(impostor);
                cluster.begin(victim);
                return Some(said);
            }
            (_, Effect::Memory(limit)) => {
                (0..NODES).for_each(|n| cluster.tell(n, "values small"));
                let (most, refused) = limit.usage();
                return Some(format!(
                    "{} MiB at most, of {}; the kernel took some back {refused} times",
                    most >> 20,
                    MEMORY_BYTES >> 20
                ));
            }
            (Self::Restart | Self::Descriptors | Self::SilentPeer | Self::GarbagePeer | Self::MemoryLimit, _) => {}
        }
        None
    }
}

fn host(place: &Place) -> Result<&segment::Host, String> {
    place.host().ok_or_else(|| "needs network namespaces".to_owned())
}

fn others(cluster: &Cluster, victim: usize) -> impl Iterator<Item = &Place> {
    cluster.nodes.iter().enumerate().filter(move |(n, _)| *n != victim).map(|(_, node)| &node.place)
}

fn pid(cluster: &Cluster, n: usize) -> Pid {
    cluster.nodes[n].process.as_ref().expect("the process runs").pid()
}

/// No descriptors but those in use, while a peer is killed and comes back, for whom it would need some.
fn exhaust(cluster: &mut Cluster, victim: usize) -> Effect {
    // The maximum is what this process has, too: it has passed it on. Numbers below the limit are all in use.
    let limit = Rlimit { current: Some(3), maximum: getrlimit(Resource::Nofile).maximum };
    let before = prlimit(Some(pid(cluster, victim)), Resource::Nofile, limit).expect("a limit of descriptors");
    let next = (victim + 1) % NODES;
    cluster.kill(next);
    cluster.begin(next);
    Effect::Descriptors(before)
}

fn replace(cluster: &mut Cluster, victim: usize, manner: Manner) -> Effect {
    cluster.kill(victim);
    let listener = cluster.nodes[victim].place.listen().expect("its port is free once it has ended");
    Effect::Impostor(Impostor::new(listener, manner))
}
