//! Cluster: five processes, and the samples that they report.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use process::{Log, Process, Scratch, Signal, Start, free_ports};
use segment::{Families, Segment};

use crate::{
    Sample,
    host::{Place, descriptors, resident_kib},
};

/// Number of processes.
pub const NODES: usize = 5;

/// Five processes under load, ended when the cluster is dropped.
#[derive(Debug)]
pub struct Cluster {
    program: PathBuf,
    scratch: Scratch,
    rate: u64,
    bound: Duration,
    pub(crate) nodes: Vec<Node>,
}

/// A node, with the samples and the log of all its processes.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) place: Place,
    /// Current process, if one runs.
    pub(crate) process: Option<Process>,
    samples: Arc<Mutex<Vec<Sample>>>,
    errors: Log,
}

/// Memory and descriptors of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Resources {
    pub(crate) resident_kib: u64,
    pub(crate) descriptors: usize,
}

impl Cluster {
    /// Starts the processes, each with `rate` gets per second of its own, and with a group of this bound on staleness.
    pub fn start(program: &Path, directory: &Path, rate: u64, bound: Duration) -> Self {
        let segment = Segment::of(NODES as u8, Families::V4).map(Arc::new);
        let first = free_ports(NODES as u16);
        let place = |n: usize| match &segment {
            Some(segment) => Place::Host(Arc::clone(segment), n),
            None => Place::Port(first + n as u16),
        };
        let node = |n| Node {
            name: format!("n{}", n + 1),
            place: place(n),
            process: None,
            samples: Arc::default(),
            errors: Log::default(),
        };
        let nodes = (0..NODES).map(node).collect();
        let scratch = Scratch::new(directory, "chaos");
        let mut cluster = Self { program: program.to_owned(), scratch, rate, bound, nodes };
        (0..NODES).for_each(|n| cluster.start_node(n));
        cluster
    }

    /// Returns the list of all nodes but `left_out`, with the entries `more`, as a provider of a list reads it.
    pub(crate) fn list(&self, left_out: Option<usize>, more: &[String]) -> String {
        let listed = self.nodes.iter().enumerate().filter(|(n, _)| left_out != Some(*n));
        let entries = listed.map(|(_, node)| format!("{}@{}", node.name, node.place.address()));
        entries.chain(more.iter().cloned()).collect::<Vec<_>>().join(",")
    }

    /// Gives the node another list of peers.
    pub(crate) fn send_list(&mut self, n: usize, list: &str) {
        self.send(n, &format!("peers {list}"));
    }

    /// Starts the process of a node with the list of all nodes, for the first time or again.
    pub(crate) fn start_node(&mut self, n: usize) {
        self.start_with(n, self.list(None, &[]));
    }

    /// Starts the process of a node with a list of peers.
    pub(crate) fn start_with(&mut self, n: usize, peers: String) {
        let node = &mut self.nodes[n];
        let address = node.place.address();
        let vars = [
            ("NODE_NAME", node.name.clone()),
            ("NODE_IP", address.ip().to_string()),
            ("GROUP_PORT", address.port().to_string()),
            ("GROUPCACHE_INSECURE", "1".into()), // no other host is on this network
            ("NUMBER", n.to_string()),
            ("PEERS", peers),
            ("FLOORS", self.scratch.path("floors")),
            ("VERSIONS", self.scratch.path("versions")),
            ("BOUND", self.bound.as_secs().to_string()),
        ];
        let samples = Arc::clone(&node.samples);
        let reads = move |line: &str| match serde_json::from_str(line) {
            Ok(sample) => {
                samples.lock().unwrap().push(sample);
                false
            }
            Err(_) => true,
        };
        let start = Start::command(node.place.command(&self.program));
        let start = start.vars(vars.iter().map(|(name, value)| (*name, value.as_str())));
        let mut process = start.out(&node.errors).one_log().listens().reads(reads).spawn();
        process.tell(&format!("rate {}", self.rate));
        node.process = Some(process);
    }

    /// Kills the process of a node.
    pub(crate) fn kill(&mut self, n: usize) {
        self.nodes[n].process = None;
    }

    pub(crate) fn signal(&self, n: usize, signal: Signal) {
        if let Some(process) = &self.nodes[n].process {
            process.signal(signal);
        }
    }

    /// Sends a line to the standard input of a node's process.
    pub(crate) fn send(&mut self, n: usize, line: &str) {
        let sent = self.nodes[n].process.as_mut().is_some_and(|process| process.tell(line));
        assert!(sent, "{} does not read its standard input: {:#?}", self.nodes[n].name, self.nodes[n].errors.lines());
    }

    /// Turns the load on or off.
    pub(crate) fn set_load(&mut self, is_on: bool) {
        let rate = if is_on { self.rate } else { 0 };
        (0..NODES).for_each(|n| self.send(n, &format!("rate {rate}")));
    }

    /// Returns the nodes with a process that ended without a fault, each with the last lines of its log.
    pub(crate) fn ended_processes(&mut self) -> Vec<String> {
        let ended = self.nodes.iter_mut().filter_map(|node| {
            let has_ended = !node.process.as_mut()?.is_running();
            has_ended.then(|| {
                format!(
                    "{} ended without a fault: {:?}",
                    node.name,
                    node.errors.lines().iter().rev().take(5).collect::<Vec<_>>()
                )
            })
        });
        ended.collect()
    }

    /// Returns all samples of a node, including those of its earlier processes.
    pub(crate) fn samples(&self, n: usize) -> Vec<Sample> {
        self.nodes[n].samples.lock().unwrap().clone()
    }

    /// Returns the last sample of a node after this time.
    pub(crate) fn last(&self, n: usize, after: u64) -> Option<Sample> {
        self.recent(n, after, 1).pop()
    }

    /// Returns the last samples of a node after this time, the latest first and at most `most`.
    pub(crate) fn recent(&self, n: usize, after: u64, most: usize) -> Vec<Sample> {
        let samples = self.nodes[n].samples.lock().unwrap();
        samples.iter().rev().take_while(|sample| sample.at > after).take(most).cloned().collect()
    }

    /// Returns the memory and the descriptors of a node's process, or zeros if no process runs.
    pub(crate) fn resources(&self, n: usize) -> Resources {
        let Some(process) = &self.nodes[n].process else { return Resources::default() };
        Resources { resident_kib: resident_kib(process.pid()), descriptors: descriptors(process.pid()) }
    }
}
