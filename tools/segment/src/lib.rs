//! Segment: a network segment for tests, made of namespaces joined by a bridge, each of which can be disconnected.
//!
//! A segment needs Linux, root and iproute2 (`make deps` installs iproute2). Where one of them is missing,
//! [`Segment::of`] returns `None` and prints a line that `tools/test` counts as a test that was left out.

mod left_out;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

pub use left_out::leave_out;

/// Address families of the hosts of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only; IPv6 is disabled.
    V4,
    /// IPv6 only.
    V6,
    /// IPv4 and IPv6.
    Both,
}

/// Hosts on one segment. Dropping the segment removes everything, also when a test panics.
#[derive(Debug)]
pub struct Segment {
    switch: Namespace,
    hosts: Vec<Host>,
}

/// A host: a network namespace with loopback and an `eth0`.
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
    /// Creates a segment with this number of hosts. Prints the reason and returns `None` where the machine cannot have
    /// one.
    ///
    /// # Panics
    /// If the machine can have segments but this one cannot be made.
    pub fn of(hosts: u8, families: Families) -> Option<Self> {
        if let Some(why) = left_out::reason() {
            leave_out(why);
            return None;
        }
        Some(Self::make(hosts, families).unwrap_or_else(|why| panic!("cannot make the segment: {why}")))
    }

    fn make(hosts: u8, families: Families) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Unique on this machine, and short. The process id lets a later process find the leftovers of a killed one.
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

    /// Returns the hosts.
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
            // Without duplicate address detection, which takes a second, addresses are usable at once.
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
            // Addresses are replaced and not added, because IPv4 addresses survive an interface that goes down.
            let text = format!("{address}/{bits}");
            let words = ["-n", name, "address", "replace", &text, "dev", "eth0"];
            ip(&[&words[..], nodad].concat())?;
        }
        Ok(())
    }

    fn port(&self) -> String {
        format!("port{}", self.number)
    }

    /// Returns the addresses of the host on the segment, IPv4 first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let v4 = IpAddr::V4(Ipv4Addr::new(10, 77, 0, self.number));
        let v6 = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(self.number)));
        match self.families {
            Families::V4 => vec![v4],
            Families::V6 => vec![v6],
            Families::Both => vec![v4, v6],
        }
    }

    /// Returns the first address of the host.
    pub fn address(&self) -> IpAddr {
        self.addresses()[0]
    }

    /// Returns a command that runs a program on this host. The spawned process becomes the program itself.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace.0]).arg(program).stdin(Stdio::null());
        command
    }

    /// Runs `work` on this host, on a new thread. Threads that `work` starts run on the host too.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.namespace.0);
        let entered = || {
            enter(&path).unwrap_or_else(|e| panic!("{path} cannot be entered: {e}"));
            work()
        };
        let done = std::thread::scope(|scope| scope.spawn(entered).join());
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs `ip` on this host, for example to change addresses: `["address", "add", "10.77.0.9/24", "dev", "eth0"]`.
    pub fn ip(&self, words: &[&str]) {
        run(&[&["-n", &self.namespace.0], words].concat());
    }

    /// Takes the interface down, like a pulled cable.
    pub fn down(&self) {
        run(&["-n", &self.namespace.0, "link", "set", "eth0", "down"]);
    }

    /// Takes the interface up again, with its addresses.
    pub fn up(&self) {
        self.give_addresses().unwrap_or_else(|why| panic!("{why}"));
    }

    /// Disconnects the host. The interface stays up, and no packet passes.
    pub fn cut(&self) {
        run(&["-n", &self.switch, "link", "set", &self.port(), "nomaster"]);
    }

    /// Reconnects the host.
    pub fn heal(&self) {
        run(&["-n", &self.switch, "link", "set", &self.port(), "master", "br0"]);
    }

    /// Drops packets from this host to the other one. Packets in the other direction still pass.
    pub fn cut_to(&self, other: &Host) {
        // No host has this hardware address, so the bridge sends the packets to all hosts, and all of them drop the
        // packets.
        for address in other.addresses() {
            let address = address.to_string();
            let station = ["lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud", "permanent"];
            self.ip(&[&["neigh", "replace", &address][..], &station].concat());
        }
    }

    /// Delivers packets from this host to the other one again.
    pub fn heal_to(&self, other: &Host) {
        for address in other.addresses() {
            self.ip(&["neigh", "del", &address.to_string(), "dev", "eth0"]);
        }
    }

    /// Runs a program on this host and waits for its end.
    ///
    /// # Errors
    /// Returns the standard error of the program if the program fails.
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
        // Deleting the namespace deletes its interfaces and the other ends of its veth pairs.
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

/// Returns an error, because only Linux has network namespaces.
#[cfg(not(target_os = "linux"))]
fn enter(_: &str) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

fn run(words: &[&str]) {
    ip(words).unwrap_or_else(|why| panic!("{why}"));
}

fn ip(words: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("cannot run ip: {e}; make deps installs it"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
    }
}
