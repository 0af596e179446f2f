//! A bare unary call of tonic: a service that answers each request with the same bytes, and looks nothing up.

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

use super::Contestant;
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

/// Listens there.
///
/// # Errors
/// When the address is taken.
pub async fn serve(listen: SocketAddr, value: Bytes) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "a bare server, which no simulation knows")]
    let incoming = TcpListenerStream::new(TcpListener::bind(listen).await?);
    let incoming = incoming.map(|accepted| accepted.and_then(|stream| stream.set_nodelay(true).map(|()| stream)));
    tokio::spawn(Server::builder().add_service(GroupcacheServer::new(Answers(value))).serve_with_incoming(incoming));
    Ok(())
}

/// One connection, shared by all callers.
#[derive(Debug)]
pub struct Unary(GroupcacheClient<Channel>);

impl Unary {
    /// Connects.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn connect(server: SocketAddr) -> Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "a bare client, which no simulation knows")]
        let channel = Endpoint::from_shared(format!("http://{server}"))?.connect().await?;
        Ok(Self(GroupcacheClient::new(channel)))
    }
}

impl Contestant for Unary {
    async fn get(&self, _caller: usize, key: &str) -> Result<usize> {
        let response = self.0.clone().get(GetRequest { key: key.to_owned() }).await?;
        Ok(response.into_inner().value.map_or(0, |value| value.len()))
    }
}
