//! Peer connections on which a test sends any frames, including frames that no node would send.

use std::net::SocketAddr;

use groupcache_core::bytes::Bytes;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use super::PATIENCE;
use crate::proto::{self, Answer, Frame, Hello, Request, peer_client::PeerClient};

/// Statuses of answers.
pub const VALUE: u32 = 1;
pub const OVERLOADED: u32 = 5;
pub const DECLINED: u32 = 6;
pub const TOO_LARGE: u32 = 7;
pub const WRONG_PEER: u32 = 10;
pub const UNSUPPORTED: u32 = 11;
pub const DONE: u32 = 12;
pub const BAD_REQUEST: u32 = 13;

pub fn hello() -> Hello {
    Hello {
        min_version: 1,
        max_version: 1,
        cluster: "default".into(),
        id: "unlisted".into(),
        incarnation: 1,
        state: 2,
        weight: 1,
        groups: vec![
            proto::Group { index: 7, name: "data".into(), format: 0, ..proto::Group::default() },
            proto::Group { index: 8, name: "unknown".into(), format: 0, ..proto::Group::default() },
            proto::Group { index: 9, name: "data".into(), format: 5, ..proto::Group::default() },
        ],
        ..Hello::default()
    }
}

pub fn get(id: u64, key: impl AsRef<[u8]>) -> Request {
    Request { id, group: 7, key: Bytes::copy_from_slice(key.as_ref()), deadline_ms: 5000, ..Request::default() }
}

pub async fn client(node: SocketAddr) -> PeerClient<Channel> {
    let channel = Channel::from_shared(format!("http://{node}")).unwrap();
    PeerClient::new(channel.connect().await.unwrap()).max_encoding_message_size(64 << 20)
}

/// A peer connection with frames that the test sends and receives.
pub struct Raw {
    pub frames: mpsc::Sender<Frame>,
    pub answers: Streaming<Frame>,
}

impl Raw {
    pub async fn open(node: SocketAddr, first: Frame) -> Result<Self, Status> {
        Self::on(client(node).await, first).await
    }

    async fn on(mut client: PeerClient<Channel>, first: Frame) -> Result<Self, Status> {
        let (frames, stream) = mpsc::channel(64);
        frames.send(first).await.unwrap();
        let answers = client.connect(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Self { frames, answers })
    }

    /// Opens a connection with a valid Hello, after which the node accepts requests.
    pub async fn greeted(node: SocketAddr) -> Self {
        Self::open(node, Frame { hello: Some(hello()), ..Frame::default() })
            .await
            .expect("the node accepts the connection")
    }

    /// Sends requests and waits for as many answers.
    pub async fn ask(&mut self, requests: Vec<Request>) -> Vec<Answer> {
        let n = requests.len();
        self.frames.send(Frame { requests, ..Frame::default() }).await.unwrap();
        self.receive(n).await.expect("the node answers")
    }

    /// Receives `n` answers and returns them sorted by id.
    pub async fn receive(&mut self, n: usize) -> Result<Vec<Answer>, Status> {
        let mut answers = Vec::new();
        while answers.len() < n {
            let frame = timeout(PATIENCE, self.answers.message()).await.expect("the next frame comes in time")?;
            answers.extend(frame.expect("the stream is open").answers);
        }
        answers.sort_by_key(|answer| answer.id);
        Ok(answers)
    }
}

pub fn statuses(answers: &[Answer]) -> Vec<u32> {
    answers.iter().map(|answer| answer.status).collect()
}
