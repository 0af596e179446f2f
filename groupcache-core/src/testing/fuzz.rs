//! Fuzz targets: any bytes that a client may send to a node. `make fuzz` runs them, and unit tests run a part of the
//! inputs.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::allow_attributes,
    reason = "built for tests and fuzzers only"
)]

use std::{
    io,
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    runtime::{Builder, Runtime},
    time::timeout,
};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint, Uri},
};

use crate::{
    Group, Node,
    protocol::{
        message::Response,
        proto,
        wire::{self, Answered, Incoming, Outgoing},
    },
};

/// Time limit of an input, in the virtual time of the runtime, which jumps to the next event.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Reads bytes as a message of the wire, and checks that reading agrees with the generated code and survives a round
/// trip.
pub fn wire(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(get) = wire::read_get(&bytes) {
        drop(wire::unary(get));
    }
    let reference = proto::Frame::decode(bytes.clone());
    let mut frame = match Incoming::read(&bytes) {
        Ok(frame) => frame,
        Err(malformed) if malformed.is_too_much() => return,
        Err(malformed) => return assert!(reference.is_err(), "the generated code accepts the frame: {malformed}"),
    };
    if let Ok(reference) = &reference {
        frame.assert_is(reference);
    }
    if let Some(Ok(hello)) = frame.hello() {
        let mut again = Outgoing::new(hello.fingerprint);
        again.hello(&hello, 1);
        let again = again.arrived().hello().expect("a Hello").expect("the Hello that was read can be read again");
        assert_eq!((again.id, again.groups.len()), (hello.id, hello.groups.len()));
    }
    for Answered { id, answer, .. } in frame.answers {
        let mut again = Outgoing::default();
        again.answer(id, answer.clone());
        assert!(again.written().len() <= again.bytes());
        // The estimate is approximate: an entry of a page takes at least two bytes beside key and value, and is counted
        // with 24.
        let entries = if let Response::Page(page) = &answer { page.entries.len() } else { 0 };
        assert!(wire::answer_bytes(&answer) <= again.written().len() + 64 + 24 * entries);
        assert_eq!(again.arrived().answers, [Answered { id, answer, is_known: true }]);
    }
}

/// A node on a runtime in virtual time, so that time-outs of seconds take no real time.
struct Scene {
    runtime: Runtime,
    node: Node,
    group: Group<String>,
}

static SCENE: LazyLock<Mutex<Scene>> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (node, group) = runtime.block_on(async {
        let node = Node::builder().seed(7).insecure().start().await.unwrap();
        let loader = async |key: &str| match key.len() {
            1 => Err("no such thing"),
            _ => Ok(key.to_owned()),
        };
        let group = node.group::<String>("data").capacity_bytes(1 << 20).loader(loader).build().unwrap();
        (node, group)
    });
    Mutex::new(Scene { runtime, node, group })
});

/// Runs an input on the scene, and checks afterwards that the node still serves and owes no response.
fn with_scene(act: impl AsyncFnOnce(&Scene)) {
    // A poisoned lock is accepted, because the input that panicked has failed the run already.
    let scene = SCENE.lock().unwrap_or_else(PoisonError::into_inner);
    scene.runtime.block_on(async {
        act(&scene).await;
        assert_eq!(scene.group.get("good").await.unwrap(), "good", "the node still serves");
        let done = async {
            while scene.node.owes() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, done).await.expect("no response is owed");
    });
}

/// Returns a connection to the node, served as one of the node's listener.
fn connection(scene: &Scene) -> DuplexStream {
    let (client, accepted) = duplex(64 << 10);
    let incoming = futures_util::stream::once(async { Ok::<_, io::Error>(accepted) });
    let serving = scene.node.router().serve_with_incoming(incoming);
    tokio::spawn(async move { serving.await.expect("the server ends without an error") });
    client
}

/// Sends bytes to the port of a node. The first two bytes are the length of the pieces in which the others are sent.
pub fn server_bytes(bytes: &[u8]) {
    let Some((piece, rest)) = bytes.split_first_chunk::<2>() else { return };
    let piece = usize::from(u16::from_le_bytes(*piece)).max(1);
    with_scene(async |scene| {
        let (mut reader, mut writer) = tokio::io::split(connection(scene));
        let write = async {
            for piece in rest.chunks(piece) {
                if writer.write_all(piece).await.is_err() {
                    return; // the node has closed the connection
                }
                tokio::task::yield_now().await;
            }
            let _ = writer.shutdown().await;
        };
        let read = async {
            let mut answers = vec![0; 4096];
            while reader.read(&mut answers).await.is_ok_and(|n| n > 0) {}
        };
        timeout(PATIENCE, async { tokio::join!(write, read) }).await.expect("the node closes the connection");
    });
}

/// Sends messages on the stream of frames, after a valid Hello. Each message follows its length in two bytes.
pub fn server_frames(bytes: &[u8]) {
    let mut messages = vec![Bytes::from(hello())];
    let mut rest = bytes;
    while rest.remaining() >= 2 {
        let len = usize::from(rest.get_u16_le()).min(rest.remaining());
        messages.push(rest.copy_to_bytes(len));
    }
    with_scene(async |scene| {
        let (mut connection, uri) = (Some(connection(scene)), "http://node");
        let connector = tower_service_fn(move |_: Uri| {
            let connection = connection.take().map(TokioIo::new);
            async move { connection.ok_or_else(|| io::Error::other("the scene has one connection")) }
        });
        let channel: Channel = Endpoint::from_static(uri).connect_with_connector(connector).await.expect("connected");
        let mut client = Grpc::new(channel);
        client.ready().await.expect("ready");
        let path = PathAndQuery::from_static("/groupcache.v1.Peer/Connect");
        let request = Request::new(futures_util::stream::iter(messages));
        let talk = async {
            let Ok(answers) = client.streaming(request, path, Verbatim).await else { return };
            let mut answers = answers.into_inner();
            while let Ok(Some(_)) = answers.message().await {}
        };
        timeout(PATIENCE, talk).await.expect("the stream ends");
    });
}

/// Returns a frame with a valid Hello of a peer with two groups.
fn hello() -> Vec<u8> {
    let mut frame = Outgoing::new(1);
    let mut hello = crate::protocol::message::Hello {
        cluster: "default".into(),
        id: crate::PeerId::new("unlisted").unwrap(),
        expected: None,
        incarnation: crate::discovery::Incarnation(1),
        state: crate::discovery::NodeState::Ready,
        weight: 1,
        zone: "".into(),
        addresses: Vec::new(),
        ring_algorithm: 1,
        fingerprint: 1,
        max_requests_per_frame: 1024,
        max_value_bytes: 1 << 20,
        groups: Vec::new(),
        features: 0,
        log_incarnation: crate::discovery::Incarnation(0),
    };
    hello.groups.push(crate::protocol::message::GroupName {
        index: 7,
        name: "data".into(),
        format: 0,
        bounds: Default::default(),
    });
    hello.groups.push(crate::protocol::message::GroupName {
        index: 9,
        name: "data".into(),
        format: 5,
        bounds: Default::default(),
    });
    frame.hello(&hello, 1024);
    frame.written().to_vec()
}

/// A codec that passes messages on unchanged.
#[derive(Debug)]
struct Verbatim;

impl Codec for Verbatim {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Verbatim {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(message);
        Ok(())
    }
}

impl Decoder for Verbatim {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}

/// Makes a service of a function, as `tower::service_fn` does, which is in a crate that this crate does not depend on.
fn tower_service_fn<F>(connect: F) -> ServiceFn<F> {
    ServiceFn(connect)
}

struct ServiceFn<F>(F);

impl<F, R> tower_service::Service<Uri> for ServiceFn<F>
where
    F: FnMut(Uri) -> R,
    R: Future<Output = io::Result<TokioIo<DuplexStream>>>,
{
    type Response = TokioIo<DuplexStream>;
    type Error = io::Error;
    type Future = R;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> R {
        self.0(uri)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use replay::replay;

    /// Checks 50,000 inputs of the target `wire`.
    #[test]
    fn wire_messages_are_read_as_generated_code_reads_them() {
        replay("wire", 50_000, super::wire);
    }

    /// Checks 1,500 inputs of the target `server_bytes`.
    #[test]
    fn bytes_at_the_port_do_not_stop_the_node() {
        replay("server_bytes", 1_500, super::server_bytes);
    }

    /// Checks 1,500 inputs of the target `server_frames`.
    #[test]
    fn frames_on_the_stream_do_not_stop_the_node() {
        replay("server_frames", 1_500, super::server_frames);
    }
}
