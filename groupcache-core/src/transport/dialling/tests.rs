//! Tests of the order of addresses, of refused addresses and of names that are not looked up. The scenarios `names` have
//! addresses that swallow packets.

use std::{sync::Mutex, time::Duration};

use super::*;
use crate::transport;

fn addresses(texts: &[&str]) -> Vec<Address> {
    texts.iter().map(|text| Address::new(text).unwrap()).collect()
}

fn many(n: u8) -> Vec<SocketAddr> {
    (0..n).map(|n| SocketAddr::from(([10, 0, 0, n], 0))).collect()
}

/// Returns the order in which the addresses of a target are tried.
async fn order(resolver: &Resolver, texts: &[&str], turn: usize) -> Vec<String> {
    let tried = Mutex::new(Vec::new());
    let refuse = |socket: SocketAddr| {
        tried.lock().unwrap().push(socket.to_string());
        Err("refused".to_owned())
    };
    let mut dialling = Dialling::new(resolver, &addresses(texts), turn, &refuse);
    while let Some(next) = dialling.next().await {
        assert!(next.is_err_and(|why| why.contains("refused")));
    }
    drop(dialling);
    tried.into_inner().unwrap()
}

#[tokio::test]
async fn families_take_turns() {
    let resolver = Resolver::of(|_| unreachable!("no name"));
    let texts = ["[fd00::1]:1", "[fd00::2]:1", "[fd00::3]:1", "10.0.0.1:1", "10.0.0.2:1", "10.0.0.1:1"];
    let order = order(&resolver, &texts, 0).await;
    assert_eq!(order, ["[fd00::1]:1", "10.0.0.1:1", "[fd00::2]:1", "10.0.0.2:1", "[fd00::3]:1"]);
}

/// Checks that the attempts together try all addresses of a name, a few each.
#[tokio::test]
async fn attempts_share_the_addresses_of_a_name() {
    let resolver = Resolver::of(|_| Ok(many(20)));
    let mut tried = Vec::new();
    for turn in 0..5 {
        let few = order(&resolver, &["cache.test:1"], turn).await;
        assert_eq!(few.len(), PER_NAME);
        tried.extend(few);
    }
    tried.sort();
    tried.dedup();
    assert_eq!(tried.len(), 20);
}

/// Checks that the caller may go on to the next connection, because another node has answered on the first.
#[tokio::test]
async fn next_address_is_tried_after_a_connection() {
    let any = || async { transport::listen("127.0.0.1:0".parse().unwrap()).await.unwrap() };
    let (first, second) = (any().await, any().await);
    let both = [first.local_addr().unwrap(), second.local_addr().unwrap()];
    let targets = both.map(Address::from);
    let resolver = Resolver::of(|_| unreachable!("no name"));
    let mut dialling = Dialling::new(&resolver, &targets, 0, &|_| Ok(()));
    let mut reached = Vec::new();
    while let Some(next) = dialling.next().await {
        let Ok(connected) = next else { panic!("somebody listens") };
        reached.push(connected.socket);
    }
    assert_eq!(reached, both);
}

/// Checks that a name without an answer costs the target's other addresses nothing, and is named in the error.
#[tokio::test]
async fn silent_name_delays_no_other_address() {
    let listener = transport::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (answer, answered) = std::sync::mpsc::channel::<()>();
    let answered = Mutex::new(answered);
    let resolver = Resolver::of(move |_| {
        let _ = answered.lock().unwrap().recv();
        Err(io::Error::other("no name server answered"))
    });
    let mut dialling = Dialling::new(&resolver, &addresses(&["silent.test:1", &address]), 0, &|_| Ok(()));
    assert!(dialling.next().await.unwrap().is_ok_and(|connected| connected.socket.to_string() == address));
    let ended = tokio::time::timeout(Duration::from_secs(30), dialling.next()).await.expect("an attempt has an end");
    let why = ended.unwrap().err().unwrap();
    assert!(why.contains("silent.test:1") && why.contains("check the name servers"), "{why}");
    assert!(dialling.next().await.is_none());
    drop(answer);
}
