//! An attempt to connect, which tries the addresses of a target in turn until the expected peer sends its Hello.

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

/// Reason why an attempt made no connection.
pub(crate) enum Failure {
    NotConnected(String),
    Refused(Refusal, String),
}

/// Connection on which the peer has sent its Hello.
pub(crate) struct Open {
    /// Guard that closes the connection when it is dropped.
    pub(crate) close_on_drop: DropGuard,
    pub(crate) inbound: Streaming<Incoming>,
    pub(crate) hello: Hello,
    /// Rest of the first frame.
    pub(crate) first: Incoming,
}

/// Connects to the first address of the target where the expected peer sends its Hello.
///
/// Each address has 2 s: one to connect and shake hands, and one for the Hello.
pub(crate) async fn connect(link: &Arc<Link>) -> Result<Open, Failure> {
    let target = link.target.load_full();
    let mut failure = Failure::NotConnected("the target has no address; compare its discovery record".to_owned());
    for address in &target.addresses {
        if link.is_gone() {
            return Err(failure);
        }
        match timeout(CONNECT + HELLO, open(link, &target, address)).await {
            Ok(Ok(open)) => return Ok(open),
            // A wrong id at one address is reported whatever fails at the others, because the membership must learn of
            // it.
            Ok(Err(_)) | Err(_) if matches!(failure, Failure::Refused(Refusal::WrongId { .. }, _)) => {}
            Ok(Err(why)) => failure = why,
            Err(_) => {
                failure = Failure::NotConnected(format!("{address} sent no Hello within {HELLO:?}; attempts continue"))
            }
        }
    }
    Err(failure)
}

/// Connects to one address and checks the Hello.
async fn open(link: &Arc<Link>, target: &Target, address: &Address) -> Result<Open, Failure> {
    let local = &link.local;
    let not_connected = |why: &dyn std::fmt::Display| Failure::NotConnected(format!("{address}: {why}"));
    let attempt = Attempt::new(&link.bytes_read);
    let close_on_drop = attempt.of_use();
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
        let text = format!("{address} answers without a Hello; check that a groupcache node listens there");
        return Err(Failure::Refused(Refusal::Rejected, text));
    };
    let hello = hello.map_err(|bad| Failure::Refused(Refusal::NoCommonVersion, bad.0))?;
    if let Some(reason) = rejection_reason(&local.hello(), &hello) {
        return Err(Failure::Refused(Refusal::OtherCluster, reason));
    }
    if let Some(reason) = attempt.server().rejection_reason(&hello.id) {
        return Err(Failure::Refused(Refusal::Untrusted, format!("{address}: {reason}")));
    }
    if let Some(expected) = target.expected.as_ref().filter(|expected| **expected != hello.id) {
        let text = format!("{address} is {} and not {expected}; the address belongs to another node", hello.id);
        return Err(Failure::Refused(Refusal::WrongId { found: Some(hello.id) }, text));
    }
    Ok(Open { close_on_drop, inbound, hello, first })
}

/// Returns the failure of an attempt that ended before the Hello.
///
/// An error that the attempt noted comes first, because HTTP/2 reports little of the layers below.
fn failure(address: &Address, attempt: &Attempt, status: &Status) -> Failure {
    match (attempt.trouble(), status.code()) {
        (Some(trouble), _) if trouble.is_about_trust() => {
            Failure::Refused(Refusal::Untrusted, format!("{address}: {trouble}"))
        }
        (Some(trouble), _) => Failure::NotConnected(format!("{address}: {trouble}")),
        // Only a server sends these two codes, because a failed transport reports Unavailable or Unknown.
        (None, Code::FailedPrecondition) => Failure::Refused(Refusal::Rejected, status.message().to_owned()),
        (None, Code::Unauthenticated) => {
            Failure::Refused(Refusal::Untrusted, format!("{address}: {}", status.message()))
        }
        (None, _) => Failure::NotConnected(format!("{address}: {}", status.message())),
    }
}
