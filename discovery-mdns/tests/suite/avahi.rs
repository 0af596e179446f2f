//! Interoperation with avahi, which most Linux machines run: each side finds the services of the other, on two hosts
//! and on one.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use discovery_mdns::Mdns;
use groupcache_core::{conformance::Bench, discovery::Health};
use segment::{Families, Host, Segment};

use crate::support::PATIENCE;

/// Process that is killed on drop.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An avahi-daemon on a host, with a D-Bus of its own, so that the ones of this machine are not touched.
struct Avahi<'a> {
    host: &'a Host,
    scratch: PathBuf,
    processes: Vec<Process>,
}

impl<'a> Avahi<'a> {
    /// Starts avahi on the host. Prints a line and returns `None` where a program of it is not installed.
    fn on(host: &'a Host, name: &str) -> Option<Self> {
        let is_there = |name: &&str| ["/usr/sbin", "/usr/bin"].iter().any(|dir| Path::new(dir).join(name).exists());
        let missing =
            ["avahi-daemon", "avahi-browse", "avahi-publish", "dbus-daemon"].into_iter().find(|name| !is_there(name));
        if let Some(missing) = missing {
            segment::leave_out(&format!("needs {missing}: make deps"));
            return None;
        }
        let scratch = std::env::temp_dir().join(format!("groupcache-avahi-{}-{name}", std::process::id()));
        fs::create_dir_all(&scratch).unwrap();
        let mut avahi = Self { host, scratch, processes: Vec::new() };
        avahi.start();
        Some(avahi)
    }

    fn start(&mut self) {
        let bus = self.write(
            "bus.conf",
            &format!(
                "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
                 \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\"><busconfig><type>system</type>\
                 <listen>{}</listen><auth>EXTERNAL</auth><policy context=\"default\"><allow send_destination=\"*\" \
                 eavesdrop=\"true\"/><allow own=\"*\"/><allow receive_sender=\"*\"/></policy></busconfig>",
                self.bus()
            ),
        );
        let dbus = format!("dbus-daemon --nofork --nopidfile --config-file={}", bus.display());
        self.spawn(&dbus);
        let socket = self.scratch.join("bus");
        eventually("the socket of the bus exists", || socket.exists());
        let config = "[server]\nuse-ipv4=yes\nuse-ipv6=yes\nallow-interfaces=eth0\nenable-dbus=yes\n[publish]\n[wide-area]\n\
                      enable-wide-area=no\n";
        let config = self.write("avahi.conf", config);
        // The daemon keeps its files in /run, so this process gets a /run of its own.
        let daemon = format!(
            "mount -t tmpfs tmpfs /run && exec avahi-daemon -f {} --no-drop-root --no-chroot --no-rlimits",
            config.display()
        );
        self.spawn(&format!("unshare -m sh -c '{daemon}'"));
        eventually("avahi answers", || self.run("avahi-browse -at").is_some());
    }

    fn bus(&self) -> String {
        format!("unix:path={}", self.scratch.join("bus").display())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.scratch.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Returns a shell command on the host. The shell is replaced by the named program.
    fn command(&self, line: &str) -> Command {
        let mut command = self.host.command("sh");
        command.args(["-c", &format!("exec {line}")]).env("DBUS_SYSTEM_BUS_ADDRESS", self.bus());
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stderr(Stdio::null());
        command
    }

    fn spawn(&mut self, line: &str) {
        let child = self.command(line).stdout(Stdio::null()).spawn().unwrap();
        self.processes.push(Process(child));
    }

    /// Runs a program and returns its output, or `None` if the program fails.
    fn run(&self, line: &str) -> Option<String> {
        let mut child = self.command(line).stdout(Stdio::piped()).spawn().unwrap();
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        child.wait().unwrap().success().then_some(text)
    }

    /// Returns whether one service in avahi's list contains all words.
    fn lists(&self, words: &[&str]) -> bool {
        let listed = self.run("avahi-browse -rtp _groupcache._tcp").unwrap_or_default();
        let resolved: Vec<_> = listed.lines().filter(|line| line.starts_with('=')).collect();
        resolved.iter().any(|line| words.iter().all(|word| line.contains(word)))
    }
}

impl Drop for Avahi<'_> {
    fn drop(&mut self) {
        // The daemon ends before its bus.
        while self.processes.pop().is_some() {}
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    begun.elapsed()
}

/// Provider on a host. The node of the bench has a loopback address, so tests announce the addresses of the interfaces.
struct Provider {
    runtime: tokio::runtime::Runtime,
    bench: Bench,
}

impl Provider {
    fn on(host: &Host, mdns: Mdns) -> Self {
        host.enter(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let bench = runtime.block_on(async { Bench::start(Arc::new(mdns)).unwrap() });
            Self { runtime, bench }
        })
    }

    fn names(&mut self) -> Vec<String> {
        self.bench.peers().iter().filter_map(|peer| Some(peer.id()?.to_string())).collect()
    }
}

/// Checks that avahi lists the node with its TXT record, subtype and both address families, and that the provider
/// finds, verifies and loses a service that avahi publishes.
#[test]
fn provider_and_avahi_find_each_others_services() {
    let Some(segment) = Segment::of(2, Families::Both) else { return };
    let [here, there] = segment.hosts() else { unreachable!("there are two") };
    let Some(avahi) = Avahi::on(there, "interop") else { return };
    let mut provider = Provider::on(here, Mdns::new().follow_interfaces());
    let ours =
        ["under-test", "\"txtvers=1\"", "\"id=under-test\"", "\"cluster=conformance\"", "\"state=ready\"", "\"tls=0\""];
    // Avahi chooses which addresses to show.
    for family in ["=;eth0;IPv4;", "=;eth0;IPv6;"] {
        let took =
            eventually("avahi lists the node with its TXT", || avahi.lists(&[&ours[..], &[family, ";7946;"]].concat()));
        println!("avahi lists {family} after {took:?}");
    }
    let subtype = avahi.run("avahi-browse -rtp _conformance._sub._groupcache._tcp").unwrap_or_default();
    assert!(subtype.contains("id=under-test"), "{subtype}");

    let txt = "txtvers=1 id=theirs cluster=conformance inc=5 state=ready";
    let published =
        avahi.command(&format!("avahi-publish -s theirs _groupcache._tcp 7946 {txt}")).stdout(Stdio::null()).spawn();
    let published = Process(published.unwrap());
    let took = eventually("the published service is found", || provider.names().contains(&"theirs".to_owned()));
    println!("found {took:?} after it was published (figure: 0.8 s)");
    let theirs = provider.bench.peers().into_iter().find(|peer| peer.id().is_some_and(|id| id.as_str() == "theirs"));
    let addresses: Vec<_> = theirs.unwrap().addresses().iter().map(ToString::to_string).collect();
    let is_of_host = |address: &String| address.starts_with("10.77.0.2:") || address.starts_with("[f");
    assert!(addresses.iter().all(is_of_host) && !addresses.is_empty(), "{addresses:?}");
    // Avahi answers the verification of its service.
    provider.bench.ask_for([groupcache_core::PeerId::new("theirs").unwrap()]);
    std::thread::sleep(Duration::from_secs(3));
    assert!(provider.names().contains(&"theirs".to_owned()), "a live service is confirmed");
    drop(published);
    eventually("the withdrawn service is gone", || !provider.names().contains(&"theirs".to_owned()));

    let Provider { runtime, bench } = provider;
    runtime.block_on(bench.stop());
    eventually("avahi no longer lists the node", || !avahi.lists(&["under-test"]));
}

/// Checks that avahi and the provider on its host list a process on the same host and one on another host.
#[test]
fn several_processes_share_a_host_with_avahi() {
    let Some(segment) = Segment::of(2, Families::V4) else { return };
    let [here, there] = segment.hosts() else { unreachable!("there are two") };
    let Some(avahi) = Avahi::on(here, "beside") else { return };
    let mut first = Provider::on(here, Mdns::new().follow_interfaces());
    eventually("the provider receives its own announcement beside avahi", || {
        first.bench.health() == Some(Health::Connected)
    });
    let announced = |host: &Host, name: &str, address: &str| {
        let (name, ip) = (name.to_owned(), address.parse().unwrap());
        host.enter(|| {
            let announcer = crate::support::Announcer::new(5353);
            let txt = [("txtvers", "1"), ("cluster", "conformance"), ("inc", "1"), ("id", &name)];
            let txt = txt.map(|(key, value)| (key, value.to_owned()));
            announcer.register(&name, &format!("{name}.local."), &[ip], 7946, &txt);
            announcer
        })
    };
    let _beside = announced(here, "beside", "10.77.0.1");
    let _far = announced(there, "far", "10.77.0.2");
    let all = ["beside", "far", "under-test"].map(str::to_owned);
    let took = eventually("all are listed", || {
        let mut names = first.names();
        names.sort();
        names == all
    });
    println!("all listed beside avahi after {took:?}");
    for name in ["beside", "under-test", "far"] {
        eventually("avahi on this host lists each of them", || avahi.lists(&[name]));
    }
}
