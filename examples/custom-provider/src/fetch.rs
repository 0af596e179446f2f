//! Fetch: gets a JSON document over plain HTTP.
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

/// Maximum time of a fetch. The node itself sets no limit, and reports nothing while a provider waits for its source.
const LIMIT: Duration = Duration::from_secs(1);

/// Maximum size of the document: 2,000 peers, which is as many as a node accepts, of 128 bytes each.
const MAX_BYTES: usize = 256 << 10;

/// Fetches the document at a URL such as `http://10.0.0.5:8500/peers`.
///
/// # Errors
/// When `url` is not an `http` URL, when the server cannot be reached or does not answer within 1 s, when the status is
/// not a success, when the document has more than 256 KiB, or when it is not JSON of type `T`.
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
    // The connection runs in this task, so that no task is left when the provider is dropped. A connection may end
    // before its answer is read.
    tokio::select! {
        document = &mut exchange => document,
        _ = connection => exchange.await,
    }
}
