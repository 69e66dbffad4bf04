//! The fuzz targets on the stable toolchain: their seeds and some thousand inputs made of them.

#![cfg(test)]

#[expect(unreachable_pub, reason = "a crate of its own in fuzz/")]
#[path = "../fuzz/bodies.rs"]
mod bodies;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use peak_alloc::PeakAlloc;
use quorate::env::SeededRng;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// One test, so that what it allocates is what the input under way allocates.
#[test]
fn fuzz_targets_withstand_seeds_and_what_comes_of_them() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let seed = number("QUORATE_FUZZ_SEED");
    let seed = seed.unwrap_or_else(|| SeededRng::from_system().unwrap().next_u64());
    let runs = number("QUORATE_FUZZ_RUNS");
    println!("QUORATE_FUZZ_SEED={seed}");
    let chance = SeededRng::from_seed(seed);
    // A thread of its own for each target: an input that never ends must not end in silence.
    let only = std::env::var("QUORATE_FUZZ_ONLY").ok();
    for &(name, body) in bodies::TARGETS {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        // Scripts that go on for ever use up all their steps.
        let runs = runs.unwrap_or(if name == "script" { 100 } else { 3_000 });
        let seeds = seeds(name);
        let chance = chance.clone();
        let (begun, next) = mpsc::sync_channel(0);
        let thread = std::thread::spawn(move || {
            let mutated = (0..runs).map(|_| mutated(&seeds, &chance));
            for input in seeds.iter().cloned().chain(mutated) {
                if begun.send(input.clone()).is_err() {
                    return;
                }
                check(name, body, &input);
            }
        });
        let mut last = Vec::new();
        loop {
            match next.recv_timeout(FREEZE) {
                Ok(input) => last = input,
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    panic!(
                        "{name}: seed {seed}, not done in {FREEZE:?}: {}",
                        shown(&last)
                    );
                }
            }
        }
        assert!(thread.join().is_ok(), "{name}: seed {seed}, see above");
    }
}

fn check(name: &str, body: fn(&[u8]), input: &[u8]) {
    ALLOCATED.reset_peak_usage();
    let before = ALLOCATED.current_usage();
    let outcome = catch_unwind(AssertUnwindSafe(|| body(input)));
    let allocated = ALLOCATED.peak_usage().saturating_sub(before);
    assert!(outcome.is_ok(), "{name}: {}", shown(input));
    let most = if name == "script" {
        SCRIPT_BYTES_MAX
    } else {
        BYTES_MAX + BYTES_MAX_A_BYTE * input.len()
    };
    assert!(
        allocated <= most,
        "{name}: {allocated} bytes allocated for {} bytes: {}",
        input.len(),
        shown(input)
    );
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus-seeds");
    let files = fs::read_dir(dir.join(target)).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no seeds for {target}");
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// A seed after a few changes.
fn mutated(seeds: &[Vec<u8>], chance: &SeededRng) -> Vec<u8> {
    let below = |limit: usize| usize::try_from(chance.next_u64() % (limit.max(1) as u64)).unwrap();
    let mut input = seeds[below(seeds.len())].clone();
    for _ in 0..=below(6) {
        let at = below(input.len() + 1);
        match below(7) {
            0 if at < input.len() => input[at] ^= 1 << below(8),
            1 if at < input.len() => input[at] = chance.next_u64().to_le_bytes()[0],
            2 => input.insert(at, chance.next_u64().to_le_bytes()[0]),
            3 => drop(input.drain(at..(at + below(8)).min(input.len()))),
            4 => {
                let token = TOKENS[below(TOKENS.len())];
                input.splice(at..at, token.iter().copied()).for_each(drop);
            }
            5 => {
                let part = input[at..(at + below(64)).min(input.len())].to_vec();
                let to = below(input.len() + 1);
                input.splice(to..to, part).for_each(drop);
            }
            _ => {
                let other = &seeds[below(seeds.len())];
                input.truncate(at);
                input.extend_from_slice(&other[below(other.len())..]);
            }
        }
        input.truncate(INPUT_BYTES_MAX);
    }
    input
}

fn shown(input: &[u8]) -> String {
    input.escape_ascii().to_string()
}

const TOKENS: &[&[u8]] = &[
    b"\r\n",
    b"*",
    b"$",
    b"-1",
    b"0",
    b"0e-2147483647",
    b"1e308",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"2147483647",
    b"nan",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\xdd\x7f\xff\xff\xff",
    b"\xdf\x7f\xff\xff\xff",
    b"\xc6\x7f\xff\xff\xff",
    b"\x91",
    b"\xc0",
    b"(",
    b"{",
    b"..",
    b" end ",
    b"string.rep('x', 1e9)",
    b"[^",
    b"\\",
];
const INPUT_BYTES_MAX: usize = 4_096;
/// Far beyond what a slow machine needs for any of them.
const FREEZE: Duration = Duration::from_secs(20);
/// A value as long as the targets allow, in all the copies that a command makes of it; and what a
/// decompressor and `MessagePack` set aside before they read.
const BYTES_MAX: usize = 4 << 20;
/// What each byte of an input may come to: an entry of a list, as it lies in memory.
const BYTES_MAX_A_BYTE: usize = 1_024;
/// What Lua may have (32 MiB), and its result as a reply.
const SCRIPT_BYTES_MAX: usize = 128 << 20;
