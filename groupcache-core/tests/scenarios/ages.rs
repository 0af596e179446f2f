//! How values live, age and die: on one node in virtual time, where a minute is a minute.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::support::{Gate, Loads};
use groupcache_core::{
    BoxError, DecodeError, EncodeError, Error, Group, GroupBuilder, Load, LoadError, LoadReason, Loaded, Loader, Node,
    Value,
    bytes::{Buf, BufMut, Bytes, BytesMut},
};
use tokio::time::sleep;

const MINUTE: Duration = Duration::from_secs(60);

/// What a source answers next.
#[derive(Clone, Copy, Default)]
enum Says {
    /// The number of the load.
    #[default]
    Number,
    Nothing,
    Unchanged,
    Fails,
    Hangs,
}

/// Why a load was asked for, and the value before it.
type Told = (LoadReason, Option<String>);

#[derive(Clone, Default)]
struct Source {
    loads: Loads,
    says: Arc<Mutex<Says>>,
    gate: Option<Gate>,
    /// How long what it says is to be kept, in milliseconds; 0 = as the group says.
    keep_ms: Arc<AtomicU64>,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Source {
    fn says(&self, says: Says) {
        *self.says.lock().unwrap() = says;
    }

    fn told(&self) -> Vec<Told> {
        std::mem::take(&mut *self.told.lock().unwrap())
    }
}

impl Loader<String> for Source {
    async fn load(&self, load: Load<'_, String>) -> Result<Loaded<String>, LoadError> {
        let number = self.loads.begin(load.key());
        self.told.lock().unwrap().push((load.reason(), load.previous().cloned()));
        if let Some(gate) = &self.gate {
            gate.pass().await;
        }
        let says = *self.says.lock().unwrap();
        let loaded = match says {
            Says::Number => Loaded::new(number.to_string()),
            Says::Nothing => Loaded::not_found(),
            Says::Unchanged => Loaded::unchanged(),
            Says::Fails => return Err(LoadError::transient("the database is down")),
            Says::Hangs => std::future::pending().await,
        };
        match self.keep_ms.load(SeqCst) {
            0 => Ok(loaded),
            ms => Ok(loaded.time_to_live(Duration::from_millis(ms))),
        }
    }
}

/// A node with a group that keeps values for a minute, without jitter.
async fn group(
    source: &Source,
    build: impl FnOnce(GroupBuilder<String>) -> GroupBuilder<String>,
) -> (Node, Group<String>) {
    let node = Node::builder().start().await.unwrap();
    let group = node.group::<String>("data").capacity_bytes(4 << 20).time_to_live(MINUTE).jitter(0.0);
    let group = build(group.loader(source.clone())).build().unwrap();
    (node, group)
}

async fn get(group: &Group<String>) -> Result<String, Error> {
    group.get("key-1").await
}

/// Time passes, and what runs in the background gets its turn.
async fn pass(time: Duration) {
    sleep(time).await;
    sleep(Duration::from_millis(50)).await;
}

#[tokio::test(start_paused = true)]
async fn a_value_lives_as_long_as_its_loader_or_its_group_says() {
    let source = Source::default();
    let (_node, group) = group(&source, |group| group.max_time_to_live(MINUTE * 2)).await;
    assert_eq!(get(&group).await.unwrap(), "1");
    pass(MINUTE - Duration::from_secs(1)).await;
    assert_eq!(get(&group).await.unwrap(), "1");
    pass(Duration::from_secs(1)).await;
    assert_eq!(get(&group).await.unwrap(), "2", "the group says a minute");

    source.keep_ms.store(10_000, SeqCst);
    group.remove("key-1").await.unwrap().log_unreached();
    assert_eq!(get(&group).await.unwrap(), "3");
    pass(Duration::from_secs(10)).await;
    assert_eq!(get(&group).await.unwrap(), "4", "its loader says 10 s");

    source.keep_ms.store(3_600_000, SeqCst);
    group.remove("key-1").await.unwrap().log_unreached();
    assert_eq!(get(&group).await.unwrap(), "5");
    pass(MINUTE * 2).await;
    assert_eq!(get(&group).await.unwrap(), "6", "an hour is more than the group allows");
}

#[tokio::test(start_paused = true)]
async fn values_that_were_loaded_together_do_not_expire_together() {
    let source = Source::default();
    let (_node, group) = group(&source, |group| group.jitter(0.1)).await;
    let get_all = async || {
        for n in 0..200 {
            group.get(&format!("key-{n}")).await.unwrap();
        }
    };
    get_all().await;
    pass(Duration::from_secs(53)).await;
    get_all().await;
    assert_eq!(source.loads.total(), 200, "none before nine tenths of its time");
    sleep(Duration::from_secs(4)).await;
    get_all().await;
    let loads = source.loads.total() - 200;
    assert!((40..160).contains(&loads), "{loads} of 200 after 57 s");
    sleep(Duration::from_secs(3)).await;
    get_all().await;
    assert_eq!(source.loads.total(), 400, "and all after a minute");
}

#[tokio::test(start_paused = true)]
async fn that_there_is_nothing_is_remembered_as_long_as_it_is_asked_for() {
    let source = Source::default();
    source.says(Says::Nothing);
    let (_node, group) = group(&source, |group| group.negative_time_to_live(Duration::from_secs(5))).await;
    for _ in 0..3 {
        assert!(get(&group).await.expect_err("nothing").is_not_found());
        assert_eq!(group.get_opt("key-1").await.unwrap(), None);
    }
    assert_eq!((source.loads.total(), group.stats().hits), (1, 5));
    source.says(Says::Number);
    assert!(get(&group).await.is_err());
    pass(Duration::from_secs(5)).await;
    assert_eq!(get(&group).await.unwrap(), "2");

    source.says(Says::Nothing);
    group.remove("key-1").await.unwrap().log_unreached();
    assert!(get(&group).await.is_err());
    group.set("key-1", "set").await.unwrap().log_unreached();
    assert_eq!(get(&group).await.unwrap(), "set", "a write ends it");
}

#[tokio::test(start_paused = true)]
async fn without_being_asked_for_it_nothing_is_remembered() {
    let source = Source::default();
    source.says(Says::Nothing);
    let (_node, group) = group(&source, |group| group).await;
    assert!(get(&group).await.is_err() && get(&group).await.is_err());
    assert_eq!((source.loads.total(), group.entries()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_is_served_at_once_while_one_load_brings_a_younger_one() {
    let gate = Gate::default();
    gate.open();
    let source = Source { gate: Some(gate.clone()), ..Source::default() };
    let (_node, group) = group(&source, |group| group.stale_while_revalidate(MINUTE)).await;
    assert_eq!(get(&group).await.unwrap(), "1");
    pass(MINUTE).await;
    gate.close();
    let before = tokio::time::Instant::now();
    let callers = (0..1000).map(|_| get(&group));
    for value in futures_util::future::join_all(callers).await {
        assert_eq!(value.unwrap(), "1");
    }
    assert_eq!(before.elapsed(), Duration::ZERO, "nobody waits");
    sleep(Duration::from_millis(1)).await;
    assert_eq!(source.loads.total(), 2, "one load");
    let stats = group.stats();
    assert_eq!((stats.stale_hits, stats.refreshes), (1000, 1));
    gate.open();
    pass(Duration::ZERO).await;
    assert_eq!(get(&group).await.unwrap(), "2");
    assert_eq!(source.told()[1], (LoadReason::Refresh, Some("1".to_owned())));

    pass(MINUTE * 2).await;
    assert_eq!(get(&group).await.unwrap(), "3", "too old to be served: waited for");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_fails_is_tried_again_each_second_and_the_old_value_serves_on() {
    let source = Source::default();
    let (_node, group) = group(&source, |group| group.stale_while_revalidate(MINUTE)).await;
    get(&group).await.unwrap();
    source.says(Says::Fails);
    pass(MINUTE).await;
    for _ in 0..100 {
        assert_eq!(get(&group).await.unwrap(), "1");
        sleep(Duration::from_millis(100)).await;
    }
    let loads = source.loads.total() - 1;
    assert!((9..=11).contains(&loads), "{loads} in ten seconds");
    pass(MINUTE).await;
    assert!(get(&group).await.expect_err("too old").is_load_failed());
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_asked_for_is_refreshed_ahead_of_its_end() {
    let source = Source::default();
    let (_node, group) = group(&source, |group| group.refresh_ahead(Duration::from_secs(10))).await;
    get(&group).await.unwrap();
    pass(Duration::from_secs(49)).await;
    assert_eq!((get(&group).await.unwrap().as_str(), source.loads.total()), ("1", 1));
    pass(Duration::from_secs(1)).await;
    assert_eq!(get(&group).await.unwrap(), "1", "the old one, once more");
    pass(Duration::ZERO).await;
    assert_eq!(get(&group).await.unwrap(), "2");
    assert_eq!(group.stats().stale_hits, 0, "it was fresh all the time");
    pass(MINUTE).await;
    assert_eq!(source.loads.total(), 2, "what nobody asks for is not refreshed");
}

#[tokio::test(start_paused = true)]
async fn an_old_value_is_handed_out_while_the_loader_fails() {
    let source = Source::default();
    let (_node, group) =
        group(&source, |group| group.stale_if_error(MINUTE * 10).load_deadline(Duration::from_secs(2))).await;
    get(&group).await.unwrap();
    for says in [Says::Fails, Says::Hangs] {
        source.says(says);
        pass(MINUTE).await;
        let before = source.loads.total();
        assert_eq!(get(&group).await.unwrap(), "1");
        assert_eq!(get(&group).await.unwrap(), "1", "at once: not everybody waits for the next failure");
        assert_eq!(source.loads.total(), before + 1);
    }
    assert_eq!(group.stats().stale_on_error, 2);
    source.says(Says::Nothing);
    pass(Duration::from_secs(2)).await;
    assert!(get(&group).await.expect_err("no failure").is_not_found());

    source.says(Says::Number);
    group.remove("key-1").await.unwrap().log_unreached();
    let value = get(&group).await.unwrap();
    source.says(Says::Fails);
    pass(MINUTE * 5).await;
    assert_eq!(get(&group).await.unwrap(), value);
    group.remove("key-1").await.unwrap().log_unreached();
    assert!(get(&group).await.is_err(), "what was removed is not handed out");
    pass(MINUTE * 20).await;
    assert!(get(&group).await.is_err(), "nor what is too old");
}

/// Cannot be encoded when it is odd.
#[derive(Clone)]
struct Even(u64);

impl Value for Even {
    fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        if self.0 % 2 == 1 {
            return Err(EncodeError::new("it is odd"));
        }
        out.put_u64(self.0);
        Ok(())
    }

    fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        Ok(Self(bytes.get_u64()))
    }

    fn weight(&self) -> usize {
        0
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_encoded_takes_nothing_away() {
    let node = Node::builder().start().await.unwrap();
    let loads = Loads::default();
    let count = async |loads: &Loads, key: &str| Ok::<_, BoxError>(Even(loads.begin(key) + 1));
    let group = node.group::<Even>("data").capacity_bytes(1 << 20).time_to_live(MINUTE).stale_if_error(MINUTE * 10);
    let group = group.loader_with(loads.clone(), count).build().unwrap();
    assert_eq!(group.get("key").await.unwrap().0, 2);
    pass(MINUTE).await;
    for _ in 0..2 {
        assert_eq!((group.get("key").await.unwrap().0, group.entries(), loads.total()), (2, 1, 2));
    }
    pass(MINUTE).await;
    assert_eq!((group.get("key").await.unwrap().0, loads.total()), (4, 3));
}

#[tokio::test(start_paused = true)]
async fn unchanged_keeps_the_value_for_another_life() {
    let source = Source::default();
    let (_node, group) = group(&source, |group| group.stale_if_error(MINUTE)).await;
    get(&group).await.unwrap();
    source.says(Says::Unchanged);
    pass(MINUTE).await;
    source.told();
    assert_eq!(get(&group).await.unwrap(), "1");
    assert_eq!(source.told(), [(LoadReason::Owner, Some("1".to_owned()))]);
    pass(MINUTE - Duration::from_secs(1)).await;
    assert_eq!((get(&group).await.unwrap().as_str(), source.loads.total()), ("1", 2));

    group.remove("key-1").await.unwrap().log_unreached();
    let error = get(&group).await.expect_err("unchanged from what?");
    assert!(error.is_load_failed() && error.to_string().contains("previous"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_a_write_has_passed_is_not_kept() {
    let gate = Gate::default();
    gate.open();
    let source = Source { gate: Some(gate.clone()), ..Source::default() };
    let (_node, group) = group(&source, |group| group.stale_while_revalidate(MINUTE)).await;
    for says in [Says::Number, Says::Unchanged] {
        source.says(Says::Number);
        group.remove("key-1").await.unwrap().log_unreached();
        get(&group).await.unwrap();
        pass(MINUTE).await;
        source.says(says);
        gate.close();
        get(&group).await.unwrap();
        let loads = source.loads.total();
        pass(Duration::ZERO).await;
        group.set("key-1", "set").await.unwrap().log_unreached();
        gate.open();
        pass(Duration::from_secs(1)).await;
        assert_eq!(get(&group).await.unwrap(), "set");
        assert_eq!(source.loads.total(), loads + 1);
    }
}

#[tokio::test]
async fn ages_that_make_no_sense_are_refused() {
    let node = Node::builder().start().await.unwrap();
    let group = || node.group::<String>("data").capacity_bytes(4 << 20).loader(Source::default());
    for (group, says) in [
        (group().time_to_live(Duration::ZERO), "zero"),
        (group().max_time_to_live(Duration::ZERO), "zero"),
        (group().negative_time_to_live(Duration::ZERO), "zero"),
        (group().jitter(1.5), "jitter"),
        (group().jitter(f64::NAN), "jitter"),
    ] {
        let error = group.build().expect_err(says);
        assert!(error.is_config() && error.to_string().contains(says), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_without_peers_that_stood_still_has_missed_nothing() {
    let source = Source::default();
    let (node, group) = group(&source, |group| group).await;
    get(&group).await.unwrap();
    tokio::time::advance(Duration::from_secs(3)).await;
    pass(Duration::from_secs(20)).await;
    assert_eq!((get(&group).await.unwrap().as_str(), node.stats().cut_off), ("1", 0));
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_gives_its_memory_back_without_being_asked_for() {
    let source = Source::default();
    let (_node, group) = group(&source, |group| group.stale_if_error(MINUTE)).await;
    for n in 0..2000 {
        group.get(&format!("key-{n}")).await.unwrap();
    }
    group.set("key-young", "young").await.unwrap().log_unreached();
    pass(MINUTE).await;
    group.set("key-young", "young").await.unwrap().log_unreached();
    assert_eq!(group.entries(), 2001, "expired, and still of use when the loader fails");
    pass(MINUTE - Duration::from_secs(1)).await;
    pass(Duration::from_secs(12)).await;
    assert_eq!((group.entries(), group.stats().expired), (1, 2000));
    assert!(group.bytes() < 1000);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_kept_ends_the_value_before_it() {
    let source = Source::default();
    let (_node, group) = group(&source, |group| group.stale_while_revalidate(MINUTE).stale_if_error(MINUTE * 10)).await;
    get(&group).await.unwrap();
    pass(MINUTE).await;
    source.says(Says::Nothing);
    assert_eq!(get(&group).await.unwrap(), "1", "while it is looked for");
    pass(Duration::ZERO).await;
    assert!(get(&group).await.expect_err("the row is gone").is_not_found());
    source.says(Says::Fails);
    assert!(get(&group).await.expect_err("and does not come back").is_load_failed());
}

#[tokio::test(start_paused = true)]
async fn times_of_any_length_harm_nobody() {
    for long in [Duration::MAX, Duration::from_secs(1 << 62), Duration::from_secs(60 * 86_400)] {
        let source = Source::default();
        let (_node, group) = group(&source, |group| {
            group
                .time_to_live(long)
                .stale_while_revalidate(long)
                .stale_if_error(long)
                .refresh_ahead(long)
                .breaker(1, long)
        })
        .await;
        assert_eq!(get(&group).await.unwrap(), "1");
        group.set("key-1", "set").await.unwrap().log_unreached();
        pass(MINUTE).await;
        assert_eq!(get(&group).await.unwrap(), "set");
    }
}
