//! The files of certificates: whether they have changed, and what in them ends soon.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use tracing::{error, warn};

use super::parts;
use crate::config::Settings;
use crate::front::certificates::{CertificateWatch, ending};
use crate::node::status::NodeStatus;

/// Files to watch, and what was said of them.
#[derive(Debug)]
pub(super) struct TrustFiles {
    paths: Vec<PathBuf>,
    seen: Vec<Option<Trace>>,
    /// They are being changed: not all may be there yet.
    changing: bool,
    /// What was said last of each certificate.
    told: BTreeMap<String, String>,
}

/// What tells a file from the one before it: links are followed, as into a Kubernetes volume.
type Trace = (u64, u64, u64, i64, i64);

impl TrustFiles {
    /// The files that the settings name, as they are now.
    pub(super) fn new(settings: &Settings) -> anyhow::Result<Self> {
        let credentials = parts::credential_files(settings)?;
        let mut paths: Vec<PathBuf> = credentials.all().map(PathBuf::from).collect();
        if let Some(files) = settings.resp_tls() {
            paths.extend([files.cert.to_owned(), files.key.to_owned()]);
        }
        paths.extend(settings.resp_password_file.clone());
        Ok(Self {
            seen: paths.iter().map(trace).collect(),
            paths,
            changing: false,
            told: BTreeMap::new(),
        })
    }

    /// Watches other files, or the same as they are now, from now on.
    pub(super) fn follow(&mut self, others: Self) {
        let told = std::mem::take(&mut self.told);
        *self = Self { told, ..others };
    }

    /// Whether the files have changed since they were last looked at, and are not being changed
    /// any more.
    pub(super) fn have_changed(&mut self) -> bool {
        let now: Vec<_> = self.paths.iter().map(trace).collect();
        let is_stable = now == self.seen;
        self.seen = now;
        let have_changed = is_stable && self.changing;
        self.changing = !is_stable;
        have_changed
    }

    /// Says what ends soon or has ended, once a day each.
    pub(super) fn warn_of_ends(&mut self, status: &NodeStatus, watch: &CertificateWatch) {
        let now = status.env.clock.wall();
        let mut all = BTreeMap::new();
        for (which, until) in watch.ends(&status.endpoint.credentials()) {
            let whose = match which {
                "ca" => "an authority in ca_file".to_owned(),
                "resp" => "the certificate for Redis clients (resp_tls_cert)".to_owned(),
                _ => format!("the certificate of this node, {},", status.self_id),
            };
            all.insert(whose, until);
        }
        for (id, load) in status.membership.loads() {
            if let Some(until) = load.certificate_until {
                all.insert(format!("the certificate of {id}"), until);
            }
        }
        for (whose, until) in &all {
            let Some(text) = ending(whose, *until, now) else {
                self.told.remove(whose);
                continue;
            };
            // The text counts the days, so it is another one each day.
            if self.told.get(whose) != Some(&text) {
                if *until < now {
                    error!("{text}: new connections with it are refused; renew it");
                } else {
                    warn!("{text}; renew it");
                }
                self.told.insert(whose.clone(), text);
            }
        }
        self.told.retain(|whose, _| all.contains_key(whose));
    }
}

fn trace(path: &PathBuf) -> Option<Trace> {
    let found = fs::metadata(path).ok()?;
    Some((
        found.dev(),
        found.ino(),
        found.len(),
        found.mtime(),
        found.mtime_nsec(),
    ))
}
