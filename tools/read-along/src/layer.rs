//! Layer: checks the log of this process.

use std::fmt::{Debug, Write};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::Targets,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::{KEY, TELLER, VALUE, abort, is_secret, secrets::shown_by};

/// Installs the global subscriber, which checks every event and, if `RUST_LOG` is set, also prints events.
#[ctor::ctor(unsafe)]
fn start() {
    let read = tracing_subscriber::registry().with(reader());
    // No `Option` of a layer, because beside a `None` layer the reader's filter no longer prevents the spans of HTTP/2
    // from being made, which takes a third of a node's time.
    match std::env::var_os("RUST_LOG") {
        None => read.init(),
        Some(_) => {
            let lines = tracing_subscriber::fmt::layer().with_test_writer();
            read.with(lines.with_filter(EnvFilter::from_default_env())).init();
        }
    }
}

/// Returns the checking layer, for a test with a subscriber of its own for its threads.
pub fn reader<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    Reader.with_filter(Targets::new().with_default(Level::INFO).with_target(TELLER, Level::TRACE))
}

/// Layer that learns keys and values at TRACE and looks for them at INFO and above.
struct Reader;

impl<S: Subscriber> Layer<S> for Reader {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut text = Text { text: String::new(), learns: *metadata.level() == Level::TRACE };
        event.record(&mut text);
        if *metadata.level() > Level::INFO {
            return;
        }
        if let Some(secret) = shown_by(&text.text) {
            abort(secret, format_args!("and was logged at {}: {}", metadata.level(), text.text));
        }
    }
}

/// Fields of an event, as one line.
struct Text {
    text: String,
    learns: bool,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        if self.learns && [KEY, VALUE].contains(&field.name()) {
            is_secret(value);
        }
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.text, "{}={value:?} ", field.name()).unwrap();
    }
}
