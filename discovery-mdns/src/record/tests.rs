use proptest::prelude::*;

use super::*;

fn me() -> Me {
    Me {
        id: PeerId::new("users-0").unwrap(),
        cluster: "default".into(),
        incarnation: Incarnation(7),
        state: NodeState::Draining,
        addresses: vec![Address::new("10.0.0.7:7946").unwrap(), Address::new("[fd00::7]:7946").unwrap()],
        weight: 2,
        zone: "a".into(),
        tls: true,
    }
}

fn named(id: &str, cluster: &str) -> Me {
    Me { id: PeerId::new(id).unwrap(), cluster: cluster.into(), ..me() }
}

fn at(addresses: &[&str]) -> Me {
    Me { addresses: addresses.iter().map(|a| Address::new(a).unwrap()).collect(), ..me() }
}

fn announced(me: &Me) -> ServiceInfo {
    announcement(me, &Mdns::new()).unwrap()
}

fn read_back(info: ServiceInfo) -> Result<Record, Unusable> {
    Record::read(&info.as_resolved_service(), "default", &Rules::default())
}

/// Returns a valid TXT record with these properties replaced or added; a value of "-" leaves the property out.
fn txt_with(properties: &[(&str, &str)]) -> TxtProperties {
    let mut all = vec![("txtvers", "1"), ("id", "a"), ("cluster", "default"), ("inc", "1")];
    all.retain(|(key, _)| !properties.iter().any(|(other, _)| other == key));
    all.extend(properties.iter().filter(|(_, value)| *value != "-"));
    let mut bytes = Vec::new();
    for (key, value) in all {
        bytes.push(u8::try_from(key.len() + 1 + value.len()).unwrap());
        bytes.extend(format!("{key}={value}").bytes());
    }
    TxtProperties::from(bytes.as_slice())
}

fn read(txt: &TxtProperties, port: u16, places: &[&str]) -> Result<Record, Unusable> {
    let places = places.iter().map(|ip| (ip.parse().unwrap(), 3)).collect();
    Record::from_parts(txt, port, places, "default", &Rules::default())
}

/// Checks the written TXT record, names and subtype, and that reading gives the node back.
#[test]
fn announced_record_is_read_back() {
    let info = announced(&me());
    let txt: Vec<_> = info.get_properties().iter().map(|p| format!("{}={}", p.key(), p.val_str())).collect();
    let whole = "txtvers=1 id=users-0 cluster=default inc=7 state=draining pv=1 weight=2 tls=1 zone=a";
    assert_eq!(txt.join(" "), whole);
    assert_eq!(info.get_fullname(), "users-0._groupcache._tcp.local.");
    assert_eq!(info.get_subtype().as_deref(), Some("_default._sub._groupcache._tcp.local."));
    let record = read_back(info).unwrap();
    assert_eq!(
        (record.id.as_str(), record.incarnation, record.state),
        ("users-0", Incarnation(7), NodeState::Draining)
    );
    assert_eq!(record.addresses, me().addresses);
}

/// Checks that a record of a later release is read: unknown properties are ignored, an unknown state counts as ready.
#[test]
fn unknown_properties_and_states_are_accepted() {
    let more = txt_with(&[("mood", "deep"), ("state", "asleep"), ("pv", "9")]);
    let record = read(&more, 1, &["10.0.0.1"]).unwrap();
    assert_eq!(record.state, NodeState::Ready);
}

/// Checks the reason for each kind of unusable record, and that a record of another cluster is told apart.
#[test]
fn unusable_record_is_refused_with_a_reason() {
    let cases = [
        (TxtProperties::new(), "names no cluster"),
        (txt_with(&[("cluster", "-")]), "names no cluster"),
        (txt_with(&[("txtvers", "2")]), "another version"),
        (txt_with(&[("txtvers", "-")]), "another version"),
        (txt_with(&[("id", "two words")]), "id is missing or invalid"),
        (txt_with(&[("id", "-")]), "id is missing or invalid"),
        (txt_with(&[("inc", "-1")]), "incarnation"),
        (txt_with(&[("inc", "-")]), "incarnation"),
    ];
    for (txt, why) in cases {
        let Err(Unusable::Garbage(reason)) = read(&txt, 1, &["10.0.0.1"]) else { panic!("{txt:?} is read") };
        assert!(reason.contains(why), "{txt:?}: {reason}");
    }
    assert_eq!(read(&txt_with(&[("cluster", "other")]), 1, &["10.0.0.1"]), Err(Unusable::Stranger));
    let good = txt_with(&[]);
    for (port, places) in [(0, &["10.0.0.1"][..]), (1, &[]), (1, &["203.0.113.7"]), (1, &["127.0.0.1"])] {
        assert!(matches!(read(&good, port, places), Err(Unusable::Garbage(_))), "{port} {places:?}");
    }
}

/// Checks that unaccepted addresses and duplicates are dropped, and that at most [`MAX_ADDRESSES`] remain.
#[test]
fn addresses_are_sorted_and_link_local_ones_keep_their_scope() {
    let places = ["fe80::7", "fd00::7", "203.0.113.7", "10.0.0.7", "10.0.0.6", "10.0.0.7"];
    let record = read(&txt_with(&[]), 7946, &places).unwrap();
    let text: Vec<_> = record.addresses.iter().map(Address::as_str).collect();
    assert_eq!(text, ["10.0.0.6:7946", "10.0.0.7:7946", "[fd00::7]:7946", "[fe80::7%3]:7946"]);
    let many: Vec<_> = (1..20).map(|n| format!("10.0.0.{n}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert_eq!(read(&txt_with(&[]), 1, &many).unwrap().addresses.len(), MAX_ADDRESSES);
}

/// Checks that distinct nodes get distinct names, and that the library can query for each name.
#[test]
fn instance_name_is_the_id_or_a_valid_label_with_a_hash() {
    let name = |id: &str, cluster: &str| instance(&named(id, cluster));
    assert_eq!(name("users-0", "default"), "users-0");
    assert_eq!(name("10:7946_x", "default"), "10:7946_x");
    let long = "x".repeat(253);
    let all = [
        name("users-0", "red"),
        name("users-0", "blue"),
        name("Users-0", "default"),
        name("users-0.rack", "default"),
        name("users-0\\rack", "default"),
        name("10.0.0.7:7946", "default"),
        name("größe", "default"),
        name(&long, "default"),
        name(&long[1..], "default"),
    ];
    for name in &all {
        assert!(name.len() <= MAX_LABEL && !name.contains(['.', '\\']) && *name == name.to_lowercase(), "{name}");
        let info = format!("{name}._groupcache._tcp.local.");
        assert!(can_be_asked_for(&info, "_groupcache._tcp.local."), "{name}");
    }
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), all.len(), "{all:?}");
    assert!(all[0].starts_with("users-0-") && all[5].starts_with("10-0-0-7:7946-"), "{all:?}");
    assert!(!can_be_asked_for("a.b._groupcache._tcp.local.", "_groupcache._tcp.local."));
    assert!(!can_be_asked_for("a\\._groupcache._tcp.local.", "_groupcache._tcp.local."));
    assert!(!can_be_asked_for("a._other._tcp.local.", "_groupcache._tcp.local."));
}

#[test]
fn each_incarnation_has_a_host_name_of_its_own() {
    let host_of = |number| announced(&Me { incarnation: Incarnation(number), ..me() }).get_hostname().to_owned();
    assert_eq!(host_of(1), host_of(1));
    assert_ne!(host_of(1), host_of(2));
}

/// Checks that the error names the remedy, and that the remedy works.
#[test]
fn unusable_identity_gives_an_error_with_the_remedy() {
    let why = |me: &Me, mdns: Mdns| announcement(me, &mdns).map(|info| info.get_fullname().to_owned()).unwrap_err();
    assert!(why(&at(&["127.0.0.1:7946"]), Mdns::new()).contains("GROUPCACHE_MDNS_LOOPBACK=1"));
    assert!(why(&at(&["203.0.113.7:7946"]), Mdns::new()).contains("public"));
    assert!(why(&at(&["users-0.example:7946"]), Mdns::new()).contains("no names"));
    assert!(why(&at(&["10.0.0.7:7946"]), Mdns::new().ipv6_only()).contains("family"));
    assert!(why(&named(&"i".repeat(253), "default"), Mdns::new()).contains("shorten"));
    for (addresses, mdns) in [
        (&["127.0.0.1:7946"][..], Mdns::new().loopback()),
        (&["203.0.113.7:7946"], Mdns::new().public_addresses()),
        (&["users-0.example:7946", "10.0.0.7:7946"], Mdns::new()),
    ] {
        assert!(announcement(&at(addresses), &mdns).is_ok(), "{addresses:?}");
    }
    let zone = Me { zone: "z".repeat(253).into(), ..me() };
    assert!(announced(&zone).get_property("zone").is_none(), "a hint that does not fit is left out");
}

/// Checks that only addresses with the first port are announced, because a service has one port.
#[test]
fn addresses_come_from_the_identity_or_the_interfaces() {
    let info = announced(&at(&["10.0.0.7:7946", "10.0.0.8:7946", "10.0.0.9:1"]));
    assert_eq!((info.get_port(), info.get_addresses().len(), info.is_addr_auto()), (7946, 2, false));
    for (me, mdns) in [(at(&["0.0.0.0:7946"]), Mdns::new()), (me(), Mdns::new().follow_interfaces())] {
        let info = announcement(&me, &mdns).unwrap();
        assert_eq!((info.get_port(), info.get_addresses().len(), info.is_addr_auto()), (7946, 0, true));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Checks that arbitrary bytes are read or refused without a panic.
    #[test]
    fn arbitrary_bytes_do_not_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        port in any::<u16>(),
        places in proptest::collection::vec((any::<std::net::IpAddr>(), any::<u32>()), 0..20),
    ) {
        let txt = TxtProperties::from(bytes.as_slice());
        let _ = Record::from_parts(&txt, port, places, "default", &Rules::default());
    }

    /// Checks that a valid record with one byte changed and the end cut off is refused or within all limits.
    #[test]
    fn damaged_record_is_refused_or_within_the_limits(
        at in 0_usize..120, byte in any::<u8>(), cut in 0_usize..140,
        port in 0_u16..3, places in proptest::collection::vec((any::<std::net::IpAddr>(), any::<u32>()), 0..20),
    ) {
        let mut bytes = Vec::new();
        for property in announced(&me()).get_properties().iter() {
            let text = format!("{}={}", property.key(), property.val_str());
            bytes.push(u8::try_from(text.len()).unwrap());
            bytes.extend(text.bytes());
        }
        if let Some(damaged) = bytes.get_mut(at) {
            *damaged = byte;
        }
        bytes.truncate(cut);
        let rules = Rules { has_public: true, ..Rules::default() };
        if let Ok(read) = Record::from_parts(&TxtProperties::from(bytes.as_slice()), port, places, "default", &rules) {
            prop_assert!(port > 0 && !read.addresses.is_empty() && read.addresses.len() <= MAX_ADDRESSES);
            prop_assert!(PeerId::new(read.id.as_str()).is_ok());
            prop_assert!(read.addresses.iter().all(|a| Address::new(a.as_str()).is_ok()));
        }
    }
}
