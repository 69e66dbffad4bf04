//! The digests of a group's partitions, each at a cut: the end of an epoch of the hybrid clock.
//!
//! Two replicas under load never hold the same at one moment, for some writes have reached the one
//! and not yet the other. What they hold of the writes up to a cut some seconds ago is the same. A
//! digest therefore counts the latest state of each key up to the cut; what is written since is kept
//! apart, an epoch each, and joins it when the cut moves on. Where writes of one key overtake each
//! other between two epochs, replicas may differ about the one in between until the next cut.
//!
//! What will end soon is not counted, and neither is a tombstone that is old enough to be purged:
//! when that begins depends on the record and the cut alone, so that neither clocks that differ nor
//! a sweep that comes earlier on one replica make replicas quarrel.

use crate::model::{Digest, Epoch, Millis};

/// What one record adds to the digest of its partition, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    pub(super) digest: Digest,
    /// When it was written.
    pub(super) epoch: Epoch,
    /// Cuts from this moment on leave it out.
    pub(super) until: Option<Millis>,
}

impl Share {
    /// Whether it is counted while the cut is this one.
    #[inline]
    pub(super) fn is_counted(&self, cut: Epoch) -> bool {
        self.until
            .is_none_or(|until| cut.max(self.epoch).end() < until)
    }
}

#[derive(Debug)]
pub(super) struct Digests {
    cut: Epoch,
    partitions: [Parts; GROUP as usize],
}

/// Half a line of the processor's cache.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(32))]
struct Parts {
    at_cut: Digest,
    /// What each epoch after the cut changes; the last one stands for all later ones too.
    since: [Digest; EPOCHS_AHEAD],
}

impl Digests {
    pub(super) fn new(cut: Epoch) -> Self {
        Self {
            cut,
            partitions: [Parts::default(); GROUP as usize],
        }
    }

    pub(super) const fn cut(&self) -> Epoch {
        self.cut
    }

    pub(super) const fn at_cut(&self, place: usize) -> Digest {
        self.partitions[place].at_cut
    }

    /// Of all that is held now.
    pub(super) fn present(&self, place: usize) -> Digest {
        let Parts { at_cut, since } = &self.partitions[place];
        since.iter().fold(*at_cut, |sum, part| sum.plus(*part))
    }

    /// One record takes the place of another, in this epoch. Both count for ever.
    #[inline]
    pub(super) fn overwrite(&mut self, place: usize, epoch: Epoch, before: Digest, after: Digest) {
        let part = self.part(place, epoch);
        *part = part.minus(before).plus(after);
    }

    /// One record takes the place of another.
    #[inline]
    pub(super) fn change(&mut self, place: usize, before: Option<Share>, after: Share) {
        let cut = self.cut;
        let part = self.part(place, after.epoch);
        if let Some(before) = before
            && before.is_counted(cut)
        {
            *part = part.minus(before.digest);
        }
        if after.is_counted(cut) {
            *part = part.plus(after.digest);
        }
    }

    /// Moves the cut on. Call [`Self::leave_out`] for each record then.
    pub(super) fn advance(&mut self, cut: Epoch) {
        let steps = cut.0.saturating_sub(self.cut.0);
        self.cut = self.cut.max(cut);
        for parts in &mut self.partitions {
            for _ in 0..steps.min(EPOCHS_AHEAD as u64) {
                parts.at_cut = parts.at_cut.plus(parts.since[0]);
                parts.since.rotate_left(1);
                parts.since[EPOCHS_AHEAD - 1] = Digest::default();
            }
        }
    }

    /// Leaves a record out that was counted at the cut before and is no longer.
    pub(super) fn leave_out(&mut self, place: usize, share: Share, cut_before: Epoch) -> bool {
        let is_over = share.is_counted(cut_before) && !share.is_counted(self.cut);
        if is_over {
            let part = self.part(place, share.epoch);
            *part = part.minus(share.digest);
        }
        is_over
    }

    /// Nothing is held any more.
    pub(super) fn clear(&mut self, place: usize) {
        self.partitions[place] = Parts::default();
    }

    #[inline]
    fn part(&mut self, place: usize, epoch: Epoch) -> &mut Digest {
        let parts = &mut self.partitions[place];
        match epoch.0.checked_sub(self.cut.0 + 1) {
            None => &mut parts.at_cut,
            Some(ahead) => {
                let ahead = usize::try_from(ahead).unwrap_or(usize::MAX);
                &mut parts.since[ahead.min(EPOCHS_AHEAD - 1)]
            }
        }
    }
}

/// Partitions in a group.
pub(super) const GROUP: u16 = 16;
/// Twelve seconds: the cut is a few seconds behind the clock, and other clocks may be some ahead.
const EPOCHS_AHEAD: usize = 3;
