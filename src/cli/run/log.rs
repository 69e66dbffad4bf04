//! The log: a line an event, for people or for collectors, and never a flood.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use siphasher::sip::SipHasher13;
use tokio::time::Instant;
use tracing::callsite::Identifier;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Metadata, Subscriber, warn};
use tracing_subscriber::layer::{Context as LayerContext, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::LogFormat;
use crate::env::{Clock, SystemClock, Tasks};

/// The log of this process, as it goes on.
#[derive(Debug)]
pub(super) struct Log {
    filter: reload::Handle<EnvFilter, Registry>,
    flood: Arc<Flood>,
}

impl Log {
    /// Starts the log of this process.
    pub(super) fn start(filter: &str, format: LogFormat) -> anyhow::Result<Self> {
        let parsed = EnvFilter::try_new(filter).context("log")?;
        let (layer, handle) = reload::Layer::new(parsed);
        let flood = Arc::new(Flood::default());
        let lines = fmt::layer().with_writer(std::io::stderr);
        let lines: Box<dyn Layer<_> + Send + Sync> = match format {
            LogFormat::Json => Box::new(lines.json().flatten_event(true)),
            // The journal knows the time itself.
            LogFormat::Text if is_for_journal() => Box::new(lines.with_ansi(false).without_time()),
            LogFormat::Text => Box::new(lines.with_ansi(std::io::stderr().is_terminal())),
        };
        tracing_subscriber::registry()
            .with(layer)
            .with(FloodGate(Arc::clone(&flood)))
            .with(lines)
            .try_init()
            .context("cannot start the log")?;
        Ok(Self {
            filter: handle,
            flood,
        })
    }

    /// Logs by another filter from now on.
    pub(super) fn set_filter(&self, filter: &str) -> anyhow::Result<()> {
        let parsed = EnvFilter::try_new(filter).context("log")?;
        self.filter.reload(parsed).context("log")
    }

    /// Says now and then what was left out.
    pub(super) fn tell_left_out(&self, tasks: &Tasks) {
        let flood = Arc::clone(&self.flood);
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(WINDOW).await;
                for (place, left_out) in flood.take_left_out() {
                    warn!(place, left_out, "more of the same was not logged");
                }
            }
        });
    }
}

fn is_for_journal() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some() && !std::io::stderr().is_terminal()
}

/// Lets so many events of one place in the program through in a window.
struct FloodGate(Arc<Flood>);

/// What came of each place.
#[derive(Default)]
struct Flood(Mutex<HashMap<Identifier, Place, BuildHasherDefault<SipHasher13>>>);

struct Place {
    name: String,
    since: Instant,
    let_through: u32,
    left_out: u64,
}

impl Flood {
    fn lets_through(&self, metadata: &Metadata<'_>, now: Instant) -> bool {
        let mut places = self.lock();
        let place = places.entry(metadata.callsite()).or_insert_with(|| Place {
            name: format!("{}:{}", metadata.target(), metadata.line().unwrap_or(0)),
            since: now,
            let_through: 0,
            left_out: 0,
        });
        if now.saturating_duration_since(place.since) >= WINDOW {
            place.since = now;
            place.let_through = 0;
        }
        if place.let_through < EVENTS_A_WINDOW {
            place.let_through += 1;
            return true;
        }
        place.left_out += 1;
        false
    }

    fn take_left_out(&self) -> Vec<(String, u64)> {
        let mut places = self.lock();
        let mut left_out: Vec<_> = places
            .values_mut()
            .filter(|place| place.left_out > 0)
            .map(|place| (place.name.clone(), std::mem::take(&mut place.left_out)))
            .collect();
        left_out.sort();
        left_out
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Identifier, Place, BuildHasherDefault<SipHasher13>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Flood {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Flood")
    }
}

impl<S: Subscriber> Layer<S> for FloodGate {
    fn event_enabled(&self, event: &Event<'_>, _context: LayerContext<'_, S>) -> bool {
        let metadata = event.metadata();
        // Who asks for details wants all of them.
        if *metadata.level() > LevelFilter::INFO {
            return true;
        }
        self.0.lets_through(metadata, SystemClock.monotonic())
    }
}

const WINDOW: Duration = Duration::from_secs(10);
const EVENTS_A_WINDOW: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Counted(Arc<Mutex<u64>>);

    impl<S: Subscriber> Layer<S> for Counted {
        fn on_event(&self, _event: &Event<'_>, _context: LayerContext<'_, S>) {
            *self.0.lock().unwrap() += 1;
        }
    }

    #[test]
    fn one_place_does_not_flood_the_log_and_others_are_heard() {
        let (flood, counted) = (Arc::new(Flood::default()), Counted::default());
        let subscriber = tracing_subscriber::registry()
            .with(FloodGate(Arc::clone(&flood)))
            .with(counted.clone());
        tracing::subscriber::with_default(subscriber, || {
            (0..1_000).for_each(|number| warn!(number, "again"));
            warn!("another");
        });
        assert_eq!(*counted.0.lock().unwrap(), u64::from(EVENTS_A_WINDOW) + 1);
        let left_out = flood.take_left_out();
        assert_eq!(left_out.len(), 1);
        assert_eq!(left_out[0].1, 1_000 - u64::from(EVENTS_A_WINDOW));
        assert!(flood.take_left_out().is_empty());
    }
}
