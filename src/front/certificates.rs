//! What the certificates of a node are like, and what became of the last try to read them again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::model::Millis;
use crate::net::{Credentials, days_left, utc_text};

/// Kept up to date by who reads the files; read by the doors.
#[derive(Debug, Default)]
pub struct CertificateWatch {
    reloads: AtomicU64,
    failures: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Why the files could not be taken the last time they were read.
    error: Option<String>,
    /// The last moment of the certificate for Redis clients, where there is one.
    resp_until: Option<Millis>,
}

impl CertificateWatch {
    /// New files were taken.
    pub fn on_reload(&self) {
        self.reloads.fetch_add(1, Ordering::Relaxed);
        self.lock().error = None;
    }

    /// The files are what is in use already.
    pub fn on_unchanged(&self) {
        self.lock().error = None;
    }

    /// New files could not be taken.
    pub fn on_failure(&self, error: String) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.lock().error = Some(error);
    }

    /// The certificate for Redis clients ends then.
    pub fn set_resp_until(&self, until: Option<Millis>) {
        self.lock().resp_until = until;
    }

    /// How often new files were taken, and how often they could not be.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.reloads), load(&self.failures))
    }

    /// Why the files could not be taken the last time they were read, if they could not.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        self.lock().error.clone()
    }

    /// All certificates in use: which, and when each ends.
    #[must_use]
    pub fn ends(&self, credentials: &Credentials) -> Vec<(&'static str, Millis)> {
        let own = [
            ("node", credentials.not_after()),
            ("ca", credentials.authority_not_after()),
        ];
        let resp = self.lock().resp_until.map(|until| ("resp", until));
        own.into_iter().chain(resp).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // std Mutex: never held across an await.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A certificate that is near its end, or past it, in words.
#[must_use]
pub fn ending(whose: &str, until: Millis, now: Millis) -> Option<String> {
    let days = days_left(until, now);
    let at = utc_text(until);
    if days < 0 {
        Some(format!("{whose} expired on {at}"))
    } else if days < WARN_DAYS {
        let left = match days {
            0 => "less than a day is left".to_owned(),
            1 => "1 day is left".to_owned(),
            days => format!("{days} days are left"),
        };
        Some(format!("{whose} expires on {at}: {left}"))
    } else {
        None
    }
}

/// So early is it said that a certificate ends.
pub const WARN_DAYS: i64 = 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_thirty_days_ahead() {
        const DAY: u64 = 24 * 60 * 60 * 1_000;
        let now = Millis(1_000 * DAY);
        let told = |days: u64| ending("it", Millis(now.0 + days * DAY), now);
        assert_eq!(told(30), None);
        assert!(told(29).unwrap().ends_with("29 days are left"));
        assert!(told(10).unwrap().contains("expires on 1972-10-07"));
        assert!(told(0).unwrap().ends_with("less than a day is left"));
        let over = ending("it", Millis(now.0 - 1), now).unwrap();
        assert!(over.starts_with("it expired on"), "{over}");
    }
}
