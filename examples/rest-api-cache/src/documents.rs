//! Documents: the values of the cached paths, each with all pages of the upstream, and their loader.
use std::sync::Arc;

use axum::http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ETAG, IF_NONE_MATCH},
};
use bytes::Bytes;
use groupcache_discovery::{BoxError, Load, LoadError, Loaded, Loader, Prost};
use serde::de::IgnoredAny;

use crate::{time::now_us, upstream::Upstream};

/// Maximum number of pages of a list: 10,000 repositories. A longer list is taken for a fault of the upstream.
const MAX_PAGES: usize = 100;

/// Cached value of a path.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Document {
    #[prost(message, repeated, tag = "1")]
    pages: Vec<Page>,
    /// Time of the last answer of the upstream, in microseconds since 1970.
    #[prost(uint64, tag = "2")]
    pub(crate) checked_us: u64,
}

/// Page of a document: one answer of the upstream.
#[derive(Clone, PartialEq, prost::Message)]
struct Page {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(bytes = "vec", tag = "2")]
    etag: Vec<u8>,
    /// JSON document, or the text between the brackets of a list.
    #[prost(bytes = "bytes", tag = "3")]
    body: Bytes,
    #[prost(bool, tag = "4")]
    is_list: bool,
    /// Path of the next page.
    #[prost(string, optional, tag = "5")]
    next: Option<String>,
}

impl Document {
    /// Returns the value as one JSON document. The pages of a list become one list.
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

/// Loader of documents. A page that is known is requested with its tag, so that an unchanged page does not count
/// against the rate limit.
pub(crate) struct Documents(pub(crate) Arc<Upstream>);

impl Loader<Prost<Document>> for Documents {
    async fn load(&self, load: Load<'_, Prost<Document>>) -> Result<Loaded<Prost<Document>>, LoadError> {
        let loaded = self.document(&load).await;
        if loaded.is_err() {
            // The log leaves out the key. Callers without a stale document receive the cause.
            tracing::warn!(reason = ?load.reason(), "a document failed to load; callers get a stale one or the cause");
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
                return Err(LoadError::permanent("the upstream links more than 100 pages, or the same page twice"));
            }
            let before = known.iter().find(|page| page.path == path);
            let Some(page) = self.page(path, before, pages.is_empty()).await? else { return Ok(Loaded::not_found()) };
            next = page.next.clone();
            pages.push(page);
        }
        // An unchanged document is a new value too, in place of `Loaded::unchanged()`, because its age starts again.
        Ok(Loaded::new(Document { pages, checked_us: now_us() }))
    }

    /// Requests one page. Returns `None` when the upstream has nothing at the path of the first page.
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

/// Checks a JSON document. Returns the document, or the text between the brackets of a list, and whether it is a list.
fn json(body: Bytes) -> Result<(Bytes, bool), BoxError> {
    serde_json::from_slice::<IgnoredAny>(&body).map_err(|_| "the answer of the upstream is not JSON")?;
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
