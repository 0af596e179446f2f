//! Tests of the even distribution of keys.

use crate::ring::tests::*;

/// Returns the share of the busiest peer, as the mean and the maximum over all sets, in 1/10,000 of the average share.
fn busiest(peers: usize, sets: u64, styles: impl Fn(u64) -> Style) -> (u64, u64) {
    let ratio = |set| {
        let ring = ring_of(&names(styles(set), set, peers));
        assert_eq!(ring.len(), peers);
        let most = arcs(&ring).into_iter().max().unwrap();
        ((u128::from(most) * peers as u128 * 10_000) >> 32) as u64
    };
    let ratios: Vec<u64> = (0..sets).map(ratio).collect();
    (ratios.iter().sum::<u64>() / sets, ratios.into_iter().max().unwrap())
}

/// Checks the shares in `sets` clusters of `peers` peers against the limits.
fn check(peers: usize, sets: u64, mean_at_most: u64, styles: impl Fn(u64) -> Style) {
    let (mean, worst) = busiest(peers, sets, styles);
    println!(
        "{peers} peers, {sets} sets: busiest / average: mean 1.{:04}, worst 1.{:04}",
        mean - 10_000,
        worst - 10_000
    );
    assert!(mean <= mean_at_most, "{peers} peers: {mean} on average over {sets} sets");
    assert!(worst <= 12_000, "{peers} peers: {worst} in the worst of {sets} sets");
}

/// Checks that the share of each member is that of its arcs, and that a member without others owns every key.
#[test]
fn share_of_member_is_the_sum_of_its_arcs() {
    for peers in [1, 2, 7] {
        let ring = ring_of(&names(STYLES[0], 1, peers));
        for (slot, arc) in (0..).zip(arcs(&ring)) {
            assert!((ring.share(slot) - arc as f64 / (1_u64 << 32) as f64).abs() < 1e-9, "{peers} peers, {slot}");
        }
        assert!(ring.share(99).abs() < 1e-9);
    }
    assert!(Ring::new([]).share(0).abs() < 1e-9);
}

fn mixed(set: u64) -> Style {
    STYLES[(set % 4) as usize]
}

#[test]
fn shares_of_20_peers_are_even_in_200_sets() {
    check(20, 200, 10_900, mixed);
}

#[test]
fn shares_of_100_peers_are_even_in_40_sets() {
    check(100, 40, 11_200, mixed);
}

#[test]
fn shares_of_1000_peers_are_even_in_4_sets() {
    check(1_000, 4, 11_600, mixed);
}

#[test]
#[ignore = "200 sets of each style at each size: half a minute in a release build"]
fn shares_are_even_in_200_sets_of_each_style() {
    for style in STYLES {
        println!("{style:?}");
        for (peers, mean_at_most) in [(20, 10_900), (100, 11_200), (1_000, 11_600)] {
            check(peers, 200, mean_at_most, |_| style);
        }
    }
}
