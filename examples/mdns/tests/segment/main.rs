//! Processes of the service on hosts of one network segment find each other by multicast DNS alone.
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

/// Prints how long a change took, beside the expected figure. No test fails because of the figure, because the machine
/// may be busy.
fn report(what: &str, took: Duration, figure: &str) {
    println!("{what} after {took:?} (figure: {figure})");
}

/// Checks that a node joins, leaves, is killed, and loses its link, while no get at the other nodes fails.
#[test]
fn rings_follow_joins_leaves_kills_and_lost_links() {
    let Some(lan) = Lan::of(3, Families::V4) else { return };
    let (_n1, _n2) = (lan.node(0, "n1"), lan.node(1, "n2"));
    eventually("n1 and n2 are one cluster", || lan.agree(&[0, 1], 2));
    let requests = lan.start_requests(&[0, 1]);

    let n3 = lan.node(2, "n3");
    report("in every ring", eventually("n3 is in every ring", || lan.agree(&[0, 1, 2], 3)), "2 s from its start");
    let row = lan.get(0, "/data/row").unwrap();
    assert_eq!((row.0, lan.get(1, "/data/row"), lan.get(2, "/data/row")), (200, Some(row.clone()), Some(row.clone())));
    assert_eq!(lan.get(2, "/stats").unwrap().0, 200);

    n3.signal(Signal::TERM);
    report("leaves: in no ring", eventually("n3 is in no ring", || lan.agree(&[0, 1], 2)), "at once");
    drop(n3);

    let n3 = lan.node(2, "n3");
    eventually("n3 is back", || lan.agree(&[0, 1, 2], 3));
    drop(n3); // SIGKILL
    let out = eventually("n3 is in no ring", || lan.agree(&[0, 1], 2));
    report("killed: in no ring", out, "15 s");
    assert!(out < Duration::from_secs(25), "n3 leaves the rings long before its records expire after two minutes");

    let _n3 = lan.node(2, "n3");
    eventually("n3 is back again", || lan.agree(&[0, 1, 2], 3));
    lan.host(2).down();
    let out = eventually("n3 is in no ring", || lan.agree(&[0, 1], 2));
    report("link down: in no ring", out, "15 s");
    sleep(Duration::from_secs(10).saturating_sub(out));
    lan.host(2).up();
    report("link up: in every ring", eventually("n3 is in every ring", || lan.agree(&[0, 1, 2], 3)), "35 s");
    requests.end();
}

/// Checks that a host is found again after 130 s without packets, which is longer than the two minutes for which
/// records live.
#[test]
fn partition_longer_than_record_lifetime_heals() {
    let Some(lan) = Lan::of(3, Families::V4) else { return };
    let _nodes = [lan.node(0, "n1"), lan.node(1, "n2"), lan.node(2, "n3")];
    eventually("all are one cluster", || lan.agree(&[0, 1, 2], 3));
    let requests = lan.start_requests(&[0, 1, 2]);
    lan.host(2).cut();
    let apart = || lan.agree(&[0, 1], 2) && lan.agree(&[2], 1);
    let out = eventually("each side has its own ring", apart);
    report("partitioned: two rings", out, "15 s");
    sleep(Duration::from_secs(130).saturating_sub(out));
    assert!(apart());
    lan.host(2).heal();
    report("healed: one ring", eventually("all are one cluster again", || lan.agree(&[0, 1, 2], 3)), "35 s");
    requests.end();
}

/// Checks that nodes of two clusters on one segment do not find each other, although the clusters use the same ids.
#[test]
fn two_clusters_on_one_segment_stay_apart() {
    let Some(lan) = Lan::of(4, Families::V4) else { return };
    let cluster = |host, name, cluster| lan.node_with(host, name, &[("GROUPCACHE_CLUSTER", cluster)]);
    let _nodes = [cluster(0, "n1", "red"), cluster(1, "n2", "red"), cluster(2, "n1", "blue"), cluster(3, "n2", "blue")];
    eventually("there are two clusters", || lan.agree(&[0, 1, 2, 3], 2));
    // Within three seconds a node would dial a peer of the other cluster, and count a refusal.
    sleep(Duration::from_secs(3));
    assert!(lan.agree(&[0, 1, 2, 3], 2));
    for host in 0..4 {
        let refusals = lan.stats(host).unwrap()["node"]["counters"]["refusals"].clone();
        assert_eq!(refusals.as_u64().unwrap_or_default(), 0, "{:?}", lan.stats(host));
    }
}

/// Checks that nodes find each other on a segment that has IPv6 only.
#[test]
fn nodes_find_each_other_over_ipv6_alone() {
    let Some(lan) = Lan::of(2, Families::V6) else { return };
    let _nodes = [lan.node(0, "n1"), lan.node(1, "n2")];
    report("one ring", eventually("the nodes are one cluster", || lan.agree(&[0, 1], 2)), "2 s");
    lan.assert_rows_are_shared(&[0, 1]);
}

/// Checks that a node which announces addresses of IPv4 and IPv6 is one member.
#[test]
fn dual_stack_node_is_one_member() {
    let Some(lan) = Lan::of(2, Families::Both) else { return };
    let both = [("GROUPCACHE_MDNS_FOLLOW_INTERFACES", "1")];
    let _nodes = [lan.node_with(0, "n1", &both), lan.node_with(1, "n2", &both)];
    report("one ring", eventually("the nodes are one cluster", || lan.agree(&[0, 1], 2)), "2 s");
    lan.assert_rows_are_shared(&[0, 1]);
}

/// Checks that three processes of one host and one of another host are one cluster.
#[test]
fn processes_on_one_host_and_on_another_form_one_cluster() {
    let Some(lan) = Lan::of(2, Families::V4) else { return };
    let nodes = [
        lan.node(0, "n1"),
        lan.node_with(0, "n2", &[("GROUP_PORT", "7947"), ("HTTP_ADDR", "127.0.0.1:8081")]),
        lan.node_with(0, "n3", &[("GROUP_PORT", "7948"), ("HTTP_ADDR", "127.0.0.1:8082")]),
        lan.node(1, "n4"),
    ];
    report("one ring", eventually("the nodes are one cluster", || lan.agree(&[0, 1], 4)), "2 s");
    drop(nodes);
}

/// Checks that a node without multicast logs one warning, and that a node with multicast but without peers does too.
/// Each of the nodes serves alone.
#[test]
fn node_without_multicast_warns_once_and_serves_alone() {
    let Some(lan) = Lan::of(2, Families::V4) else { return };
    let n2 = lan.node(1, "n2");
    // n1 has no interface left to announce on. n2 has multicast and hears no peer.
    let here = lan.host(0).address().to_string();
    let n1 = lan.node_with(0, "n1", &[("NODE_IP", &here), ("GROUPCACHE_MDNS_SKIP_INTERFACES", "eth0")]);
    eventually("n1 serves", || lan.get(0, "/data/row").is_some_and(|(status, _)| status == 200));
    let warnings = || n1.lines().into_iter().filter(|line| line.contains("no multicast")).collect::<Vec<_>>();
    eventually("n1 logs that there is no multicast", || !warnings().is_empty());
    sleep(Duration::from_secs(8));
    let warnings = warnings();
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(warnings[0].contains("eth0") && warnings[0].contains("nats"), "no remedy in {warnings:?}");
    let alone = || n2.lines().into_iter().filter(|line| line.contains("nobody else is heard")).count();
    eventually("n2 logs that no peer is heard", || alone() > 0);
    sleep(Duration::from_secs(2));
    assert_eq!(alone(), 1);
    assert!(lan.agree(&[0, 1], 1), "{:?}", lan.stats(0));
}

/// Checks the setup of `make run-mdns`, on a multicast port that no other process uses: three processes on loopback
/// find each other without `NODE_IP` and `GROUP_PORT`.
#[test]
fn loopback_processes_without_addresses_form_one_cluster() {
    let lo = if cfg!(target_os = "linux") { "lo" } else { "lo0" };
    let multicast = UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port().to_string();
    let database = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mdns-{}.db", std::process::id()));
    let free_port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let ports = [free_port(), free_port(), free_port()];
    let start = |(n, http): (usize, &u16)| {
        let mut command = Command::new(PROGRAM);
        command.env("HTTP_ADDR", format!("127.0.0.1:{http}")).env("DATABASE", &database);
        // Without NODE_IP and GROUP_PORT a process takes the address of the interface and a free port.
        let vars = [("GROUPCACHE_MDNS_INTERFACES", lo), ("GROUPCACHE_MDNS_PORT", &multicast)];
        Process::start(command, &format!("n{n}"), &vars)
    };
    let processes: Vec<_> = ports.iter().enumerate().map(start).collect();
    let stats = |port: u16| get_at(port, "/stats").and_then(|(_, body)| serde_json::from_str(&body).ok());
    let agree = || ports.iter().all(|port| is_in_cluster_of(3, &stats(*port).unwrap_or_default()));
    report("one ring", eventually("the nodes are one cluster", agree), "2 s");
    let row = get_at(ports[0], "/data/row").unwrap();
    assert!(row.0 == 200 && ports.iter().all(|port| get_at(*port, "/data/row").as_ref() == Some(&row)), "{row:?}");
    drop(processes);
    let _ = std::fs::remove_file(&database);
}
