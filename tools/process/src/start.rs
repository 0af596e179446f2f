//! How a process is started.

use std::{
    ffi::OsStr,
    fmt,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    sync::Arc,
};

use crate::{Log, Process};

/// Looks at a line; whether it is to be kept.
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
    /// A program, with no variable of ours but `PATH`.
    pub fn program(program: impl AsRef<OsStr>) -> Self {
        Self::command(Command::new(program))
    }

    /// A command that somebody has made, such as one that runs on another host.
    pub fn command(mut command: Command) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env_clear().env("PATH", path);
        let (out, err) = (Log::default(), Log::default());
        Self { command, out, err, listens: false, reads: Arc::new(|_: &str| true) }
    }

    /// With these variables; the last value of a name stands.
    pub fn vars<'a>(mut self, vars: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.command.envs(vars);
        self
    }

    /// Its standard output goes to this log.
    pub fn out(mut self, log: &Log) -> Self {
        self.out = log.clone();
        self
    }

    /// What it writes to standard error goes where its standard output goes.
    pub fn one_log(mut self) -> Self {
        self.err = self.out.clone();
        self
    }

    /// It has a standard input, which [`Process::tell`] writes to.
    pub fn listens(mut self) -> Self {
        self.listens = true;
        self
    }

    /// Looks at each line of it, and says whether to keep it.
    pub fn reads(mut self, reads: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        self.reads = Arc::new(reads);
        self
    }

    /// Starts it, in a process group of its own.
    pub fn spawn(mut self) -> Process {
        let stdin = if self.listens { Stdio::piped() } else { Stdio::null() };
        self.command.process_group(0).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap_or_else(|e| panic!("{self:?} does not start: {e}"));
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
        // Not its variables: one may be a secret.
        f.debug_tuple("Start").field(&self.command.get_program()).finish_non_exhaustive()
    }
}
