//! Process: starts, reads and signals real processes for tests, and kills them on drop.
//!
//! A test checks the log of its processes for secrets with two calls on [`Start`]:
//! `.vars([("RUST_LOG", read_along::RUST_LOG)]).reads(read_along::says)`.
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

/// Maximum wait of [`eventually`]: 30 s, long enough for a busy machine with two cores.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until the condition holds and returns the time that took.
///
/// # Panics
/// With `what`, if the condition does not hold within [`PATIENCE`].
pub fn eventually(what: &str, condition: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    assert!(within(PATIENCE, condition), "not within {PATIENCE:?}: {what}");
    begun.elapsed()
}

/// Waits until the condition holds and returns `true`, or `false` at the end of `limit`.
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

/// A process with the processes that it started. All of them are killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    readers: Vec<JoinHandle<()>>,
    /// Lines of the standard output.
    pub out: Log,
    /// Lines of the standard error; the same log as `out` after [`Start::one_log`].
    pub err: Log,
}

impl Process {
    /// Returns the id of the process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Sends a signal to the process and to the processes that it started, as a terminal does.
    pub fn signal_group(&self, signal: Signal) {
        kill_process_group(self.pid(), signal).unwrap();
    }

    /// Writes a line to the standard input. Returns `false` if that fails or if [`Start::listens`] was not called.
    pub fn tell(&mut self, line: &str) -> bool {
        self.stdin.as_mut().is_some_and(|stdin| writeln!(stdin, "{line}").and_then(|()| stdin.flush()).is_ok())
    }

    /// Returns whether the process has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until the process has ended and its output is complete in the logs.
    ///
    /// # Panics
    /// If the process still runs after `limit`.
    pub fn ends_within(&mut self, limit: Duration) -> ExitStatus {
        let ended = within(limit, || !self.is_running());
        assert!(ended, "process still runs after {limit:?}; output: {:#?} {:#?}", self.out.lines(), self.err.lines());
        for reader in self.readers.drain(..) {
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        self.child.wait().unwrap()
    }

    /// Returns the ids of the direct child processes.
    pub fn children(&self) -> Vec<String> {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().map(ToOwned::to_owned).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.readers.is_empty() {
            return; // the process has ended, and its id may belong to another one
        }
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let _ = self.child.wait();
        // A panic of a reader at a forbidden line surfaces here at the latest.
        let was_read = self.readers.drain(..).map(JoinHandle::join).all(|read| read.is_ok());
        assert!(was_read || std::thread::panicking(), "output of the process could not be read to its end");
    }
}
