//! PEM files: read whole and bounded; private keys closed to others from their first byte on.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

use super::identity::IdentityError;

/// Why a file of certificates or keys was not read or written.
///
/// Each text is whole: a `reason` is part of it and not told again as a source.
#[derive(Debug, Error)]
pub enum PemFileError {
    /// The operating system said no.
    #[error("cannot {action} {}: {reason}", path.display())]
    Io {
        /// What was tried: `read`, `create`, ...
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the operating system said.
        reason: io::Error,
    },
    /// Far too long for what it should hold.
    #[error("{} is longer than {PEM_BYTES_MAX} bytes: is it a PEM file?", path.display())]
    TooLong {
        /// Which file.
        path: PathBuf,
    },
    /// A private key that others may read.
    #[error(
        "private key {path} is open to others (mode {mode:04o}): run `chmod 600 {path}`; if others \
         may have read it, issue a new one",
        path = path.display()
    )]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file that would have been lost.
    #[error("{} exists already and is not overwritten", path.display())]
    Exists {
        /// Which file.
        path: PathBuf,
    },
    /// Not PEM.
    #[error("{} is not a PEM file: {reason}", path.display())]
    NotPem {
        /// Which file.
        path: PathBuf,
        /// What the parser said.
        reason: pem::Error,
    },
    /// PEM without a certificate in it.
    #[error("{} holds no certificate (`BEGIN CERTIFICATE`)", path.display())]
    NoCertificate {
        /// Which file.
        path: PathBuf,
    },
    /// PEM without a private key in it.
    #[error("{} holds no private key (`BEGIN PRIVATE KEY`)", path.display())]
    NoKey {
        /// Which file.
        path: PathBuf,
    },
    /// PEM without a revocation list in it.
    #[error("{} holds no revocation list (`BEGIN X509 CRL`)", path.display())]
    NoRevocationList {
        /// Which file.
        path: PathBuf,
    },
    /// Not a revocation list.
    #[error("{} holds a revocation list that cannot be read", path.display())]
    BrokenRevocationList {
        /// Which file.
        path: PathBuf,
    },
    /// A certificate that names nobody.
    #[error("{}: {reason}", path.display())]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: IdentityError,
    },
}

impl PemFileError {
    pub(super) fn certificate(path: &Path) -> impl Fn(IdentityError) -> Self {
        move |reason| Self::Certificate {
            path: path.to_owned(),
            reason,
        }
    }
}

/// What to do with a file that is already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Leave it and fail.
    Keep,
    /// Put the new one in its place, in one step.
    Replace,
}

/// Who may read a new file.
#[derive(Debug, Clone, Copy)]
pub(super) enum Readers {
    Owner,
    Anyone,
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, PemFileError> {
    let file = File::open(path).map_err(failed("read", path))?;
    read_bounded(file, path)
}

/// Reads the certificate chain of a file.
pub fn load_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemFileError> {
    certificates(&read(path)?, path)
}

/// Reads the private key of a file, which others must not be able to read.
pub fn load_key(path: &Path) -> Result<PrivateKeyDer<'static>, PemFileError> {
    private_key(&read_key(path)?, path)
}

/// Reads a private key; refuses one that others may touch. Our own must have no more than mode
/// 0600; one of root's may be read by its group as well, which is how systemd and Kubernetes hand
/// secrets to a service without rights of its own.
pub(super) fn read_key(path: &Path) -> Result<Vec<u8>, PemFileError> {
    let file = File::open(path).map_err(failed("read", path))?;
    // Asked of the open file, so that it cannot be exchanged between the question and the read.
    let metadata = file.metadata().map_err(failed("read", path))?;
    let mode = metadata.permissions().mode() & 0o7777;
    let is_foreign = metadata.uid() == 0 && !rustix::process::geteuid().is_root();
    let forbidden = if is_foreign { 0o037 } else { 0o077 };
    if mode & forbidden != 0 {
        return Err(PemFileError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    read_bounded(file, path)
}

/// All certificates of a PEM text, at least one. `path` is for the text of errors.
pub(super) fn certificates(
    pem: &[u8],
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, PemFileError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|reason| PemFileError::NotPem {
        path: path.to_owned(),
        reason,
    })?;
    if found.is_empty() {
        return Err(PemFileError::NoCertificate {
            path: path.to_owned(),
        });
    }
    Ok(found)
}

/// The first private key of a PEM text. `path` is for the text of errors.
pub(super) fn private_key(pem: &[u8], path: &Path) -> Result<PrivateKeyDer<'static>, PemFileError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|reason| match reason {
        pem::Error::NoItemsFound => PemFileError::NoKey {
            path: path.to_owned(),
        },
        reason => PemFileError::NotPem {
            path: path.to_owned(),
            reason,
        },
    })
}

/// Makes a directory that only its owner may enter; leaves one that is there as it is.
pub(super) fn make_dir(dir: &Path) -> Result<(), PemFileError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(dir)
        .map_err(failed("create the directory", dir))
}

/// Fails when the file is there: asked of all files before the first of them is written.
pub(super) fn check_free(path: &Path) -> Result<(), PemFileError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Err(PemFileError::Exists {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(reason) => Err(failed("look at", path)(reason)),
    }
}

/// Writes a new file, synced, with its mode from the moment it exists.
pub(super) fn write(
    path: &Path,
    content: &str,
    readers: Readers,
    existing: Existing,
) -> Result<(), PemFileError> {
    match existing {
        Existing::Keep => write_new(path, content, readers),
        Existing::Replace => {
            let mut fresh = path.as_os_str().to_owned();
            fresh.push(".new");
            let fresh = PathBuf::from(fresh);
            // What a run that was cut short may have left behind.
            match fs::remove_file(&fresh) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &fresh)(error));
                }
                _ => {}
            }
            write_new(&fresh, content, readers)?;
            fs::rename(&fresh, path).map_err(failed("replace", path))
        }
    }
}

fn write_new(path: &Path, content: &str, readers: Readers) -> Result<(), PemFileError> {
    let mode = match readers {
        Readers::Owner => 0o600,
        Readers::Anyone => 0o644,
    };
    let mut options = OpenOptions::new();
    // `create_new` is O_EXCL: no file is overwritten and no link is followed.
    let mut file = match options.write(true).create_new(true).mode(mode).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(PemFileError::Exists {
                path: path.to_owned(),
            });
        }
        Err(reason) => return Err(failed("create", path)(reason)),
    };
    file.write_all(content.as_bytes())
        .map_err(failed("write", path))?;
    file.sync_all().map_err(failed("sync", path))
}

fn read_bounded(file: File, path: &Path) -> Result<Vec<u8>, PemFileError> {
    let mut content = Vec::new();
    let mut bounded = file.take(PEM_BYTES_MAX + 1);
    let bytes = bounded
        .read_to_end(&mut content)
        .map_err(failed("read", path))?;
    if u64::try_from(bytes).is_ok_and(|bytes| bytes <= PEM_BYTES_MAX) {
        Ok(content)
    } else {
        Err(PemFileError::TooLong {
            path: path.to_owned(),
        })
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PemFileError {
    let path = path.to_owned();
    move |reason| PemFileError::Io {
        action,
        path,
        reason,
    }
}

/// A chain of ten large certificates is some 20 KiB.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_key_and_its_directory_are_closed_from_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        make_dir(&inner).unwrap();
        assert_eq!(mode(&inner), 0o700);
        for existing in [Existing::Keep, Existing::Replace] {
            let key = inner.join("x.key");
            write(&key, "secret", Readers::Owner, existing).unwrap();
            assert_eq!(mode(&key), 0o600);
            assert_eq!(read_key(&key).unwrap(), b"secret");
        }
    }

    #[test]
    fn a_file_is_kept_unless_it_shall_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pem");
        check_free(&path).unwrap();
        write(&path, "one", Readers::Anyone, Existing::Keep).unwrap();
        let refused = write(&path, "two", Readers::Anyone, Existing::Keep).unwrap_err();
        assert!(matches!(refused, PemFileError::Exists { .. }), "{refused}");
        assert!(matches!(
            check_free(&path),
            Err(PemFileError::Exists { .. })
        ));
        assert_eq!(read(&path).unwrap(), b"one");
        fs::write(dir.path().join("x.pem.new"), "left behind").unwrap();
        write(&path, "two", Readers::Anyone, Existing::Replace).unwrap();
        assert_eq!(read(&path).unwrap(), b"two");
        assert!(!dir.path().join("x.pem.new").exists());
    }

    #[test]
    fn a_key_open_to_others_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.key");
        fs::write(&path, "secret").unwrap();
        for open in [0o644, 0o640, 0o604, 0o620, 0o601] {
            fs::set_permissions(&path, fs::Permissions::from_mode(open)).unwrap();
            let text = read_key(&path).unwrap_err().to_string();
            assert!(text.contains(&format!("{open:04o}")), "{text}");
            assert!(text.contains("chmod 600"), "{text}");
            assert!(text.contains("x.key"), "{text}");
        }
        for closed in [0o600, 0o400] {
            fs::set_permissions(&path, fs::Permissions::from_mode(closed)).unwrap();
            assert_eq!(read_key(&path).unwrap(), b"secret");
        }
    }

    #[test]
    fn what_a_file_lacks_is_told_with_its_name() {
        let path = Path::new("x.pem");
        let empty = certificates(b"no pem at all", path).unwrap_err();
        assert!(
            matches!(empty, PemFileError::NoCertificate { .. }),
            "{empty}"
        );
        let empty = private_key(b"", path).unwrap_err();
        assert!(matches!(empty, PemFileError::NoKey { .. }), "{empty}");
        let broken = b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
        let broken = certificates(broken, path).unwrap_err();
        assert!(matches!(broken, PemFileError::NotPem { .. }), "{broken}");
        assert!(broken.to_string().contains("x.pem"), "{broken}");
    }

    #[test]
    fn a_file_that_never_ends_is_refused() {
        let refused = read(Path::new("/dev/zero")).unwrap_err();
        assert!(matches!(refused, PemFileError::TooLong { .. }), "{refused}");
    }
}
