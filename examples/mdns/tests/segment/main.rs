//! Processes of the service on hosts of one network segment, found by multicast DNS alone.
#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test, helpers included, that drives processes from outside in real time"
)]

mod lan;

use std::{
    net::{TcpListener, UdpSocket},
    path::Path,
    process::Command,
    thread::sleep,
    time::Duration,
};

use rustix::process::Signal;
use segment::Families;

use crate::lan::{Lan, PROGRAM, Process, eventually, get_at, is_in_cluster_of};

/// The figures of a segment are printed; what is judged is whether it comes at all, on a busy machine.
fn tell(what: &str, took: Duration, figure: &str) {
    println!("{what} after {took:?} (figure: {figure})");
}

#[test]
fn nodes_join_leave_are_killed_and_lose_their_cable() {
    let Some(lan) = Lan::of(3, Families::V4) else { return };
    let (_n1, _n2) = (lan.node(0, "n1"), lan.node(1, "n2"));
    eventually("n1 and n2 are one cluster", || lan.agree(&[0, 1], 2));
    let asker = lan.ask_all_the_time(&[0, 1]);

    let n3 = lan.node(2, "n3");
    tell("in every ring", eventually("n3 is in every ring", || lan.agree(&[0, 1, 2], 3)), "2 s from its start");
    let row = lan.get(0, "/data/row").unwrap();
    assert_eq!((row.0, lan.get(1, "/data/row"), lan.get(2, "/data/row")), (200, Some(row.clone()), Some(row.clone())));
    assert_eq!(lan.get(2, "/stats").unwrap().0, 200);

    n3.signal(Signal::TERM);
    tell("leaves: in no ring", eventually("n3 is in no ring", || lan.agree(&[0, 1], 2)), "at once");
    drop(n3);

    let n3 = lan.node(2, "n3");
    eventually("n3 is back", || lan.agree(&[0, 1, 2], 3));
    drop(n3); // SIGKILL
    let out = eventually("n3 is in no ring", || lan.agree(&[0, 1], 2));
    tell("killed: in no ring", out, "15 s");
    assert!(out < Duration::from_secs(25), "its records live for two minutes");

    let _n3 = lan.node(2, "n3");
    eventually("n3 is back again", || lan.agree(&[0, 1, 2], 3));
    lan.host(2).down();
    let out = eventually("n3 is in no ring", || lan.agree(&[0, 1], 2));
    tell("link down: in no ring", out, "15 s");
    sleep(Duration::from_secs(10).saturating_sub(out));
    lan.host(2).up();
    tell("link up: in every ring", eventually("n3 is in every ring", || lan.agree(&[0, 1, 2], 3)), "35 s");
    asker.end();
}

#[test]
fn a_host_that_is_cut_off_for_longer_than_records_live_is_found_again() {
    let Some(lan) = Lan::of(3, Families::V4) else { return };
    let _nodes = [lan.node(0, "n1"), lan.node(1, "n2"), lan.node(2, "n3")];
    eventually("all are one cluster", || lan.agree(&[0, 1, 2], 3));
    let asker = lan.ask_all_the_time(&[0, 1, 2]);
    lan.host(2).cut();
    let apart = || lan.agree(&[0, 1], 2) && lan.agree(&[2], 1);
    let out = eventually("each side goes on by itself", apart);
    tell("cut off: two rings", out, "15 s");
    sleep(Duration::from_secs(130).saturating_sub(out));
    assert!(apart());
    lan.host(2).heal();
    tell("healed: one ring", eventually("all are one cluster again", || lan.agree(&[0, 1, 2], 3)), "35 s");
    asker.end();
}

#[test]
fn two_clusters_on_one_segment_do_not_see_each_other_even_with_the_same_names() {
    let Some(lan) = Lan::of(4, Families::V4) else { return };
    let cluster = |host, name, cluster| lan.node_with(host, name, &[("GROUPCACHE_CLUSTER", cluster)]);
    let _nodes = [cluster(0, "n1", "red"), cluster(1, "n2", "red"), cluster(2, "n1", "blue"), cluster(3, "n2", "blue")];
    eventually("there are two clusters", || lan.agree(&[0, 1, 2, 3], 2));
    // What one was told of the other would have been dialled by now, and refused.
    sleep(Duration::from_secs(3));
    assert!(lan.agree(&[0, 1, 2, 3], 2));
    for host in 0..4 {
        let refusals = lan.stats(host).unwrap()["node"]["counters"]["refusals"].clone();
        assert_eq!(refusals.as_u64().unwrap_or_default(), 0, "{:?}", lan.stats(host));
    }
}

#[test]
fn nodes_find_each_other_over_ipv6_alone() {
    let Some(lan) = Lan::of(2, Families::V6) else { return };
    let _nodes = [lan.node(0, "n1"), lan.node(1, "n2")];
    tell("one ring", eventually("they are one cluster", || lan.agree(&[0, 1], 2)), "2 s");
    lan.rows_are_shared(&[0, 1]);
}

#[test]
fn nodes_that_announce_both_families_are_one_peer_each() {
    let Some(lan) = Lan::of(2, Families::Both) else { return };
    let both = [("GROUPCACHE_MDNS_FOLLOW_INTERFACES", "1")];
    let _nodes = [lan.node_with(0, "n1", &both), lan.node_with(1, "n2", &both)];
    tell("one ring", eventually("they are one cluster", || lan.agree(&[0, 1], 2)), "2 s");
    lan.rows_are_shared(&[0, 1]);
}

#[test]
fn processes_of_one_machine_find_each_other_and_those_of_another() {
    let Some(lan) = Lan::of(2, Families::V4) else { return };
    let nodes = [
        lan.node(0, "n1"),
        lan.node_with(0, "n2", &[("GROUP_PORT", "7947"), ("HTTP_ADDR", "127.0.0.1:8081")]),
        lan.node_with(0, "n3", &[("GROUP_PORT", "7948"), ("HTTP_ADDR", "127.0.0.1:8082")]),
        lan.node(1, "n4"),
    ];
    tell("one ring", eventually("they are one cluster", || lan.agree(&[0, 1], 4)), "2 s");
    drop(nodes);
}

#[test]
fn a_node_without_multicast_says_so_once_and_serves_alone() {
    let Some(lan) = Lan::of(2, Families::V4) else { return };
    let n2 = lan.node(1, "n2");
    // Nothing is left to announce on; the other one has multicast, and nobody to hear.
    let here = lan.host(0).address().to_string();
    let n1 = lan.node_with(0, "n1", &[("NODE_IP", &here), ("GROUPCACHE_MDNS_SKIP_INTERFACES", "eth0")]);
    eventually("it serves", || lan.get(0, "/data/row").is_some_and(|(status, _)| status == 200));
    let said = || n1.lines().into_iter().filter(|line| line.contains("no multicast")).collect::<Vec<_>>();
    eventually("it says that there is no multicast", || !said().is_empty());
    sleep(Duration::from_secs(8));
    let said = said();
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(said[0].contains("eth0") && said[0].contains("nats"), "and what to use instead: {said:?}");
    let alone = || n2.lines().into_iter().filter(|line| line.contains("nobody else is heard")).count();
    eventually("the other one says that it hears nobody", || alone() > 0);
    sleep(Duration::from_secs(2));
    assert_eq!(alone(), 1);
    assert!(lan.agree(&[0, 1], 1), "{:?}", lan.stats(0));
}

/// What `make run-mdns` does, in a world of its own.
#[test]
fn three_processes_on_loopback_find_each_other_and_need_no_port_of_their_own() {
    let lo = if cfg!(target_os = "linux") { "lo" } else { "lo0" };
    let multicast = UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port().to_string();
    let database = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mdns-{}.db", std::process::id()));
    let free_port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let ports = [free_port(), free_port(), free_port()];
    let start = |(n, http): (usize, &u16)| {
        let mut command = Command::new(PROGRAM);
        command.env("HTTP_ADDR", format!("127.0.0.1:{http}")).env("DATABASE", &database);
        // Neither NODE_IP nor GROUP_PORT: each takes the address of the interface, and a port that is free.
        let vars = [("GROUPCACHE_MDNS_INTERFACES", lo), ("GROUPCACHE_MDNS_PORT", &multicast)];
        Process::start(command, &format!("n{n}"), &vars)
    };
    let processes: Vec<_> = ports.iter().enumerate().map(start).collect();
    let stats = |port: u16| get_at(port, "/stats").and_then(|(_, body)| serde_json::from_str(&body).ok());
    let agree = || ports.iter().all(|port| is_in_cluster_of(3, &stats(*port).unwrap_or_default()));
    tell("one ring", eventually("they are one cluster", agree), "2 s");
    let row = get_at(ports[0], "/data/row").unwrap();
    assert!(row.0 == 200 && ports.iter().all(|port| get_at(*port, "/data/row").as_ref() == Some(&row)), "{row:?}");
    drop(processes);
    let _ = std::fs::remove_file(&database);
}
