//! Reads along in the log of every test: a key, a value or a secret at INFO or above ends the process with that line.

use std::{
    collections::BTreeSet,
    fmt::{Debug, Write},
    sync::{LazyLock, Mutex, Once},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{EnvFilter, Layer, layer::Context, prelude::*};

/// What must not be seen. Keys have a hyphen, so that no word of a sentence is one.
static SECRETS: LazyLock<Mutex<BTreeSet<String>>> = LazyLock::new(Mutex::default);

/// More would only cost memory.
const MAX_SECRETS: usize = 100_000;

/// Tests of this process are read along from now on; with `RUST_LOG` their log is shown too.
pub fn read_along() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let shown = std::env::var_os("RUST_LOG")
            .map(|_| tracing_subscriber::fmt::layer().with_test_writer().with_filter(EnvFilter::from_default_env()));
        let _ = tracing_subscriber::registry().with(Reader).with(shown).try_init();
    });
}

/// A key that was loaded; its value is much the same.
pub fn is_key(key: &str) {
    if key.contains('-') {
        is_secret(key);
    }
}

/// A secret: each line of it.
pub fn is_secret(text: &str) {
    let mut secrets = SECRETS.lock().unwrap();
    if secrets.len() < MAX_SECRETS {
        secrets.extend(text.lines().filter(|line| line.len() > 4 && !line.starts_with("-----")).map(str::to_owned));
    }
}

/// Reads along.
pub struct Reader;

impl<S: Subscriber> Layer<S> for Reader {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() > Level::INFO {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let words = text.0.split(|c: char| c.is_whitespace() || "\"'(){}[],:;".contains(c));
        let secrets = SECRETS.lock().unwrap();
        if let Some(secret) = words.into_iter().find(|word| secrets.contains(*word)) {
            eprintln!("{secret:?} is a key or a secret, and was logged at {}: {}", event.metadata().level(), text.0);
            std::process::abort();
        }
    }
}

#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{}={value:?} ", field.name()).unwrap();
    }
}
