//! Tests of names without an id: several nodes behind one name, and one node with several addresses.

use crate::membership::stabilizer::{
    Input,
    tests::script::{LOCAL_INCARNATION, Script, at, peer, start},
};

fn resolved(script: &mut Script, name: &str, addresses: &str) {
    let addresses = addresses.split_whitespace().map(at).collect();
    script.input(Input::Resolved { name: at(name), addresses });
}

/// Checks that each address of a name is dialled, so that the nodes behind it become members.
#[test]
fn each_address_of_a_name_becomes_a_target() {
    let mut node = start();
    node.set("@cache:1 @me:1");
    node.answers("@cache:1", peer("a")).after(300).members("a me");
    resolved(&mut node, "cache:1", "10.0.0.1:1 10.0.0.2:1 10.0.0.3:1");
    node.answers("@10.0.0.1:1", peer("a")).answers("@10.0.0.2:1", peer("b"));
    node.answers("@10.0.0.3:1", peer("me").incarnation(LOCAL_INCARNATION));
    node.after(60_000).members("a b me");
    assert!(node.find("@10.0.0.3:1").is_none(), "the node has found itself");
}

/// Checks that the nodes follow the addresses of the name: a new address is dialled, and a member without its address
/// stays while its connection is alive, because a name server is no authority.
#[test]
fn addresses_of_a_name_are_hints() {
    let mut node = start();
    node.set("@cache:1");
    resolved(&mut node, "cache:1", "10.0.0.1:1 10.0.0.2:1");
    node.answers("@10.0.0.1:1", peer("a")).answers("@10.0.0.2:1", peer("b")).after(300).members("a b me");
    resolved(&mut node, "cache:1", "10.0.0.2:1 10.0.0.3:1");
    node.answers("@10.0.0.3:1", peer("c")).after(60_000).members("a b c me");
    node.lost("a").after(100).pinged("a", false).after(1_100).pinged("a", false).after(300).members("b c me");
}

/// Checks that a name of a single node is a target itself, and that the listed names are known.
#[test]
fn name_of_a_single_node_stays_a_target() {
    let mut node = start();
    node.set("@cache:1 @10.0.0.9:1 c");
    assert_eq!(node.stabilizer.hinted_names(), [at("cache:1")].into());
    resolved(&mut node, "cache:1", "");
    node.hello("@cache:1").after(300).members("cache me");
}

/// Checks that a name which is listed again has the addresses of its last look-up, and none of an earlier listing.
#[test]
fn name_listed_again_forgets_its_earlier_addresses() {
    let mut node = start();
    node.set("@cache:1");
    resolved(&mut node, "cache:1", "10.0.0.1:1 10.0.0.2:1");
    node.set("me").after(10_000);
    resolved(&mut node, "cache:1", "10.0.0.1:1 10.0.0.2:1"); // a look-up that was under way
    node.set("@cache:1").hello("@cache:1").after(300).members("cache me");
}

/// Checks that a member that answered at a name of an authority stays when the name server lists others, because the
/// name server is no authority.
#[test]
fn name_server_removes_no_living_member() {
    let mut node = start();
    node.set("@cache:1 me").answers("@cache:1", peer("a")).after(300).members("a me");
    resolved(&mut node, "cache:1", "10.0.0.2:1 10.0.0.3:1");
    node.after(60_000).members("a me");
}
