//! Floor: the cost of the same bytes without a cache, over a bare socket of loopback, into fresh memory or one buffer.

use std::{
    io::{BufReader, IoSlice, Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::mpsc,
    thread,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::throughput::LEFT_BYTES;
use crate::{Result, machine::Used};

/// Bytes of one write, about as many as a page of a hand-over has.
const AT_ONCE: usize = 192 << 10;

/// Minimum size of the read buffer. Smaller values are read together.
const SMALL: usize = 16 << 10;

/// Result of a measurement.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Floor {
    /// Bytes of each value.
    pub value_bytes: usize,
    /// Bytes of all values.
    pub bytes: usize,
    /// Seconds from the first to the last byte.
    pub seconds: f64,
    /// Processor time of both sides, in seconds.
    pub used_seconds: f64,
}

/// Memory into which values are received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Into {
    /// Memory that the process has not had before, as kept values need.
    Fresh,
    /// A single buffer for all values.
    Same,
}

impl Into {
    /// Returns the name in the tables.
    pub fn described(self) -> &'static str {
        match self {
            Self::Fresh => "fresh memory",
            Self::Same => "the same memory",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Same => "same",
        }
    }
}

/// Measures once in a process of its own, because a process keeps memory that it has freed.
///
/// # Errors
/// An error if the process does not start, or its output is not a result.
pub fn measure(value_bytes: usize, into: Into) -> Result<Floor> {
    let program = std::env::current_exe()?;
    let output = Command::new(program).args(["floor", &value_bytes.to_string(), into.name()]).output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Runs the measurement in its process, and prints the result.
///
/// # Errors
/// An error of a socket.
#[expect(clippy::disallowed_methods, reason = "a thread that waits for a socket")]
pub fn run(value_bytes: usize, into: &str) -> Result<()> {
    let values: Vec<Vec<u8>> = (0..LEFT_BYTES / value_bytes).map(|n| vec![n as u8; value_bytes]).collect();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (mut to, from) = (TcpStream::connect(listener.local_addr()?)?, listener.accept()?.0);
    let (n, keeps) = (values.len(), into == Into::Fresh.name());
    let (used, begun) = (Used::of_this_process()?, Instant::now());
    let (all, received) = mpsc::channel();
    thread::spawn(move || {
        let _ = all.send(receive(from, n, value_bytes, keeps));
        thread::park(); // the processor time of an ended thread is not counted
    });
    for some in values.chunks((AT_ONCE / value_bytes).max(1)) {
        send(&mut to, some)?;
    }
    let kept = received.recv()??;
    let used_seconds = (Used::of_this_process()? - used).nanoseconds as f64 / 1e9;
    let (bytes, seconds) = (n * value_bytes, begun.elapsed().as_secs_f64());
    drop(kept);
    println!("{}", serde_json::to_string(&Floor { value_bytes, bytes, seconds, used_seconds })?);
    Ok(())
}

fn send(to: &mut TcpStream, values: &[Vec<u8>]) -> Result<()> {
    let mut slices: Vec<_> = values.iter().map(|value| IoSlice::new(value)).collect();
    let mut left = slices.as_mut_slice();
    while !left.is_empty() {
        let written = to.write_vectored(left)?;
        IoSlice::advance_slices(&mut left, written);
    }
    Ok(())
}

fn receive(from: TcpStream, n: usize, value_bytes: usize, keeps: bool) -> std::io::Result<Vec<Vec<u8>>> {
    // Large values are read straight into their own memory.
    let mut from = BufReader::with_capacity(value_bytes.max(SMALL), from);
    let mut kept = Vec::with_capacity(n);
    let mut value = Vec::with_capacity(value_bytes);
    for _ in 0..n {
        from.by_ref().take(value_bytes as u64).read_to_end(&mut value)?;
        if keeps {
            kept.push(std::mem::replace(&mut value, Vec::with_capacity(value_bytes)));
        } else {
            value.clear();
        }
    }
    Ok(kept)
}
