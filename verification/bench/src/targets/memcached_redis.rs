//! Targets memcached and Redis: clients of their text protocols, and an echo server of memcached's bytes.
//!
//! The clients do less than a client library, without a pool, a time-out or a copy of the value out of the read buffer.
//! The measurement is of the server, the kernel and the round trip.

use std::{collections::VecDeque, net::SocketAddr, sync::Mutex};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, oneshot},
};

use super::Target;
use crate::Result;

/// Size of the read buffer, as much as a socket returns at once.
const READ_BYTES: usize = 256 << 10;

/// Protocol of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Classic text protocol of memcached.
    Memcached,
    /// RESP 2 of Redis.
    Redis,
}

impl Protocol {
    fn get(self, key: &str, to: &mut BytesMut) {
        match self {
            Self::Memcached => {
                to.extend_from_slice(b"get ");
                to.extend_from_slice(key.as_bytes());
                to.extend_from_slice(b"\r\n");
            }
            Self::Redis => {
                to.extend_from_slice(format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()).as_bytes());
            }
        }
    }

    fn set(self, key: &str, value: &[u8], to: &mut BytesMut) {
        let head = match self {
            Self::Memcached => format!("set {key} 0 0 {}\r\n", value.len()),
            Self::Redis => format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), value.len()),
        };
        to.extend_from_slice(head.as_bytes());
        to.extend_from_slice(value);
        to.extend_from_slice(b"\r\n");
    }

    /// Returns the length of the first answer in these bytes and the length of its value, if the answer is complete.
    fn answer(self, bytes: &[u8]) -> Result<Option<(usize, usize)>> {
        let Some(line) = bytes.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
        let (head, head_bytes) = (std::str::from_utf8(bytes.get(..line).unwrap_or_default())?, line + 2);
        if head == "STORED" || head == "+OK" {
            return Ok(Some((head_bytes, 0)));
        }
        let (length, tail) = match self {
            Self::Memcached if head.starts_with("VALUE ") => (head.rsplit(' ').next(), "\r\nEND\r\n".len()),
            Self::Redis => (head.strip_prefix('$'), "\r\n".len()),
            Self::Memcached => (None, 0),
        };
        let length = length
            .and_then(|text| text.parse::<usize>().ok())
            .ok_or_else(|| format!("the server answered {head:?}, which is no value"))?;
        let all = head_bytes + length + tail;
        Ok((bytes.len() >= all).then_some((all, length)))
    }
}

async fn dial(server: SocketAddr) -> Result<TcpStream> {
    #[expect(clippy::disallowed_methods, reason = "a bare client, outside of any simulation")]
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    read: BytesMut,
    write: BytesMut,
}

impl Connection {
    async fn new(server: SocketAddr) -> Result<Self> {
        Ok(Self { stream: dial(server).await?, read: BytesMut::with_capacity(READ_BYTES), write: BytesMut::new() })
    }

    async fn exchange(&mut self, protocol: Protocol) -> Result<usize> {
        self.stream.write_all(&self.write).await?;
        self.write.clear();
        loop {
            if let Some((all, length)) = protocol.answer(&self.read)? {
                self.read.advance(all);
                return Ok(length);
            }
            self.read.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err("the server closed the connection".into());
            }
        }
    }
}

/// A client with a connection for each caller.
#[derive(Debug)]
pub struct Connections {
    protocol: Protocol,
    each: Vec<tokio::sync::Mutex<Connection>>,
}

impl Connections {
    /// Connects all callers.
    ///
    /// # Errors
    /// An error if the server does not accept that many connections.
    pub async fn new(protocol: Protocol, server: SocketAddr, callers: usize) -> Result<Self> {
        let mut each = Vec::with_capacity(callers);
        for _ in 0..callers {
            each.push(tokio::sync::Mutex::new(Connection::new(server).await?));
        }
        Ok(Self { protocol, each })
    }
}

impl Target for Connections {
    async fn get(&self, caller: usize, key: &str) -> Result<usize> {
        let mut connection = self.each.get(caller).ok_or("the caller has no connection")?.lock().await;
        self.protocol.get(key, &mut connection.write);
        connection.exchange(self.protocol).await
    }

    async fn set(&self, caller: usize, key: &str, value: &[u8]) -> Result<()> {
        let mut connection = self.each.get(caller).ok_or("the caller has no connection")?.lock().await;
        self.protocol.set(key, value, &mut connection.write);
        connection.exchange(self.protocol).await.map(drop)
    }
}

/// Bytes that wait to be sent, and callers that wait for their answers in order.
#[derive(Debug, Default)]
struct Queue {
    out: BytesMut,
    waiting: VecDeque<oneshot::Sender<usize>>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    due: Notify,
}

impl Shared {
    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A client with one connection for all callers. Concurrent requests are one write, and answers come in order.
#[derive(Debug)]
pub struct Pipelined {
    protocol: Protocol,
    shared: std::sync::Arc<Shared>,
}

impl Pipelined {
    /// Connects, and spawns the two tasks of the connection.
    ///
    /// # Errors
    /// An error if no server answers.
    pub async fn new(protocol: Protocol, server: SocketAddr) -> Result<Self> {
        let shared = std::sync::Arc::<Shared>::default();
        let (read, write) = dial(server).await?.into_split();
        tokio::spawn(write_all(std::sync::Arc::clone(&shared), write));
        tokio::spawn(read_all(protocol, std::sync::Arc::clone(&shared), read));
        Ok(Self { protocol, shared })
    }

    async fn exchange(&self, put: impl FnOnce(&mut BytesMut)) -> Result<usize> {
        let (sender, answer) = oneshot::channel();
        {
            let mut queue = self.shared.queue();
            put(&mut queue.out);
            queue.waiting.push_back(sender);
        }
        self.shared.due.notify_one();
        Ok(answer.await?)
    }
}

async fn write_all(shared: std::sync::Arc<Shared>, mut to: OwnedWriteHalf) -> std::io::Result<()> {
    loop {
        shared.due.notified().await;
        let out = std::mem::take(&mut shared.queue().out);
        to.write_all(&out).await?;
        // The buffer is used again, unless another caller has begun a new one.
        let mut queue = shared.queue();
        if queue.out.is_empty() {
            queue.out = out;
            queue.out.clear();
        }
    }
}

/// Reads answers until the connection ends. Waiting callers then fail, because their channels close.
async fn read_all(protocol: Protocol, shared: std::sync::Arc<Shared>, mut from: OwnedReadHalf) -> Result<()> {
    let mut read = BytesMut::with_capacity(READ_BYTES);
    loop {
        if from.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
        let mut queue = shared.queue();
        while let Some((all, length)) = protocol.answer(&read)? {
            read.advance(all);
            if let Some(waiting) = queue.waiting.pop_front() {
                let _ = waiting.send(length);
            }
        }
        drop(queue);
        read.reserve(READ_BYTES);
    }
}

impl Target for Pipelined {
    async fn get(&self, _caller: usize, key: &str) -> Result<usize> {
        self.exchange(|out| self.protocol.get(key, out)).await
    }

    async fn set(&self, _caller: usize, key: &str, value: &[u8]) -> Result<()> {
        self.exchange(|out| self.protocol.set(key, value, out)).await.map(drop)
    }
}

/// Serves an echo: each line is answered with memcached's bytes for this value.
///
/// # Errors
/// An error if the address is taken.
pub async fn serve_echo(listen: SocketAddr, value: Bytes) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "a bare server, outside of any simulation")]
    let listener = TcpListener::bind(listen).await?;
    let mut answer = format!("VALUE key-0000000000000000 0 {}\r\n", value.len()).into_bytes();
    answer.extend_from_slice(&value);
    answer.extend_from_slice(b"\r\nEND\r\n");
    let answer = Bytes::from(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(echo(stream, answer.clone()));
        }
    });
    Ok(())
}

async fn echo(mut stream: TcpStream, answer: Bytes) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut read, mut write) = (BytesMut::with_capacity(READ_BYTES), Vec::new());
    while stream.read_buf(&mut read).await? > 0 {
        let lines = read.iter().filter(|byte| **byte == b'\n').count();
        let rest = read.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        read.advance(rest);
        write.clear();
        (0..lines).for_each(|_| write.extend_from_slice(&answer));
        stream.write_all(&write).await?;
        read.reserve(READ_BYTES);
    }
    Ok(())
}
