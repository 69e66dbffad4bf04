//! What to ask for next, decided by a seed. Knows nothing of sockets or time.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::args::{Distribution, Ratio};
use super::commands::Commands;
use super::zipf::Zipf;

/// What a request is; figures are kept for each apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Get,
    Set,
    Del,
}

/// Requests that go out in one write and are waited for together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// The requests as bytes.
    pub(super) bytes: Vec<u8>,
    /// What they are, in order.
    pub(super) kinds: Vec<Kind>,
}

impl Batch {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.kinds.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Whether another request should wait for the next batch: large values must not add up.
    pub(super) fn is_full(&self, requests_max: usize) -> bool {
        self.kinds.len() >= requests_max || self.bytes.len() >= BATCH_BYTES
    }
}

/// Reads and writes of random keys, without end.
#[derive(Debug, Clone)]
pub(super) struct Mix {
    ratio: Ratio,
    keys: Keys,
    rng: Xoshiro256PlusPlus,
}

impl Mix {
    /// The stream of one connection: each has its own, the same in every run with that seed.
    pub(super) fn new(ratio: Ratio, keys: Keys, seed: u64, connection: u64) -> Self {
        // The seed is hashed when the generator is set up, so neighbours share nothing.
        let mut seeder = Xoshiro256PlusPlus::seed_from_u64(seed);
        let rng = Xoshiro256PlusPlus::seed_from_u64(seeder.random::<u64>() ^ connection);
        Self { ratio, keys, rng }
    }

    pub(super) fn fill(&mut self, batch: &mut Batch, commands: &Commands, requests_max: usize) {
        while !batch.is_full(requests_max) {
            let (kind, key) = self.next();
            match kind {
                Kind::Get => commands.get(&mut batch.bytes, key),
                Kind::Set | Kind::Del => commands.set(&mut batch.bytes, key),
            }
            batch.kinds.push(kind);
        }
    }

    fn next(&mut self) -> (Kind, u64) {
        let Ratio { gets, sets } = self.ratio;
        let kind = if self.rng.random_range(0..gets + sets) < gets {
            Kind::Get
        } else {
            Kind::Set
        };
        (kind, self.keys.sample(&mut self.rng))
    }
}

/// Which of the numbered keys are asked for how often.
#[derive(Debug, Clone)]
pub(super) enum Keys {
    Uniform { count: u64 },
    Zipf(Zipf),
}

impl Keys {
    pub(super) fn new(count: u64, distribution: Distribution) -> Self {
        match distribution {
            Distribution::Uniform => Self::Uniform { count },
            Distribution::Zipf { alpha } => Self::Zipf(Zipf::new(count, alpha)),
        }
    }

    fn sample(&self, rng: &mut Xoshiro256PlusPlus) -> u64 {
        match self {
            Self::Uniform { count } => rng.random_range(0..*count),
            // Ranks start at 1.
            Self::Zipf(zipf) => zipf.sample(rng) - 1,
        }
    }
}

/// One write of every `step`-th key.
#[derive(Debug, Clone)]
pub(super) struct Sweep {
    next: u64,
    step: u64,
    end: u64,
}

impl Sweep {
    /// The share of one of `connections` in writing all `keys`.
    pub(super) fn new(connection: u64, connections: u64, keys: u64) -> Self {
        Self {
            next: connection,
            step: connections,
            end: keys,
        }
    }

    pub(super) fn fill(&mut self, batch: &mut Batch, commands: &Commands, requests_max: usize) {
        while self.next < self.end && !batch.is_full(requests_max) {
            commands.set(&mut batch.bytes, self.next);
            batch.kinds.push(Kind::Set);
            self.next += self.step;
        }
    }
}

/// Larger than what a socket takes in one write, so more would not save a system call.
const BATCH_BYTES: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(ratio: (u32, u32), seed: u64, connection: u64) -> Vec<(Kind, u64)> {
        let (gets, sets) = ratio;
        let keys = Keys::new(1000, Distribution::Uniform);
        let mut mix = Mix::new(Ratio { gets, sets }, keys, seed, connection);
        (0..2000).map(|_| mix.next()).collect()
    }

    #[test]
    fn the_seed_decides_and_connections_differ() {
        assert_eq!(draw((1, 1), 1, 0), draw((1, 1), 1, 0));
        assert_ne!(draw((1, 1), 1, 0), draw((1, 1), 2, 0));
        assert_ne!(draw((1, 1), 1, 0), draw((1, 1), 1, 1));
    }

    #[test]
    fn the_ratio_is_kept() {
        let gets = |ratio| {
            let requests = draw(ratio, 1, 0);
            requests
                .iter()
                .filter(|(kind, _)| *kind == Kind::Get)
                .count()
        };
        assert_eq!(gets((1, 0)), 2000);
        assert_eq!(gets((0, 1)), 0);
        // Five standard deviations of 2,000 draws.
        assert!(gets((9, 1)).abs_diff(1800) < 68, "{}", gets((9, 1)));
    }

    #[test]
    fn sweeps_of_all_connections_write_every_key_once() {
        let commands = Commands::new(super::super::commands::Shape {
            write: super::super::commands::WriteCommand::Set,
            key_size: 16,
            value_size: 1,
            ttl: None,
            wait: None,
            seed: 1,
        });
        let mut batch = Batch::default();
        for connection in 0..3 {
            Sweep::new(connection, 3, 10).fill(&mut batch, &commands, 100);
        }
        assert_eq!(batch.len(), 10);
        for number in 0..10 {
            let key = format!("key:{number:012}");
            let seen = batch
                .bytes
                .windows(16)
                .filter(|w| *w == key.as_bytes())
                .count();
            assert_eq!(seen, 1, "{key}");
        }
    }

    #[test]
    fn a_batch_of_large_values_is_cut() {
        let commands = Commands::new(super::super::commands::Shape {
            write: super::super::commands::WriteCommand::Set,
            key_size: 16,
            value_size: 600_000,
            ttl: None,
            wait: None,
            seed: 1,
        });
        let mut batch = Batch::default();
        Sweep::new(0, 1, 100).fill(&mut batch, &commands, 64);
        assert_eq!(batch.len(), 2);
    }
}
