//! A network segment for tests: namespaces joined by a bridge, each of which can be cut off.
//!
//! It wants Linux, root and iproute2 (`make deps` installs it). Where it cannot be had, [`Segment::of`] prints what
//! `tools/test` reads as a test that was left out, with the reason, and gives none.

mod left_out;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

pub use left_out::leave_out;

/// Which addresses the hosts of a segment have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4, and no IPv6 at all.
    V4,
    /// IPv6, and no IPv4.
    V6,
    /// Both.
    Both,
}

/// Hosts on one segment; everything is removed when it is dropped, also by a test that panics.
#[derive(Debug)]
pub struct Segment {
    switch: Namespace,
    hosts: Vec<Host>,
}

/// One host: a network namespace with a loopback and an `eth0`.
#[derive(Debug)]
pub struct Host {
    namespace: Namespace,
    number: u8,
    families: Families,
    switch: String,
}

#[derive(Debug)]
struct Namespace(String);

impl Segment {
    /// So many hosts on one segment; `None`, and a line that says why, where there can be none.
    pub fn of(hosts: u8, families: Families) -> Option<Self> {
        if let Some(why) = left_out::reason() {
            leave_out(why);
            return None;
        }
        Some(Self::make(hosts, families).unwrap_or_else(|why| panic!("the segment cannot be made: {why}")))
    }

    fn make(hosts: u8, families: Families) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Unique on this machine, and short: what is left of a process that was killed can be told by its number.
        let name = format!("{}{}-{}", left_out::PREFIX, std::process::id(), NEXT.fetch_add(1, Relaxed));
        let switch = Namespace::new(format!("{name}-sw"))?;
        ip(&["-n", &switch.0, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &switch.0, "link", "set", "br0", "up"])?;
        let mut segment = Self { switch, hosts: Vec::new() };
        for number in 1..=hosts {
            let namespace = Namespace::new(format!("{name}-{number}"))?;
            let host = Host { namespace, number, families, switch: segment.switch.0.clone() };
            host.connect()?;
            segment.hosts.push(host);
        }
        Ok(segment)
    }

    /// The hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }
}

impl Host {
    fn connect(&self) -> Result<(), String> {
        let (name, port) = (&self.namespace.0, self.port());
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        let end = ["-n", &self.switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", name];
        ip(&end)?;
        if self.families == Families::V4 {
            self.enter(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"))
                .map_err(|e| e.to_string())?;
        } else {
            // Addresses are there at once, instead of after a second in which they are tested.
            self.enter(|| std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0")).map_err(|e| e.to_string())?;
        }
        self.give_addresses()?;
        ip(&["-n", &self.switch, "link", "set", &port, "master", "br0", "up"])
    }

    fn give_addresses(&self) -> Result<(), String> {
        let name = &self.namespace.0;
        ip(&["-n", name, "link", "set", "eth0", "up"])?;
        for address in self.addresses() {
            let (bits, nodad) = if address.is_ipv4() { (24, &[][..]) } else { (64, &["nodad"][..]) };
            // Replaced, not added: those of IPv4 outlive an interface that is down.
            let text = format!("{address}/{bits}");
            let words = ["-n", name, "address", "replace", &text, "dev", "eth0"];
            ip(&[&words[..], nodad].concat())?;
        }
        Ok(())
    }

    fn port(&self) -> String {
        format!("port{}", self.number)
    }

    /// Its addresses on the segment, IPv4 first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let v4 = IpAddr::V4(Ipv4Addr::new(10, 77, 0, self.number));
        let v6 = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(self.number)));
        match self.families {
            Families::V4 => vec![v4],
            Families::V6 => vec![v6],
            Families::Both => vec![v4, v6],
        }
    }

    /// The first of its addresses.
    pub fn address(&self) -> IpAddr {
        self.addresses()[0]
    }

    /// A program that will run on this host. Its process is the program itself.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace.0]).arg(program).stdin(Stdio::null());
        command
    }

    /// Does something on this host, on a thread of its own; threads that this one begins are on the host, too.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.namespace.0);
        let entered = || {
            enter(&path).unwrap_or_else(|e| panic!("{path} cannot be entered: {e}"));
            work()
        };
        let done = std::thread::scope(|scope| scope.spawn(entered).join());
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Gives the interface more addresses, or takes some: `["address", "add", "10.77.0.9/24", "dev", "eth0"]`.
    pub fn ip(&self, words: &[&str]) {
        run(&[&["-n", &self.namespace.0], words].concat());
    }

    /// Takes the interface down, as a cable that is pulled out does.
    pub fn down(&self) {
        run(&["-n", &self.namespace.0, "link", "set", "eth0", "down"]);
    }

    /// Takes it up again, with its addresses.
    pub fn up(&self) {
        self.give_addresses().unwrap_or_else(|why| panic!("{why}"));
    }

    /// Cuts the host off: its interface stays up, and nothing gets through.
    pub fn cut(&self) {
        run(&["-n", &self.switch, "link", "set", &self.port(), "nomaster"]);
    }

    /// Ends the cut.
    pub fn heal(&self) {
        run(&["-n", &self.switch, "link", "set", &self.port(), "master", "br0"]);
    }

    /// Cuts one way: what this host sends to the other one vanishes, what it receives from there does not.
    pub fn cut_to(&self, other: &Host) {
        // A station that nobody is: the bridge hands the packets to everyone, and everyone drops them.
        for address in other.addresses() {
            let address = address.to_string();
            let station = ["lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud", "permanent"];
            self.ip(&[&["neigh", "replace", &address][..], &station].concat());
        }
    }

    /// Ends the cut to that host.
    pub fn heal_to(&self, other: &Host) {
        for address in other.addresses() {
            self.ip(&["neigh", "del", &address.to_string(), "dev", "eth0"]);
        }
    }

    /// Runs a program on this host to its end.
    ///
    /// # Errors
    /// What it wrote to standard error, when it does not end well.
    pub fn run(&self, words: &[&str]) -> Result<(), String> {
        let (program, arguments) = words.split_first().ok_or("no program")?;
        let output = self.command(program).args(arguments).output().map_err(|e| format!("{program}: {e}"))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("{}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
        }
    }
}

impl Namespace {
    fn new(name: String) -> Result<Self, String> {
        ip(&["netns", "add", &name])?;
        Ok(Self(name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Its interfaces go with it, and their other ends with them.
        let _ = ip(&["netns", "delete", &self.0]);
    }
}

/// Moves this thread into the namespace.
#[cfg(target_os = "linux")]
fn enter(path: &str) -> std::io::Result<()> {
    use std::os::fd::AsFd;

    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

    let namespace = std::fs::File::open(path)?;
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// There is no segment to enter.
#[cfg(not(target_os = "linux"))]
fn enter(_: &str) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

fn run(words: &[&str]) {
    ip(words).unwrap_or_else(|why| panic!("{why}"));
}

fn ip(words: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("ip, which make deps installs: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
    }
}
