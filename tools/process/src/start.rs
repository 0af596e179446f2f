//! Start: the options of a process before its start.

use std::{
    ffi::OsStr,
    fmt,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    sync::Arc,
};

use crate::{Log, Process};

/// Filter of the lines of a process; returns whether a line is kept.
pub(crate) type Reads = dyn Fn(&str) -> bool + Send + Sync;

/// A process that is about to be started.
pub struct Start {
    command: Command,
    out: Log,
    err: Log,
    listens: bool,
    reads: Arc<Reads>,
}

impl Start {
    /// Prepares a program. The program inherits no variable of this process except `PATH`.
    pub fn program(program: impl AsRef<OsStr>) -> Self {
        Self::command(Command::new(program))
    }

    /// Prepares an existing command, such as one that runs on another host, with `PATH` as its only variable.
    pub fn command(mut command: Command) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env_clear().env("PATH", path);
        let (out, err) = (Log::default(), Log::default());
        Self { command, out, err, listens: false, reads: Arc::new(|_: &str| true) }
    }

    /// Adds environment variables. The last value of a name wins.
    pub fn vars<'a>(mut self, vars: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.command.envs(vars);
        self
    }

    /// Sends the standard output to this log.
    pub fn out(mut self, log: &Log) -> Self {
        self.out = log.clone();
        self
    }

    /// Sends the standard error to the same log as the standard output. Call [`out`](Self::out) first.
    pub fn one_log(mut self) -> Self {
        self.err = self.out.clone();
        self
    }

    /// Gives the process a standard input, to which [`Process::tell`] writes.
    pub fn listens(mut self) -> Self {
        self.listens = true;
        self
    }

    /// Calls `reads` with each line of output. Only lines for which `reads` returns `true` are kept.
    pub fn reads(mut self, reads: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        self.reads = Arc::new(reads);
        self
    }

    /// Starts the process in a process group of its own.
    ///
    /// # Panics
    /// If the process does not start.
    pub fn spawn(mut self) -> Process {
        let stdin = if self.listens { Stdio::piped() } else { Stdio::null() };
        self.command.process_group(0).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap_or_else(|e| panic!("cannot start {self:?}: {e}"));
        let readers = vec![
            self.out.follow(child.stdout.take().unwrap(), &self.reads),
            self.err.follow(child.stderr.take().unwrap(), &self.reads),
        ];
        let stdin = child.stdin.take();
        Process { child, stdin, readers, out: self.out, err: self.err }
    }
}

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Variables are left out, because one may be a secret.
        f.debug_tuple("Start").field(&self.command.get_program()).finish_non_exhaustive()
    }
}
