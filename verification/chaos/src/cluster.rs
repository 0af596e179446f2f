//! Five processes, and what they say of themselves.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use process::{Log, Process, Scratch, Signal, Start, free_ports};
use segment::{Families, Segment};

use crate::{
    Sample,
    host::{Place, descriptors, resident_kib},
};

/// How many processes there are.
pub const NODES: usize = 5;

/// Five processes under load; ended when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    program: PathBuf,
    scratch: Scratch,
    rate: u64,
    pub(crate) nodes: Vec<Node>,
}

/// One of them, in all its lives.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) place: Place,
    /// `None` while there is none.
    pub(crate) process: Option<Process>,
    samples: Arc<Mutex<Vec<Sample>>>,
    errors: Log,
}

/// What a node has of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Held {
    pub(crate) resident_kib: u64,
    pub(crate) descriptors: usize,
}

impl Cluster {
    /// Starts them, each with so many gets per second of its own.
    pub fn start(program: &Path, directory: &Path, rate: u64) -> Self {
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
        let mut cluster = Self { program: program.to_owned(), scratch, rate, nodes };
        (0..NODES).for_each(|n| cluster.begin(n));
        cluster
    }

    /// Starts one, for the first time or again.
    pub(crate) fn begin(&mut self, n: usize) {
        let of = |node: &Node| format!("{}@{}", node.name, node.place.address());
        let peers: Vec<_> = self.nodes.iter().map(of).collect();
        let node = &mut self.nodes[n];
        let (address, floors) = (node.place.address(), self.scratch.path("floors"));
        let vars = [
            ("NODE_NAME", node.name.clone()),
            ("NODE_IP", address.ip().to_string()),
            ("GROUP_PORT", address.port().to_string()),
            ("GROUPCACHE_INSECURE", "1".into()), // nobody else is on this network
            ("NUMBER", n.to_string()),
            ("PEERS", peers.join(",")),
            ("FLOORS", floors),
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

    /// Ends one at once.
    pub(crate) fn kill(&mut self, n: usize) {
        self.nodes[n].process = None;
    }

    pub(crate) fn signal(&self, n: usize, signal: Signal) {
        if let Some(process) = &self.nodes[n].process {
            process.signal(signal);
        }
    }

    /// Says something to one of them.
    pub(crate) fn tell(&mut self, n: usize, line: &str) {
        let told = self.nodes[n].process.as_mut().is_some_and(|process| process.tell(line));
        assert!(told, "{} does not listen: {:#?}", self.nodes[n].name, self.nodes[n].errors.lines());
    }

    /// Whether the load is on.
    pub(crate) fn has_load(&mut self, is_on: bool) {
        let rate = if is_on { self.rate } else { 0 };
        (0..NODES).for_each(|n| self.tell(n, &format!("rate {rate}")));
    }

    /// Those whose process has ended by itself, with what they wrote.
    pub(crate) fn ended(&mut self) -> Vec<String> {
        let ended = self.nodes.iter_mut().filter_map(|node| {
            let has_ended = !node.process.as_mut()?.is_running();
            has_ended.then(|| {
                format!(
                    "{} ended by itself: {:?}",
                    node.name,
                    node.errors.lines().iter().rev().take(5).collect::<Vec<_>>()
                )
            })
        });
        ended.collect()
    }

    /// What one says, now and in its lives before.
    pub(crate) fn samples(&self, n: usize) -> Vec<Sample> {
        self.nodes[n].samples.lock().unwrap().clone()
    }

    /// The last that it said after this time.
    pub(crate) fn last(&self, n: usize, after: u64) -> Option<Sample> {
        self.recent(n, after, 1).pop()
    }

    /// So many of the last that it said after this time, the latest first.
    pub(crate) fn recent(&self, n: usize, after: u64, most: usize) -> Vec<Sample> {
        let samples = self.nodes[n].samples.lock().unwrap();
        samples.iter().rev().take_while(|sample| sample.at > after).take(most).cloned().collect()
    }

    /// What one has of the machine.
    pub(crate) fn held(&self, n: usize) -> Held {
        let Some(process) = &self.nodes[n].process else { return Held::default() };
        Held { resident_kib: resident_kib(process.pid()), descriptors: descriptors(process.pid()) }
    }
}
