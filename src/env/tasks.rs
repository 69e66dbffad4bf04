//! Tasks with an owner.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A group of tasks that ends together. Clones share the group.
///
/// A task ends when its future does or when the group is stopped, at its next await.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// An empty group.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task of this group.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the door to the scheduler"
        )]
        tokio::spawn(self.tracker.track_future(async move {
            // Stopping wins: a group that is told to stop takes no further step.
            tokio::select! { biased; () = stop.cancelled() => {} () = task => {} }
        }));
    }

    /// Runs what takes a processor for long on a thread of its own; `None` when it panicked or the
    /// program ends. It cannot be stopped in the middle.
    pub async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let working = tokio::task::spawn_blocking(work);
        self.tracker.track_future(working).await.ok()
    }

    /// A group that is stopped with this one, and can be stopped before it.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            tracker: self.tracker.clone(),
            stop: self.stop.child_token(),
        }
    }

    /// Tells all tasks to end; returns at once.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until the group was told to stop.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Stops the group and waits for its tasks, for `wait_max` at most. Whether all had ended.
    pub async fn shutdown(&self, wait_max: Duration) -> bool {
        self.stop();
        self.tracker.close();
        tokio::time::timeout(wait_max, self.tracker.wait())
            .await
            .is_ok()
    }
}
