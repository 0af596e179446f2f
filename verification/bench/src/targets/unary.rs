//! Target `unary`: a bare unary call of tonic. The service answers each request with the same bytes, without a lookup.

use std::net::SocketAddr;

use bytes::Bytes;
use groupcache_pb::{
    GetRequest, GetResponse, Groupcache, GroupcacheClient, GroupcacheServer, RemoveRequest, RemoveResponse,
};
use tokio::net::TcpListener;
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};

use super::Target;
use crate::Result;

struct Answers(Bytes);

#[groupcache_core::async_trait]
impl Groupcache for Answers {
    async fn get(&self, _: Request<GetRequest>) -> std::result::Result<Response<GetResponse>, Status> {
        Ok(Response::new(GetResponse { value: Some(self.0.to_vec()) }))
    }

    async fn remove(&self, _: Request<RemoveRequest>) -> std::result::Result<Response<RemoveResponse>, Status> {
        Err(Status::unimplemented("only gets are measured"))
    }
}

/// Listens on this address.
///
/// # Errors
/// An error if the address is taken.
pub async fn serve(listen: SocketAddr, value: Bytes) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "a bare server, outside of any simulation")]
    let incoming = TcpListenerStream::new(TcpListener::bind(listen).await?);
    let incoming = incoming.map(|accepted| accepted.and_then(|stream| stream.set_nodelay(true).map(|()| stream)));
    tokio::spawn(Server::builder().add_service(GroupcacheServer::new(Answers(value))).serve_with_incoming(incoming));
    Ok(())
}

/// A client with one connection, which all callers share.
#[derive(Debug)]
pub struct Unary(GroupcacheClient<Channel>);

impl Unary {
    /// Connects to a server.
    ///
    /// # Errors
    /// An error if no server answers.
    pub async fn connect(server: SocketAddr) -> Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "a bare client, outside of any simulation")]
        let channel = Endpoint::from_shared(format!("http://{server}"))?.connect().await?;
        Ok(Self(GroupcacheClient::new(channel)))
    }
}

impl Target for Unary {
    async fn get(&self, _caller: usize, key: &str) -> Result<usize> {
        let response = self.0.clone().get(GetRequest { key: key.to_owned() }).await?;
        Ok(response.into_inner().value.map_or(0, |value| value.len()))
    }
}
