//! A JSON document over plain HTTP.
use std::{pin::pin, time::Duration};

use groupcache_discovery::BoxError;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, Uri,
    body::Bytes,
    client::conn::http1,
    header::{ACCEPT, HOST},
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::TcpStream, time::timeout};

/// How long all of it may take. A node would wait for a provider as long as it takes: what hangs is said nowhere.
const LIMIT: Duration = Duration::from_secs(1);

/// What the document may have: 2,000 peers, which is as many as a node takes, of 128 bytes.
const MAX_BYTES: usize = 256 << 10;

/// Fetches the document at a URL such as `http://10.0.0.5:8500/peers`.
///
/// # Errors
/// When it is not there within a second, is no such document, or the answer is another one than 200.
pub async fn json<T: DeserializeOwned>(url: &str) -> Result<T, BoxError> {
    let document = timeout(LIMIT, get(url)).await.map_err(|_| format!("{url} does not answer within {LIMIT:?}"))??;
    serde_json::from_slice(&document).map_err(|e| format!("{url} answers with another document: {e}").into())
}

async fn get(url: &str) -> Result<Bytes, BoxError> {
    let uri: Uri = url.parse().map_err(|e| format!("{url:?} is not a URL: {e}"))?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"));
    let authority = authority.ok_or_else(|| format!("{url:?} is not a URL: write http://host:port/path"))?;
    #[expect(clippy::disallowed_methods, reason = "this is the way to the registry, not to a peer")]
    let stream = TcpStream::connect((authority.host(), authority.port_u16().unwrap_or(80))).await;
    let stream = stream.map_err(|e| format!("{url} cannot be reached: {e}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path).header(HOST, authority.as_str()).header(ACCEPT, "application/json");
    let request = request.body(Empty::<Bytes>::new())?;
    let mut exchange = pin!(async move {
        let answer = sender.send_request(request).await.map_err(|e| format!("{url} does not answer: {e}"))?;
        if !answer.status().is_success() {
            return Err(format!("{url} answers {}", answer.status()).into());
        }
        Ok(Limited::new(answer.into_body(), MAX_BYTES).collect().await?.to_bytes())
    });
    // In this very task, so that none is left when a provider is dropped. A connection may end before its answer is read.
    tokio::select! {
        document = &mut exchange => document,
        _ = connection => exchange.await,
    }
}
