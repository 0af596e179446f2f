//! Tests of the limits of dials, in virtual time.

use tokio::time::advance;

use super::*;

fn id(id: &str) -> PeerId {
    PeerId::new(id).unwrap()
}

fn nobody() -> Failure {
    Failure::NotConnected("nobody listens".to_owned())
}

fn target(expected: Option<&str>, addresses: &[&str]) -> Arc<Target> {
    let addresses = addresses.iter().map(|address| Address::new(address).unwrap()).collect();
    Arc::new(Target { expected: expected.map(id), addresses })
}

/// Dials a target without success as often as the limits allow within this time, and returns how often.
async fn dials_within(limits: &DialLimits, target: &Arc<Target>, time: Duration) -> usize {
    let (end, mut dials) = (Instant::now() + time, 0);
    while Instant::now() < end {
        match limits.claim(Arc::clone(target), false) {
            Ok(claim) => {
                dials += 1;
                claim.failed(&nobody(), 7);
            }
            Err(wait) => tokio::time::sleep_until(wait.until.min(end)).await,
        }
    }
    dials
}

#[tokio::test(start_paused = true)]
async fn pauses_of_unmet_target_grow_to_minutes() {
    let (limits, target) = (DialLimits::default(), target(None, &["10.0.0.7:1"]));
    let first = dials_within(&limits, &target, Duration::from_secs(10)).await;
    assert!((5..=9).contains(&first), "{first}");
    dials_within(&limits, &target, Duration::from_secs(600)).await;
    let hourly = dials_within(&limits, &target, Duration::from_secs(3600)).await;
    assert!((30..=60).contains(&hourly), "{hourly}");
}

/// Checks that ids that are claimed at one address share its pauses, however an address is written.
#[tokio::test(start_paused = true)]
async fn ids_at_one_address_share_its_pauses() {
    let limits = DialLimits::default();
    let mut dials = 0;
    for n in 0..500 {
        let at = ["10.0.0.7:1", "[::ffff:10.0.0.7]:1"][n % 2];
        if let Ok(claim) = limits.claim(target(Some(&format!("p{n}")), &[at]), false) {
            dials += 1;
            let other = target(Some("other"), &[at]);
            assert!(limits.claim(other, true).is_err(), "one dial of an address at a time");
            claim.failed(&nobody(), 7);
        }
        advance(Duration::from_millis(20)).await;
    }
    assert!((5..=9).contains(&dials), "{dials} dials in 10 s");
}

/// Checks that names of one address share its pauses too.
#[tokio::test(start_paused = true)]
async fn names_of_one_address_share_its_pauses() {
    let (limits, socket) = (DialLimits::default(), SocketAddr::from(([10, 0, 0, 7], 1)));
    let first = limits.claim(target(None, &["a.test:1"]), false).unwrap();
    first.admit(socket).unwrap();
    let second = limits.claim(target(None, &["b.test:1"]), false).unwrap();
    assert!(second.admit(socket).unwrap_err().contains("another target"));
    first.failed(&nobody(), 7);
    drop(first);
    assert!(second.admit(socket).unwrap_err().contains("nobody listens"));
    advance(Duration::from_secs(1)).await;
    second.admit(socket).unwrap();
}

#[tokio::test(start_paused = true)]
async fn target_found_at_a_shared_address_is_dialled() {
    let (limits, at) = (DialLimits::default(), ["10.0.0.7:1"]);
    for _ in 0..20 {
        let claim = loop {
            match limits.claim(target(Some("invented"), &at), false) {
                Ok(claim) => break claim,
                Err(wait) => tokio::time::sleep_until(wait.until).await,
            }
        };
        claim.found(SocketAddr::from(([10, 0, 0, 7], 1)), &id("b"));
        claim.failed(&nobody(), 7);
    }
    let wait = limits.claim(target(Some("c"), &at), false).unwrap_err();
    assert_eq!(wait.failure.unwrap().0, Some(id("b")), "others learn of the id");
    assert!(wait.until > Instant::now() + Duration::from_secs(30));
    let wait = limits.claim(target(Some("b"), &at), false).unwrap_err();
    assert!(wait.until <= Instant::now() + ARRIVAL_PAUSE);
    tokio::time::sleep_until(wait.until).await;
    let claim = limits.claim(target(Some("b"), &at), false).unwrap();
    assert_eq!(claim.lane, ARRIVAL);
    claim.answered(SocketAddr::from(([10, 0, 0, 7], 1)), &id("b"));
    drop(claim);
    assert!(limits.claim(target(Some("c"), &at), false).is_ok(), "a success ends the pause");
}

#[tokio::test(start_paused = true)]
async fn arrivals_cause_one_dial_a_second() {
    let (limits, target) = (DialLimits::default(), target(Some("b"), &["10.0.0.7:1"]));
    dials_within(&limits, &target, Duration::from_secs(600)).await;
    let mut dials = 0;
    for _ in 0..1000 {
        if let Ok(claim) = limits.claim(Arc::clone(&target), true) {
            dials += 1;
            claim.failed(&nobody(), 7);
        }
        advance(Duration::from_millis(10)).await;
    }
    assert!((9..=11).contains(&dials), "{dials} dials in 10 s");
}

#[tokio::test(start_paused = true)]
async fn addresses_of_a_target_are_claimed_one_by_one() {
    let limits = DialLimits::default();
    let first = limits.claim(target(None, &["10.0.0.7:1"]), false).unwrap();
    let both = limits.claim(target(None, &["10.0.0.7:1", "10.0.0.8:1", "10.0.0.8:1"]), false).unwrap();
    assert_eq!(both.addresses, [Address::new("10.0.0.8:1").unwrap()]);
    let mut ended = limits.claim(target(None, &["10.0.0.7:1"]), false).unwrap_err().ended.unwrap();
    drop(first);
    ended.changed().await.unwrap();
    assert!(limits.claim(target(None, &["10.0.0.7:1"]), false).is_ok());
    let none = limits.claim(target(None, &[]), false).unwrap_err();
    assert!(none.failure.unwrap().1.text.contains("no address"));
}

/// Checks the number of dials that run at the same time, and their rate.
#[tokio::test(start_paused = true)]
async fn dials_of_unmet_targets_are_few_at_a_time() {
    let limits = &DialLimits::default();
    let targets: Vec<_> = (0..100).map(|n| target(None, &[&format!("10.0.0.{n}:1")])).collect();
    let mut claims: Vec<_> = targets.iter().map(|t| limits.claim(Arc::clone(t), false).unwrap()).collect();
    for claim in &mut claims[..AT_ONCE[FIRST]] {
        claim.begin().await;
    }
    let late = &mut claims[AT_ONCE[FIRST]];
    assert!(tokio::time::timeout(Duration::from_secs(60), late.begin()).await.is_err());
    for mut claim in claims {
        claim.permit = None;
        claim.failed(&nobody(), 7);
    }
    let begun = Instant::now();
    for _ in 0..5 {
        for target in &targets {
            let mut claim = loop {
                match limits.claim(Arc::clone(target), false) {
                    Ok(claim) => break claim,
                    Err(wait) => tokio::time::sleep_until(wait.until).await,
                }
            };
            assert_eq!(claim.lane, AGAIN);
            claim.begin().await;
            claim.failed(&nobody(), 7);
        }
    }
    assert!(begun.elapsed() >= Duration::from_secs(20), "500 dials took {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn remembered_addresses_are_bounded() {
    let limits = DialLimits::default();
    for n in 0..2 * MAX_PLACES {
        let at = format!("10.{}.{}.{}:1", n >> 16, (n >> 8) & 255, n & 255);
        limits.claim(target(None, &[&at]), false).unwrap().failed(&nobody(), 7);
    }
    assert!(limits.places.lock().states.len() <= MAX_PLACES);
    advance(2 * REMEMBERED).await;
    limits.places.lock().forget_from = 0;
    drop(limits.claim(target(None, &["10.0.0.7:1"]), false));
    assert_eq!(limits.places.lock().states.len(), 1);
}
