//! HTTP/1.1 over any stream: TCP, or pipes in memory, with which time can be virtual.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    time::sleep,
};

/// The head of a request.
pub(super) struct Request {
    pub(super) resource: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) query: BTreeMap<String, String>,
    pub(super) token: Option<String>,
    pub(super) user_agent: Option<String>,
    pub(super) accepts_gzip: bool,
    pub(super) line: String,
}

impl Request {
    /// Returns whether the label selector matches. Only equality is supported: `a=b,c=d`.
    pub(super) fn selects(&self, object: &Value) -> bool {
        let selector = self.query.get("labelSelector").map(String::as_str).unwrap_or_default();
        selector
            .split(',')
            .filter_map(|term| term.split_once('='))
            .all(|(label, value)| object["metadata"]["labels"][label].as_str() == Some(value))
    }
}

/// Reads the head of a request. `None` at the end of the connection.
pub(super) async fn read<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut BufReader<S>) -> io::Result<Option<Request>> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        head.push(line);
    }
    let line = head.first().cloned().unwrap_or_default();
    let target = line.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), decode(v)));
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (namespace, resource, name) = match parts.as_slice() {
        ["api", "v1", "namespaces", ns, resource, rest @ ..] => (*ns, *resource, rest.first()),
        ["apis", _, _, "namespaces", ns, resource, rest @ ..] => (*ns, *resource, rest.first()),
        ["api", "v1", resource, rest @ ..] => ("", *resource, rest.first()),
        _ => ("", "", None),
    };
    let header = |name: &str| {
        let values = head.iter().filter_map(|line| line.split_once(':'));
        let mut named = values.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value.trim().to_owned())
    };
    let (token, user_agent) = (header("authorization"), header("user-agent"));
    let accepts_gzip = header("accept-encoding").is_some_and(|codings| codings.contains("gzip"));
    Ok(Some(Request {
        resource: resource.to_owned(),
        namespace: namespace.to_owned(),
        name: name.map(|name| (*name).to_owned()).unwrap_or_default(),
        query: query.collect(),
        token: token.and_then(|value| value.strip_prefix("Bearer ").map(str::to_owned)),
        user_agent,
        accepts_gzip,
        line,
    }))
}

/// Decodes a part of a URL.
fn decode(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let hex: String = bytes.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&hex, 16).unwrap()
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(decoded).unwrap()
}

/// Sends an answer with a JSON body.
pub(super) async fn whole<S: AsyncWrite + Unpin>(stream: &mut S, code: u16, body: &str) -> io::Result<()> {
    with_head(stream, code, "Content-Type: application/json\r\n", body).await
}

/// Sends an answer with these header lines and this body.
pub(super) async fn with_head<S: AsyncWrite + Unpin>(
    stream: &mut S,
    code: u16,
    head: &str,
    body: &str,
) -> io::Result<()> {
    let head = format!("HTTP/1.1 {code} x\r\n{head}Content-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.flush().await
}

/// Sends a body that is compressed. Returns its compressed bytes.
pub(super) async fn zipped<S: AsyncWrite + Unpin>(stream: &mut S, body: &str) -> io::Result<usize> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body.as_bytes())?;
    let body = encoder.finish()?;
    let head = "HTTP/1.1 200 x\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n";
    stream.write_all(format!("{head}Content-Length: {}\r\n\r\n", body.len()).as_bytes()).await?;
    stream.write_all(&body).await?;
    stream.flush().await?;
    Ok(body.len())
}

/// Sends a body in pieces, with a pause before each piece.
pub(super) async fn paced<S: AsyncWrite + Unpin>(
    stream: &mut S,
    body: &str,
    bytes: usize,
    pause: Duration,
) -> io::Result<()> {
    let head = format!("HTTP/1.1 200 x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    for piece in body.as_bytes().chunks(bytes) {
        stream.flush().await?;
        sleep(pause).await;
        stream.write_all(piece).await?;
    }
    stream.flush().await
}

/// Sends a line as one chunk.
pub(super) async fn chunk<S: AsyncWrite + Unpin>(stream: &mut S, line: &str) -> io::Result<()> {
    stream.write_all(format!("{:x}\r\n{line}\n\r\n", line.len() + 1).as_bytes()).await?;
    stream.flush().await
}
