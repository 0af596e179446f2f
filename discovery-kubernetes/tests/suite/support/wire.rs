//! Connections to the fake API server: pipes in memory, or TCP with or without TLS; and a proxy.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::{
        Client as Legacy,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo},
};
use kube::{Client, client::Body};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};

use super::fake::{Fake, Mode};

/// Returns a client with pipes in memory as its connections. Time can be virtual, because no byte ever leaves the
/// process.
pub(crate) fn client(fake: &Fake) -> Client {
    let legacy: Legacy<_, Body> = Legacy::builder(TokioExecutor::new()).build(Pipes(fake.clone()));
    let service = tower::service_fn(move |mut request: http::Request<Body>| {
        let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        *request.uri_mut() = format!("http://fake{path}").parse().unwrap();
        legacy.request(request)
    });
    Client::new(service, "default")
}

/// Connector that opens pipes in memory.
#[derive(Clone)]
struct Pipes(Fake);

impl tower_service::Service<http::Uri> for Pipes {
    type Response = Pipe;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Pipe>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let fake = self.0.clone();
        Box::pin(async move {
            if fake.state().mode == Mode::Down {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (ours, theirs) = tokio::io::duplex(64 << 10);
            tokio::spawn(fake.serve(theirs));
            Ok(Pipe(TokioIo::new(ours)))
        })
    }
}

struct Pipe(TokioIo<DuplexStream>);

impl Connection for Pipe {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The fake API server on a loopback port. Dropping the value stops the server.
pub(crate) struct Listening {
    pub(crate) port: u16,
    task: AbortHandle,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves the fake API server on a loopback port.
#[expect(clippy::disallowed_methods, reason = "the server of a test")]
pub(crate) async fn listen(fake: &Fake, tls: Option<tokio_rustls::TlsAcceptor>) -> Listening {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let fake = fake.clone();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Ok((stream, _)) = listener.accept() => {
                    let (fake, tls) = (fake.clone(), tls.clone());
                    connections.spawn(async move {
                        match tls {
                            None => fake.serve(stream).await,
                            Some(tls) => {
                                if let Ok(stream) = tls.accept(stream).await {
                                    fake.serve(stream).await;
                                }
                            }
                        }
                    });
                }
                Some(_) = connections.join_next() => {}
            }
        }
    });
    Listening { port, task: task.abort_handle() }
}

/// A proxy for SOCKS 5 and HTTP CONNECT. Dropping the value stops the proxy.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    connections: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Proxy {
    /// Returns the number of connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts a proxy on a loopback port.
#[expect(clippy::disallowed_methods, reason = "the proxy of a test")]
pub(crate) async fn proxy() -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let task = tokio::spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            counted.fetch_add(1, Relaxed);
            open.spawn(async move {
                let mut far = TcpStream::connect(read_target(&mut near).await?).await?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            });
        }
    });
    Proxy { port, connections, task: task.abort_handle() }
}

/// Reads the requested loopback address, by SOCKS 5 or by CONNECT, and confirms the request.
async fn read_target(near: &mut TcpStream) -> io::Result<(&'static str, u16)> {
    let mut first = [0; 1];
    near.peek(&mut first).await?;
    if first == [5] {
        let mut greeting = [0; 2];
        near.read_exact(&mut greeting).await?;
        near.read_exact(&mut vec![0; greeting[1].into()]).await?;
        near.write_all(&[5, 0]).await?;
        // Version, command, reserved, IPv4, address, port.
        let mut request = [0; 10];
        near.read_exact(&mut request).await?;
        assert_eq!(request[..4], [5, 1, 0, 1]);
        near.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
        return Ok(("127.0.0.1", u16::from_be_bytes([request[8], request[9]])));
    }
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(near.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap();
    let port = target.rsplit_once(':').unwrap().1.parse().unwrap();
    near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    Ok(("127.0.0.1", port))
}
