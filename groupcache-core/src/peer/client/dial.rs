//! An attempt to connect, which tries the addresses of a target side by side until the expected peer sends its Hello.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};
use tokio_util::sync::DropGuard;
use tonic::{Code, Status, Streaming};

use crate::peer::client::{dial_limits::Claim, outbound::Outbound};
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
    transport::{Attempt, Connected, Dialling},
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

/// Maximum time of one attempt: that of a target with the most addresses, each of which answers without a Hello.
const ATTEMPT: Duration = Duration::from_secs(16);

/// Connects to the first address of the target where the expected peer sends its Hello.
///
/// The addresses, and those of a name, are tried side by side. A connection on which another node answers, or nobody,
/// is given up for the next one. Each connection has 1 s to open, and 2 s for handshake and Hello. A target that has
/// never answered has a `claim`, which limits the addresses. `turn` is the number of the attempt.
pub(crate) async fn connect(link: &Arc<Link>, claim: Option<&Claim<'_>>, turn: usize) -> Result<Open, Failure> {
    let target = claim.map_or_else(|| link.target.load_full(), |claim| Arc::clone(&claim.target));
    let addresses = claim.map_or(&target.addresses, |claim| &claim.addresses);
    let end = Instant::now() + ATTEMPT;
    let admit = |socket| claim.map_or(Ok(()), |claim| claim.admit(socket));
    let mut dialling = Dialling::new(&link.local.net.resolver, addresses, turn, &admit);
    let mut failure = Failure::NotConnected("the target has no address; compare its discovery record".to_owned());
    while let Some(next) = dialling.next().await {
        if link.is_gone() || Instant::now() > end {
            return Err(failure);
        }
        let why = match next {
            Ok(connected) => {
                let (address, socket) = (connected.address.clone(), connected.socket);
                match timeout(CONNECT + HELLO, open(link, &target, connected)).await {
                    Ok(Ok(open)) => {
                        if let Some(claim) = claim {
                            claim.answered(socket, &open.hello.id);
                        }
                        return Ok(open);
                    }
                    Ok(Err(why)) => {
                        if let (Some(claim), Failure::Refused(Refusal::WrongId { found: Some(id) }, _)) = (claim, &why)
                        {
                            claim.found(socket, id);
                        }
                        why
                    }
                    Err(_) => {
                        Failure::NotConnected(format!("{address} sent no Hello within {HELLO:?}; attempts continue"))
                    }
                }
            }
            Err(why) => Failure::NotConnected(why),
        };
        // A wrong id at one address is reported whatever fails at the others, because the membership must learn of it.
        if !matches!(failure, Failure::Refused(Refusal::WrongId { .. }, _)) {
            failure = why;
        }
    }
    Err(failure)
}

/// Performs the handshake on a connection and checks the Hello.
async fn open(link: &Arc<Link>, target: &Target, connected: Connected) -> Result<Open, Failure> {
    let local = &link.local;
    let Connected { address, tcp, .. } = connected;
    let address = &address;
    let not_connected = |why: &dyn std::fmt::Display| Failure::NotConnected(format!("{address}: {why}"));
    let attempt = Attempt::new(&link.bytes_read);
    let close_on_drop = attempt.of_use();
    let channel = local.net.channel(address.as_str(), tcp, &local.limits, &attempt).map_err(|e| not_connected(&e))?;
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
