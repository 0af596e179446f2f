//! Dialling: opens TCP connections to the addresses of a target, side by side (Happy Eyeballs, RFC 8305).
//!
//! The first connection wins, and the other attempts are dropped. The caller may go on to the next connection, because
//! a node with another id may have answered.

use std::{collections::VecDeque, io, net::SocketAddr, time::Duration};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};

use crate::{
    identity::Address,
    limits::CONNECT,
    transport::{Resolver, TcpStream},
};

/// Time without an outcome after which the next address is tried too (RFC 8305, section 8).
const NEXT_AFTER: Duration = Duration::from_millis(250);

/// Shortest such time, for targets with many addresses (RFC 8305, section 8).
const MIN_NEXT_AFTER: Duration = Duration::from_millis(100);

/// Maximum number of addresses of one name that an attempt tries. The next attempt tries the next ones.
const PER_NAME: usize = 8;

/// Check of an address before it is dialled. An error says why the address is not dialled.
pub(crate) type Permit<'a> = &'a (dyn Fn(SocketAddr) -> Result<(), String> + Send + Sync);

/// Connection attempts to the addresses of one target.
pub(crate) struct Dialling<'a> {
    permit: Permit<'a>,
    /// Number of the attempt, which chooses among many addresses of a name.
    turn: usize,
    lookups: FuturesUnordered<BoxFuture<'a, (Address, io::Result<Vec<SocketAddr>>)>>,
    /// Addresses of the look-ups that run, for the error text.
    sought: Vec<Address>,
    /// Addresses that are not tried yet: IPv4 and IPv6.
    waiting: [VecDeque<(Address, SocketAddr)>; 2],
    /// Family of the next address, an index of `waiting`; unset until the first address is known.
    family: Option<usize>,
    /// Addresses of the attempts that run, for the error text.
    dialled: Vec<(Address, SocketAddr)>,
    dials: FuturesUnordered<BoxFuture<'a, (Address, SocketAddr, io::Result<TcpStream>)>>,
    next_at: Instant,
    /// End of the time for the next connection; unset until somebody waits for it.
    end: Option<Instant>,
    errors: VecDeque<String>,
}

/// A connection, and the address that has led there.
pub(crate) struct Connected {
    pub(crate) address: Address,
    pub(crate) socket: SocketAddr,
    pub(crate) tcp: TcpStream,
}

impl<'a> Dialling<'a> {
    /// Begins to look up the names among the addresses.
    pub(crate) fn new(resolver: &'a Resolver, addresses: &[Address], turn: usize, permit: Permit<'a>) -> Self {
        let mut dialling = Self {
            permit,
            turn,
            lookups: FuturesUnordered::new(),
            sought: Vec::new(),
            waiting: [VecDeque::new(), VecDeque::new()],
            family: None,
            dialled: Vec::new(),
            dials: FuturesUnordered::new(),
            next_at: Instant::now(),
            end: None,
            errors: VecDeque::new(),
        };
        for address in addresses {
            if let Ok(socket) = address.as_str().parse() {
                dialling.found(address, &[socket]);
                continue;
            }
            let address = address.clone();
            dialling.sought.push(address.clone());
            dialling.lookups.push(Box::pin(async move {
                let found = match address.host_and_port() {
                    Some((host, port)) => resolver.lookup(host, port).await.map(|found| found.to_vec()),
                    None => Err(io::Error::other(format!("{address} has no port"))),
                };
                (address, found)
            }));
        }
        dialling
    }

    /// Returns the next connection or the next error; `None` after the last. Each connection has [`CONNECT`] after the
    /// one before, and look-ups of names are a part of this time.
    pub(crate) async fn next(&mut self) -> Option<Result<Connected, String>> {
        let end = *self.end.get_or_insert_with(|| Instant::now() + CONNECT);
        loop {
            if let Some(error) = self.errors.pop_front() {
                return Some(Err(error));
            }
            self.start_next();
            let is_waiting = self.waiting.iter().any(|family| !family.is_empty());
            if !is_waiting && self.dials.is_empty() && self.lookups.is_empty() {
                return None;
            }
            tokio::select! {
                biased;
                Some((address, socket, dialled)) = self.dials.next(), if !self.dials.is_empty() => {
                    self.dialled.retain(|(_, running)| *running != socket);
                    match dialled {
                        Ok(tcp) => {
                            (self.end, self.next_at) = (None, Instant::now());
                            return Some(Ok(Connected { address, socket, tcp }));
                        }
                        Err(e) => {
                            self.next_at = Instant::now(); // a failure makes room for the next address at once
                            self.errors.push_back(format!("{}: {e}", named(&address, socket)));
                        }
                    }
                }
                Some((address, found)) = self.lookups.next(), if !self.lookups.is_empty() => {
                    self.sought.retain(|sought| *sought != address);
                    match found {
                        Ok(found) => self.found(&address, &found),
                        Err(e) => self.errors.push_back(format!("{address}: {e}")),
                    }
                }
                () = sleep_until(self.next_at), if is_waiting => {}
                () = sleep_until(end) => self.give_up(),
            }
        }
    }

    /// Adds the addresses that a target's address stands for.
    fn found(&mut self, address: &Address, found: &[SocketAddr]) {
        let skipped = if found.len() > PER_NAME { self.turn.wrapping_mul(PER_NAME) % found.len() } else { 0 };
        for socket in found.iter().cycle().skip(skipped).take(found.len().min(PER_NAME)) {
            let family = usize::from(socket.is_ipv6());
            self.family.get_or_insert(family);
            if let Some(waiting) = self.waiting.get_mut(family)
                && !waiting.iter().any(|(_, other)| other == socket)
            {
                waiting.push_back((address.clone(), *socket));
            }
        }
    }

    /// Begins the next attempt if its time has come. The families take turns.
    fn start_next(&mut self) {
        while self.dials.is_empty() || Instant::now() >= self.next_at {
            let family = self.family.unwrap_or_default();
            let mut families = [family, 1 - family].into_iter();
            let Some((address, socket)) =
                families.find_map(|family| self.waiting.get_mut(family).and_then(VecDeque::pop_front))
            else {
                return;
            };
            self.family = Some(usize::from(socket.is_ipv4()));
            if let Err(why) = (self.permit)(socket) {
                self.errors.push_back(format!("{}: {why}", named(&address, socket)));
                continue;
            }
            self.dialled.push((address.clone(), socket));
            self.dials.push(Box::pin(async move { (address, socket, open(socket).await) }));
            let left: usize = 1 + self.waiting.iter().map(VecDeque::len).sum::<usize>();
            let share = CONNECT / u32::try_from(left).unwrap_or(u32::MAX).saturating_add(1);
            self.next_at = Instant::now() + share.clamp(MIN_NEXT_AFTER, NEXT_AFTER);
        }
    }

    /// Ends all attempts and look-ups at the end of their time.
    fn give_up(&mut self) {
        for (address, socket) in self.dialled.drain(..) {
            self.errors.push_back(format!("{}: no answer within {CONNECT:?}", named(&address, socket)));
        }
        for (address, socket) in self.waiting.iter_mut().flat_map(|family| family.drain(..)) {
            self.errors.push_back(format!("{}: not tried within {CONNECT:?}", named(&address, socket)));
        }
        for address in self.sought.drain(..) {
            self.errors.push_back(format!(
                "{address}: the name was not looked up within {CONNECT:?}; check the name servers of this machine"
            ));
        }
        self.dials.clear();
        self.lookups.clear();
    }
}

/// Returns an address with what it stands for.
fn named(address: &Address, socket: SocketAddr) -> String {
    match address.as_str().parse::<SocketAddr>() {
        Ok(_) => address.to_string(),
        Err(_) => format!("{address} at {socket}"),
    }
}

#[cfg_attr(not(simulation), expect(clippy::disallowed_methods, reason = "sockets are opened here"))]
async fn open(socket: SocketAddr) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(socket).await?;
    // Small requests must not wait for the acknowledgement of earlier requests.
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

#[cfg(test)]
#[cfg(not(any(shuttle, simulation)))]
mod tests;
