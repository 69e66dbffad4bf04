//! Passwords: checked against a hash that costs, once each; wrong ones are answered late.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
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
    /// One at a time: those who guess cannot have all processors.
    checking: Semaphore,
    failed: Mutex<LruCache<IpAddr, Failed>>,
}

/// How often somebody was wrong of late.
#[derive(Debug, Clone, Copy)]
struct Failed {
    times: u32,
    last: Instant,
}

impl Logins {
    /// `None`: the operating system has no randomness to give.
    pub(super) fn new() -> Option<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok()?;
        Some(Self {
            key,
            right: Mutex::default(),
            checking: Semaphore::new(1),
            failed: Mutex::new(LruCache::new(ADDRESSES_MAX)),
        })
    }

    /// Whether a password is right. The answer to a wrong one comes the later, the more of them
    /// came from the same address.
    pub(super) async fn check(
        &self,
        expected: &Password,
        given: &[u8],
        from: Option<IpAddr>,
        env: &Env,
    ) -> bool {
        // Connections come and go all day with the same password: it is hashed in full once.
        if self.was_right(expected, given) {
            return true;
        }
        let is_right = self.check_slowly(expected, given, env).await;
        if is_right {
            let tag = hmac::sign(&self.key, given);
            *lock(&self.right) = Some((expected.clone(), tag));
        } else {
            let wait = self.note_failure(from, env.clock.monotonic());
            tokio::time::sleep(wait).await;
        }
        is_right
    }

    async fn check_slowly(&self, expected: &Password, given: &[u8], env: &Env) -> bool {
        if given.len() > PASSWORD_BYTES_MAX {
            return false;
        }
        // It is never closed.
        let Ok(_turn) = self.checking.acquire().await else {
            return false;
        };
        let (expected, given) = (expected.clone(), given.to_vec());
        let checked = env.tasks.compute(move || expected.verify(&given)).await;
        checked.unwrap_or(false)
    }

    fn was_right(&self, expected: &Password, given: &[u8]) -> bool {
        let right = lock(&self.right);
        right.as_ref().is_some_and(|(password, tag)| {
            password == expected && hmac::verify(&self.key, given, tag.as_ref()).is_ok()
        })
    }

    /// How long this one has to wait.
    fn note_failure(&self, from: Option<IpAddr>, now: Instant) -> Duration {
        let Some(from) = from else { return DELAY_MIN };
        let mut all = lock(&self.failed);
        let before = all.get(&from).copied();
        let before =
            before.filter(|failed| now.saturating_duration_since(failed.last) < FORGIVEN_AFTER);
        let times = before.map_or(0, |failed| failed.times);
        let failed = Failed {
            times: times.saturating_add(1),
            last: now,
        };
        all.insert(from, failed);
        DELAY_MIN
            .saturating_mul(1 << times.min(DOUBLINGS_MAX))
            .min(DELAY_MAX)
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
const ADDRESSES_MAX: usize = 1_024;
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
            assert!(!logins.check(&password, b"x", Some(address), &env).await);
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
        assert!(
            logins
                .check(&password, b"swordfish", Some(address), &env)
                .await
        );
        assert!(logins.was_right(&password, b"swordfish"));
        assert!(begun.elapsed() < DELAY_MIN);
        // Another password makes the old one wrong at once.
        let changed = Password::parse("other").unwrap();
        assert!(!logins.was_right(&changed, b"swordfish"));
    }
}
