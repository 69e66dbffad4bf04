//! What systemd is told: that the node serves, what it is doing, that it is alive.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::{debug, error};

use crate::env::Tasks;
use crate::front::admin::{self, AdminRequest};

/// Tells systemd; without it, does nothing.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "cannot tell systemd");
    }
}

/// It serves, and this is what it is doing.
pub(super) fn ready(summary: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(summary)]);
}

/// This is what it is doing now.
pub(super) fn status(summary: &str) {
    tell(&[NotifyState::Status(summary)]);
}

/// Its configuration is being read again; [`ready`] ends it.
pub(super) fn reloading() {
    // systemd wants the time with it, to tell one reload from the next.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => debug!(%error, "cannot read the clock"),
    }
}

/// It is being stopped, and that may take so long.
pub(super) fn stopping(wait_max: Duration) {
    let us = u32::try_from(wait_max.as_micros().saturating_mul(4)).unwrap_or(u32::MAX);
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status("stopping: finishing what is under way"),
        NotifyState::ExtendTimeoutUsec(us),
    ]);
}

/// Feeds systemd's watchdog for as long as the node answers its own admin socket: that takes the
/// runtime's threads, its timers and its sockets, and a look at the ring.
pub(super) fn feed_watchdog(socket: PathBuf, tasks: &Tasks) {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return;
    };
    tasks.spawn(async move {
        // Twice within the time: one that comes late is followed by another.
        let mut ticks = tokio::time::interval(interval / 2);
        loop {
            ticks.tick().await;
            match timeout(interval / 3, answers(&socket)).await {
                Ok(Ok(())) => tell(&[NotifyState::Watchdog]),
                Ok(Err(error)) => error!(%error, "this node does not answer itself"),
                Err(_) => error!("this node answers itself too late"),
            }
        }
    });
}

async fn answers(socket: &Path) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    admin::ask_async(&mut stream, &AdminRequest::Ready).await?;
    Ok(())
}
