//! Warnings that the nodes of one test log.

use std::{
    io,
    sync::{Arc, Mutex},
};

use tracing::{level_filters::LevelFilter, subscriber::DefaultGuard};
use tracing_subscriber::{Layer, fmt, prelude::*};

/// Warnings of all nodes that run on this thread.
#[derive(Clone, Default)]
pub struct Warnings(Arc<Mutex<Vec<u8>>>);

impl Warnings {
    /// Records the warnings of this thread until the guard is dropped. A test on a single thread records its own nodes
    /// and no others.
    pub fn capture() -> (Self, DefaultGuard) {
        let warnings = Self::default();
        let writer = warnings.clone();
        let lines = fmt::layer().with_ansi(false).without_time().with_writer(move || writer.clone());
        let subscriber =
            tracing_subscriber::registry().with(read_along::reader()).with(lines.with_filter(LevelFilter::WARN));
        (warnings, subscriber.set_default())
    }

    /// Returns the lines recorded so far that contain `text`.
    pub fn lines_with(&self, text: &str) -> Vec<String> {
        let written = self.0.lock().unwrap().clone();
        String::from_utf8(written).unwrap().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }
}

impl io::Write for Warnings {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
