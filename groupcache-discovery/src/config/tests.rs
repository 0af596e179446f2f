use groupcache_core::{Identity, environment::Variables};

use super::*;

fn json(text: &str) -> Result<DiscoveryConfig, serde_json::Error> {
    serde_json::from_str(text)
}

fn vars(vars: &'static [(&str, &str)]) -> Result<DiscoveryConfig, ConfigError> {
    DiscoveryConfig::from_vars(|name| {
        vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    })
}

#[test]
fn configuration_is_tagged_by_its_provider() {
    assert_eq!(json(r#"{"provider":"none"}"#).unwrap(), DiscoveryConfig::None);
    let fixed = DiscoveryConfig::Static(StaticConfig { peers: "a@h:1".to_owned() });
    assert_eq!(json(r#"{"provider":"static","peers":"a@h:1"}"#).unwrap(), fixed);
    let nats =
        json(r#"{"provider":"nats","servers":"h","application":"users","token":"t","require_tls":true}"#).unwrap();
    let DiscoveryConfig::Nats(nats) = nats else { panic!("{nats:?}") };
    assert_eq!((nats.token.as_deref(), nats.require_tls, nats.subject), (Some("t"), true, None));
}

#[test]
fn unknown_key_is_an_error_that_names_it() {
    let bad = [
        (r#"{"provider":"static","peers":"a@h:1","peer":"b"}"#, "`peer`"),
        (r#"{"provider":"dns","names":"dns+h:1","ttl":5}"#, "`ttl`"),
        (r#"{"provider":"nats","servers":"h","application":"users","pasword":"x"}"#, "`pasword`"),
        (r#"{"provider":"mdns","interface":"eth0"}"#, "`interface`"),
        (r#"{"provider":"consul"}"#, "`consul`"),
        (r#"{"peers":"a@h:1"}"#, "`provider`"),
    ];
    for (text, name) in bad {
        let error = json(text).unwrap_err().to_string();
        assert!(error.contains(name), "{text}: {error}");
    }
}

#[test]
fn environment_gives_the_same_configuration() {
    assert_eq!(vars(&[]).unwrap(), DiscoveryConfig::None);
    assert_eq!(vars(&[("GROUPCACHE_DISCOVERY", " "), ("GROUPCACHE_PEERS", "")]).unwrap(), DiscoveryConfig::None);
    let fixed = DiscoveryConfig::Static(StaticConfig { peers: "a@h:1".to_owned() });
    assert_eq!(vars(&[("GROUPCACHE_PEERS", "a@h:1")]).unwrap(), fixed, "a list of peers selects the provider");
    let file = DiscoveryConfig::File(FileConfig { path: "/p".into() });
    assert_eq!(vars(&[("GROUPCACHE_DISCOVERY", "file"), ("GROUPCACHE_PEERS_FILE", "/p")]).unwrap(), file);
    let nats = vars(&[
        ("GROUPCACHE_DISCOVERY", "nats"),
        ("GROUPCACHE_NATS_URL", "nats://h"),
        ("GROUPCACHE_NATS_USER", "cache"),
        ("GROUPCACHE_NATS_PASSWORD", "secret"),
        ("GROUPCACHE_NATS_TLS", "1"),
    ]);
    let written =
        json(r#"{"provider":"nats","servers":"nats://h","user":"cache","password":"secret","require_tls":true}"#);
    assert_eq!(nats.unwrap(), written.unwrap());
}

#[test]
fn missing_or_invalid_variable_is_named() {
    let bad: [(&'static [(&str, &str)], &str); 9] = [
        (&[("GROUPCACHE_DISCOVERY", "gossip")], "none, static, file, dns, kubernetes, mdns or nats"),
        (&[("GROUPCACHE_DISCOVERY", "nats")], "GROUPCACHE_NATS_URL"),
        (&[("GROUPCACHE_DISCOVERY", "kubernetes")], "GROUPCACHE_K8S_APPLICATION"),
        (
            &[
                ("GROUPCACHE_DISCOVERY", "kubernetes"),
                ("GROUPCACHE_K8S_SERVICE", "users"),
                ("GROUPCACHE_K8S_STREAMING_LISTS", "maybe"),
            ],
            "GROUPCACHE_K8S_STREAMING_LISTS",
        ),
        (&[("GROUPCACHE_DISCOVERY", "mdns"), ("GROUPCACHE_MDNS_PORT", "dns")], "GROUPCACHE_MDNS_PORT"),
        (&[("GROUPCACHE_DISCOVERY", "mdns"), ("GROUPCACHE_MDNS_LOOPBACK", "lo")], "GROUPCACHE_MDNS_LOOPBACK"),
        (&[("GROUPCACHE_DISCOVERY", "file")], "GROUPCACHE_PEERS_FILE"),
        (&[("GROUPCACHE_DISCOVERY", "static")], "GROUPCACHE_PEERS"),
        (
            &[("GROUPCACHE_DISCOVERY", "nats"), ("GROUPCACHE_NATS_URL", "h"), ("GROUPCACHE_NATS_TLS", "maybe")],
            "GROUPCACHE_NATS_TLS",
        ),
    ];
    for (given, name) in bad {
        let error = vars(given).unwrap_err().to_string();
        assert!(error.contains(name), "{given:?}: {error}");
    }
}

/// Checks that values which can never work are errors that name the variable and an example.
#[cfg(all(feature = "static", feature = "dns", feature = "kubernetes", feature = "mdns", feature = "nats"))]
#[test]
fn value_that_never_works_is_an_error_with_its_variable() {
    let kubernetes = [("GROUPCACHE_DISCOVERY", "kubernetes"), ("GROUPCACHE_K8S_APPLICATION", "users")];
    let (dns, fixed) = ([("GROUPCACHE_DISCOVERY", "dns")], [("GROUPCACHE_DISCOVERY", "static")]);
    let mdns = [("GROUPCACHE_DISCOVERY", "mdns")];
    let nats = [("GROUPCACHE_DISCOVERY", "nats"), ("GROUPCACHE_NATS_URL", "nats://h")];
    for (given, name, value, example) in [
        (&kubernetes[..], "GROUPCACHE_K8S_PORT", "tcp://10.96.7.7:7946", "group-port"),
        (&kubernetes, "GROUPCACHE_K8S_PORT", "70000", "group-port"),
        (&kubernetes, "GROUPCACHE_K8S_PORT", "7946/TCP", "7946"),
        (&kubernetes, "GROUPCACHE_K8S_PORT", "0", "65535"),
        (&kubernetes, "GROUPCACHE_K8S_NAMESPACES", "Team_A", "lower-case"),
        (&dns, "GROUPCACHE_DNS", "dns+a..b:1", "dns+host:port"),
        (&dns, "GROUPCACHE_DNS", "dns+-:1", "dns+host:port"),
        (&dns, "GROUPCACHE_DNS", "dns+10.0.0:7946", "dns+host:port"),
        (&fixed, "GROUPCACHE_PEERS", "a@b@", "id@host:port"),
        (&mdns, "GROUPCACHE_MDNS_PORT", "70000", "5353"),
        (&mdns, "GROUPCACHE_MDNS_PORT", "0", "5353"),
        (&mdns, "GROUPCACHE_MDNS_IP", "ipv4", "4 or 6"),
        (&mdns, "GROUPCACHE_MDNS_SERVICE", "users", "_groupcache._tcp"),
        (&nats, "GROUPCACHE_NATS_URL", "http://h", "nats://"),
        (&nats, "GROUPCACHE_NATS_SUBJECT", "a.*", "groupcache-gossip"),
        (&nats, "GROUPCACHE_NATS_MICRO", "2", "1 or 0"),
    ] {
        let var = |asked: &str| {
            let known = given.iter().find(|(known, _)| *known == asked).map(|(_, value)| *value);
            (if asked == name { Some(value) } else { known }).map(str::to_owned)
        };
        let error = DiscoveryConfig::from_vars(var).expect_err(name).to_string();
        assert!(error.contains(name) || error.contains(name.trim_start_matches("GROUPCACHE_K8S")), "{value}: {error}");
        assert!(error.contains(example), "{name}={value}: {error}");
    }
}

/// Checks that white space, line ends of other systems and byte order marks around values do not count.
#[test]
fn invisible_characters_around_values_are_removed() {
    let config = vars(&[("GROUPCACHE_DISCOVERY", "\u{feff}file\r"), ("GROUPCACHE_PEERS_FILE", "/p\r\n")]);
    assert_eq!(config.unwrap(), DiscoveryConfig::File(FileConfig { path: "/p".into() }));
    let config = vars(&[
        ("GROUPCACHE_DISCOVERY", "NATS"),
        ("GROUPCACHE_NATS_URL", "\u{200b}nats://h\u{feff}"),
        ("GROUPCACHE_NATS_TLS", "Yes\r"),
    ]);
    let DiscoveryConfig::Nats(nats) = config.unwrap() else { panic!("not NATS") };
    assert_eq!((nats.servers.as_str(), nats.require_tls), ("nats://h", true));
    assert_eq!(vars(&[("GROUPCACHE_DISCOVERY", "\u{feff}")]).unwrap(), DiscoveryConfig::None);
}

/// Checks that a medium that services share asks for a name that keeps them apart, and takes the default as a choice.
#[cfg(all(feature = "mdns", feature = "nats"))]
#[test]
fn shared_medium_needs_a_cluster_or_an_application() {
    let identity = |cluster: Option<&str>| match cluster {
        Some(cluster) => Identity::default().with_cluster(cluster).unwrap(),
        None => Identity::default(),
    };
    for (text, cluster, missing) in [
        (r#"{"provider":"nats","servers":"h"}"#, None, "GROUPCACHE_NATS_APPLICATION"),
        (r#"{"provider":"nats","servers":"h"}"#, Some("default"), ""),
        (r#"{"provider":"nats","servers":"h","application":"default"}"#, None, ""),
        (r#"{"provider":"mdns"}"#, None, "GROUPCACHE_MDNS_SERVICE"),
        (r#"{"provider":"mdns"}"#, Some("users"), ""),
        (r#"{"provider":"mdns","service":"_groupcache._tcp"}"#, None, ""),
        (r#"{"provider":"none"}"#, None, ""),
    ] {
        match json(text).unwrap().check(&identity(cluster)) {
            Ok(()) => assert_eq!(missing, "", "{text}"),
            Err(e) => {
                let error = e.to_string();
                let is_told = !missing.is_empty() && error.contains(missing) && error.contains("GROUPCACHE_CLUSTER");
                assert!(is_told, "{text}: {error}");
            }
        }
    }
}

/// Returns the name of the provider, or the error.
fn provider_name(text: &str) -> Result<String, String> {
    let provider = json(text).unwrap().provider();
    provider.map(|provider| provider.name().to_owned()).map_err(|e| e.to_string())
}

#[test]
fn provider_is_made_or_its_missing_feature_is_named() {
    let cases = [
        (r#"{"provider":"none"}"#, "none", true, ""),
        (r#"{"provider":"static","peers":"a@h:1"}"#, "static", cfg!(feature = "static"), "static"),
        (r#"{"provider":"file","path":"/p"}"#, "file", cfg!(feature = "file"), "file"),
        (r#"{"provider":"dns","names":"dns+h:1"}"#, "dns", cfg!(feature = "dns"), "dns"),
        (r#"{"provider":"kubernetes","application":"a"}"#, "kubernetes", cfg!(feature = "kubernetes"), "kubernetes"),
        (r#"{"provider":"mdns"}"#, "mdns", cfg!(feature = "mdns"), "mdns"),
        (r#"{"provider":"nats","servers":"h","application":"a"}"#, "nats", cfg!(feature = "nats"), "nats"),
    ];
    for (text, name, is_there, feature) in cases {
        let expected = provider_name(text);
        match is_there {
            true => assert_eq!(expected.as_deref(), Ok(name)),
            false => assert!(expected.unwrap_err().contains(&format!("add the feature {feature:?}")), "{text}"),
        }
    }
}

#[cfg(feature = "nats")]
#[test]
fn nats_option_is_used_or_its_missing_feature_is_named() {
    let cases = [
        (r#""nkey":"x""#, cfg!(feature = "nats-credentials"), "nats-credentials"),
        (r#""credentials_file":"/p""#, cfg!(feature = "nats-credentials"), "nats-credentials"),
        (r#""key_value":"members""#, cfg!(feature = "nats-kv"), "nats-kv"),
        (r#""micro_service":true"#, cfg!(feature = "nats-micro"), "nats-micro"),
    ];
    for (option, is_there, feature) in cases {
        let made = provider_name(&format!(r#"{{"provider":"nats","servers":"h","application":"a",{option}}}"#));
        match is_there {
            true => assert_eq!(made.as_deref(), Ok("nats")),
            false => assert!(made.unwrap_err().contains(&format!("add the feature {feature:?}")), "{option}"),
        }
    }
    for (options, what) in [
        (r#""user":"u""#, "password"),
        (r#""user":"u","password":"p","token":"t""#, "several ways"),
        (r#""client_key":"/k""#, "certificate"),
        (r#""subject":"a.*""#, "GROUPCACHE_NATS_SUBJECT"),
    ] {
        let error =
            provider_name(&format!(r#"{{"provider":"nats","servers":"h","application":"a",{options}}}"#)).unwrap_err();
        assert!(error.contains(what), "{options}: {error}");
    }
}

#[test]
fn environment_has_all_options_of_kubernetes() {
    let all = vars(&[
        ("GROUPCACHE_DISCOVERY", "kubernetes"),
        ("GROUPCACHE_K8S_APPLICATION", "users"),
        ("GROUPCACHE_K8S_NAMESPACES", "a, b"),
        ("GROUPCACHE_K8S_PORT", "7946"),
        ("GROUPCACHE_K8S_KUBECONFIG", "/k"),
        ("GROUPCACHE_K8S_CONTEXT", "c"),
        ("GROUPCACHE_K8S_STREAMING_LISTS", "1"),
    ]);
    let written = json(
        r#"{"provider":"kubernetes","application":"users","namespaces":"a, b","port":"7946","kubeconfig":"/k",
            "context":"c","streaming_lists":true}"#,
    );
    assert_eq!(all.unwrap(), written.unwrap());
}

#[test]
fn environment_has_all_options_of_multicast_dns() {
    let all = vars(&[
        ("GROUPCACHE_DISCOVERY", "mdns"),
        ("GROUPCACHE_MDNS_SERVICE", "_users._tcp"),
        ("GROUPCACHE_MDNS_PORT", "5354"),
        ("GROUPCACHE_MDNS_INTERFACES", "eth0, wlan0"),
        ("GROUPCACHE_MDNS_SKIP_INTERFACES", "eth1"),
        ("GROUPCACHE_MDNS_LOOPBACK", "1"),
        ("GROUPCACHE_MDNS_IP", "4"),
        ("GROUPCACHE_MDNS_PUBLIC_ADDRESSES", "1"),
        ("GROUPCACHE_MDNS_FOLLOW_INTERFACES", "1"),
    ]);
    let written = json(
        r#"{"provider":"mdns","service":"_users._tcp","port":5354,"interfaces":"eth0, wlan0","skip_interfaces":"eth1",
            "loopback":true,"ip":"4","public_addresses":true,"follow_interfaces":true}"#,
    );
    assert_eq!(all.unwrap(), written.unwrap());
    assert_eq!(vars(&[("GROUPCACHE_DISCOVERY", "mdns")]).unwrap(), json(r#"{"provider":"mdns"}"#).unwrap());
}

#[cfg(feature = "mdns")]
#[test]
fn multicast_dns_option_is_used_or_refused() {
    for (options, expected) in [
        (r#""service":"_users._tcp","port":5354,"interfaces":"eth0","loopback":true,"ip":"6""#, Ok("mdns")),
        (r#""public_addresses":true,"follow_interfaces":true,"skip_interfaces":"eth0""#, Ok("mdns")),
        (r#""service":"users""#, Err("GROUPCACHE_MDNS_SERVICE")),
        (r#""port":0"#, Err("GROUPCACHE_MDNS_PORT")),
        (r#""ip":"5""#, Err("write 4 or 6")),
    ] {
        match (expected, provider_name(&format!(r#"{{"provider":"mdns",{options}}}"#))) {
            (Ok(name), Ok(made)) => assert_eq!(made, name),
            (Err(word), Err(error)) => assert!(error.contains(word), "{options}: {error}"),
            (expected, made) => panic!("{options}: {expected:?}, but {made:?}"),
        }
    }
}

#[test]
fn node_without_an_address_takes_that_of_the_machine() {
    let config = DiscoveryConfig::None;
    let listen_ip = |address: Option<&str>, vars: &[(&str, &str)]| {
        let var = |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        let address = address.map(|address| address.parse().unwrap());
        let identity = config.identity_from(address, &Variables::from_fn(var));
        identity.map(|identity| identity.listen().ip().to_string()).map_err(|e| e.to_string())
    };
    let machine = Some("192.168.1.7");
    assert_eq!(listen_ip(machine, &[]).as_deref(), Ok("192.168.1.7"));
    assert_eq!(listen_ip(machine, &[("NODE_IP", " ")]).as_deref(), Ok("192.168.1.7"));
    assert_eq!(listen_ip(machine, &[("NODE_IP", "127.0.0.1")]).as_deref(), Ok("127.0.0.1"));
    assert_eq!(listen_ip(machine, &[("POD_IP", "10.0.0.7")]).as_deref(), Ok("10.0.0.7"));
    assert_eq!(listen_ip(None, &[]).as_deref(), Ok("127.0.0.1"));
    assert!(listen_ip(machine, &[("GROUP_PORT", "x")]).unwrap_err().contains("identity"));
    let lan = DiscoveryConfig::Dns(DnsConfig { names: "dns+h:1".to_owned() });
    assert_eq!(lan.address().unwrap(), None, "only multicast DNS gives the address of the machine");
}

#[cfg(feature = "kubernetes")]
#[test]
fn kubernetes_option_is_used_or_refused() {
    let cases = [
        (r#""service":"users""#, Ok("kubernetes-service")),
        (r#""selector":"app=users","port":"7946","namespaces":"a,b""#, Ok("kubernetes")),
        (r#""application":"users","port":"peers","kubeconfig":"/k","context":"c""#, Ok("kubernetes")),
        (r#""namespaces":"a""#, Err("needs an application")),
        (r#""application":"users","service":"users""#, Err("only one of them")),
        (r#""application":"two words""#, Err("options of Kubernetes")),
        (r#""application":"users","namespaces":"A""#, Err("options of Kubernetes")),
        (r#""application":"users","port":"0""#, Err("GROUPCACHE_K8S_PORT")),
        (r#""application":"users","port":"tcp://10.96.7.7:7946""#, Err("GROUPCACHE_K8S_PORT")),
    ];
    for (options, expected) in cases {
        let made = provider_name(&format!(r#"{{"provider":"kubernetes",{options}}}"#));
        match (expected, made) {
            (Ok(name), Ok(made)) => assert_eq!(made, name),
            (Err(word), Err(error)) => assert!(error.contains(word), "{options}: {error}"),
            (expected, made) => panic!("{options}: {expected:?}, but {made:?}"),
        }
    }
}

#[test]
fn debug_text_shows_no_secret() {
    let config = json(
        r#"{"provider":"nats","servers":"nats://u:hidden@h:1","application":"a","password":"hidden","token":"hidden","nkey":"hidden"}"#,
    );
    let shown = format!("{:?}", config.unwrap());
    assert!(shown.contains("h:1") && !shown.contains("hidden"), "{shown}");
}
