//! What a whole run does, decided once from the arguments.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::args::{BenchArgs, Ratio, TargetGroup, VALUE_SIZE};
use super::commands::{Commands, Shape, digits};
use super::replay::Writes;
use super::workload::Keys;

/// A run, with nothing left to decide.
#[derive(Debug)]
pub(super) struct Plan {
    /// The servers; with several, each has its turn in each round.
    pub(super) groups: Vec<TargetGroup>,
    pub(super) rounds: u32,
    pub(super) connections: u64,
    pub(super) threads: u64,
    pub(super) seed: u64,
    pub(super) password: Option<Arc<Password>>,
    /// What is written before measuring starts.
    pub(super) populate: Option<Arc<Job>>,
    /// Whether before each round, because what was written does not live for ever.
    pub(super) populate_each_round: bool,
    pub(super) measure: Arc<Job>,
}

/// One use of a server by all connections.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) load: Load,
    pub(super) commands: Commands,
    /// Requests a batch.
    pub(super) pipeline: usize,
    /// Replicas that each write waits for.
    pub(super) wait: Option<i64>,
    /// How long before figures count.
    pub(super) warmup: Duration,
    /// How long figures count; `None`: until the load ends.
    pub(super) duration: Option<Duration>,
    /// How many requests count.
    pub(super) requests: Option<u64>,
    /// Requests a second; `None`: as fast as replies come.
    pub(super) rate: Option<u64>,
    /// Bytes of a connection's read buffer.
    pub(super) read_bytes: usize,
}

/// Where requests come from.
#[derive(Debug)]
pub(super) enum Load {
    /// Random keys.
    Mix { ratio: Ratio, keys: Keys },
    /// A write of each key.
    Sweep { keys: u64 },
    /// A recorded trace.
    Trace { path: PathBuf, writes: Writes },
}

/// A password, kept out of what is printed.
pub(super) struct Password(pub(super) String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

/// Arguments that do not go together.
#[derive(Debug, PartialEq, Eq, Error)]
pub(super) enum PlanError {
    #[error("--key-size {size} has no room for {keys} distinct keys; give at least {needed}")]
    KeySize { size: u64, keys: u64, needed: u64 },
}

impl Plan {
    pub(super) fn new(args: &BenchArgs, password: Option<String>) -> Result<Self, PlanError> {
        let needed = digits(args.keys - 1);
        if args.trace.is_none() && args.key_size < needed {
            return Err(PlanError::KeySize {
                size: args.key_size,
                keys: args.keys,
                needed,
            });
        }
        let wants_populate = args.populate || (!args.no_populate && args.ratio.gets > 0);
        let populate = (wants_populate && args.trace.is_none()).then(|| Arc::new(populate(args)));
        let groups = if args.compare.is_empty() {
            let all = args.target.iter().flat_map(|group| group.0.clone());
            vec![TargetGroup(all.collect())]
        } else {
            args.compare.clone()
        };
        // A second replay finds what the first has written: it would measure something else.
        let rounds_default = if args.trace.is_some() { 1 } else { ROUNDS };
        let rounds_default = if args.compare.is_empty() {
            1
        } else {
            rounds_default
        };
        Ok(Self {
            groups,
            rounds: args.rounds.unwrap_or(rounds_default),
            connections: args.connections,
            threads: args.threads.min(args.connections),
            seed: args.seed,
            password: password.map(|text| Arc::new(Password(text))),
            populate,
            populate_each_round: args.ttl.is_some(),
            measure: Arc::new(measure(args)),
        })
    }
}

fn measure(args: &BenchArgs) -> Job {
    let is_open_ended = args.trace.is_none() && args.requests.is_none();
    let duration = args.duration.or_else(|| is_open_ended.then_some(DURATION));
    let warmup_default = if is_open_ended {
        WARMUP
    } else {
        Duration::ZERO
    };
    let load = match &args.trace {
        Some(path) => Load::Trace {
            path: path.clone(),
            writes: Writes {
                value_size: args.value_size,
                ttl: args.ttl,
            },
        },
        None => Load::Mix {
            ratio: args.ratio,
            keys: Keys::new(args.keys, args.distribution),
        },
    };
    Job {
        load,
        commands: Commands::new(shape(args, args.wait)),
        pipeline: size(args.pipeline),
        wait: args.wait.and_then(|replicas| i64::try_from(replicas).ok()),
        warmup: args.warmup.unwrap_or(warmup_default),
        duration,
        requests: args.requests,
        rate: args.rate,
        read_bytes: read_bytes(args, args.pipeline),
    }
}

fn populate(args: &BenchArgs) -> Job {
    let pipeline = args.pipeline.max(POPULATE_PIPELINE);
    Job {
        load: Load::Sweep { keys: args.keys },
        // No `WAIT`: it would make this slow, and nobody measures it.
        commands: Commands::new(shape(args, None)),
        pipeline: size(pipeline),
        wait: None,
        warmup: Duration::ZERO,
        duration: None,
        requests: None,
        rate: None,
        read_bytes: READ_BYTES_MIN,
    }
}

fn shape(args: &BenchArgs, wait: Option<u64>) -> Shape {
    Shape {
        write: args.write,
        key_size: size(args.key_size),
        value_size: size(args.value_size.unwrap_or(VALUE_SIZE)),
        ttl: args.ttl,
        wait,
        seed: args.seed,
    }
}

/// Room for a whole batch of replies where that is not much, so that one read takes it.
fn read_bytes(args: &BenchArgs, pipeline: u64) -> usize {
    let reply = args.value_size.unwrap_or(VALUE_SIZE) + REPLY_HEAD_BYTES;
    size(reply.saturating_mul(pipeline)).clamp(READ_BYTES_MIN, READ_BYTES_MAX)
}

/// A bounded number from the command line: each limit is below 2^32.
fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

const DURATION: Duration = Duration::from_secs(10);

/// Long enough for caches, branch predictors and TCP windows to settle.
const WARMUP: Duration = Duration::from_secs(1);

/// The least of which a median means something.
const ROUNDS: u32 = 3;

const POPULATE_PIPELINE: u64 = 64;

/// `$`, a length, two line ends.
const REPLY_HEAD_BYTES: u64 = 16;

/// No error text comes near.
const READ_BYTES_MIN: usize = 16 * 1024;

const READ_BYTES_MAX: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn plan(arguments: &str) -> Plan {
        let words = arguments.split_whitespace();
        let cli = Cli::try_parse_from(std::iter::once("bench").chain(words)).unwrap();
        Plan::new(&cli.bench, None).unwrap()
    }

    #[test]
    fn reads_are_populated_for_unless_told_otherwise() {
        assert!(plan("").populate.is_some());
        assert!(plan("--ratio 0:1").populate.is_none());
        assert!(plan("--ratio 0:1 --populate").populate.is_some());
        assert!(plan("--no-populate").populate.is_none());
        assert!(plan("--trace x").populate.is_none());
    }

    #[test]
    fn a_run_ends_by_time_unless_by_count_or_trace() {
        let timed = plan("").measure;
        assert_eq!((timed.duration, timed.warmup), (Some(DURATION), WARMUP));
        for counted in ["--requests 10", "--trace x"] {
            let counted = plan(counted).measure;
            assert_eq!((counted.duration, counted.warmup), (None, Duration::ZERO));
        }
        assert_eq!(
            plan("--requests 1 --duration 5").measure.duration,
            Some(Duration::from_secs(5))
        );
    }

    #[test]
    fn targets_are_one_group_and_compared_ones_several() {
        let spread = plan("--target a:1 --target b:1,c:1");
        assert_eq!(spread.groups.len(), 1);
        assert_eq!(spread.groups[0].0.len(), 3);
        assert_eq!(spread.rounds, 1);
        let compared = plan("--compare a:1 b:1,c:1");
        assert_eq!(compared.groups.len(), 2);
        assert_eq!(compared.rounds, 3);
        assert_eq!(plan("--compare a:1 b:1 --trace x").rounds, 1);
        assert_eq!(plan("--compare a:1 b:1 --rounds 5").rounds, 5);
    }

    #[test]
    fn keys_have_to_fit() {
        let arguments = ["bench", "--key-size", "4", "--keys", "10001"];
        let cli = Cli::try_parse_from(arguments).unwrap();
        let error = Plan::new(&cli.bench, None).unwrap_err();
        assert!(error.to_string().contains("at least 5"), "{error}");
        plan("--key-size 4 --keys 10000");
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for arguments in [
            "--trace x --rate 5",
            "--trace x --ratio 1:1",
            "--compare a:1 --target b:1",
            "--populate --no-populate",
            "--rounds 2",
            "--connections 0",
            "--pipeline 0",
        ] {
            let words = arguments.split_whitespace();
            let parsed = Cli::try_parse_from(std::iter::once("bench").chain(words));
            assert!(parsed.is_err(), "{arguments}");
        }
    }
}
