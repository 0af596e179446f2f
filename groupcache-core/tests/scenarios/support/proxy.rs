//! Proxies in front of nodes, which a test can stop, slow down and disconnect.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A TCP proxy in front of a node.
pub struct Proxy {
    pub address: SocketAddr,
    state: State,
}

#[derive(Clone)]
struct State {
    to: SocketAddr,
    /// Whether bytes are carried. While `false`, connections stay open and nothing is read, as on a dead path.
    flows: Arc<watch::Sender<bool>>,
    /// Signal that closes all connections at each change.
    cut: Arc<watch::Sender<()>>,
    /// Bytes per second that are carried from the node to the client. 0 means no limit.
    rate: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
}

impl Proxy {
    pub async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (flows, cut) = (Arc::new(watch::Sender::new(true)), Arc::new(watch::Sender::new(())));
        let (rate, open, accepted) = Default::default();
        let state = State { to, flows, cut, rate, open, accepted };
        let proxy = Self { address: listener.local_addr().unwrap(), state: state.clone() };
        tokio::spawn(async move {
            while let Ok((here, _)) = listener.accept().await {
                state.open.fetch_add(1, SeqCst);
                state.accepted.fetch_add(1, SeqCst);
                let state = state.clone();
                tokio::spawn(async move {
                    state.carry(here).await;
                    state.open.fetch_sub(1, SeqCst);
                });
            }
        });
        proxy
    }

    /// Stops carrying bytes in both directions.
    pub fn stop(&self) {
        self.state.flows.send_replace(false);
    }

    /// Resumes after [`stop`](Self::stop) without the loss of a byte, as when a stopped process is continued.
    pub fn resume(&self) {
        self.state.flows.send_replace(true);
    }

    /// Closes all connections.
    pub fn cut(&self) {
        self.state.cut.send_replace(());
    }

    /// Limits the rate at which bytes from the node are carried.
    pub fn limit_rate(&self, bytes_per_second: usize) {
        self.state.rate.store(bytes_per_second, SeqCst);
    }

    /// Returns the number of connections that neither side has closed.
    pub fn open(&self) -> usize {
        self.state.open.load(SeqCst)
    }

    /// Returns the number of connections that were ever opened.
    pub fn accepted(&self) -> usize {
        self.state.accepted.load(SeqCst)
    }
}

impl State {
    async fn carry(&self, mut here: TcpStream) {
        let (mut cuts, mut flows) = (self.cut.subscribe(), self.flows.subscribe());
        let _ = flows.wait_for(|flows| *flows).await;
        let Ok(mut there) = TcpStream::connect(self.to).await else { return };
        here.set_nodelay(true).unwrap();
        there.set_nodelay(true).unwrap();
        let (from_here, to_here) = here.split();
        let (from_there, to_there) = there.split();
        let unlimited = AtomicUsize::new(0);
        // When one side closes, both connections are closed. The cut is polled first, so that a stopped connection
        // carries nothing more once it is cut.
        tokio::select! {
            biased;
            _ = cuts.changed() => {}
            () = pump(from_here, to_there, self.flows.subscribe(), &unlimited) => {}
            () = pump(from_there, to_here, self.flows.subscribe(), &self.rate) => {}
        }
    }
}

/// Carries one direction until it ends.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut flows: watch::Receiver<bool>,
    rate: &AtomicUsize,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let _ = flows.wait_for(|flows| *flows).await;
        let read = tokio::select! {
            biased;
            _ = flows.wait_for(|flows| !*flows) => continue,
            read = from.read(&mut buffer) => read.unwrap_or(0),
        };
        let _ = flows.wait_for(|flows| *flows).await;
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        let rate = rate.load(SeqCst);
        if rate > 0 {
            tokio::time::sleep(Duration::from_secs(1).mul_f64(read as f64 / rate as f64)).await;
        }
    }
}
