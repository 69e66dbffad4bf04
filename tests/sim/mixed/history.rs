//! What clients of a mixed run saw, and whether it may have been.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use bytes::Bytes;
use quorate::model::Level;
use quorate::update::{Fields, Reply};

use super::Tally;
use super::work::{Job, What, Work};

/// What became of a write, as far as its client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Applied,
    NotApplied,
    Unknown,
}

/// What a client has learned.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Seen {
    Reply(Reply),
    Value(Option<Bytes>),
    Done,
    Fate(Fate),
}

/// From when to when, by a counter that all calls and ends share.
type Span = (u64, u64);

/// A value, or that there was none, seen at a level that promises something.
type Sight = (Span, Option<u64>);

#[derive(Debug, Default)]
pub(super) struct History {
    clock: u64,
    /// Tagged increments by key.
    tags: BTreeMap<usize, BTreeMap<u64, Fate>>,
    /// What the hash of a key was last.
    hashes: BTreeMap<usize, Bytes>,
    /// Values of `SET NX` that were refused, and which added one is likely to be there.
    refused: BTreeMap<u64, String>,
    added: BTreeMap<usize, u64>,
    /// What was seen of keys whose values come and go.
    sights: BTreeMap<(Work, usize), Vec<Sight>>,
    /// When values of the flushed database were written.
    writes: BTreeMap<u64, Span>,
    /// When each counter was incremented, and what it was then.
    counts: BTreeMap<usize, Vec<(Span, Option<i64>)>>,
    flushes: Vec<Span>,
    last: BTreeMap<(Work, usize), Option<Bytes>>,
    notes: Vec<String>,
    wrong: Option<(String, String)>,
    pub(super) tally: Tally,
}

impl History {
    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A value of a key that is likely to be there.
    pub(super) fn added(&self, key: usize) -> Option<u64> {
        self.added.get(&key).copied()
    }

    /// What the last read of a key showed, once.
    pub(super) fn last_read(&mut self, job: &Job) -> Option<Option<Bytes>> {
        self.last.remove(&(job.work, job.key))
    }

    pub(super) fn flush(&mut self, span: Span, is_done: bool, note: String) {
        if is_done {
            self.flushes.push(span);
            self.tally.flushes += 1;
        }
        self.notes.push(note);
    }

    /// `is_astray`: the clock of the node that was asked is further off than others follow.
    pub(super) fn note(
        &mut self,
        job: &Job,
        span: Span,
        seen: Seen,
        (note, is_astray): (String, bool),
    ) {
        self.notes.push(note);
        match &seen {
            Seen::Fate(Fate::Unknown) => self.tally.uncertain += 1,
            Seen::Fate(_) => {}
            Seen::Reply(_) | Seen::Value(_) | Seen::Done => {
                *self.tally.answered.entry(job.work).or_default() += 1;
            }
        }
        let promises = job.promises() && !is_astray;
        match (&job.what, seen) {
            (What::Tag(tag, _), seen) => self.note_tag(job.key, *tag, &seen),
            (What::Add(value), seen) => self.note_added(job.key, *value, &seen),
            (What::Put(value, ..) | What::Swap(value), seen) => {
                self.note_put(job, *value, span, &seen);
            }
            (What::Count, seen) => {
                let count = match seen {
                    Seen::Reply(Reply::Integer(count)) => Some(count),
                    Seen::Fate(Fate::NotApplied) => return,
                    Seen::Reply(_) | Seen::Value(_) | Seen::Done | Seen::Fate(_) => None,
                };
                let end = if count.is_some() { span.1 } else { u64::MAX };
                let counts = self.counts.entry(job.key).or_default();
                counts.push(((span.0, end), count));
            }
            (What::Write(value), Seen::Done) => _ = self.writes.insert(*value, span),
            (What::Get, Seen::Value(value)) => {
                self.last.insert((job.work, job.key), value.clone());
                match job.work {
                    Work::Tag if promises => {
                        self.hashes.extend(value.map(|hash| (job.key, hash)));
                    }
                    Work::Tag => {}
                    Work::Add | Work::Expire | Work::Flush => {
                        let number = value.as_ref().map(number);
                        if promises && let Some(value) = number {
                            self.forbid_refused(value);
                        }
                        if promises {
                            self.sight(job, span, number);
                        }
                    }
                }
            }
            (What::Get | What::Write(_) | What::Free(_) | What::Delete | What::Shorten(_), _) => {}
        }
    }

    fn note_tag(&mut self, key: usize, tag: u64, seen: &Seen) {
        let one = Reply::Integer(1);
        let fate = match seen {
            Seen::Reply(Reply::Nil) => Fate::NotApplied,
            Seen::Reply(Reply::Array(replies)) if *replies == [one.clone()] => Fate::Applied,
            Seen::Reply(reply) if *reply == one => Fate::Applied,
            Seen::Fate(fate) => *fate,
            Seen::Reply(_) | Seen::Value(_) | Seen::Done => {
                self.is_wrong(
                    format!("t{key}"),
                    format!("increment {tag} was answered {seen:?}"),
                );
                return;
            }
        };
        self.tags.entry(key).or_default().insert(tag, fate);
    }

    fn note_added(&mut self, key: usize, value: u64, seen: &Seen) {
        match seen {
            Seen::Reply(Reply::Ok) => _ = self.added.insert(key, value),
            Seen::Reply(Reply::Nil) | Seen::Fate(Fate::NotApplied) => {
                self.refused.insert(value, format!("a{key}"));
            }
            Seen::Reply(_) | Seen::Value(_) | Seen::Done | Seen::Fate(_) => {}
        }
    }

    /// A value with a TTL was written, or one shown that was there before.
    fn note_put(&mut self, job: &Job, value: u64, span: Span, seen: &Seen) {
        match seen {
            // What it replaced was there in between; what it wrote came after.
            Seen::Reply(Reply::Bulk(before)) => self.sight(job, span, Some(number(before))),
            Seen::Fate(Fate::NotApplied) => {
                self.refused.insert(value, format!("e{}", job.key));
            }
            Seen::Reply(Reply::Nil) if matches!(job.what, What::Put(_, _, "NX" | "XX")) => {
                self.refused.insert(value, format!("e{}", job.key));
            }
            Seen::Reply(Reply::Nil) => self.sight(job, span, None),
            Seen::Reply(_) | Seen::Value(_) | Seen::Done | Seen::Fate(_) => {}
        }
    }

    fn sight(&mut self, job: &Job, span: Span, value: Option<u64>) {
        let sights = self.sights.entry((job.work, job.key)).or_default();
        sights.push((span, value));
    }

    fn forbid_refused(&mut self, value: u64) {
        if let Some(key) = self.refused.get(&value).cloned() {
            self.is_wrong(key, format!("{value} was refused and is there"));
        }
    }

    fn is_wrong(&mut self, key: String, why: String) {
        self.wrong.get_or_insert((key, why));
    }

    /// The key and what is wrong with it.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        if let Some(wrong) = &self.wrong {
            return Err(wrong.clone());
        }
        for (key, tags) in &self.tags {
            self.check_tags(*key, tags)
                .map_err(|why| (format!("t{key}"), why))?;
        }
        for ((work, key), sights) in &self.sights {
            match work {
                Work::Expire => check_gone(sights).map_err(|why| (format!("e{key}"), why))?,
                Work::Flush => self
                    .check_flushed(sights)
                    .map_err(|why| (format!("f{key}"), why))?,
                Work::Add | Work::Tag => {}
            }
        }
        for (value, key) in &self.refused {
            let sights = self.sights.values().flatten();
            if sights.into_iter().any(|(_, seen)| *seen == Some(*value)) {
                return Err((key.clone(), format!("{value} was refused and was seen")));
            }
        }
        for (key, counts) in &self.counts {
            self.check_counts(counts)
                .map_err(|why| (format!("c{key}"), why))?;
        }
        Ok(())
    }

    fn check_tags(&self, key: usize, tags: &BTreeMap<u64, Fate>) -> Result<(), String> {
        let Some(hash) = self.hashes.get(&key) else {
            return Ok(());
        };
        let fields: BTreeMap<u64, u64> = fields(hash);
        for (tag, fate) in tags {
            let count = fields.get(tag).copied().unwrap_or(0);
            let is_right = match fate {
                Fate::Applied => count == 1,
                Fate::NotApplied => count == 0,
                Fate::Unknown => count <= 1,
            };
            if !is_right {
                return Err(format!(
                    "increment {tag} was {fate:?} and is there {count} times"
                ));
            }
        }
        Ok(())
    }

    /// Nothing is read that an acknowledged flush has removed.
    fn check_flushed(&self, sights: &[Sight]) -> Result<(), String> {
        for (read, value) in sights {
            let Some(write) = value.and_then(|value| self.writes.get(&value)) else {
                continue;
            };
            let between = |flush: &&Span| write.1 < flush.0 && flush.1 < read.0;
            if let Some(flush) = self.flushes.iter().find(between) {
                return Err(format!(
                    "{value:?} was written at {write:?}, flushed at {flush:?} and read at {read:?}"
                ));
            }
        }
        Ok(())
    }

    /// No counter counts on from before a flush, and none is counted twice to the same number in between.
    fn check_counts(&self, counts: &[(Span, Option<i64>)]) -> Result<(), String> {
        for (span, count) in counts {
            let Some(count) = count else { continue };
            let last = self.flushes.iter().filter(|flush| flush.1 < span.0);
            let begun = last.map(|flush| flush.0).max().unwrap_or(0);
            // Those that may have been applied after that flush, this one among them.
            let since = counts
                .iter()
                .filter(|(other, _)| other.1 > begun && other.0 < span.1);
            let most = i64::try_from(since.count()).unwrap_or(i64::MAX);
            if *count > most {
                return Err(format!(
                    "it was {count} at {span:?}, and {most} increments were applied since the flush at {begun}"
                ));
            }
        }
        Ok(())
    }

    /// What happened to one key, and what went wrong meanwhile.
    pub(super) fn timeline(&self, key: &str, faults: &[(u64, String)]) -> String {
        let mut lines = String::new();
        let is_of = |note: &&String| note.contains(key) || note.contains(" flush");
        for note in self.notes.iter().filter(is_of) {
            writeln!(lines, "{note}").expect("a string takes everything");
        }
        for (at, fault) in faults {
            writeln!(lines, "{at:>6} ms fault {fault}").expect("a string takes everything");
        }
        lines
    }
}

impl Job {
    /// Whether its level promises to see what was decided.
    fn promises(&self) -> bool {
        self.level >= Level::Quorum
    }
}

/// A value that was seen, and then was not there, is not seen again: each is written once.
fn check_gone(sights: &[Sight]) -> Result<(), String> {
    let mut seen: BTreeMap<u64, Vec<Span>> = BTreeMap::new();
    for (span, value) in sights {
        seen.entry(value.unwrap_or(0)).or_default().push(*span);
    }
    let values: BTreeSet<u64> = seen.keys().copied().filter(|value| *value != 0).collect();
    for value in values {
        let of = &seen[&value];
        let first_end = of.iter().map(|span| span.1).min().unwrap_or(u64::MAX);
        let last_call = of.iter().map(|span| span.0).max().unwrap_or(0);
        let between = |span: &&Span| first_end < span.0 && span.1 < last_call;
        let others = seen.iter().filter(|(other, _)| **other != value);
        let gone = others.flat_map(|(other, spans)| spans.iter().map(move |span| (other, span)));
        if let Some((other, span)) = gone.into_iter().find(|(_, span)| between(span)) {
            return Err(format!(
                "{value} was seen by {first_end}, {other} was there instead at {span:?}, {value} again after {last_call}"
            ));
        }
    }
    Ok(())
}

/// Field and value of a hash as it is stored.
fn fields(hash: &Bytes) -> BTreeMap<u64, u64> {
    let fields = Fields::decode(hash).expect("a hash");
    let numbers = fields
        .iter()
        .map(|(field, value)| (number(field), number(value)));
    numbers.collect()
}

fn number(value: &Bytes) -> u64 {
    let text = std::str::from_utf8(value).ok();
    let number = text.and_then(|text| text.parse().ok());
    number.expect("values are the numbers that were written")
}
