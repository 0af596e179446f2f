//! Tests of the resolver with look-ups that the test answers.

use std::sync::mpsc;

use tokio::time::sleep;

use super::*;

/// Time limit that anything that works keeps, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Long enough to be never over in a test.
const LONG: Duration = Duration::from_secs(3600);

/// Times at which each caller looks up anew, and never sees old addresses.
const ANEW: Times =
    Times { fresh: Duration::ZERO, failed: Duration::ZERO, stale: Duration::ZERO, slow: LONG, patience: LONG };

/// Sender of the outcome of a look-up.
type Answer = mpsc::Sender<io::Result<Vec<SocketAddr>>>;

/// A resolver with look-ups that wait for the test.
struct Scene {
    resolver: Resolver,
    /// Names that are looked up at the moment, with the senders of their outcomes.
    running: Arc<Mutex<BTreeMap<String, Answer>>>,
    /// Names of all look-ups in the order of their beginning.
    begun: Arc<Mutex<Vec<String>>>,
}

impl Scene {
    fn new(times: Times) -> Self {
        let (running, begun) = (Arc::<Mutex<BTreeMap<_, _>>>::default(), Arc::<Mutex<Vec<String>>>::default());
        let (of_thread, begun_of_thread) = (Arc::clone(&running), Arc::clone(&begun));
        let look_up = move |name: &str| {
            let (answer, answered) = mpsc::channel();
            of_thread.lock().unwrap().insert(name.to_owned(), answer);
            begun_of_thread.lock().unwrap().push(name.to_owned());
            // The end of the test drops the sender.
            answered.recv().unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into()))
        };
        Self { resolver: Resolver::with(look_up, times), running, begun }
    }

    /// Begins a look-up in a task of its own.
    fn ask(&self, name: &str) -> tokio::task::JoinHandle<io::Result<Arc<[SocketAddr]>>> {
        let (resolver, name) = (self.resolver.clone(), name.to_owned());
        tokio::spawn(async move { resolver.lookup(&name, 7946).await })
    }

    fn times_begun(&self, name: &str) -> usize {
        self.begun.lock().unwrap().iter().filter(|begun| *begun == name).count()
    }

    /// Waits until a look-up of the name runs, and ends it.
    async fn answer(&self, name: &str, outcome: io::Result<Vec<SocketAddr>>) {
        let mut running = None;
        eventually("the look-up runs", || {
            running = self.running.lock().unwrap().remove(name);
            running.is_some()
        })
        .await;
        running.unwrap().send(outcome).unwrap();
    }

    /// Looks a name up and lets the look-up end so.
    async fn round(&self, name: &str, outcome: io::Result<Vec<SocketAddr>>) -> io::Result<Arc<[SocketAddr]>> {
        let asked = self.ask(name);
        self.answer(name, outcome).await;
        asked.await.unwrap()
    }
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"));
}

fn at(n: u8) -> Vec<SocketAddr> {
    vec![SocketAddr::from(([10, 0, 0, n], 0))]
}

fn silence() -> io::Error {
    io::Error::other("no name server answered")
}

#[tokio::test]
async fn callers_of_one_name_share_a_look_up() {
    let scene = Scene::new(Times { fresh: LONG, stale: LONG, ..ANEW });
    let asked: Vec<_> = (0..20).map(|_| scene.ask("Bee")).collect();
    scene.answer("bee", Ok(at(1))).await;
    for asked in asked {
        assert_eq!(*asked.await.unwrap().unwrap(), [SocketAddr::from(([10, 0, 0, 1], 7946))]);
    }
    assert_eq!(*scene.resolver.lookup("bee", 1).await.unwrap(), [SocketAddr::from(([10, 0, 0, 1], 1))]);
    assert_eq!(scene.times_begun("bee"), 1);
}

#[tokio::test]
async fn look_up_goes_on_for_others_when_a_caller_drops() {
    let scene = Scene::new(Times { fresh: LONG, stale: LONG, ..ANEW });
    let (dropped, kept) = (scene.ask("bee"), scene.ask("bee"));
    eventually("the look-up runs", || scene.times_begun("bee") == 1).await;
    dropped.abort();
    assert!(dropped.await.unwrap_err().is_cancelled());
    scene.answer("bee", Ok(at(1))).await;
    assert!(kept.await.unwrap().is_ok());
    // A look-up that everybody has left still fills the cache.
    let left = scene.ask("wasp");
    eventually("the look-up runs", || scene.times_begun("wasp") == 1).await;
    left.abort();
    scene.answer("wasp", Ok(at(2))).await;
    assert!(scene.resolver.lookup("wasp", 1).await.is_ok());
    assert_eq!(scene.times_begun("wasp"), 1);
}

#[tokio::test]
async fn address_is_never_looked_up() {
    let scene = Scene::new(ANEW);
    for (host, address) in [("10.0.0.7", "10.0.0.7:1"), ("[fd00::7]", "[fd00::7]:1"), ("::1", "[::1]:1")] {
        assert_eq!(*scene.resolver.lookup(host, 1).await.unwrap(), [address.parse().unwrap()]);
    }
    assert!(scene.begun.lock().unwrap().is_empty());
}

#[tokio::test]
async fn failure_is_remembered_and_says_the_name() {
    let scene = Scene::new(Times { failed: LONG, ..ANEW });
    let why = scene.round("bee", Err(silence())).await.unwrap_err().to_string();
    assert!(why.contains("bee") && why.contains("no name server answered") && why.contains("check"), "{why}");
    assert!(scene.resolver.lookup("bee", 1).await.is_err());
    assert_eq!(scene.times_begun("bee"), 1);
    let nothing = scene.round("wasp", Ok(Vec::new())).await.unwrap_err().to_string();
    assert!(nothing.contains("no addresses"), "{nothing}");
}

/// Checks that a known name costs nobody time while its name servers are silent.
#[tokio::test]
async fn known_addresses_are_served_while_name_servers_hang() {
    let scene = Scene::new(Times { stale: LONG, ..ANEW });
    scene.round("bee", Ok(at(1))).await.unwrap();
    // The first caller waits for the new look-up, and gets the old addresses when it fails.
    assert_eq!(scene.round("bee", Err(silence())).await.unwrap()[0].ip().to_string(), "10.0.0.1");
    for _ in 0..3 {
        let served = timeout(PATIENCE, scene.resolver.lookup("bee", 1)).await.expect("no caller waits");
        assert_eq!(served.unwrap()[0].ip().to_string(), "10.0.0.1");
    }
    scene.answer("bee", Ok(at(2))).await;
    eventually("the new address is known", || {
        let Step::Wait { stale: Some(stale), .. } = Shared::ask(&scene.resolver.0, "bee") else { return false };
        stale[0].ip().to_string() == "10.0.0.2"
    })
    .await;
}

#[tokio::test]
async fn addresses_are_not_served_for_ever() {
    let scene = Scene::new(ANEW);
    scene.round("bee", Ok(at(1))).await.unwrap();
    assert!(scene.round("bee", Err(silence())).await.is_err());
}

/// Checks that 500 names with silent name servers leave threads to a new name and to a known one.
#[tokio::test]
async fn silent_names_leave_threads_to_others() {
    let scene = Scene::new(ANEW);
    scene.round("known", Ok(at(1))).await.unwrap();
    let failing = |n: usize| format!("silent-{n}");
    for n in 0..20 {
        assert!(scene.round(&failing(n), Err(silence())).await.is_err());
    }
    let silent: Vec<_> = (0..500).map(|n| scene.ask(&failing(n))).collect();
    let running = || scene.running.lock().unwrap().len();
    eventually("silent names are looked up", || running() >= AT_ONCE[1]).await;
    // New names may not have all threads, and those that failed before not even the threads of new ones.
    assert_eq!(scene.round("known", Ok(at(2))).await.unwrap()[0].ip().to_string(), "10.0.0.2");
    assert_eq!(running(), AT_ONCE[1]);
    let threads = scene.resolver.0.table().threads;
    assert!(threads <= MAX_THREADS, "{threads}");
    silent.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn failing_names_have_half_of_the_threads() {
    let scene = Scene::new(ANEW);
    for n in 0..20 {
        assert!(scene.round(&format!("silent-{n}"), Err(silence())).await.is_err());
    }
    let silent: Vec<_> = (0..20).map(|n| scene.ask(&format!("silent-{n}"))).collect();
    eventually("names are looked up", || scene.running.lock().unwrap().len() >= AT_ONCE[2]).await;
    assert!(scene.round("new", Ok(at(3))).await.is_ok());
    assert_eq!(scene.running.lock().unwrap().len(), AT_ONCE[2]);
    silent.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Checks that a slow answer counts as a failure for the order, and its addresses are used all the same.
#[tokio::test]
async fn name_with_fewest_failures_comes_first() {
    let scene = Scene::new(Times { slow: Duration::ZERO, ..ANEW });
    for _ in 0..2 {
        assert!(scene.round("slowest", Ok(at(1))).await.is_ok());
    }
    assert!(scene.round("slow", Ok(at(1))).await.is_ok());
    let blocking: Vec<_> = (0..MAX_THREADS).map(|n| scene.ask(&format!("new-{n}"))).collect();
    eventually("no thread is free", || scene.running.lock().unwrap().len() >= AT_ONCE[1]).await;
    let waiting = [scene.ask("slowest"), scene.ask("slow")];
    eventually("all are queued", || scene.resolver.0.table().queued == 4).await;
    // The new names that are queued take the first places that become free, and one further place is free after them.
    let (first, rest) = (0..=MAX_THREADS - AT_ONCE[1], MAX_THREADS - AT_ONCE[1] + 1..MAX_THREADS);
    for n in first {
        scene.answer(&format!("new-{n}"), Ok(at(2))).await;
    }
    eventually("one of both runs", || scene.times_begun("slow") + scene.times_begun("slowest") == 4).await;
    assert_eq!((scene.times_begun("slow"), scene.times_begun("slowest")), (2, 2));
    for name in rest.map(|n| format!("new-{n}")).chain(["slow", "slowest"].map(str::to_owned)) {
        scene.answer(&name, Ok(at(2))).await;
    }
    for asked in waiting.into_iter().chain(blocking) {
        assert!(asked.await.unwrap().is_ok());
    }
}

/// Checks that a name that a caller waits for passes those that callers have given up.
#[tokio::test]
async fn awaited_name_passes_abandoned_ones() {
    let scene = Scene::new(ANEW);
    let silent: Vec<_> = (0..50).map(|n| scene.ask(&format!("silent-{n:02}"))).collect();
    let all_asked = || scene.resolver.0.table().names.len() == 50;
    eventually("no thread is free", || all_asked() && scene.running.lock().unwrap().len() >= AT_ONCE[1]).await;
    silent.iter().for_each(tokio::task::JoinHandle::abort);
    for asked in silent {
        let _ = asked.await;
    }
    let good = scene.ask("good");
    eventually("the name is queued", || scene.resolver.0.table().names.len() == 51).await;
    let first = scene.begun.lock().unwrap().first().cloned().unwrap();
    scene.answer(&first, Err(silence())).await;
    scene.answer("good", Ok(at(1))).await;
    assert!(good.await.unwrap().is_ok());
    assert_eq!(scene.begun.lock().unwrap().get(AT_ONCE[1]).map(String::as_str), Some("good"));
}

#[tokio::test]
async fn table_of_names_is_bounded() {
    let scene = Scene::new(Times { failed: LONG, ..ANEW });
    let resolver = Resolver::with(|_| Ok(at(1)), ANEW);
    for n in 0..MAX_NAMES + 50 {
        assert!(resolver.lookup(&format!("name-{n}"), 1).await.is_ok());
    }
    assert_eq!(resolver.0.table().names.len(), MAX_NAMES);
    let waiting: Vec<_> = (0..MAX_NAMES).map(|n| Shared::ask(&scene.resolver.0, &format!("name-{n}"))).collect();
    assert!(waiting.iter().all(|step| matches!(step, Step::Wait { .. })));
    let Step::Done(Err(why)) = Shared::ask(&scene.resolver.0, "one-more") else { panic!("there is no room") };
    assert!(why.contains("too many"), "{why}");
    drop(waiting);
    let step = Shared::ask(&scene.resolver.0, "one-more");
    assert!(matches!(step, Step::Wait { .. }), "an abandoned look-up makes room");
}
