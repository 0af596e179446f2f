//! Real processes for tests: started, read, signalled, and never left behind.
//!
//! A test has its processes read along: `.vars([("RUST_LOG", read_along::RUST_LOG)]).reads(read_along::says)`.
#![expect(clippy::disallowed_methods, reason = "drives processes from outside, in real time")]

mod log;
mod ports;
mod scratch;
mod start;

use std::{
    io::Write,
    process::{Child, ChildStdin, ExitStatus},
    thread::JoinHandle,
    time::{Duration, Instant},
};

pub use rustix::process::{Pid, Signal};
use rustix::process::{kill_process, kill_process_group};

pub use crate::{
    log::Log,
    ports::{free_ports, is_free, local},
    scratch::Scratch,
    start::Start,
};

/// Long enough for anything that works, on a busy machine with two cores.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a condition, and says which one when it does not come; tells how long it took.
pub fn eventually(what: &str, condition: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    assert!(within(PATIENCE, condition), "not within {PATIENCE:?}: {what}");
    begun.elapsed()
}

/// Whether a condition comes true in time.
pub fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A process and everything that it started; killed when it is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    readers: Vec<JoinHandle<()>>,
    /// What it writes to standard output.
    pub out: Log,
    /// What it writes to standard error; the same as `out` where [`Start::one_log`] said so.
    pub err: Log,
}

impl Process {
    /// Its id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Sends it and everything that it started a signal, as a terminal does.
    pub fn signal_group(&self, signal: Signal) {
        kill_process_group(self.pid(), signal).unwrap();
    }

    /// Writes a line to its standard input, if [`Start::listens`] said that it has one; whether it could be written.
    pub fn tell(&mut self, line: &str) -> bool {
        self.stdin.as_mut().is_some_and(|stdin| writeln!(stdin, "{line}").and_then(|()| stdin.flush()).is_ok())
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it has ended and everything that it wrote is in the log.
    pub fn ends_within(&mut self, limit: Duration) -> ExitStatus {
        let ended = within(limit, || !self.is_running());
        assert!(ended, "still runs after {limit:?}; it wrote {:#?} {:#?}", self.out.lines(), self.err.lines());
        for reader in self.readers.drain(..) {
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        self.child.wait().unwrap()
    }

    /// The processes that it started itself.
    pub fn children(&self) -> Vec<String> {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().map(ToOwned::to_owned).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.readers.is_empty() {
            return; // it has ended, and its number may be another's by now
        }
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let _ = self.child.wait();
        // A line that no test may see is seen here at the latest.
        let was_read = self.readers.drain(..).map(JoinHandle::join).all(|read| read.is_ok());
        assert!(was_read || std::thread::panicking(), "what it wrote could not be read to its end");
    }
}
