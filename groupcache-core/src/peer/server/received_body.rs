//! Body of a request: its bytes count in the budget of the node until they were taken, and a body of one message has a
//! time to come.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Buf;
use tokio::time::{Sleep, sleep};
use tonic::{
    Status,
    codegen::{Body, Service, http},
    server::NamedService,
};

use crate::{
    error::BoxError,
    transport::{self, Session},
};

/// Time in which the message of a unary get comes. A get has about 100 bytes.
const UNARY: Duration = Duration::from_secs(5);

/// Path of the stream of frames, which lasts as long as its connection.
const STREAM: &str = "/groupcache.v1.Peer/Connect";

/// Service that gives the requests for another one bodies that are counted. A request has its [`transport::Body`] among
/// its extensions.
#[derive(Clone, Debug)]
pub(crate) struct Counted<S>(pub(crate) S);

impl<S: NamedService> NamedService for Counted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Counted<S>
where
    S: Service<http::Request<CountedBody<B>>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> S::Future {
        let body = transport::Body::new(request.extensions().get::<Arc<Session>>().cloned(), request.headers());
        request.extensions_mut().insert(Arc::clone(&body));
        let ends = (request.uri().path() != STREAM).then(|| Box::pin(sleep(UNARY)));
        self.0.call(request.map(|inner| CountedBody { inner: Box::pin(inner), body, ends }))
    }
}

/// Body with counted bytes.
pub(crate) struct CountedBody<B> {
    inner: Pin<Box<B>>,
    body: Arc<transport::Body>,
    /// End of the time in which the whole body comes.
    ends: Option<Pin<Box<Sleep>>>,
}

impl<B> Body for CountedBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<B::Data>, BoxError>>> {
        let frame = self.inner.as_mut().poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => self.body.arrived(frame.data_ref().map_or(0, Buf::remaining)),
            Poll::Pending if self.ends.as_mut().is_some_and(|ends| ends.as_mut().poll(cx).is_ready()) => {
                let late = Status::deadline_exceeded("the message has not come within 5 s; send it with the request");
                return Poll::Ready(Some(Err(late.into())));
            }
            Poll::Ready(_) | Poll::Pending => {}
        }
        frame.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}
