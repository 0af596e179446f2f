//! Impostor: a server that listens at the address of a peer and is no node.

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::{JoinHandle, sleep, spawn},
    time::Duration,
};

/// Treatment of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Accepts a connection, reads all bytes, and never answers.
    Silent,
    /// Answers with garbage that differs from connection to connection.
    Garbage,
}

/// A server that listens until it is dropped.
#[derive(Debug)]
pub(crate) struct Impostor {
    is_over: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

/// Pause between two polls for connections and bytes.
const LOOK: Duration = Duration::from_millis(5);

/// Maximum number of open connections. Older connections are closed.
const KEPT: usize = 256;

impl Impostor {
    pub(crate) fn new(listener: TcpListener, behaviour: Behaviour) -> Self {
        let (is_over, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (over, count) = (Arc::clone(&is_over), Arc::clone(&accepted));
        listener.set_nonblocking(true).expect("the listener becomes non-blocking");
        let serve = move || {
            let mut open = Vec::new();
            while !over.load(Relaxed) {
                if let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true).expect("the stream becomes non-blocking");
                    let n = count.fetch_add(1, Relaxed);
                    let keeps = behaviour == Behaviour::Silent || answer(&stream, n);
                    open.extend(keeps.then_some(stream));
                    open.drain(..open.len().saturating_sub(KEPT));
                    continue;
                }
                open.retain_mut(is_open);
                sleep(LOOK);
            }
        };
        Self { is_over, accepted, thread: Some(spawn(serve)) }
    }

    /// Returns the number of connections accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Relaxed)
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the impostor does not panic");
        }
    }
}

/// Reads all available bytes, and returns whether the connection is still open.
fn is_open(stream: &mut TcpStream) -> bool {
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(e) => return e.kind() == ErrorKind::WouldBlock,
        }
    }
}

/// Sends garbage, and returns whether the connection stays open afterwards.
fn answer(mut stream: &TcpStream, n: usize) -> bool {
    // An empty SETTINGS frame of HTTP/2 makes the peer read the following bytes as frames.
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(16 << 10).collect();
    // A HEADERS frame for the first stream, with noise as its header block.
    let headers = [&[0, 0, 64, 1, 4, 0, 0, 0, 1][..], &noise[..64]].concat();
    let garbage = match n % 5 {
        0 => b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n".to_vec(),
        1 => noise,
        2 => [&settings[..], &noise].concat(),
        3 => [&settings[..], &headers].concat(),
        _ => return false, // closes the connection without an answer
    };
    // A failed write is ignored, because the peer need not read the garbage.
    let _ = stream.write_all(&garbage);
    n.is_multiple_of(2)
}
