//! Fault: the faults that a node can suffer, and how each of them begins and ends.

use std::{thread::sleep, time::Duration};

use process::{Pid, Signal};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

use crate::{
    Cluster, NODES,
    host::{MemoryLimit, Place},
    impostor::{Behaviour, Impostor},
};

/// A fault of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL, and a new process at the end of the fault.
    Kill,
    /// SIGSTOP, and SIGCONT at the end of the fault.
    Stop,
    /// SIGTERM, and a new process at once.
    Restart,
    /// No packet reaches or leaves the host of the node.
    Cut,
    /// No packet from the host of the node reaches the others. Packets from the others arrive.
    CutOneWay,
    /// No packet passes between the hosts of the node and of the next one, and both reach all others.
    CutLink,
    /// The list of every node names two addresses, one of them with an id, where nobody has ever answered. A process is
    /// ended with SIGTERM, and starts again with such a list.
    DeadEntry,
    /// SIGTERM, and a new process at once, which the lists of the others name when the fault ends.
    LateDiscovery,
    /// SIGTERM, and a new process at once, which all others list. Its own list names the others when the fault ends.
    EarlyDiscovery,
    /// SIGKILL, and a second later the lists of the others lack the node. A new process starts at the end of the fault.
    Gone,
    /// The host vanishes with the process, without a FIN or RST. A new process starts at the end of the fault.
    PowerLoss,
    /// A loss of 5 % of the packets in each direction.
    Loss,
    /// A delay of 50 ms ± 20 ms for packets from the node.
    Delay,
    /// No new descriptor for the node, while another process is killed and starts again.
    Descriptors,
    /// An impostor in the place of the node accepts connections and never answers.
    SilentPeer,
    /// An impostor in the place of the node answers with garbage.
    GarbagePeer,
    /// The loader of the node does not end.
    LoaderStalls,
    /// A new process has a limit of 32 MiB of memory, and values become large.
    MemoryLimit,
}

/// Memory limit of a process under [`Fault::MemoryLimit`].
const MEMORY_BYTES: u64 = 32 << 20;

/// Time limit for a process to end after SIGTERM: the 25 s of `Node::shutdown`, with room for the connections to close
/// afterwards on a busy machine.
const END_LIMIT: Duration = Duration::from_secs(35);

/// Entries of a list at which nobody has ever answered: hosts that the segment does not have.
const DEAD_ENTRIES: [&str; 2] = ["dead@10.77.0.201:7946", "10.77.0.202:7946"];

/// Time for which the lists name a dead node under [`Fault::Gone`].
const LISTED_DEAD: Duration = Duration::from_secs(1);

const LOSS_RULE: [&str; 8] = ["-m", "statistic", "--mode", "random", "--probability", "0.05", "-j", "DROP"];

/// State that is kept until the fault ends.
#[derive(Debug)]
pub(crate) enum Effect {
    Nothing,
    Impostor(Impostor),
    Memory(MemoryLimit),
    Descriptors(Rlimit),
}

impl Fault {
    /// All faults.
    pub const ALL: [Self; 18] = [
        Self::Kill,
        Self::Stop,
        Self::Restart,
        Self::Cut,
        Self::CutOneWay,
        Self::CutLink,
        Self::DeadEntry,
        Self::LateDiscovery,
        Self::EarlyDiscovery,
        Self::Gone,
        Self::PowerLoss,
        Self::Loss,
        Self::Delay,
        Self::Descriptors,
        Self::SilentPeer,
        Self::GarbagePeer,
        Self::LoaderStalls,
        Self::MemoryLimit,
    ];

    /// Returns the name of the fault on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Cut => "cut",
            Self::CutOneWay => "cut-one-way",
            Self::CutLink => "cut-link",
            Self::DeadEntry => "dead-entry",
            Self::LateDiscovery => "late-discovery",
            Self::EarlyDiscovery => "early-discovery",
            Self::Gone => "gone",
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

    /// Returns the fault of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.name() == name)
    }

    /// Returns whether each node stays connected to a living node that reaches all others, so that no node lacks a
    /// write for long.
    pub(crate) fn keeps_common_neighbours(self) -> bool {
        matches!(self, Self::Restart | Self::CutLink | Self::DeadEntry | Self::LateDiscovery | Self::EarlyDiscovery)
    }

    /// Applies the fault.
    ///
    /// # Errors
    /// The reason why this machine cannot have the fault.
    pub(crate) fn begin(self, cluster: &mut Cluster, victim: usize) -> Result<Effect, String> {
        let place = cluster.nodes[victim].place.clone();
        match self {
            Self::Kill => cluster.kill(victim),
            Self::Stop => cluster.signal(victim, Signal::STOP),
            Self::Restart => {
                terminate(cluster, victim);
                cluster.start_node(victim);
            }
            Self::Cut => host(&place)?.cut(),
            Self::CutOneWay => {
                let from = host(&place)?;
                others(cluster, victim).try_for_each(|other| host(other).map(|to| from.cut_to(to)))?;
            }
            Self::CutLink => {
                let (one, other) = link(cluster, victim);
                host(one)?.cut_to(host(other)?);
                host(other)?.cut_to(host(one)?);
            }
            Self::DeadEntry => {
                host(&place)?;
                list_dead(cluster, victim);
            }
            Self::LateDiscovery => {
                terminate(cluster, victim);
                forget(cluster, victim);
                cluster.start_node(victim);
            }
            Self::Gone => {
                cluster.kill(victim);
                sleep(LISTED_DEAD);
                forget(cluster, victim);
            }
            Self::EarlyDiscovery => {
                terminate(cluster, victim);
                cluster.start_with(victim, String::new());
            }
            Self::PowerLoss => {
                host(&place)?.cut();
                cluster.kill(victim);
            }
            Self::Loss => {
                for chain in ["INPUT", "OUTPUT"] {
                    let words = [&["iptables", "-A", chain][..], &LOSS_RULE].concat();
                    host(&place)?.run(&words).map_err(|why| format!("needs iptables with statistic: {why}"))?;
                }
            }
            Self::Delay => {
                let words = ["tc", "qdisc", "add", "dev", "eth0", "root", "netem", "delay", "50ms", "20ms"];
                host(&place)?.run(&words).map_err(|why| format!("needs netem in the kernel: {why}"))?;
            }
            Self::Descriptors => return Ok(exhaust(cluster, victim)),
            Self::SilentPeer => return Ok(replace(cluster, victim, Behaviour::Silent)),
            Self::GarbagePeer => return Ok(replace(cluster, victim, Behaviour::Garbage)),
            Self::LoaderStalls => cluster.send(victim, "loader stalls"),
            Self::MemoryLimit => {
                let limit = MemoryLimit::new(MEMORY_BYTES)?;
                cluster.kill(victim);
                cluster.start_node(victim);
                limit.holds(pid(cluster, victim));
                (0..NODES).for_each(|n| cluster.send(n, "values large"));
                return Ok(Effect::Memory(limit));
            }
        }
        Ok(Effect::Nothing)
    }

    /// Ends the fault, and returns a further fact about it, if there is one.
    pub(crate) fn end(self, cluster: &mut Cluster, victim: usize, effect: Effect) -> Option<String> {
        let place = cluster.nodes[victim].place.clone();
        match (self, effect) {
            (Self::Kill, _) => cluster.start_node(victim),
            (Self::Stop, _) => cluster.signal(victim, Signal::CONT),
            (Self::Cut, _) => place.host()?.heal(),
            (Self::CutOneWay, _) => {
                let from = place.host()?;
                others(cluster, victim).filter_map(Place::host).for_each(|to| from.heal_to(to));
            }
            (Self::CutLink, _) => {
                let (one, other) = link(cluster, victim);
                let (one, other) = (one.host()?, other.host()?);
                one.heal_to(other);
                other.heal_to(one);
            }
            (Self::DeadEntry | Self::LateDiscovery | Self::EarlyDiscovery | Self::Gone, _) => {
                if self == Self::Gone {
                    cluster.start_node(victim);
                }
                let list = cluster.list(None, &[]);
                (0..NODES).for_each(|n| cluster.send_list(n, &list));
            }
            (Self::PowerLoss, _) => {
                place.host()?.heal();
                cluster.start_node(victim);
            }
            (Self::Loss, _) => {
                for chain in ["INPUT", "OUTPUT"] {
                    place.host()?.run(&["iptables", "-F", chain]).expect("the rules are removed");
                }
            }
            (Self::Delay, _) => {
                place.host()?.run(&["tc", "qdisc", "del", "dev", "eth0", "root"]).expect("the delay is removed");
            }
            (Self::LoaderStalls, _) => cluster.send(victim, "loader works"),
            (_, Effect::Descriptors(before)) => {
                prlimit(Some(pid(cluster, victim)), Resource::Nofile, before).expect("the limit is lifted");
            }
            (_, Effect::Impostor(impostor)) => {
                let note = format!("{} connections to the impostor", impostor.accepted());
                drop(impostor);
                cluster.start_node(victim);
                return Some(note);
            }
            (_, Effect::Memory(limit)) => {
                (0..NODES).for_each(|n| cluster.send(n, "values small"));
                let (most, refused) = limit.usage();
                return Some(format!(
                    "peak memory {} MiB of {} MiB, reclaimed {refused} times by the kernel",
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

/// Returns the places of the node and of the next one.
fn link(cluster: &Cluster, victim: usize) -> (&Place, &Place) {
    (&cluster.nodes[victim].place, &cluster.nodes[(victim + 1) % NODES].place)
}

/// Adds the dead entries to all lists, while the processes run. A node starts again with them.
fn list_dead(cluster: &mut Cluster, n: usize) {
    let list = cluster.list(None, &DEAD_ENTRIES.map(str::to_owned));
    (0..NODES).filter(|other| *other != n).for_each(|other| cluster.send_list(other, &list));
    terminate(cluster, n);
    cluster.start_with(n, list);
}

/// Takes a node off the lists of the others.
fn forget(cluster: &mut Cluster, n: usize) {
    let list = cluster.list(Some(n), &[]);
    (0..NODES).filter(|other| *other != n).for_each(|other| cluster.send_list(other, &list));
}

/// Ends the process of a node with SIGTERM.
fn terminate(cluster: &mut Cluster, n: usize) {
    cluster.signal(n, Signal::TERM);
    let status = cluster.nodes[n].process.as_mut().map(|process| process.ends_within(END_LIMIT));
    let is_good = status.is_some_and(|status| status.success());
    assert!(is_good, "the process did not end well after SIGTERM: {status:?}");
}

fn pid(cluster: &Cluster, n: usize) -> Pid {
    cluster.nodes[n].process.as_ref().expect("the process runs").pid()
}

/// Limits the victim to the descriptors in use, then kills and restarts a peer for which the victim needs new ones.
fn exhaust(cluster: &mut Cluster, victim: usize) -> Effect {
    // The hard limit stays at the limit of this process, which the victim has inherited. A soft limit of 3 suffices,
    // because all lower numbers are in use.
    let limit = Rlimit { current: Some(3), maximum: getrlimit(Resource::Nofile).maximum };
    let before = prlimit(Some(pid(cluster, victim)), Resource::Nofile, limit).expect("the limit of descriptors is set");
    let next = (victim + 1) % NODES;
    cluster.kill(next);
    cluster.start_node(next);
    Effect::Descriptors(before)
}

fn replace(cluster: &mut Cluster, victim: usize, behaviour: Behaviour) -> Effect {
    cluster.kill(victim);
    let listener = cluster.nodes[victim].place.listen().expect("the port is free once the process has ended");
    Effect::Impostor(Impostor::new(listener, behaviour))
}
