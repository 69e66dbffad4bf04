//! Requests of a node that is alone in its ring.
//!
//! With one home, and that home here, a quorum of one is this node: the same replica rules apply, and
//! there is nobody to wait for, nothing to keep, no batch to build.

use super::Inner;
use crate::model::{
    Database, Expiry, HashedKey, Kind, Millis, Record, RecordRef, Summary, Version,
};
use crate::node::replica::Written;
use crate::ring::View;
use crate::store::ExpiryChange;
use crate::update::{Change, Context, Limit, Reply, State};
use crate::wire::Refusal;
use std::sync::Arc;

/// Runs requests at once. Good for the moment it was made for: ask again for the next batch.
#[derive(Debug)]
pub struct Local<'a> {
    inner: &'a Inner,
    view: Arc<View>,
    wall: Millis,
    database: Database,
}

impl<'a> Local<'a> {
    pub(super) fn new(inner: &'a Inner) -> Option<Self> {
        let view = Arc::clone(&inner.view.borrow());
        // With one copy all levels are one.
        let is_alone = inner.config.quorum.n() == 1
            && matches!(view.members(), [member] if member.tag == inner.self_tag);
        is_alone.then(|| Self {
            inner,
            view,
            wall: inner.env.clock.wall(),
            database: Database::default(),
        })
    }

    /// The keys are those of this database from now on.
    pub const fn select(&mut self, database: Database) {
        self.database = database;
    }

    /// Reads a live value in place: `read` runs under a lock and must be short.
    pub fn get<T>(&self, key: &[u8], read: impl FnOnce(Option<(&[u8], Kind)>) -> T) -> T {
        let key = self.database.key(key);
        let key = self.inner.hashed(&self.view, &key);
        let now = self.now();
        self.inner.replica.read(key, |record| {
            let live = record.filter(|record| !record.is_expired(now));
            read(live.and_then(|record| Some((record.value?, record.kind))))
        })
    }

    /// All but the value, if there is a live one.
    #[must_use]
    pub fn look(&self, key: &[u8]) -> Option<Summary> {
        let key = self.database.key(key);
        let key = self.inner.hashed(&self.view, &key);
        let summary = self.inner.replica.summary(key);
        summary.filter(|summary| summary.is_live(self.now()))
    }

    /// Writes a value, or deletes it (`None`). Whether there was a live value.
    pub fn write(
        &self,
        key: &[u8],
        value: Option<&[u8]>,
        expires_at: Option<Millis>,
    ) -> Result<bool, Refusal> {
        let key = self.database.key(key);
        let key = self.inner.hashed(&self.view, &key);
        loop {
            let version = self.stamp();
            let expiry = Expiry {
                version,
                at: expires_at,
            };
            let record = RecordRef {
                version,
                expiry,
                value,
                kind: Kind::String,
                covers: false,
            };
            match self.inner.replica.write(key, record, self.wall)? {
                Written::Applied(prior) => return Ok(prior.live),
                // Another connection stamped later and wrote earlier: stamp again. Each turn of
                // this loop means that somebody else's write took effect.
                Written::Superseded(by) => self.pass(by.stamp.unwrap_or_default().newest())?,
                Written::Promised(ballot) => self.pass(ballot)?,
            }
        }
    }

    /// Updates a key. What is told; `None`: that may take long, and nothing was done.
    pub fn update(&self, key: &[u8], change: &Change) -> Option<Result<Reply, Refusal>> {
        let key = self.database.key(key);
        let key = self.inner.hashed(&self.view, &key);
        let replica = &self.inner.replica;
        loop {
            let held = replica.read(key, |record| {
                let bytes = record.and_then(|record| Some(record.value?.len()));
                let is_short = !change.is_slow(bytes.unwrap_or(0));
                is_short.then(|| record.map(|record| record.to_record()))
            })?;
            let context = Context {
                now: self.now(),
                value_bytes_max: replica.value_bytes_max(),
                limit: &Limit::of_steps(),
            };
            let mut state = State::of(held.as_ref(), context.now);
            let reply = change.make(&mut state, context);
            if !state.is_changed() {
                return Some(Ok(reply));
            }
            match self.replace(key, held.as_ref(), &state) {
                Ok(true) => return Some(Ok(reply)),
                // Somebody else's write was faster: it is made on that. Each turn means that one took effect.
                Ok(false) => {}
                Err(refusal) => return Some(Err(refusal)),
            }
        }
    }

    /// Writes what an update has made of a record; whether that was still there.
    fn replace(
        &self,
        key: HashedKey<'_>,
        held: Option<&Record>,
        state: &State,
    ) -> Result<bool, Refusal> {
        let stamp = held.map(Record::stamp);
        self.pass(stamp.unwrap_or_default().newest())?;
        let record = state.record(self.stamp());
        let replica = &self.inner.replica;
        replica.replace(key, stamp, (&record).into(), self.wall)
    }

    /// Changes when a live value ends. What is held now, and when it was to end before.
    pub fn change_expiry(
        &self,
        key: &[u8],
        at: Option<Millis>,
    ) -> Result<(Option<Summary>, Option<Millis>), Refusal> {
        let key = self.database.key(key);
        let key = self.inner.hashed(&self.view, &key);
        loop {
            let expiry = Expiry {
                version: self.stamp(),
                at,
            };
            match self.inner.replica.change_expiry(key, expiry, self.wall)? {
                ExpiryChange::Done {
                    now_held,
                    expired_at_before,
                } => {
                    return Ok((now_held, expired_at_before));
                }
                ExpiryChange::Superseded { by } => self.pass(by.newest())?,
            }
        }
    }

    fn stamp(&self) -> Version {
        Version {
            hlc: self.inner.clock.tick(self.wall),
            node: self.inner.replica.writer(self.inner.writer),
        }
    }

    fn now(&self) -> Millis {
        self.inner.clock.read(self.wall).millis()
    }

    fn pass(&self, version: Version) -> Result<(), Refusal> {
        let clock = &self.inner.clock;
        clock
            .observe(version.hlc, self.wall)
            .map_err(|_drift| Refusal::ClockDrift)
    }
}
