use super::*;
use crate::{
    identity::Incarnation,
    protocol::message::GroupName,
    testing::unit::hello,
    write::{knowledge::SentKnowledge, log::Entry},
};

/// Time that is far enough from zero for every age.
const BEGINNING_MS: u64 = 1 << 32;

fn instance(id: &str) -> Instance {
    Instance { id: PeerId::new(id).unwrap(), incarnation: Incarnation(1) }
}

fn hello_of(id: &str, bounds: Bounds) -> Hello {
    let group = GroupName { index: 1, name: "users".into(), format: 0, bounds };
    let (features, log_incarnation) = (features::WRITE_LOG, Incarnation(1));
    Hello { groups: vec![group], features, log_incarnation, ..hello(id) }
}

/// Nodes that exchange knowledge without a network, and the links between them.
struct Net {
    ids: Vec<&'static str>,
    nodes: Vec<Writes>,
    /// Knowledge that a node has shown to another, by the indices of both.
    sent: BTreeMap<(usize, usize), SentKnowledge>,
    now_ms: u64,
}

impl Net {
    /// Makes nodes that list one another, and connects these pairs.
    fn new(ids: &[&'static str], links: &[(usize, usize)]) -> Self {
        let node = |id: &&str| Writes::new(instance(id), BEGINNING_MS, Arc::default());
        let nodes = ids.iter().map(node).collect();
        let mut net = Self { ids: ids.to_vec(), nodes, sent: BTreeMap::new(), now_ms: BEGINNING_MS };
        links.iter().for_each(|(a, b)| net.connect(*a, *b, Bounds::default()));
        net.list_all();
        net
    }

    fn connect(&mut self, a: usize, b: usize, bounds: Bounds) {
        for (a, b) in [(a, b), (b, a)] {
            self.nodes[a].greeted(&hello_of(self.ids[b], bounds), true, self.now_ms);
        }
    }

    fn list_all(&self) {
        let all: BTreeSet<PeerId> = self.ids.iter().map(|id| PeerId::new(id).unwrap()).collect();
        for (node, id) in self.nodes.iter().zip(&self.ids) {
            let others = all.iter().filter(|other| other.as_str() != *id).cloned().collect();
            node.listed(&others, false, self.now_ms);
        }
    }

    fn wait(&mut self, ms: u64) {
        self.now_ms += ms;
    }

    /// Sends a ping, and the pong that answers it. A ping without earlier ones is the first of its connection.
    fn ping(&mut self, from: usize, to: usize) {
        let is_first = !self.sent.contains_key(&(from, to));
        let (a, b) = (instance(self.ids[from]), instance(self.ids[to]));
        let sent = self.sent.entry((from, to)).or_default();
        let mut ping = self.nodes[from].knowledge_for(&b.id, sent, None, self.now_ms);
        let asked = std::mem::take(&mut ping.asked);
        self.nodes[to].shown(&a, ping, None, self.now_ms);
        let sent = self.sent.entry((to, from)).or_default();
        let pong = self.nodes[to].knowledge_for(&a.id, sent, Some(&asked), self.now_ms);
        self.nodes[from].shown(&b, pong, Some((self.now_ms, is_first)), self.now_ms);
    }

    /// Runs the pulls of a node that are due, from the nodes that `can_ask` accepts.
    fn pull(&self, at: usize, can_ask: &[usize]) {
        let node = &self.nodes[at];
        let reachable = can_ask.iter().map(|other| PeerId::new(self.ids[*other]).unwrap()).collect();
        for pull in node.due_pulls(self.now_ms, &reachable) {
            let from = self.ids.iter().position(|id| *id == pull.from.as_str()).unwrap();
            for part in self.nodes[from].parts(&pull.after, self.now_ms) {
                for entry in &part.entries {
                    self.apply(at, &part.writer, entry.number);
                }
                node.reach(&part.writer, part.through, self.now_ms);
            }
            node.pulled(&pull, self.now_ms);
        }
    }

    fn write(&self, at: usize) -> Arc<Settling> {
        self.nodes[at].append(&"users".into(), Some(&"key".into()), self.now_ms)
    }

    fn apply(&self, at: usize, writer: &Instance, number: u64) {
        let entry = Entry { number, group: "users".into(), key: Some("key".into()), written_ms: self.now_ms };
        if let Some(entry) = self.nodes[at].begin(writer, entry, self.now_ms) {
            self.nodes[at].commit(writer, entry, self.now_ms);
        }
    }

    fn pending(&self, at: usize, settling: &Settling) -> Vec<String> {
        let pending = self.nodes[at].pending(settling.number);
        pending.iter().map(ToString::to_string).collect()
    }

    /// Returns the milliseconds that the horizon of a node is behind.
    fn behind(&self, at: usize) -> u64 {
        self.now_ms - self.nodes[at].horizon_ms()
    }
}

/// Checks that a write settles at a node that its writer cannot reach: the node asks a third one for the write, and the
/// third one passes the acknowledgement on.
#[test]
fn write_settles_by_way_of_a_third_node() {
    let mut net = Net::new(&["w", "r", "x"], &[(0, 1), (1, 2), (0, 2)]);
    for node in [0, 2] {
        net.nodes[node].disconnected(&instance(net.ids[2 - node]), net.now_ms);
    }
    for (from, to) in [(0, 1), (2, 1), (1, 2), (1, 0)] {
        net.ping(from, to);
    }
    let write = net.write(0);
    net.apply(1, &instance("w"), 1);
    net.nodes[0].acknowledged(&instance("r"), 1);
    assert_eq!(net.pending(0, &write), ["x"]);
    net.wait(1000);
    net.ping(2, 1);
    net.pull(2, &[1]);
    assert_eq!(net.nodes[2].position(&instance("w")), 0, "the writer has its time to send the write itself");
    net.wait(100);
    net.pull(2, &[1]);
    assert_eq!(net.nodes[2].position(&instance("w")), 1);
    net.ping(2, 1);
    assert_eq!(net.pending(0, &write), ["x"]);
    net.ping(0, 1);
    assert!(net.pending(0, &write).is_empty() && write.is_settled());
}

/// Checks that a node asks a third one for a write that its connected writer has shown to that one only, before the
/// writer died. The pong of the third node does not count before.
#[test]
fn write_told_to_one_node_reaches_the_others() {
    let mut net = Net::new(&["w", "r", "x"], &[(0, 1), (1, 2), (0, 2)]);
    for (from, to) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
        net.ping(from, to);
    }
    let _first = net.write(0);
    (1..=2).for_each(|at| net.apply(at, &instance("w"), 1));
    net.ping(2, 0);
    let _second = net.write(0);
    net.apply(1, &instance("w"), 2);
    net.wait(1000);
    net.ping(2, 1);
    net.nodes[2].said_goodbye(&instance("w"), net.now_ms);
    net.nodes[1].said_goodbye(&instance("w"), net.now_ms);
    net.wait(1);
    net.ping(2, 1);
    assert_eq!(net.behind(2), 1001, "x lacks the write that r has shown");
    net.wait(100);
    net.pull(2, &[1]);
    assert_eq!((net.nodes[2].position(&instance("w")), net.behind(2)), (2, 100));
}

/// Checks that a node that only a peer knows must acknowledge too, whether the peer acknowledges itself or another node
/// passes its acknowledgement on.
#[test]
fn company_of_an_acknowledgement_must_acknowledge() {
    let mut net = Net::new(&["w", "r", "x"], &[(0, 1), (1, 2)]);
    net.ping(1, 0);
    let write = net.write(0);
    net.apply(1, &instance("w"), 1);
    net.nodes[0].acknowledged(&instance("r"), 1);
    assert_eq!(net.pending(0, &write), ["x"], "r has shown x with its positions");
    net.ping(2, 1);
    net.wait(100);
    net.pull(2, &[1]);
    net.ping(2, 1);
    net.wait(1000);
    net.ping(0, 1);
    assert!(write.is_settled());
}

/// Checks that a silent peer ends a write by the bounds of its group, and by the staleness only if its discovery listed
/// the writer.
#[test]
fn bounds_of_a_silent_peer_settle_a_write() {
    let bounds = Bounds { longest_ms: Some(60_000), max_staleness_ms: Some(10_000) };
    for lists_writer in [true, false] {
        let mut net = Net::new(&["w", "x"], &[]);
        net.connect(0, 1, bounds);
        net.list_all();
        if !lists_writer {
            net.nodes[1].listed(&BTreeSet::new(), false, net.now_ms);
        }
        net.ping(0, 1);
        net.nodes[0].disconnected(&instance("x"), net.now_ms);
        let write = net.write(0);
        let settled_after = |net: &mut Net, ms: u64| {
            net.wait(ms);
            net.nodes[0].settle_by_time(net.now_ms);
            write.is_settled()
        };
        assert!(!settled_after(&mut net, 10_200));
        assert_eq!(settled_after(&mut net, 1), lists_writer);
        assert!(lists_writer || !settled_after(&mut net, 50_999));
        assert!(settled_after(&mut net, 1));
    }
}

/// Checks that a pong moves the horizon to the departure of its ping, once this node has applied what the pong shows,
/// and only if both nodes have one company.
#[test]
fn pong_moves_horizon_once_its_entries_are_applied() {
    let mut net = Net::new(&["p", "q", "w"], &[(0, 1), (1, 2), (0, 2)]);
    for (from, to) in [(1, 0), (1, 2), (2, 0), (2, 1), (0, 1), (0, 2)] {
        net.ping(from, to);
    }
    net.wait(1000);
    let _write = net.write(2);
    net.apply(1, &instance("w"), 1);
    net.ping(0, 2);
    net.ping(0, 1);
    assert_eq!(net.behind(0), 1000, "p lacks the write that both have shown");
    net.wait(100);
    net.pull(0, &[1, 2]);
    assert_eq!(net.behind(0), 100);

    net.nodes[1].greeted(&hello_of("unlisted", Bounds::default()), true, net.now_ms);
    net.wait(1000);
    net.ping(0, 2);
    net.ping(0, 1);
    assert_eq!(net.behind(0), 1100, "q has another company");
    net.nodes[0].said_goodbye(&instance("q"), net.now_ms);
    net.ping(0, 2);
    assert_eq!(net.behind(0), 1100, "w knows q still");
    net.nodes[2].said_goodbye(&instance("q"), net.now_ms);
    net.wait(1);
    net.ping(0, 2);
    assert_eq!(net.behind(0), 0, "w was heard since q has left");
}

/// Checks that a value of another node is vouched for once every node was heard since the last one entered.
#[test]
fn horizon_vouches_for_others_once_all_were_heard() {
    let mut net = Net::new(&["p", "q"], &[]);
    net.wait(10);
    net.connect(0, 1, Bounds::default());
    net.list_all();
    net.ping(1, 0);
    assert!(!net.nodes[0].vouches_for_others());
    net.wait(1);
    net.ping(0, 1);
    assert!(net.nodes[0].vouches_for_others());
}

/// Checks that an entry after a gap is applied at once, that the position waits, and that the gap is asked for.
#[test]
fn gap_in_a_log_is_asked_for() {
    let mut net = Net::new(&["w", "x"], &[(0, 1)]);
    net.ping(1, 0);
    (0..3).for_each(|_| drop(net.write(0)));
    net.apply(1, &instance("w"), 1);
    net.apply(1, &instance("w"), 3);
    assert_eq!(net.nodes[1].position(&instance("w")), 1);
    net.wait(1000);
    net.ping(1, 0);
    net.wait(100);
    net.pull(1, &[0]);
    assert_eq!(net.nodes[1].position(&instance("w")), 3);
}

/// Checks that a request to a peer that has said everything names nothing, without a look into the logs.
#[test]
fn request_to_a_level_peer_names_nothing() {
    let mut net = Net::new(&["p", "q"], &[(0, 1)]);
    let (level, q) = (AtomicU64::new(0), instance("q"));
    let names = |net: &Net, key: &str| net.nodes[0].names_for(&q, &level, "users", key).len();
    net.apply(0, &instance("w"), 1);
    assert_eq!((names(&net, "key"), names(&net, "other")), (1, 0));
    net.apply(1, &instance("w"), 1);
    net.ping(0, 1);
    assert_eq!(names(&net, "key"), 0);
    let announced = level.load(Relaxed);
    assert!(announced > 0, "the peer is level");
    net.apply(0, &instance("w"), 2);
    assert_eq!((names(&net, "key"), level.load(Relaxed)), (1, announced));
}
