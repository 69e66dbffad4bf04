//! What the command line says, each value parsed and bounded on its own.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use super::commands::WriteCommand;
use crate::model::KEY_BYTES_MAX;

/// Load any RESP server and measure throughput, latency and hit ratio
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct BenchArgs {
    /// Server to load; a comma list or several flags spread the connections over several
    #[arg(
        long,
        value_name = "HOST:PORT|PATH",
        default_value = "127.0.0.1:7379",
        conflicts_with = "compare"
    )]
    pub(super) target: Vec<TargetGroup>,

    /// Servers to load in turn and compare with the first (A B A B ...)
    #[arg(long, value_name = "ADDR", num_args = 1..)]
    pub(super) compare: Vec<TargetGroup>,

    /// How often each server of --compare has its turn [default: 3, with --trace 1]
    #[arg(long, value_name = "N", requires = "compare", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) rounds: Option<u32>,

    /// Connections open at a time
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = bounded(1, 100_000))]
    pub(super) connections: u64,

    /// Threads that drive them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = bounded(1, 256))]
    pub(super) threads: u64,

    /// Requests a connection sends before it waits for the replies
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = bounded(1, 10_000))]
    pub(super) pipeline: u64,

    /// Reads to writes
    #[arg(long, value_name = "GET:SET", default_value = "1:1")]
    pub(super) ratio: Ratio,

    /// What a write is
    #[arg(
        long,
        value_name = "COMMAND",
        default_value = "set",
        conflicts_with = "trace"
    )]
    pub(super) write: WriteCommand,

    /// Distinct keys
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = bounded(1, KEYS_MAX))]
    pub(super) keys: u64,

    /// How often each key is asked for: uniform, zipf (alpha 0.99) or zipf:ALPHA
    #[arg(long, value_name = "NAME", default_value = "uniform")]
    pub(super) distribution: Distribution,

    /// Bytes a key
    #[arg(long, value_name = "BYTES", default_value_t = 16, value_parser = bounded(1, KEY_BYTES_MAX as u64))]
    pub(super) key_size: u64,

    /// Bytes a value [default: 100, or what a CSV trace says]
    #[arg(long, value_name = "BYTES", value_parser = bounded(0, VALUE_BYTES_MAX))]
    pub(super) value_size: Option<u64>,

    /// Time to live of each write [default: none, or what a CSV trace says]
    #[arg(long, value_name = "SECONDS", value_parser = bounded(1, TTL_SECONDS_MAX))]
    pub(super) ttl: Option<u64>,

    /// How long to measure, like 500ms, 10s, 2m [default: 10s unless --requests or --trace]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(super) duration: Option<Duration>,

    /// Stop after this many requests
    #[arg(long, value_name = "N", value_parser = bounded(1, u64::MAX))]
    pub(super) requests: Option<u64>,

    /// Load before measuring starts [default: 1s with --duration, else 0s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(super) warmup: Option<Duration>,

    /// Requests a second to send, ready or not; latency then counts from when each was due
    #[arg(long, value_name = "N", value_parser = bounded(1, 1_000_000_000))]
    pub(super) rate: Option<u64>,

    /// Replay a file: one key a line, or twitter cache-trace CSV; plain or zstd
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["ratio", "keys", "distribution", "key_size", "warmup", "rate", "populate", "no_populate"]
    )]
    pub(super) trace: Option<PathBuf>,

    /// Follow each write with `WAIT N 1000`; fewer replicas in time count as an error
    #[arg(long, value_name = "N", value_parser = bounded(1, 1000))]
    pub(super) wait: Option<u64>,

    /// Write every key before measuring (done by itself when the ratio has reads)
    #[arg(long, conflicts_with = "no_populate")]
    pub(super) populate: bool,

    /// Do not write the keys first: reads of keys never written are misses
    #[arg(long)]
    pub(super) no_populate: bool,

    /// The same seed asks for the same keys in the same order
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) seed: u64,

    /// One JSON document instead of tables
    #[arg(long)]
    pub(super) json: bool,
}

/// One server, or several that one run spreads its connections over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TargetGroup(pub(super) Vec<Target>);

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// `HOST:PORT`.
    Tcp(String),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// Reads to writes; at least one of them is not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ratio {
    pub(super) gets: u32,
    pub(super) sets: u32,
}

/// How requests spread over the keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Distribution {
    /// Every key as often as any other.
    Uniform,
    /// The k-th key in proportion to 1 / k^alpha.
    Zipf {
        /// Above 0; the larger, the more goes to few keys.
        alpha: f64,
    },
}

impl FromStr for TargetGroup {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return Ok(Self::Unix(PathBuf::from(text)));
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Tcp(text.to_owned()))
            }
            _ => Err(format!(
                "`{text}` is neither HOST:PORT nor the path of a Unix socket (a path has a `/`)"
            )),
        }
    }
}

impl FromStr for Ratio {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once(':')
            .and_then(|(gets, sets)| Some((gets.parse().ok()?, sets.parse().ok()?)));
        match parsed {
            Some((0, 0)) => Err("0:0 asks for nothing, write for example 1:1".to_owned()),
            Some((gets, sets)) if gets <= RATIO_MAX && sets <= RATIO_MAX => Ok(Self { gets, sets }),
            _ => Err(format!(
                "`{text}` is not GET:SET, two numbers up to {RATIO_MAX} like 9:1"
            )),
        }
    }
}

impl FromStr for Distribution {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, alpha) = match text.split_once(':') {
            Some((name, alpha)) => (name, Some(alpha)),
            None => (text, None),
        };
        match (name, alpha) {
            ("uniform", None) => Ok(Self::Uniform),
            ("zipf", alpha) => alpha
                .map_or(Ok(ZIPF_ALPHA), str::parse)
                .ok()
                .filter(|alpha| *alpha > 0.0 && *alpha <= ZIPF_ALPHA_MAX)
                .map(|alpha| Self::Zipf { alpha })
                .ok_or_else(|| {
                    format!("the alpha of `{text}` is not above 0 and at most {ZIPF_ALPHA_MAX}")
                }),
            _ => Err(format!("`{text}` is not uniform, zipf or zipf:ALPHA")),
        }
    }
}

impl fmt::Display for TargetGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, target) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{target}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.gets, self.sets)
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf { alpha } => write!(f, "zipf:{alpha}"),
        }
    }
}

/// A number of seconds, or one with a unit: `500ms`, `10s`, `2m`, `1h`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit_ms = match text.strip_prefix(digits) {
        Some("ms") => Some(1),
        Some("" | "s") => Some(1000),
        Some("m") => Some(60 * 1000),
        Some("h") => Some(60 * 60 * 1000),
        _ => None,
    };
    let millis = digits
        .parse::<u64>()
        .ok()
        .zip(unit_ms)
        .and_then(|(number, unit_ms)| number.checked_mul(unit_ms))
        .filter(|millis| *millis <= DURATION_MS_MAX);
    millis.map(Duration::from_millis).ok_or_else(|| {
        format!("`{text}` is not a time of at most 30 days, write for example 500ms, 10s or 2m")
    })
}

fn bounded(min: u64, max: u64) -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(min..=max)
}

/// Bytes of a value unless told otherwise.
pub(super) const VALUE_SIZE: u64 = 100;

/// The largest value Redis takes.
pub(super) const VALUE_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// A hundred years: far below where a server's millisecond clock overflows.
pub(super) const TTL_SECONDS_MAX: u64 = 100 * 365 * 24 * 60 * 60;

/// More than fit any memory, and their numbers have 12 digits at most.
const KEYS_MAX: u64 = 1_000_000_000_000;

/// Thirty days: nothing added to a clock can overflow.
const DURATION_MS_MAX: u64 = 30 * 24 * 60 * 60 * 1000;

/// A sum of both sides fits 32 bits.
const RATIO_MAX: u32 = 1_000_000;

/// As in YCSB, which made it the customary one.
const ZIPF_ALPHA: f64 = 0.99;

/// Beyond this a single key gets 99.9 % of the requests.
const ZIPF_ALPHA_MAX: f64 = 10.0;

const EXAMPLES: &str = "\
Keys are written before measuring when the ratio has reads, so that reads hit (--no-populate: not).
--trace replays GET, and on a miss SET, to the end of the file; a CSV's own writes and deletes are
sent as such. A key always goes over the same connection, so the hit ratio is exact. Start from an
empty server. A password is taken from the environment variable QUORATE_BENCH_PASSWORD.

Examples:
  quorate bench                                     10 s against 127.0.0.1:7379
  quorate bench --pipeline 16 --ratio 9:1 --distribution zipf
  quorate bench --target 127.0.0.1:7379,127.0.0.1:7380 --rate 20000 --duration 1m
  quorate bench --trace web07.keys.zst --value-size 256 --connections 1
  quorate bench --compare 127.0.0.1:7379 127.0.0.1:6379 --ratio 0:1 --wait 1 --json";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("7"), Ok(Duration::from_secs(7)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for bad in [
            "",
            "s",
            "10 s",
            "1d",
            "-1s",
            "1.5s",
            "99999999h",
            "18446744073709551615m",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn targets_are_addresses_or_paths() {
        let group: TargetGroup = "localhost:1,[::1]:2,/run/q.sock".parse().unwrap();
        assert_eq!(group.0[1], Target::Tcp("[::1]:2".to_owned()));
        assert_eq!(group.0[2], Target::Unix(PathBuf::from("/run/q.sock")));
        assert_eq!(group.to_string(), "localhost:1,[::1]:2,/run/q.sock");
        for bad in [
            "",
            "localhost",
            "localhost:",
            ":7379",
            "localhost:70000",
            "a:1,",
        ] {
            assert!(bad.parse::<TargetGroup>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ratios_and_distributions_are_checked() {
        assert_eq!("0:1".parse(), Ok(Ratio { gets: 0, sets: 1 }));
        for bad in ["0:0", "1", "1:", "-1:1", "1:1:1", "1:9999999"] {
            assert!(bad.parse::<Ratio>().is_err(), "{bad}");
        }
        assert_eq!("zipf".parse(), Ok(Distribution::Zipf { alpha: 0.99 }));
        assert_eq!("zipf:1".parse(), Ok(Distribution::Zipf { alpha: 1.0 }));
        for bad in [
            "zipf:",
            "zipf:0",
            "zipf:-1",
            "zipf:NaN",
            "zipf:11",
            "uniform:1",
            "normal",
        ] {
            assert!(bad.parse::<Distribution>().is_err(), "{bad}");
        }
    }
}
