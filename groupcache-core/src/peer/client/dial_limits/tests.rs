//! Tests of the limits of dials, in virtual time.

use tokio::time::{advance, timeout};

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

/// Claims the addresses of a target without the wait for a lane.
fn claimed(limits: &DialLimits, target: Arc<Target>, arrival: Arrival) -> Result<Claim<'_>, Wait> {
    let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    Ok(limits.turn(target, arrival)?.claim(permit).unwrap())
}

/// Dials a target without success as often as the limits allow within this time, and returns how often.
async fn dials_within(limits: &DialLimits, target: &Arc<Target>, time: Duration) -> usize {
    let (end, mut dials) = (Instant::now() + time, 0);
    while Instant::now() < end {
        match claimed(limits, Arc::clone(target), Arrival::None) {
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
        if let Ok(claim) = claimed(&limits, target(Some(&format!("p{n}")), &[at]), Arrival::None) {
            dials += 1;
            let other = target(Some("other"), &[at]);
            assert!(claimed(&limits, other, Arrival::OfTarget).is_err(), "one dial of an address at a time");
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
    let first = claimed(&limits, target(None, &["a.test:1"]), Arrival::None).unwrap();
    first.admit(socket).unwrap();
    let second = claimed(&limits, target(None, &["b.test:1"]), Arrival::None).unwrap();
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
            match claimed(&limits, target(Some("invented"), &at), Arrival::None) {
                Ok(claim) => break claim,
                Err(wait) => tokio::time::sleep_until(wait.until).await,
            }
        };
        claim.found(SocketAddr::from(([10, 0, 0, 7], 1)), &id("b"));
        claim.failed(&nobody(), 7);
    }
    let wait = claimed(&limits, target(Some("c"), &at), Arrival::None).unwrap_err();
    assert_eq!(wait.failure.unwrap().0, Some(id("b")), "others learn of the id");
    assert!(wait.until > Instant::now() + Duration::from_secs(30));
    let wait = claimed(&limits, target(Some("b"), &at), Arrival::None).unwrap_err();
    assert!(wait.until <= Instant::now() + ARRIVAL_PAUSE);
    tokio::time::sleep_until(wait.until).await;
    assert_eq!(limits.turn(target(Some("b"), &at), Arrival::None).unwrap().lane, ARRIVAL);
    let claim = claimed(&limits, target(Some("b"), &at), Arrival::None).unwrap();
    claim.answered(SocketAddr::from(([10, 0, 0, 7], 1)), &id("b"));
    drop(claim);
    assert!(claimed(&limits, target(Some("c"), &at), Arrival::None).is_ok(), "a success ends the pause");
}

#[tokio::test(start_paused = true)]
async fn arrivals_cause_one_dial_a_second() {
    let (limits, target) = (DialLimits::default(), target(Some("b"), &["10.0.0.7:1"]));
    dials_within(&limits, &target, Duration::from_secs(600)).await;
    let mut dials = 0;
    for _ in 0..1000 {
        if let Ok(claim) = claimed(&limits, Arc::clone(&target), Arrival::OfTarget) {
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
    let first = claimed(&limits, target(None, &["10.0.0.7:1"]), Arrival::None).unwrap();
    let both = claimed(&limits, target(None, &["10.0.0.7:1", "10.0.0.8:1", "10.0.0.8:1"]), Arrival::None).unwrap();
    assert_eq!(both.addresses, [Address::new("10.0.0.8:1").unwrap()]);
    let mut ended = claimed(&limits, target(None, &["10.0.0.7:1"]), Arrival::None).unwrap_err().ended.unwrap();
    drop(first);
    ended.changed().await.unwrap();
    assert!(claimed(&limits, target(None, &["10.0.0.7:1"]), Arrival::None).is_ok());
    let none = claimed(&limits, target(None, &[]), Arrival::None).unwrap_err();
    assert!(none.failure.unwrap().1.text.contains("no address"));
}

/// Checks the number of dials that run at the same time, and their rate.
#[tokio::test(start_paused = true)]
async fn dials_of_unmet_targets_are_few_at_a_time() {
    let limits = &DialLimits::default();
    let targets: Vec<_> = (0..100).map(|n| target(None, &[&format!("10.0.0.{n}:1")])).collect();
    let turns = targets.iter().map(|target| limits.turn(Arc::clone(target), Arrival::None).unwrap());
    let mut turns: Vec<_> = turns.collect();
    let late = turns.split_off(AT_ONCE[FIRST]);
    let mut claims = Vec::new();
    for turn in turns {
        claims.push(turn.begin().await.unwrap());
    }
    for turn in late {
        assert!(timeout(Duration::from_secs(60), turn.begin()).await.is_err());
    }
    drop(claims);
    for target in &targets {
        claimed(limits, Arc::clone(target), Arrival::None).unwrap().failed(&nobody(), 7);
    }
    let begun = Instant::now();
    for _ in 0..5 {
        for target in &targets {
            let turn = loop {
                match limits.turn(Arc::clone(target), Arrival::None) {
                    Ok(turn) => break turn,
                    Err(wait) => tokio::time::sleep_until(wait.until).await,
                }
            };
            assert_eq!(turn.lane, AGAIN);
            turn.begin().await.unwrap().failed(&nobody(), 7);
        }
    }
    assert!(begun.elapsed() >= Duration::from_secs(20), "500 dials took {:?}", begun.elapsed());
}

/// Checks that a target whose address was dialled during its wait begins no dial, and returns its place in the lane.
#[tokio::test(start_paused = true)]
async fn turn_at_a_dialled_address_begins_no_dial() {
    let (limits, at) = (&DialLimits::default(), ["10.0.0.7:1"]);
    let turn = || limits.turn(target(Some("invented"), &at), Arrival::None).unwrap();
    let (first, second, third) = (turn(), turn(), turn());
    let dialled = claimed(limits, target(Some("b"), &at), Arrival::OfTarget).unwrap();
    assert!(first.begin().await.is_none(), "the address is dialled");
    dialled.failed(&nobody(), 7);
    drop(dialled);
    assert!(second.begin().await.is_none(), "the address has a pause");
    advance(Duration::from_secs(1)).await;
    assert!(third.begin().await.is_none(), "the address has another lane after a failure");
    assert_eq!(turn().lane, AGAIN);
    assert_eq!(limits.lanes.iter().map(|lane| lane.running.available_permits()).collect::<Vec<_>>(), AT_ONCE);
}

/// Checks that an address without an id counts as that of a peer that says the address as its own.
#[test]
fn peer_arrives_at_its_id_and_at_addresses_it_says() {
    let (said, at) = ([Address::new("10.0.0.7:1").unwrap()], ["10.0.0.7:1"]);
    let arrival = |target: Arc<Target>| Arrival::at(&target, &id("b"), &said);
    assert_eq!(arrival(target(Some("b"), &["10.0.0.8:1"])), Arrival::OfTarget);
    assert_eq!(arrival(target(Some("invented"), &at)), Arrival::None);
    assert_eq!(arrival(target(None, &at)), Arrival::OfTarget);
    assert_eq!(arrival(target(None, &["10.0.0.8:1"])), Arrival::OfAnyPeer);
}

#[tokio::test(start_paused = true)]
async fn remembered_addresses_are_bounded() {
    let limits = DialLimits::default();
    for n in 0..2 * MAX_PLACES {
        let at = format!("10.{}.{}.{}:1", n >> 16, (n >> 8) & 255, n & 255);
        claimed(&limits, target(None, &[&at]), Arrival::None).unwrap().failed(&nobody(), 7);
    }
    assert!(limits.places.lock().states.len() <= MAX_PLACES);
    advance(2 * REMEMBERED).await;
    limits.places.lock().forget_from = 0;
    drop(claimed(&limits, target(None, &["10.0.0.7:1"]), Arrival::None));
    assert_eq!(limits.places.lock().states.len(), 1);
}
