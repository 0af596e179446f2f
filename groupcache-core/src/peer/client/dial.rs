//! One attempt to connect: the addresses of a peer in turn, until one says Hello as who is expected.

use std::sync::Arc;

use tokio::time::timeout;
use tokio_util::sync::DropGuard;
use tonic::{Code, Status, Streaming};

use crate::peer::client::outbound::Outbound;
use crate::{
    identity::Address,
    limits::{CONNECT, HELLO},
    membership::stabilizer::Refusal,
    peer::{
        client::link::{Link, Target, wake},
        local::rejection_reason,
    },
    protocol::{
        message::Hello,
        wire::{Incoming, peer_client},
    },
    transport::Attempt,
};

/// Why there is no connection.
pub(crate) enum Failure {
    NotConnected(String),
    Refused(Refusal, String),
}

/// A connection whose peer has said Hello.
pub(crate) struct Open {
    /// The connection is closed when this is dropped.
    pub(crate) of_use: DropGuard,
    pub(crate) inbound: Streaming<Incoming>,
    pub(crate) hello: Hello,
    /// What else the first frame said.
    pub(crate) first: Incoming,
}

/// Tries the addresses in turn until one says Hello.
pub(crate) async fn connect(link: &Arc<Link>) -> Result<Open, Failure> {
    let target = link.target.load_full();
    let mut failure = Failure::NotConnected("it has no address".to_owned());
    for address in &target.addresses {
        if link.is_gone() {
            return Err(failure);
        }
        match timeout(CONNECT + HELLO, open(link, &target, address)).await {
            Ok(Ok(open)) => return Ok(open),
            // That somebody else is at one of its addresses is what the membership must hear, whatever the others say.
            Ok(Err(_)) | Err(_) if matches!(failure, Failure::Refused(Refusal::WrongId { .. }, _)) => {}
            Ok(Err(why)) => failure = why,
            Err(_) => failure = Failure::NotConnected(format!("{address} did not say Hello within {HELLO:?}")),
        }
    }
    Err(failure)
}

async fn open(link: &Arc<Link>, target: &Target, address: &Address) -> Result<Open, Failure> {
    let local = &link.local;
    let not_connected = |why: &dyn std::fmt::Display| Failure::NotConnected(format!("{address}: {why}"));
    let attempt = Attempt::new(&link.bytes_read);
    let of_use = attempt.of_use();
    let channel = local.net.channel(address.as_str(), &local.limits, &attempt).map_err(|e| not_connected(&e))?;
    let failed = |status: &Status| failure(address, &attempt, status);
    let mut client = peer_client::PeerClient::new(channel)
        .max_decoding_message_size(local.limits.max_message_bytes())
        .max_encoding_message_size(local.limits.max_message_bytes());
    let (connection, waker) = link.table.lock().begin_connection();
    wake(waker);
    let outbound = Outbound { link: Arc::clone(link), connection, expected: target.expected.clone() };
    let mut inbound = match client.connect(outbound).await {
        Ok(response) => response.into_inner(),
        Err(status) => return Err(failed(&status)),
    };
    let first = inbound.message().await.map_err(|status| failed(&status))?;
    let first = first.and_then(|mut frame| frame.hello().map(|hello| (hello, frame)));
    let Some((hello, first)) = first else {
        let text = format!("{address} answers, and not with a Hello: is it a groupcache node?");
        return Err(Failure::Refused(Refusal::Rejected, text));
    };
    let hello = hello.map_err(|bad| Failure::Refused(Refusal::NoCommonVersion, bad.0))?;
    if let Some(why) = rejection_reason(&local.hello(), &hello) {
        return Err(Failure::Refused(Refusal::OtherCluster, why));
    }
    if let Some(why) = attempt.server().rejection_reason(&hello.id) {
        return Err(Failure::Refused(Refusal::Untrusted, format!("{address}: {why}")));
    }
    if let Some(expected) = target.expected.as_ref().filter(|expected| **expected != hello.id) {
        let text = format!("{address} is {} and not {expected}: the address was given to another node", hello.id);
        return Err(Failure::Refused(Refusal::WrongId { found: Some(hello.id) }, text));
    }
    Ok(Open { of_use, inbound, hello, first })
}

/// What an attempt that failed before the Hello came to. HTTP/2 knows little of what lies below it.
fn failure(address: &Address, attempt: &Attempt, status: &Status) -> Failure {
    match (attempt.trouble(), status.code()) {
        (Some(trouble), _) if trouble.is_about_trust() => {
            Failure::Refused(Refusal::Untrusted, format!("{address}: {trouble}"))
        }
        (Some(trouble), _) => Failure::NotConnected(format!("{address}: {trouble}")),
        // The server's own words; a transport that fails says Unavailable or Unknown.
        (None, Code::FailedPrecondition) => Failure::Refused(Refusal::Rejected, status.message().to_owned()),
        (None, Code::Unauthenticated) => {
            Failure::Refused(Refusal::Untrusted, format!("{address}: {}", status.message()))
        }
        (None, _) => Failure::NotConnected(format!("{address}: {}", status.message())),
    }
}
