//! The paths that are cached: what the upstream answers, all pages of it.
use std::sync::Arc;

use axum::http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ETAG, IF_NONE_MATCH},
};
use bytes::Bytes;
use groupcache_discovery::{BoxError, Load, LoadError, Loaded, Loader, Prost};
use serde::de::IgnoredAny;

use crate::{time::now_us, upstream::Upstream};

/// More are a mistake of somebody: 10,000 repositories.
const MAX_PAGES: usize = 100;

/// What is cached for a path.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Document {
    #[prost(message, repeated, tag = "1")]
    pages: Vec<Page>,
    /// When the upstream said so last, in microseconds since 1970.
    #[prost(uint64, tag = "2")]
    pub(crate) checked_us: u64,
}

/// One answer of the upstream.
#[derive(Clone, PartialEq, prost::Message)]
struct Page {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(bytes = "vec", tag = "2")]
    etag: Vec<u8>,
    /// A JSON document; of a list what is between its brackets.
    #[prost(bytes = "bytes", tag = "3")]
    body: Bytes,
    #[prost(bool, tag = "4")]
    is_list: bool,
    /// The path of the next page.
    #[prost(string, optional, tag = "5")]
    next: Option<String>,
}

impl Document {
    /// It as one JSON document: a list of all that is on its pages, if it is one.
    pub(crate) fn body(&self) -> Bytes {
        match self.pages.as_slice() {
            [page] if !page.is_list => page.body.clone(),
            pages => {
                let filled: Vec<_> = pages.iter().map(|page| &*page.body).filter(|body| !body.is_empty()).collect();
                [b"[".as_slice(), &filled.join(&b","[..]), b"]"].concat().into()
            }
        }
    }
}

/// Asks the upstream, and for each page that is known only whether it has changed, which costs nothing of the rate limit.
pub(crate) struct Documents(pub(crate) Arc<Upstream>);

impl Loader<Prost<Document>> for Documents {
    async fn load(&self, load: Load<'_, Prost<Document>>) -> Result<Loaded<Prost<Document>>, LoadError> {
        let loaded = self.document(&load).await;
        if loaded.is_err() {
            // Not the key; those who wait get the cause.
            tracing::warn!(reason = ?load.reason(), "the upstream did not answer as it should");
        }
        loaded
    }
}

impl Documents {
    async fn document(&self, load: &Load<'_, Prost<Document>>) -> Result<Loaded<Prost<Document>>, LoadError> {
        let known = load.previous().map(|document| document.pages.as_slice()).unwrap_or_default();
        let mut pages: Vec<Page> = Vec::new();
        let mut next = Some(format!("{}?per_page=100", load.key()));
        while let Some(path) = next {
            if pages.len() == MAX_PAGES || pages.iter().any(|page| page.path == path) {
                return Err(LoadError::permanent("the pages of the upstream have no end"));
            }
            let before = known.iter().find(|page| page.path == path);
            let Some(page) = self.page(path, before, pages.is_empty()).await? else { return Ok(Loaded::not_found()) };
            next = page.next.clone();
            pages.push(page);
        }
        // Not `Loaded::unchanged()`, even if nothing has changed: its age is told, and begins anew.
        Ok(Loaded::new(Document { pages, checked_us: now_us() }))
    }

    /// One page; `None` when there is nothing at the path.
    async fn page(&self, path: String, before: Option<&Page>, is_first: bool) -> Result<Option<Page>, LoadError> {
        let mut headers = HeaderMap::new();
        if let Some(etag) =
            before.and_then(|page| HeaderValue::from_bytes(&page.etag).ok()).filter(|tag| !tag.is_empty())
        {
            headers.insert(IF_NONE_MATCH, etag);
        }
        let answer = self.0.ask(Method::GET, &path, headers).await.map_err(LoadError::transient)?;
        let next = self.0.next_page(&answer.headers)?;
        match (answer.status, before) {
            (StatusCode::NOT_MODIFIED, Some(page)) => {
                Ok(Some(Page { next: next.or_else(|| page.next.clone()), ..page.clone() }))
            }
            (StatusCode::OK, _) => {
                let (body, is_list) = json(answer.body)?;
                let etag = answer.headers.get(ETAG).map(|etag| etag.as_bytes().to_vec()).unwrap_or_default();
                Ok(Some(Page { path, etag, body, is_list, next }))
            }
            (StatusCode::NOT_FOUND, _) if is_first => Ok(None),
            (status, _) => Err(LoadError::transient(format!("the upstream answers {status}"))),
        }
    }
}

/// A JSON document, or what is between the brackets of a list, and which of the two.
fn json(body: Bytes) -> Result<(Bytes, bool), BoxError> {
    serde_json::from_slice::<IgnoredAny>(&body).map_err(|_| "the upstream answers with what is not JSON")?;
    let text = body.trim_ascii();
    let Some(list) = text.strip_prefix(b"[").and_then(|text| text.strip_suffix(b"]")) else {
        return Ok((body.slice_ref(text), false));
    };
    Ok((body.slice_ref(list.trim_ascii()), true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(pages: &[&'static str]) -> Document {
        let page = |text: &&'static str| {
            let (body, is_list) = json(Bytes::from_static(text.as_bytes())).unwrap();
            Page { body, is_list, ..Page::default() }
        };
        Document { pages: pages.iter().map(page).collect(), checked_us: 0 }
    }

    #[test]
    fn pages_of_a_list_are_one_list() {
        assert_eq!(document(&["[1, 2]", " [ 3 ]\n"]).body(), "[1, 2,3]");
        assert_eq!(document(&["[]"]).body(), "[]");
        assert_eq!(document(&["[1]", "[ ]"]).body(), "[1]");
        assert_eq!(document(&[" {\"a\": [1]} "]).body(), "{\"a\": [1]}");
        assert!(json(Bytes::from_static(b"[1, 2")).is_err());
        assert!(json(Bytes::from_static(b"[1] [2]")).is_err());
        assert!(json(Bytes::new()).is_err());
    }
}
