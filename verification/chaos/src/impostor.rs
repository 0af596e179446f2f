//! Somebody else who listens where a peer was.

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

/// What it does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Takes it, reads what comes, and never says a word.
    Silent,
    /// Answers, each time with something else that is no answer.
    Garbage,
}

/// Listens until it is dropped.
#[derive(Debug)]
pub(crate) struct Impostor {
    is_over: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

/// How often it looks for connections and bytes.
const LOOK: Duration = Duration::from_millis(5);

/// Connections that it keeps; older ones are closed.
const KEPT: usize = 256;

impl Impostor {
    pub(crate) fn new(listener: TcpListener, manner: Manner) -> Self {
        let (is_over, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (over, count) = (Arc::clone(&is_over), Arc::clone(&accepted));
        listener.set_nonblocking(true).expect("a listener that does not block");
        let serve = move || {
            let mut open = Vec::new();
            while !over.load(Relaxed) {
                if let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true).expect("a stream that does not block");
                    let n = count.fetch_add(1, Relaxed);
                    let keeps = manner == Manner::Silent || answer(&stream, n);
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

    /// How many connections it has had.
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

/// Reads what has come.
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

/// Says something; whether the connection stays open after that.
fn answer(mut stream: &TcpStream, n: usize) -> bool {
    // Of HTTP/2: an empty SETTINGS, so that what follows is read as frames.
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(16 << 10).collect();
    // A HEADERS frame for the first stream whose header block is noise.
    let headers = [&[0, 0, 64, 1, 4, 0, 0, 0, 1][..], &noise[..64]].concat();
    let said = match n % 5 {
        0 => b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n".to_vec(),
        1 => noise,
        2 => [&settings[..], &noise].concat(),
        3 => [&settings[..], &headers].concat(),
        _ => return false, // closes it without a word
    };
    // Who does not read it has at least been told.
    let _ = stream.write_all(&said);
    n.is_multiple_of(2)
}
