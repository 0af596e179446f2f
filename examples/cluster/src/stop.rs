//! Signals: waits for those that ask the process to end.
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Streams of the signals that a terminal (SIGINT for Ctrl-C, SIGHUP when it closes) and a supervisor (SIGTERM) send.
pub(crate) struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Stop {
    /// Registers for the signals, which then no longer kill the process.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal.
    pub(crate) async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}
