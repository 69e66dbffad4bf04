//! Places for connections that have not proven anything yet: so many in all, so many of one address.
//!
//! When all are taken, the one that was silent for longest loses its place, not the one that comes: a
//! crowd that takes places and says nothing cannot keep those out who have something to say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Where a connection comes from, as far as it can choose: of an IPv6 address the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Source {
    /// A socket of this machine.
    Local,
    Address(IpAddr),
}

impl Source {
    pub(super) fn of(from: Option<IpAddr>) -> Self {
        match from.map(|address| address.to_canonical()) {
            None => Self::Local,
            Some(IpAddr::V6(address)) => {
                let network = address.to_bits() & !u128::from(u64::MAX);
                Self::Address(IpAddr::V6(network.into()))
            }
            Some(address) => Self::Address(address),
        }
    }
}

/// All places of one kind.
#[derive(Debug)]
pub(super) struct Places {
    all_max: usize,
    /// Of one source.
    source_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    last: u64,
    /// By when they were last used.
    all: BTreeMap<u64, (Source, watch::Sender<bool>)>,
    of_source: BTreeMap<Source, BTreeSet<u64>>,
}

/// A place that is taken until this is dropped, or until it is lost.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
}

impl Places {
    pub(super) fn new(all_max: usize, source_max: usize) -> Arc<Self> {
        Arc::new(Self {
            all_max,
            source_max,
            taken: Mutex::default(),
        })
    }

    /// Takes a place. `lost` becomes true when somebody else needs it.
    pub(super) fn take(self: &Arc<Self>, source: Source, lost: watch::Sender<bool>) -> Place {
        let mut taken = self.taken();
        let own = taken.of_source.get(&source).map_or(0, BTreeSet::len);
        if own >= self.source_max {
            taken.evict_from(source);
        } else if taken.all.len() >= self.all_max {
            let largest = taken.of_source.iter().max_by_key(|(_, own)| own.len());
            if let Some(largest) = largest.map(|(source, _)| *source) {
                taken.evict_from(largest);
            }
        }
        let number = taken.add(source, lost);
        drop(taken);
        Place {
            places: Arc::clone(self),
            number,
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // std Mutex: never held across an await.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// It has been used: those that were not lose theirs first.
    pub(super) fn touch(&mut self) {
        let mut taken = self.places.taken();
        if let Some((source, lost)) = taken.remove(self.number) {
            self.number = taken.add(source, lost);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _own = self.places.taken().remove(self.number);
    }
}

impl Taken {
    fn add(&mut self, source: Source, lost: watch::Sender<bool>) -> u64 {
        self.last += 1;
        self.all.insert(self.last, (source, lost));
        self.of_source.entry(source).or_default().insert(self.last);
        self.last
    }

    fn remove(&mut self, number: u64) -> Option<(Source, watch::Sender<bool>)> {
        let (source, lost) = self.all.remove(&number)?;
        if let Some(own) = self.of_source.get_mut(&source) {
            own.remove(&number);
            if own.is_empty() {
                self.of_source.remove(&source);
            }
        }
        Some((source, lost))
    }

    fn evict_from(&mut self, source: Source) {
        let oldest = self.of_source.get(&source).and_then(BTreeSet::first);
        if let Some((_, lost)) = oldest.copied().and_then(|oldest| self.remove(oldest)) {
            lost.send_replace(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(last: u8) -> Source {
        Source::of(Some([10, 0, 0, last].into()))
    }

    #[test]
    fn who_was_silent_for_longest_loses_its_place_and_who_comes_gets_one() {
        let places = Places::new(4, 3);
        let lost: [_; 6] = std::array::from_fn(|_| watch::Sender::new(false));
        let mut first = places.take(source(1), lost[0].clone());
        let second = places.take(source(1), lost[1].clone());
        let third = places.take(source(1), lost[2].clone());
        first.touch();
        // One source has no more than its own, and the second was silent for longest.
        let fourth = places.take(source(1), lost[3].clone());
        let are_lost = || lost.each_ref().map(|lost| *lost.borrow());
        assert_eq!(are_lost(), [false, true, false, false, false, false]);
        let fifth = places.take(source(2), lost[4].clone());
        assert_eq!(are_lost(), [false, true, false, false, false, false]);
        // All are taken: whoever has most of them loses one.
        let sixth = places.take(source(3), lost[5].clone());
        assert_eq!(are_lost(), [false, true, true, false, false, false]);
        drop((first, second, third, fourth, fifth, sixth));
        assert!(places.taken().all.is_empty() && places.taken().of_source.is_empty());
    }

    #[test]
    fn a_source_is_what_a_client_cannot_choose_freely() {
        let of = |text: &str| Source::of(Some(text.parse().unwrap()));
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), source(1));
        assert_ne!(of("10.0.0.2"), source(1));
    }
}
