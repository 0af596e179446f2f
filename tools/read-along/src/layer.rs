//! The log of this process.

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

/// Everything that this process logs is read; with `RUST_LOG` it is shown too.
#[ctor::ctor(unsafe)]
fn start() {
    let read = tracing_subscriber::registry().with(reader());
    // Not an `Option` of a layer: with a `None` beside it, the filter of the reader no longer keeps the spans of
    // HTTP/2 from being made, and these take a third of a node's time.
    match std::env::var_os("RUST_LOG") {
        None => read.init(),
        Some(_) => {
            let lines = tracing_subscriber::fmt::layer().with_test_writer();
            read.with(lines.with_filter(EnvFilter::from_default_env())).init();
        }
    }
}

/// Reads along beside the other layers of a subscriber that a test has for its own threads.
pub fn reader<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    Reader.with_filter(Targets::new().with_default(Level::INFO).with_target(TELLER, Level::TRACE))
}

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
            abort(secret, format_args!("and is logged at {}: {}", metadata.level(), text.text));
        }
    }
}

/// The fields of an event, in a line.
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
