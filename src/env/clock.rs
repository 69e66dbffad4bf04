//! Time.

use std::fmt::Debug;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::model::Millis;

/// The two clocks of a machine.
pub trait Clock: Debug + Send + Sync + 'static {
    /// The wall clock: comparable between machines as far as they are synchronised; may jump.
    fn wall(&self) -> Millis;

    /// The wall clock as this machine has it, where `wall` is corrected by what others have.
    fn machine_wall(&self) -> Millis {
        self.wall()
    }

    /// The monotonic clock: for deadlines and durations.
    fn monotonic(&self) -> Instant;
}

/// The clocks of the machine this process runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the door to the wall clock"
    )]
    fn wall(&self) -> Millis {
        // A clock before 1970 reads as 1970: it is then far behind every peer, which they say.
        let since_1970 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Millis(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the door to the monotonic clock"
    )]
    fn monotonic(&self) -> Instant {
        Instant::now()
    }
}
