//! Passwords: checked against a hash that costs, once each; wrong ones are answered late.
//!
//! Those who guess must not hold up those who know. Of one address one password is checked at a time;
//! after a wrong one the next ones are refused unchecked for a while. Addresses that were wrong of late
//! and all others are checked apart, so that a first right password waits for no wrong one.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use hashlink::LruCache;
use ring::hmac;
use ring::rand::SystemRandom;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::env::Env;
use crate::front::places::Source;

/// What clients must prove that they know.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Kept);

#[derive(Clone, PartialEq, Eq)]
enum Kept {
    /// Argon2id, as a PHC string.
    Hash(String),
    /// As it is, from a file of before there were hashes.
    Plain(String),
}

/// Why a text is no password to keep, or none could be hashed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PasswordError {
    /// Nothing.
    #[error("it holds no password: `quorate passwd` prints what to write there")]
    Empty,
    /// It begins like a hash.
    #[error("it holds a hash that cannot be read: `quorate passwd` prints a good one")]
    BadHash,
    /// A hash of another kind.
    #[error("it holds a hash of kind `{kind}`, only argon2id is known: use `quorate passwd`")]
    OtherKind {
        /// The kind as it names itself.
        kind: String,
    },
    /// A hash that would take a node's memory or time.
    #[error(
        "it holds a hash that needs {memory_kib} KiB and {rounds} rounds, at most {MEMORY_KIB_MAX} \
         and {ROUNDS_MAX} are taken: use `quorate passwd`"
    )]
    TooCostly {
        /// Memory, in KiB.
        memory_kib: u32,
        /// Passes over it.
        rounds: u32,
    },
    /// It could not be made.
    #[error("cannot hash the password: {0}")]
    Hashing(String),
}

impl Password {
    /// Reads what a password file holds: the first line.
    pub fn parse(text: &str) -> Result<Self, PasswordError> {
        let line = text.lines().next().unwrap_or_default();
        if line.is_empty() {
            return Err(PasswordError::Empty);
        }
        if !line.starts_with('$') {
            return Ok(Self(Kept::Plain(line.to_owned())));
        }
        let hash = PasswordHash::new(line).map_err(|_syntax| PasswordError::BadHash)?;
        if hash.algorithm.as_str() != Algorithm::Argon2id.as_str() {
            let kind = hash.algorithm.to_string();
            return Err(PasswordError::OtherKind { kind });
        }
        let params = Params::try_from(&hash).map_err(|_parameters| PasswordError::BadHash)?;
        if hash.salt.is_none() || hash.hash.is_none() {
            return Err(PasswordError::BadHash);
        }
        let (memory_kib, rounds) = (params.m_cost(), params.t_cost());
        if memory_kib > MEMORY_KIB_MAX || rounds > ROUNDS_MAX {
            return Err(PasswordError::TooCostly { memory_kib, rounds });
        }
        Ok(Self(Kept::Hash(line.to_owned())))
    }

    /// The hash of a password, to be kept in a file: Argon2id with the parameters that OWASP
    /// recommends (19 MiB, 2 passes, 1 lane) and a fresh salt.
    pub fn hash(password: &str) -> Result<String, PasswordError> {
        if password.is_empty() {
            return Err(PasswordError::Empty);
        }
        let hashed = hasher().hash_password(password.as_bytes());
        match hashed {
            Ok(hash) => Ok(hash.to_string()),
            Err(error) => Err(PasswordError::Hashing(error.to_string())),
        }
    }

    /// Whether it is kept as it is, readable by whoever reads the file.
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        matches!(self.0, Kept::Plain(_))
    }

    /// Whether this is it. Takes tens of milliseconds for a hash.
    fn verify(&self, given: &[u8]) -> bool {
        match &self.0 {
            Kept::Plain(expected) => same(given, expected.as_bytes()),
            Kept::Hash(hash) => PasswordHash::new(hash)
                .is_ok_and(|hash| hasher().verify_password(given, &hash).is_ok()),
        }
    }
}

/// Never shows it.
impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

fn hasher() -> Argon2<'static> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::DEFAULT)
}

/// Who has tried, and what was right.
pub(super) struct Logins {
    /// Of this process: what was right is kept as no more than a keyed hash.
    key: hmac::Key,
    right: Mutex<Option<(Password, hmac::Tag)>>,
    /// One at a time each: those who guess cannot have all processors.
    checking: Lanes,
    sources: Mutex<LruCache<Source, Tries>>,
}

/// Where passwords wait for their check.
struct Lanes {
    /// Of those who were wrong of late.
    failing: Arc<Semaphore>,
    /// Of all others.
    others: Arc<Semaphore>,
}

/// What one source has tried.
#[derive(Debug, Clone, Default)]
struct Tries {
    /// Held by the one whose password is being checked.
    turn: Arc<tokio::sync::Mutex<()>>,
    failed: Option<Failed>,
}

/// How often somebody was wrong of late.
#[derive(Debug, Clone, Copy)]
struct Failed {
    times: u32,
    last: Instant,
    /// Until then nothing of it is checked.
    refused_until: Instant,
}

/// A password that somebody gave.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub(super) expected: &'a Password,
    pub(super) given: &'a [u8],
    pub(super) from: Option<IpAddr>,
}

/// What came of a password that a client gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Login {
    Right,
    Wrong,
    /// It was not looked at: another one of the same address was wrong just now.
    Refused,
    /// No password is set: the default user logs in with any, as in Redis.
    NotAsked {
        is_default: bool,
    },
}

impl Logins {
    /// `None`: the operating system has no randomness to give.
    pub(super) fn new() -> Option<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok()?;
        let lane = || Arc::new(Semaphore::new(1));
        Some(Self {
            key,
            right: Mutex::default(),
            checking: Lanes {
                failing: lane(),
                others: lane(),
            },
            sources: Mutex::new(LruCache::new(SOURCES_MAX)),
        })
    }

    /// Whether a password is right. The answer to a wrong one comes the later, the more of them
    /// came from the same source, and meanwhile others of that source are refused at once.
    pub(super) async fn check(&self, attempt: Attempt<'_>, env: &Env) -> Login {
        // Connections come and go all day with the same password: it is hashed in full once.
        if self.was_right(attempt) {
            return Login::Right;
        }
        let source = Source::of(attempt.from);
        if self.is_refused(source, env) {
            return Login::Refused;
        }
        // Many that come at once wait for the first of them, and then know as well.
        let turn = self.turn(source).lock_owned().await;
        if self.was_right(attempt) {
            return Login::Right;
        }
        if self.is_refused(source, env) {
            return Login::Refused;
        }
        if self.check_slowly(attempt, source, env).await {
            let tag = hmac::sign(&self.key, attempt.given);
            *lock(&self.right) = Some((attempt.expected.clone(), tag));
            return Login::Right;
        }
        let wait = self.note_failure(source, env.clock.monotonic());
        drop(turn);
        tokio::time::sleep(wait).await;
        Login::Wrong
    }

    async fn check_slowly(&self, attempt: Attempt<'_>, source: Source, env: &Env) -> bool {
        let Attempt {
            expected, given, ..
        } = attempt;
        if given.len() > PASSWORD_BYTES_MAX {
            return false;
        }
        let lane = match self.has_failed(source, env.clock.monotonic()) {
            true => &self.checking.failing,
            false => &self.checking.others,
        };
        // It is never closed.
        let Ok(place) = Arc::clone(lane).acquire_owned().await else {
            return false;
        };
        let (expected, given) = (expected.clone(), given.to_vec());
        let checked = env.tasks.offload(move || {
            let is_right = expected.verify(&given);
            // Only now: whoever gave it may have gone, and its check goes on.
            drop(place);
            is_right
        });
        checked.await.unwrap_or(false)
    }

    fn was_right(&self, attempt: Attempt<'_>) -> bool {
        let right = lock(&self.right);
        right.as_ref().is_some_and(|(password, tag)| {
            password == attempt.expected
                && hmac::verify(&self.key, attempt.given, tag.as_ref()).is_ok()
        })
    }

    fn turn(&self, source: Source) -> Arc<tokio::sync::Mutex<()>> {
        let mut sources = lock(&self.sources);
        if let Some(tries) = sources.get(&source) {
            return Arc::clone(&tries.turn);
        }
        let tries = Tries::default();
        let turn = Arc::clone(&tries.turn);
        sources.insert(source, tries);
        turn
    }

    fn is_refused(&self, source: Source, env: &Env) -> bool {
        let mut sources = lock(&self.sources);
        let failed = sources.get(&source).and_then(|tries| tries.failed);
        failed.is_some_and(|failed| env.clock.monotonic() < failed.refused_until)
    }

    fn has_failed(&self, source: Source, now: Instant) -> bool {
        let mut sources = lock(&self.sources);
        let failed = sources.get(&source).and_then(|tries| tries.failed);
        failed.is_some_and(|failed| failed.is_remembered(now))
    }

    /// How long this one has to wait.
    fn note_failure(&self, source: Source, now: Instant) -> Duration {
        let mut sources = lock(&self.sources);
        let mut tries = sources.get(&source).cloned().unwrap_or_default();
        let before = tries.failed.filter(|failed| failed.is_remembered(now));
        let times = match source {
            // Its users are few and known, and none may keep out the others.
            Source::Local => 0,
            Source::Address(_) => before.map_or(0, |failed| failed.times),
        };
        let wait = DELAY_MIN
            .saturating_mul(1 << times.min(DOUBLINGS_MAX))
            .min(DELAY_MAX);
        tries.failed = Some(Failed {
            times: times.saturating_add(1),
            last: now,
            refused_until: now + wait,
        });
        sources.insert(source, tries);
        wait
    }
}

impl Failed {
    fn is_remembered(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) < FORGIVEN_AFTER
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // std Mutex: never held across an await.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Compares without telling by its time how much was right.
fn same(given: &[u8], expected: &[u8]) -> bool {
    let differences = given
        .iter()
        .zip(expected)
        .fold(0, |sum, (a, b)| sum | (a ^ b));
    given.len() == expected.len() && differences == 0
}

/// Longer than any password, shorter than what would cost time to hash.
const PASSWORD_BYTES_MAX: usize = 4 * 1024;
const MEMORY_KIB_MAX: u32 = 1024 * 1024;
const ROUNDS_MAX: u32 = 64;
/// Two at once, each as [`Password::hash`] makes them.
pub const HASHES_BYTES_MAX: u64 = 2 * 1024 * Params::DEFAULT_M_COST as u64;
const SOURCES_MAX: usize = 4_096;
const DELAY_MIN: Duration = Duration::from_millis(250);
const DELAY_MAX: Duration = Duration::from_secs(8);
/// 0.25 s doubled so often is 8 s.
const DOUBLINGS_MAX: u32 = 5;
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::env::{MemoryDisk, SeededRng, SystemClock, Tasks};

    fn env() -> Env {
        Env {
            clock: Arc::new(SystemClock),
            rng: SeededRng::from_seed(1),
            tasks: Tasks::new(),
            disk: Arc::new(MemoryDisk::default()),
        }
    }

    fn attempt<'a>(expected: &'a Password, given: &'a [u8], from: IpAddr) -> Attempt<'a> {
        Attempt {
            expected,
            given,
            from: Some(from),
        }
    }

    #[test]
    fn a_file_holds_a_hash_or_a_password_of_old() {
        let hash = Password::hash("swordfish").unwrap();
        assert!(
            hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{hash}"
        );
        let hashed = Password::parse(&format!("{hash}\n")).unwrap();
        assert!(!hashed.is_plain());
        assert!(hashed.verify(b"swordfish") && !hashed.verify(b"sailfish"));
        let plain = Password::parse("swordfish\r\n").unwrap();
        assert!(plain.is_plain());
        assert!(plain.verify(b"swordfish") && !plain.verify(b"swordfis"));
        assert_eq!(Password::parse("\n"), Err(PasswordError::Empty));
        assert_eq!(Password::parse("$argon2id$x"), Err(PasswordError::BadHash));
        let costly = hash.replace("m=19456", "m=4194304");
        assert!(matches!(
            Password::parse(&costly),
            Err(PasswordError::TooCostly { .. })
        ));
        let other = hash.replace("$argon2id$", "$argon2d$");
        assert!(matches!(
            Password::parse(&other),
            Err(PasswordError::OtherKind { .. })
        ));
        assert_eq!(format!("{plain:?}"), "Password");
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_passwords_wait_longer_each_time_and_right_ones_do_not() {
        let (logins, env) = (Logins::new().unwrap(), env());
        let password = Password::parse("swordfish").unwrap();
        let address: IpAddr = [10, 0, 0, 1].into();
        let mut waits = Vec::new();
        for _ in 0..8 {
            let begun = env.clock.monotonic();
            let wrong = attempt(&password, b"x", address);
            assert_eq!(logins.check(wrong, &env).await, Login::Wrong);
            waits.push(begun.elapsed());
        }
        assert!(
            waits[0] >= DELAY_MIN && waits[0] < 2 * DELAY_MIN,
            "{waits:?}"
        );
        assert!(
            waits[1] >= 2 * DELAY_MIN && waits[7] >= DELAY_MAX,
            "{waits:?}"
        );
        assert!(waits[7] < DELAY_MAX + DELAY_MIN, "{waits:?}");
        let begun = env.clock.monotonic();
        let right = attempt(&password, b"swordfish", address);
        assert_eq!(logins.check(right, &env).await, Login::Right);
        assert!(logins.was_right(right));
        assert!(begun.elapsed() < DELAY_MIN);
        // Another password makes the old one wrong at once.
        let changed = Password::parse("other").unwrap();
        assert!(!logins.was_right(attempt(&changed, b"swordfish", address)));
    }

    /// The first password that is right comes while others guess from another address, and from its
    /// own (finding 25).
    #[tokio::test(start_paused = true)]
    async fn wrong_passwords_do_not_hold_up_right_ones() {
        let (logins, env) = (Arc::new(Logins::new().unwrap()), env());
        let hash = Password::hash("swordfish").unwrap();
        let password = Password::parse(&hash).unwrap();
        let (guesser, client): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let (sent, mut came) = tokio::sync::mpsc::unbounded_channel();
        let spawn = |from: IpAddr, given: &'static [u8]| {
            let (logins, env, password) = (Arc::clone(&logins), env.clone(), password.clone());
            let sent = sent.clone();
            let tasks = env.tasks.clone();
            tasks.spawn(async move {
                let checked = logins.check(attempt(&password, given, from), &env).await;
                let _open = sent.send((from, checked, env.clock.monotonic()));
            });
        };
        let begun = env.clock.monotonic();
        for _ in 0..150 {
            spawn(guesser, b"sailfish");
        }
        for _ in 0..20 {
            spawn(client, b"swordfish");
        }
        let (mut right, mut wrong, mut refused) = (0, 0, 0);
        for _ in 0..170 {
            let (from, checked, at) = came.recv().await.unwrap();
            match checked {
                Login::Right => right += 1,
                Login::Wrong => wrong += 1,
                // At once, when the first of them was wrong.
                Login::Refused => refused += 1,
                Login::NotAsked { .. } => unreachable!("there is a password"),
            }
            assert_eq!(checked == Login::Right, from == client);
            let in_time = checked == Login::Wrong || at - begun < DELAY_MIN;
            assert!(in_time, "{checked:?} after {:?}", at - begun);
        }
        assert_eq!((right, wrong, refused), (20, 1, 149));
        // Later its next guess is checked again, and the lane of the others is free meanwhile.
        let now = env.clock.monotonic();
        assert!(logins.has_failed(Source::of(Some(guesser)), now));
        assert!(!logins.has_failed(Source::of(Some(client)), now));
    }
}
