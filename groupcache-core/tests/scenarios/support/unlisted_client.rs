//! TLS clients and servers that are not nodes.

use std::{io, net::SocketAddr, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

use super::pki::{Authority, Pem};

/// Preface of an HTTP/2 client, followed by an empty SETTINGS frame.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A TLS client or server that a test configures. Default: everything is as the node requires.
#[derive(Clone)]
pub struct UnlistedClient {
    pub version: &'static SupportedProtocolVersion,
    pub alpn: Option<&'static str>,
    pub certificate: Option<Pem>,
    authorities: String,
}

impl UnlistedClient {
    pub fn new(authority: &Authority, certificate: Pem) -> Self {
        Self { version: &TLS13, alpn: Some("h2"), certificate: Some(certificate), authorities: authority.pem() }
    }

    pub fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut other = self.clone();
        change(&mut other);
        other
    }

    /// Connects to a node that shows a certificate for `name`.
    pub async fn connect(&self, node: SocketAddr, name: &'static str) -> io::Result<TlsStream<TcpStream>> {
        let config = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[self.version]).unwrap();
        let config = config.with_root_certificates(self.roots());
        let mut config = match self.certificate.as_ref().map(parts) {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn.iter().map(|alpn| alpn.as_bytes().to_vec()).collect();
        let tcp = TcpStream::connect(node).await?;
        TlsConnector::from(Arc::new(config)).connect(name.try_into().unwrap(), tcp).await
    }

    /// Connects, sends the HTTP/2 preface and returns how the connection ended. The preface is needed because a client
    /// of TLS 1.3 learns of its refusal only after its own handshake is finished.
    pub async fn attempt(&self, node: SocketAddr, name: &'static str) -> String {
        let talk = async {
            let mut stream = self.connect(node, name).await?;
            let _ = stream.write_all(PREFACE).await;
            stream.read_to_end(&mut Vec::new()).await
        };
        talk.await.map_or_else(|e: io::Error| e.to_string(), |_| "closed".to_owned())
    }

    /// Completes the TLS handshake with every client and then sends nothing.
    pub async fn listen(self) -> SocketAddr {
        let config = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[self.version]).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(self.roots().into(), provider()).build().unwrap();
        let (chain, key) = parts(self.certificate.as_ref().unwrap());
        let mut config = config.with_client_cert_verifier(clients).with_single_cert(chain, key).unwrap();
        config.alpn_protocols = self.alpn.iter().map(|alpn| alpn.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        listen(move |tcp| {
            let acceptor = acceptor.clone();
            async move {
                if let Ok(mut stream) = acceptor.accept(tcp).await {
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
            }
        })
        .await
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authorities.as_bytes()).unwrap()).unwrap();
        roots
    }
}

/// Runs `each` for every connection to a new loopback listener and returns the address of the listener.
pub async fn listen<F: Future<Output = ()> + Send + 'static>(
    mut each: impl FnMut(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(each(tcp));
        }
    });
    address
}

/// Sends bytes to a node, closes the sending side and returns all bytes that the node answers.
pub async fn send_and_read(node: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    let talk = async {
        let mut tcp = TcpStream::connect(node).await?;
        tcp.write_all(bytes).await?;
        tcp.shutdown().await?;
        tcp.read_to_end(&mut answer).await
    };
    let _ = talk.await; // the node may close the connection early
    answer
}

fn parts(pem: &Pem) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from_pem_slice(pem.certificate.as_bytes()).unwrap();
    (vec![certificate], PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).unwrap())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
