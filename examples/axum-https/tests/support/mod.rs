//! Helpers of the tests: real processes, their certificates, and an HTTPS client.
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream as Blocking,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use process::{PATIENCE, Process, Scratch, Start, free_ports, local};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use read_along::is_secret;
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
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Waits until a condition holds. Panics with `what` after [`PATIENCE`].
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Starts the service with one log for standard output and standard error.
pub(crate) fn start(vars: &[(&str, &str)]) -> Process {
    let start = Start::program(env!("CARGO_BIN_EXE_axum-https")).vars([("RUST_LOG", read_along::RUST_LOG)]);
    start.vars(vars.iter().copied()).one_log().reads(read_along::says).spawn()
}

/// Waits until the process has ended and returns whether its exit code is 0.
pub(crate) fn exits_with_success(process: &mut Process) -> bool {
    process.ends_within(PATIENCE).success()
}

/// Cluster of two processes, `a` and `b`.
pub(crate) struct Stage {
    pub(crate) processes: Vec<Process>,
    pub(crate) ports: [u16; 2],
    directory: Scratch,
}

impl Stage {
    pub(crate) async fn new(test: &str) -> Self {
        Self::with(test, &[]).await
    }

    /// Starts both processes with these variables too.
    pub(crate) async fn with(test: &str, vars: &[(&str, &str)]) -> Self {
        let directory = Self::certificates(test, &["a", "b"]);
        let first = free_ports(2);
        let ports = [first, first + 1];
        let peers = format!("a@{},b@{}", local(ports[0]), local(ports[1]));
        let start = |name: &str, port: u16| {
            let (port, directory) = (port.to_string(), directory.directory().display().to_string());
            let own = [("NODE_NAME", name), ("GROUP_PORT", &port), ("PEERS", &peers), ("CERTIFICATES", &directory)];
            self::start(&[&own, vars].concat())
        };
        let processes = vec![start("a", ports[0]), start("b", ports[1])];
        let stage = Self { processes, ports, directory };
        let users = Client::of(&stage, None);
        for port in ports {
            let is_up = async || {
                let ready = users.get(port, "/readyz").await.is_ok_and(|answer| answer.status == 200);
                let metrics = users.get(port, "/metrics").await.map(|answer| answer.body).unwrap_or_default();
                ready && metrics.contains("\ngroupcache_members{state=\"ready\"} 2\n")
            };
            eventually("both processes are ready and see each other", is_up).await;
        }
        stage
    }

    /// Makes a directory with an authority and the certificates of these nodes, by the program `certificates`.
    pub(crate) fn certificates(test: &str, names: &[&str]) -> Scratch {
        let directory = Scratch::new(env!("CARGO_TARGET_TMPDIR"), test);
        make_certificates(directory.directory(), names);
        directory
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.directory()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    pub(crate) fn certificate_of(&self, name: &str) -> Certificate {
        certificate(self.directory(), name)
    }

    /// Issues a certificate of the same authority under a name that no peer has.
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

pub(crate) fn make_certificates(directory: &Path, names: &[&str]) {
    let made = Command::new(env!("CARGO_BIN_EXE_certificates")).arg(directory).args(names).status().unwrap();
    assert!(made.success());
    for name in names.iter().copied().chain(["ca"]) {
        is_secret(&fs::read_to_string(directory.join(format!("{name}-key.pem"))).unwrap());
    }
}

/// Certificate and its key, in PEM.
pub(crate) type Certificate = (String, String);

pub(crate) fn certificate(directory: &Path, name: &str) -> Certificate {
    let read = |name: String| fs::read_to_string(directory.join(name)).unwrap();
    (read(format!("{name}.pem")), read(format!("{name}-key.pem")))
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

/// HTTPS client that trusts the authority of the stage and may have a certificate of its own.
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

    /// Opens a connection that begins HTTP/2, and sends no request.
    pub(crate) async fn idle(&self, port: u16) -> std::io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(local(port)).await?;
        let mut tls = self.0.connect(ServerName::try_from("localhost").unwrap(), tcp).await?;
        // The preface, and settings without any.
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
        Ok(tls)
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
        timeout(PATIENCE, asked).await.expect("the process answers in time")
    }
}

/// Sends a request without TLS and returns all bytes of the answer.
pub(crate) fn get_without_tls(port: u16) -> String {
    let mut stream = Blocking::connect(local(port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}
