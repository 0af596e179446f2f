//! Cluster: the processes, and the file in which a platform would publish them.

use std::{fmt::Write as _, fs, net::SocketAddr, path::PathBuf, time::Duration};

use process::{Log, Process, Signal, Start, free_ports, local, within};

use super::{Pod, Settings, record::Record};
use crate::Result;

/// Time limit for a process to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(40);

/// Time limit for a process to be ready, and to be filled.
const START: Duration = Duration::from_secs(60);

/// Pause before the cluster is filled. Values that are loaded while the nodes connect would be loaded again.
const SETTLE: Duration = Duration::from_secs(3);

/// Number of ports, for all processes and their successors.
const PORTS: u16 = 40;

struct Running {
    id: String,
    start_number: u32,
    listen: SocketAddr,
    process: Process,
    log: Log,
    is_listed: bool,
}

/// A cluster of processes of one cache.
pub struct Cluster {
    settings: Settings,
    /// Record of all processes.
    pub record: Record,
    running: Vec<Running>,
    ports: std::ops::Range<u16>,
    starts: u32,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("running", &self.running.len()).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Starts `size` processes, and fills them as if they had run for a long time.
    ///
    /// # Errors
    /// An error if a process does not become ready.
    pub fn start(settings: Settings, size: usize) -> Result<Self> {
        let first = free_ports(PORTS);
        let ports = first..first + PORTS;
        let mut cluster = Self { settings, record: Record::default(), running: Vec::new(), ports, starts: 0 };
        let mut pods = Vec::new();
        for n in 0..size {
            pods.push((format!("pod-{n}"), cluster.next_address()?));
        }
        cluster.publish(&pods)?;
        for (id, listen) in &pods {
            cluster.spawn(id, *listen, true)?;
        }
        cluster.wait_until_ready(0)?;
        pause(SETTLE);
        cluster.tell_all("warming true");
        for (n, pod) in cluster.running.iter_mut().enumerate() {
            pod.process.tell(&format!("warm {n} {size}"));
        }
        for pod in &cluster.running {
            eventually_within(START, "filled", || pod.log.said("warm"))?;
        }
        cluster.tell_all("warming false");
        cluster.share_load();
        Ok(cluster)
    }

    fn next_address(&mut self) -> Result<SocketAddr> {
        Ok(local(self.ports.next().ok_or("no port is left: raise PORTS")?))
    }

    fn spawn(&mut self, id: &str, listen: SocketAddr, is_listed: bool) -> Result<()> {
        self.starts += 1;
        let (start_number, log) = (self.starts, Log::default());
        let pod = Pod { settings: self.settings.clone(), id: id.to_owned(), listen };
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.arg("pod").arg(serde_json::to_string(&pod)?);
        let (record, name) = (self.record.clone(), id.to_owned());
        let start = Start::command(command).listens().out(&log).one_log();
        let process = start.reads(move |line| !record.take(&name, start_number, line)).spawn();
        self.running.push(Running { id: id.to_owned(), start_number, listen, process, log, is_listed });
        Ok(())
    }

    /// Writes the file of peers. Renaming a new file keeps readers from a half-written one.
    fn publish(&self, pods: &[(String, SocketAddr)]) -> Result<()> {
        let mut text = String::from("# listed processes\n");
        for (id, listen) in pods {
            writeln!(text, "{id}@{listen}")?;
        }
        let beside: PathBuf = self.settings.peers.with_extension("new");
        fs::write(&beside, text)?;
        Ok(fs::rename(beside, &self.settings.peers)?)
    }

    fn publish_listed(&self) -> Result<()> {
        let listed = self.running.iter().filter(|pod| pod.is_listed);
        self.publish(&listed.map(|pod| (pod.id.clone(), pod.listen)).collect::<Vec<_>>())
    }

    fn wait_until_ready(&self, from: usize) -> Result<()> {
        self.running.iter().skip(from).try_for_each(|pod| eventually_within(START, &pod.id, || pod.log.said("ready")))
    }

    fn tell_all(&mut self, line: &str) {
        for pod in &mut self.running {
            pod.process.tell(line);
        }
    }

    /// Divides the load equally among the listed processes.
    fn share_load(&mut self) {
        let listed = self.running.iter().filter(|pod| pod.is_listed).count();
        let rate = self.settings.rate / listed as f64;
        for pod in self.running.iter_mut().filter(|pod| pod.is_listed) {
            pod.process.tell(&format!("rate {rate}"));
        }
    }

    /// Returns the names of all processes, the oldest first.
    pub fn names(&self) -> Vec<String> {
        self.running.iter().map(|pod| pod.id.clone()).collect()
    }

    /// Starts processes, and publishes all of them when they are ready.
    ///
    /// # Errors
    /// An error if a process does not become ready.
    pub fn add(&mut self, ids: &[String]) -> Result<()> {
        let before = self.running.len();
        for id in ids {
            let listen = self.next_address()?;
            self.spawn(id, listen, false)?;
        }
        self.wait_until_ready(before)?;
        for pod in self.running.iter_mut().skip(before) {
            pod.is_listed = true;
        }
        self.publish_listed()?;
        self.share_load();
        Ok(())
    }

    /// Removes processes from the file, sends SIGTERM, waits for their ends, and returns the number of entries that
    /// they owned.
    ///
    /// # Errors
    /// An error if a process does not end with success.
    pub fn end(&mut self, ids: &[String]) -> Result<u64> {
        let entries = self.unlist(ids)?;
        for pod in self.running.iter().filter(|pod| !pod.is_listed) {
            pod.process.signal(Signal::TERM);
        }
        for mut pod in self.take_unlisted() {
            let status = pod.process.ends_within(GRACE);
            if !status.success() {
                return Err(format!("{} failed with {status}: {:?}", pod.id, pod.log.lines()).into());
            }
        }
        Ok(entries)
    }

    /// Kills a process, removes it from the file after `noticed_after`, and returns the number of entries that it
    /// owned.
    ///
    /// # Errors
    /// An error if no process has that name, or the file cannot be written.
    pub fn kill(&mut self, id: &str, noticed_after: Duration) -> Result<u64> {
        let victim = self.running.iter().find(|pod| pod.id == id).ok_or("no process has that name")?;
        victim.process.signal(Signal::KILL);
        pause(noticed_after);
        let entries = self.unlist(&[id.to_owned()])?;
        self.take_unlisted();
        Ok(entries)
    }

    fn unlist(&mut self, ids: &[String]) -> Result<u64> {
        let mut entries = 0;
        for pod in self.running.iter_mut().filter(|pod| ids.contains(&pod.id)) {
            pod.is_listed = false;
            entries += self.record.entries(&pod.id, pod.start_number);
        }
        self.publish_listed()?;
        self.share_load();
        Ok(entries)
    }

    fn take_unlisted(&mut self) -> Vec<Running> {
        let (listed, rest) = std::mem::take(&mut self.running).into_iter().partition(|pod| pod.is_listed);
        self.running = listed;
        rest
    }
}

/// Waits while the processes work.
pub fn pause(time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "drives processes from outside, in real time")]
    std::thread::sleep(time);
}

fn eventually_within(limit: Duration, what: &str, condition: impl FnMut() -> bool) -> Result<()> {
    if within(limit, condition) { Ok(()) } else { Err(format!("not within {limit:?}: {what}").into()) }
}
