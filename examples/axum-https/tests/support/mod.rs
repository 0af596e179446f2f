//! Real processes, their certificates, and HTTPS to ask them by.
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream as Blocking},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use read_along::is_secret;
use rustix::process::{Pid, Signal, kill_process};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    version::TLS13,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;

/// Long enough for anything that works, on a busy machine with two cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a condition, and says which one when it does not come.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// The first of so many consecutive ports that nobody listens on and no other test of this file takes; they are below
/// those that the system gives to whoever asks for a free one.
pub(crate) fn free_ports(n: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = 12_000 + (std::process::id() % 1000) as u16 * 16;
    loop {
        let first = begin + NEXT.fetch_add(n, Relaxed) % 2_000;
        if (first..first + n).all(|port| TcpListener::bind(local(port)).is_ok()) {
            return first;
        }
    }
}

/// Two processes, `a` and `b`, that are one cluster.
pub(crate) struct Stage {
    pub(crate) processes: Vec<Process>,
    pub(crate) ports: [u16; 2],
    directory: PathBuf,
}

impl Stage {
    pub(crate) async fn new(test: &str) -> Self {
        let directory = Self::certificates(test, &["a", "b"]);
        let first = free_ports(2);
        let ports = [first, first + 1];
        let peers = format!("a@{},b@{}", local(ports[0]), local(ports[1]));
        let start = |name: &str, port: u16| {
            let (port, directory) = (port.to_string(), directory.display().to_string());
            Process::start(&[
                ("NODE_NAME", name),
                ("GROUP_PORT", &port),
                ("PEERS", &peers),
                ("CERTIFICATES", &directory),
            ])
        };
        let processes = vec![start("a", ports[0]), start("b", ports[1])];
        let stage = Self { processes, ports, directory };
        let users = Client::of(&stage, None);
        for port in ports {
            let is_up = async || {
                let ready = users.get(port, "/readyz").await.is_ok_and(|answer| answer.status == 200);
                let metrics = users.get(port, "/metrics").await.map(|answer| answer.body).unwrap_or_default();
                ready && metrics.contains("\ngroupcache_members 2\n")
            };
            eventually("both are up and know each other", is_up).await;
        }
        stage
    }

    /// A directory with an authority and these nodes, as the program makes it.
    pub(crate) fn certificates(test: &str, names: &[&str]) -> PathBuf {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
        make_certificates(&directory, names);
        directory
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn certificate_of(&self, name: &str) -> Certificate {
        certificate(&self.directory, name)
    }

    /// A certificate of the same authority, for somebody who is no peer.
    pub(crate) fn issue(&self, name: &str) -> Certificate {
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "examples/axum-https");
        let key = KeyPair::from_pem(&fs::read_to_string(self.file("ca-key.pem")).unwrap()).unwrap();
        let issuer = Issuer::new(authority, key);
        let (mut params, key) = (CertificateParams::new([name.to_owned()]).unwrap(), KeyPair::generate().unwrap());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.processes.clear();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

pub(crate) fn make_certificates(directory: &Path, names: &[&str]) {
    let made = Command::new(env!("CARGO_BIN_EXE_certificates")).arg(directory).args(names).status().unwrap();
    assert!(made.success());
    for name in names.iter().copied().chain(["ca"]) {
        is_secret(&fs::read_to_string(directory.join(format!("{name}-key.pem"))).unwrap());
    }
}

/// A certificate and its key, in PEM.
pub(crate) type Certificate = (String, String);

pub(crate) fn certificate(directory: &Path, name: &str) -> Certificate {
    let read = |name: String| fs::read_to_string(directory.join(name)).unwrap();
    (read(format!("{name}.pem")), read(format!("{name}-key.pem")))
}

/// A process, and what it logs; killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    pub(crate) fn start(vars: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_axum-https"));
        command.env_clear().env("RUST_LOG", read_along::RUST_LOG).envs(vars.iter().copied());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let follow = |from: Box<dyn Read + Send>| {
            let lines = Arc::clone(&lines);
            std::thread::spawn(move || {
                for line in BufReader::new(from).lines().map_while(Result::ok) {
                    if read_along::says(&line) {
                        lines.lock().unwrap().push(line);
                    }
                }
            })
        };
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let readers = vec![follow(Box::new(out)), follow(Box::new(err))];
        Self { child, lines, readers }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    pub(crate) fn said(&self, text: &str) -> bool {
        self.log().iter().any(|line| line.contains(text))
    }

    /// Waits for its end; whether it was a good one.
    pub(crate) fn ends(&mut self) -> bool {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.readers.drain(..).for_each(|reader| reader.join().unwrap());
                return status.success();
            }
            assert!(Instant::now() < end, "still runs: {:#?}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
    pub(crate) server_certificate: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// Somebody who trusts the authority of the stage, and may show a certificate.
#[derive(Clone)]
pub(crate) struct Client(TlsConnector);

impl Client {
    pub(crate) fn of(stage: &Stage, shown: Option<Certificate>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(stage.file("ca.pem")).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_protocol_versions(&[&TLS13]).unwrap().with_root_certificates(roots);
        let config = match shown {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).map(Result::unwrap).collect();
                config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        Self(TlsConnector::from(Arc::new(config)))
    }

    pub(crate) async fn get(&self, port: u16, path: &str) -> std::io::Result<Answer> {
        self.ask(port, format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")).await
    }

    pub(crate) async fn post(&self, port: u16, path: &str) -> std::io::Result<Answer> {
        let head = "host: localhost\r\nconnection: close\r\ncontent-type: application/grpc\r\ncontent-length: 5\r\n";
        self.ask(port, format!("POST {path} HTTP/1.1\r\n{head}\r\n\0\0\0\0\0")).await
    }

    async fn ask(&self, port: u16, request: String) -> std::io::Result<Answer> {
        let asked = async {
            let tcp = TcpStream::connect(local(port)).await?;
            let mut tls = self.0.connect(ServerName::try_from("localhost").unwrap(), tcp).await?;
            tls.write_all(request.as_bytes()).await?;
            let mut text = String::new();
            tls.read_to_string(&mut text).await?;
            let (head, body) = text.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            let server_certificate = tls.get_ref().1.peer_certificates().unwrap()[0].to_vec();
            Ok(Answer { status, head: head.to_lowercase(), body: body.to_owned(), server_certificate })
        };
        timeout(PATIENCE, asked).await.expect("an answer in time")
    }
}

/// What somebody gets who does not speak TLS.
pub(crate) fn plain(port: u16) -> String {
    let mut stream = Blocking::connect(local(port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}
