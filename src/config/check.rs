//! What must hold of one value, and of several together.

use std::net::SocketAddr;

use super::problem::{Fault, Place, Problem, Warning};
use super::settings::Draft;
use super::source::{Given, keys};
use crate::model::{NodeId, Quorum, QuorumError};

/// What the checks across keys found.
#[derive(Debug)]
pub(super) struct Finding {
    /// n, r and w, if they are a quorum.
    pub(super) quorum: Option<Quorum>,
    /// What is doubtful.
    pub(super) warnings: Vec<Warning>,
}

/// Checks what several keys must fulfil together. A check is left out where one of its keys was
/// refused already.
pub(super) fn across_keys(draft: &Draft, given: &Given, problems: &mut Vec<Problem>) -> Finding {
    let mut check = Checker {
        draft,
        given,
        problems,
        warnings: Vec::new(),
    };
    let quorum = check.quorum();
    check.tls_pair();
    check.protected_mode();
    check.advertised_address();
    check.distinct_listeners();
    check.memory_bound();
    check.input_bound();
    Finding {
        quorum,
        warnings: check.warnings,
    }
}

struct Checker<'a> {
    draft: &'a Draft,
    given: &'a Given,
    problems: &'a mut Vec<Problem>,
    warnings: Vec<Warning>,
}

impl Checker<'_> {
    fn quorum(&mut self) -> Option<Quorum> {
        let (n, r, w) = (self.draft.n?, self.draft.r?, self.draft.w?);
        match Quorum::new(n, r.of(n), w.of(n)) {
            Ok(quorum) => {
                self.doubtful_quorum(quorum);
                Some(quorum)
            }
            Err(error) => {
                let key = match error {
                    QuorumError::Replicas { .. } => "n",
                    QuorumError::Read { .. } => "r",
                    QuorumError::Write { .. } => "w",
                };
                let place = self.given.place(key);
                let majority = (n / 2 + 1).to_string();
                let write = format!("{}, a majority", place.advice(key, &majority));
                let fault = Fault::Quorum { error, write };
                self.problems.push(Problem { place, fault });
                None
            }
        }
    }

    fn doubtful_quorum(&mut self, quorum: Quorum) {
        let (n, r, w) = (quorum.n(), quorum.r(), quorum.w());
        let majority = n / 2 + 1;
        if !quorum.reads_meet_writes() {
            let text = format!(
                "r + w = {} is not more than n = {n}: a read may miss a write that was \
                 acknowledged; write r = {majority} and w = {majority} if it must not",
                r + w,
            );
            // Said where the smaller of the two was written: that one is likely the cause.
            let place = self.given.place(if r <= w { "r" } else { "w" });
            self.warnings.push(Warning { place, text });
        }
        if n % 2 == 0 && r == majority && w == majority {
            let text = format!(
                "n = {n} with majorities survives the loss of {lost} of a key's copies, as does \
                 n = {fewer}, which keeps one copy less; write n = {fewer} or n = {more}",
                lost = n - majority,
                fewer = n - 1,
                more = n + 1,
            );
            let place = self.given.place("n");
            self.warnings.push(Warning { place, text });
        }
    }

    fn tls_pair(&mut self) {
        let (Some(cert), Some(key)) = (&self.draft.resp_tls_cert, &self.draft.resp_tls_key) else {
            return;
        };
        let (has, lacks) = match (cert, key) {
            (Some(_), None) => ("resp_tls_cert", "resp_tls_key"),
            (None, Some(_)) => ("resp_tls_key", "resp_tls_cert"),
            _ => return,
        };
        let reason = format!("TLS needs {lacks} as well");
        self.refuse(has, reason, |_| format!("{lacks} too, or neither"));
    }

    /// A cache that the network can reach without a password is an open door.
    fn protected_mode(&mut self) {
        let draft = self.draft;
        let (Some(Some(address)), Some(password), Some(cert)) = (
            draft.resp_listen,
            &draft.resp_password_file,
            &draft.resp_tls_cert,
        ) else {
            return;
        };
        if address.ip().is_loopback() || (password.is_some() && cert.is_some()) {
            return;
        }
        let reason = "other machines could reach it without password or encryption, which \
                      protected mode refuses";
        self.refuse("resp_listen", reason.to_owned(), |place| {
            let loopback = SocketAddr::from(([127, 0, 0, 1], address.port()));
            let local = place.advice("resp_listen", &format!("\"{loopback}\""));
            format!("{local}, or set resp_password_file, resp_tls_cert and resp_tls_key as well")
        });
    }

    fn advertised_address(&mut self) {
        let (Some(listen), Some(advertise)) = (self.draft.quic_listen, self.draft.quic_advertise)
        else {
            return;
        };
        let example = |place: &Place| {
            let own = place.advice("quic_advertise", &format!("\"10.0.0.5:{}\"", listen.port()));
            format!("the address of this machine, for example {own}")
        };
        match advertise {
            None if listen.ip().is_unspecified() => {
                let reason = "other nodes cannot connect to it, so they must be told where";
                self.refuse("quic_listen", reason.to_owned(), example);
            }
            Some(advertise) if advertise.ip().is_unspecified() || advertise.port() == 0 => {
                let reason = "other nodes cannot connect to it";
                self.refuse("quic_advertise", reason.to_owned(), example);
            }
            _ => {}
        }
    }

    fn distinct_listeners(&mut self) {
        let (Some(Some(resp)), Some(Some(http))) = (self.draft.resp_listen, self.draft.http_listen)
        else {
            return;
        };
        // Port 0 lets the system choose, and it chooses two.
        if resp == http && resp.port() != 0 {
            let reason = "resp_listen has the same address".to_owned();
            self.refuse("http_listen", reason, |_| "another port".to_owned());
        }
    }

    fn memory_bound(&mut self) {
        if self.draft.max_memory.is_some_and(|bound| bound.0 > 0) {
            self.warnings.push(Warning {
                place: self.given.place("max_memory"),
                text: "max_memory is not yet enforced: this node takes as much memory as its \
                       records need"
                    .to_owned(),
            });
        }
    }

    /// A command that is allowed must not close who sends it: then the bound is that of one command.
    fn input_bound(&mut self) {
        let draft = self.draft;
        let (Some(all), Some(value)) = (draft.client_input_bytes_max, draft.max_value_bytes) else {
            return;
        };
        let request = value.0.saturating_mul(COMMAND_VALUES);
        if all.0 < request {
            let place = self.given.place("client_input_bytes_max");
            let write = place.advice("client_input_bytes_max", &request.to_string());
            self.warnings.push(Warning {
                place,
                text: format!(
                    "client_input_bytes_max is less than one command may have, {COMMAND_VALUES} times \
                     max_value_bytes, and that much is allowed; write {write}, or more"
                ),
            });
        }
    }

    fn refuse(&mut self, key: &str, reason: String, write: impl FnOnce(&Place) -> String) {
        let place = self.given.place(key);
        let given = keys().find(|row| row.name == key);
        let given = given.map_or_else(|| key.to_owned(), |row| self.given.assignment(row));
        let fault = Fault::BadValue {
            given,
            reason,
            write: write(&place),
        };
        self.problems.push(Problem { place, fault });
    }
}

/// A command with several values, MSET say, is held whole until it is complete: so many of the longest.
pub(super) const COMMAND_VALUES: u64 = 4;

/// The rule for names that stand in certificates: that of a node's.
#[expect(clippy::ptr_arg, reason = "the table hands over the key's own type")]
pub(super) fn name(name: &String) -> Result<(), String> {
    match name.parse::<NodeId>() {
        Ok(_) => Ok(()),
        Err(_) => Err("it must be 1 to 63 of a-z A-Z 0-9 . _ -".to_owned()),
    }
}

/// A name, or nothing.
pub(super) fn name_or_empty(text: &String) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    name(text)
}

/// Partitions are found by the top bits of a hash.
pub(super) fn power_of_two(number: &u32) -> Result<(), String> {
    if number.is_power_of_two() {
        return Ok(());
    }
    Err("it must be a power of two".to_owned())
}

/// Levels, alone or for a target, separated by commas. Stricter than the filter that it is handed
/// to: that one takes a mistyped level for a target, and logs nothing.
#[expect(clippy::ptr_arg, reason = "the table hands over the key's own type")]
pub(super) fn log_filter(filter: &String) -> Result<(), String> {
    for part in filter.split(',') {
        let (target, level) = part.split_once('=').unwrap_or(("quorate", part));
        let is_target = !target.is_empty()
            && target
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'));
        if !is_target || !LEVELS.contains(&level) {
            return Err(format!(
                "`{part}` must be a level ({}) or TARGET=LEVEL",
                LEVELS.join(", ")
            ));
        }
    }
    Ok(())
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
