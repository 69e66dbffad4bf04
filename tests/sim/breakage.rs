//! Deliberate breakages of the protocol, each at the seam between a node and the network: the
//! simulator has to notice every one of them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quorate::model::{HlcTime, Level, NodeTag, Prior, Quorum, RecordRef, Stamp, Summary, Version};
use quorate::net::{Lane, PeerService};
use quorate::protocol::Lineage;
use quorate::wire::{
    Answer, FrameReader, LENGTH_BYTES, Operation, RequestHeader, ResponseHeader, WireProposal,
    WireRecord, encode, finish_frame, from_wire, split_frame, start_frame,
};
use serde_bytes::Bytes as ByteSlice;
use tokio::time::Instant;

use crate::cluster::now;
use crate::network::Network;

/// What is done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Breakage {
    /// Writes are acknowledged at one replica, at level `quorum`.
    AckBeforeW,
    /// Reads are answered at one replica, at level `quorum`.
    AnswerBeforeR,
    /// A coordinator counts an acknowledgement that never came.
    TimeoutIsAck,
    /// A replica acknowledges before it has taken the write, and then does not take it.
    AckWithoutTaking,
    /// A replica now and then loses what it has taken.
    ForgetWrites,
    /// A read answers without writing back what only a minority holds.
    SkipWriteBack,
    /// Replicas order versions by their milliseconds only.
    CompareMillis,
    /// What comes later wins, older versions (repairs, delayed writes) included.
    OlderOverwrites,
    /// One replica is counted twice.
    CountOneTwice,
    /// The coordinator's own replica is counted for all.
    CountSelfForAll,
    /// A replica that has lost its memory votes.
    CountAmnesiac,
    /// A superseded write counts as acknowledged, at level `quorum`.
    DropRestamping,
    /// What other replicas say of their versions is not looked at.
    IgnoreVersions,
    /// Replicas answer reads from a cache of the last 200 ms.
    ServeFromCache,
    /// A stand-in drops a hint before its home has taken it.
    DropHintsUnacknowledged,
    /// A hint that is given back replaces what its home holds, newer or not.
    HintsOverwrite,
    /// A stand-in acknowledges a hint before it is on disk.
    HintsUnsynced,
    /// Stand-ins count for `linearizable`.
    CountStandIns,
    /// Tombstones are purged when they are old enough, whatever other homes hold.
    PurgeByAge,
    /// Tombstones are purged although a home is away.
    PurgeHomeAway,
    /// Tombstones are not among what is compared and moved.
    TombstonesUncompared,
    /// Of what a comparison finds, the last is left out.
    DecoderOffByOne,
    /// A home that promises a ballot forgets it at once.
    ForgetPromise,
    /// A home takes a state under a ballot older than one that it has promised.
    AcceptBelow,
    /// Of what homes hold, updates are made on something older.
    AdoptOlder,
    /// An update that is tried again is made again.
    ApplyTwice,
    /// What frames carry of flushes is lost.
    FlushesUnread,
}

impl Breakage {
    /// Those of anti-entropy: see `zombies`.
    pub(crate) const OF_REPAIR: [Self; 4] = [
        Self::PurgeByAge,
        Self::PurgeHomeAway,
        Self::TombstonesUncompared,
        Self::DecoderOffByOne,
    ];

    /// Those of updates.
    pub(crate) const OF_UPDATES: [Self; 6] = [
        Self::ForgetPromise,
        Self::AcceptBelow,
        Self::AdoptOlder,
        Self::ApplyTwice,
        Self::CountStandIns,
        Self::CountAmnesiac,
    ];

    /// Those that only a mix of levels, updates, expiry and flushes shows.
    pub(crate) const OF_MIX: [Self; 3] =
        [Self::ApplyTwice, Self::ForgetPromise, Self::FlushesUnread];

    /// Those of requests and hints.
    pub(crate) const ALL: [Self; 18] = [
        Self::AckBeforeW,
        Self::AnswerBeforeR,
        Self::TimeoutIsAck,
        Self::AckWithoutTaking,
        Self::ForgetWrites,
        Self::SkipWriteBack,
        Self::CompareMillis,
        Self::OlderOverwrites,
        Self::CountOneTwice,
        Self::CountSelfForAll,
        Self::CountAmnesiac,
        Self::DropRestamping,
        Self::IgnoreVersions,
        Self::ServeFromCache,
        Self::DropHintsUnacknowledged,
        Self::HintsOverwrite,
        Self::HintsUnsynced,
        Self::CountStandIns,
    ];
}

impl Breakage {
    /// The level whose promise it breaks.
    pub(crate) const fn level(self) -> Level {
        match self {
            Self::AckBeforeW
            | Self::AnswerBeforeR
            | Self::DropRestamping
            | Self::DropHintsUnacknowledged
            | Self::HintsOverwrite
            | Self::HintsUnsynced => Level::Quorum,
            _ => Level::Linearizable,
        }
    }

    /// Whether it breaks what is promised of hints.
    pub(crate) const fn is_of_hints(self) -> bool {
        matches!(
            self,
            Self::DropHintsUnacknowledged | Self::HintsOverwrite | Self::HintsUnsynced
        )
    }

    /// The quorum that the coordinators really use.
    pub(crate) fn quorum(self) -> Quorum {
        let quorum = match self {
            Self::AckBeforeW => Quorum::new(3, 2, 1),
            Self::AnswerBeforeR => Quorum::new(3, 1, 2),
            // A hint may be all that there is of a write.
            _ if self.is_of_hints() => Quorum::new(3, 3, 1),
            _ => Quorum::majority(3),
        };
        quorum.expect("at most three")
    }
}

/// Whom a call really reaches.
pub(crate) fn broken_call(
    breakage: Breakage,
    from: NodeTag,
    to: NodeTag,
    everyone: &[NodeTag],
) -> NodeTag {
    match breakage {
        Breakage::CountOneTwice => everyone
            .iter()
            .copied()
            .find(|&peer| peer != from)
            .unwrap_or(to),
        _ => to,
    }
}

/// The response to a request that got none: acknowledgements of its writes.
pub(crate) fn made_up(request: &Bytes) -> Option<Bytes> {
    let (header, operations) = parse(request);
    let mut answers = Vec::new();
    for operation in operations {
        let taken = match operation {
            Operation::Write(..) => Answer::Applied(Prior::default()),
            Operation::Accept(..) => Answer::Accepted(false),
            _ => return None,
        };
        encode(&taken, &mut answers);
    }
    Some(response(&header, None, true, header.clock, &answers))
}

/// What arrives of a request.
pub(crate) fn broken_request(breakage: Breakage, request: &Bytes) -> Bytes {
    if breakage != Breakage::FlushesUnread {
        return request.clone();
    }
    let (header, operations) = parse(request);
    let mut out = Vec::new();
    let flushes = None;
    let start = start_frame(&RequestHeader { flushes, ..header }, &mut out);
    for operation in operations {
        encode(&operation, &mut out);
    }
    finish_frame(start, &mut out);
    Bytes::from(out).slice(LENGTH_BYTES..)
}

/// What arrives of a response.
pub(crate) fn broken_response(breakage: Breakage, response: Bytes) -> Bytes {
    if breakage != Breakage::FlushesUnread {
        return response;
    }
    let mut reader = FrameReader::new(&response);
    let header: ResponseHeader<'_> = reader.read().expect("a well-formed response");
    let mut out = Vec::new();
    let start = start_frame(
        &ResponseHeader {
            flushes: None,
            ..header
        },
        &mut out,
    );
    out.extend_from_slice(&response[encoded(&header).len()..]);
    finish_frame(start, &mut out);
    Bytes::from(out).slice(LENGTH_BYTES..)
}

/// Serves a request the broken way.
pub(crate) fn broken_serve(
    breakage: Breakage,
    network: &Network,
    sent: Sent,
    request: &Bytes,
    service: &Arc<dyn PeerService>,
) -> Bytes {
    let (header, operations) = parse(request);
    let (mut answers, mut is_sure, mut clock) = (Vec::new(), true, header.clock);
    let mut flushes = None;
    let last = operations.len().saturating_sub(1);
    for (number, operation) in operations.into_iter().enumerate() {
        let is_left_out = breakage == Breakage::DecoderOffByOne && number == last;
        let served = if is_left_out && sent.lane == Lane::Bulk {
            leave_out(&header, operation, service)
        } else {
            serve_one(breakage, network, sent, &header, operation, service)
        };
        is_sure &= served.header.is_sure;
        clock = served.header.clock;
        flushes = served.flushes.or(flushes);
        answers.extend_from_slice(&served.answer);
    }
    response(&header, flushes.as_deref(), is_sure, clock, &answers)
}

#[expect(clippy::too_many_lines, reason = "an arm a breakage, each a few lines")]
fn serve_one(
    breakage: Breakage,
    network: &Network,
    Sent { from, to, lane }: Sent,
    header: &RequestHeader<'_>,
    operation: Operation<'_>,
    service: &Arc<dyn PeerService>,
) -> Served {
    let pass = |operation| serve(service, header, operation);
    match (breakage, operation) {
        (Breakage::AckWithoutTaking, Operation::Write(_, record)) if sample(record, 2) => {
            Served::acknowledged(header)
        }
        (Breakage::AckWithoutTaking, Operation::Accept(_, proposal, _))
            if sample(proposal.record, 2) =>
        {
            Served::accepted(header)
        }
        (Breakage::ForgetWrites, Operation::Write(_, record)) if sample(record, 12) => {
            Served::acknowledged(header)
        }
        (Breakage::ForgetWrites, Operation::Accept(_, proposal, _))
            if sample(proposal.record, 12) =>
        {
            Served::accepted(header)
        }
        (Breakage::SkipWriteBack, Operation::Accept(_, proposal, _)) => {
            network.first_sent(RecordRef::from(proposal.record).version, to);
            pass(operation)
        }
        (Breakage::SkipWriteBack, Operation::Write(_, record)) => {
            let first = network.first_sent(RecordRef::from(record).version, from);
            if first == from {
                pass(operation)
            } else {
                Served::acknowledged(header)
            }
        }
        (Breakage::CompareMillis, Operation::Write(key, record)) => {
            let version = RecordRef::from(record).version;
            match held(&pass(Operation::Summary(key))) {
                Some(held) if held.hlc.millis() >= version.hlc.millis() => {
                    Served::acknowledged(header)
                }
                _ => pass(operation),
            }
        }
        (Breakage::CompareMillis, Operation::Accept(key, proposal, _)) => {
            let version = RecordRef::from(proposal.record).version;
            match held(&pass(Operation::Summary(key))) {
                Some(held) if held.hlc.millis() >= version.hlc.millis() => Served::accepted(header),
                _ => pass(operation),
            }
        }
        (Breakage::TombstonesUncompared, Operation::Write(_, record))
            if lane == Lane::Bulk && RecordRef::from(record).value.is_none() =>
        {
            Served::acknowledged(header)
        }
        (Breakage::TombstonesUncompared, Operation::Fetch(..)) => {
            leave_out(header, operation, service)
        }
        (Breakage::DropHintsUnacknowledged, Operation::Write(..)) if lane == Lane::Bulk => {
            Served::acknowledged(header)
        }
        (Breakage::OlderOverwrites, Operation::Write(key, record))
        | (Breakage::HintsOverwrite, Operation::Write(key, record))
            if breakage == Breakage::OlderOverwrites || lane == Lane::Bulk =>
        {
            let record = RecordRef::from(record);
            match held(&pass(Operation::Summary(key))) {
                Some(held) if held > record.version => {
                    let version = Version {
                        hlc: HlcTime(held.hlc.0 + 1),
                        ..record.version
                    };
                    let expiry = quorate::model::Expiry {
                        version,
                        at: record.expiry.at,
                    };
                    let record = RecordRef {
                        version,
                        expiry,
                        ..record
                    };
                    pass(Operation::Write(key, WireRecord::from(record)))
                }
                _ => pass(operation),
            }
        }
        (Breakage::CountSelfForAll, Operation::Read(_) | Operation::Summary(_)) => {
            match network.service(from) {
                Some(own) => serve(&own, header, operation),
                None => pass(operation),
            }
        }
        (Breakage::DropRestamping, Operation::Write(..)) => {
            let served = pass(operation);
            match FrameReader::new(&served.answer).read() {
                Ok(Answer::Superseded(prior)) => Served {
                    answer: encoded(&Answer::Applied(prior)),
                    ..served
                },
                _ => served,
            }
        }
        (Breakage::IgnoreVersions, Operation::Summary(_)) => Served {
            answer: encoded(&Answer::Summary(None)),
            ..pass(operation)
        },
        (Breakage::ServeFromCache, Operation::Read(key) | Operation::Summary(key)) => {
            let is_whole = matches!(operation, Operation::Read(_));
            network.cached((to, key.to_vec(), is_whole), || pass(operation))
        }
        _ => serve_update(
            breakage,
            network,
            Sent { from, to, lane },
            header,
            operation,
            service,
        ),
    }
}

/// The same, of updates.
fn serve_update(
    breakage: Breakage,
    network: &Network,
    Sent { to, .. }: Sent,
    header: &RequestHeader<'_>,
    operation: Operation<'_>,
    service: &Arc<dyn PeerService>,
) -> Served {
    let pass = |operation| serve(service, header, operation);
    match (breakage, operation) {
        (Breakage::ForgetPromise, Operation::Promise(key, ..)) => {
            promised(pass(Operation::Read(key)), None)
        }
        (Breakage::ApplyTwice, Operation::Promise(..)) => {
            let served = pass(operation);
            let nothing_made = Lineage::default().encode();
            match FrameReader::new(&served.answer).read() {
                Ok(Answer::Promise(Some(record), ..)) => {
                    let lineage = Some(ByteSlice::new(&nothing_made));
                    let answer = encoded(&Answer::Promise(Some(record), lineage, (0, 0)));
                    Served { answer, ..served }
                }
                _ => served,
            }
        }
        (Breakage::AdoptOlder, Operation::Promise(key, ..)) => {
            let served = pass(operation);
            network.older((to, key.to_vec()), served)
        }
        (Breakage::AcceptBelow, Operation::Accept(key, proposal, ring)) => {
            let served = pass(operation);
            let Ok(Answer::Outbid(by)) = FrameReader::new(&served.answer).read() else {
                return served;
            };
            let record = RecordRef::from(proposal.record);
            let version = Version {
                hlc: HlcTime(from_wire(by).hlc.0 + 1),
                ..record.version
            };
            let expiry = quorate::model::Expiry {
                version,
                at: record.expiry.at,
            };
            let record = RecordRef {
                version,
                expiry,
                ..record
            };
            let proposal = WireProposal::new(record, proposal.lineage, None);
            pass(Operation::Accept(key, proposal, ring))
        }
        _ => pass(operation),
    }
}

/// What moves a record moves nothing.
fn leave_out(
    header: &RequestHeader<'_>,
    operation: Operation<'_>,
    service: &Arc<dyn PeerService>,
) -> Served {
    match operation {
        Operation::Write(..) => Served::acknowledged(header),
        Operation::Fetch(partition, ..) => {
            // Nothing is newer than that.
            let version = Version {
                hlc: HlcTime(u64::MAX),
                node: NodeTag(u64::MAX),
            };
            let nothing = Operation::Fetch(partition, 0, Some(Stamp::fresh(version)));
            serve(service, header, nothing)
        }
        _ => serve(service, header, operation),
    }
}

/// Who sent something to whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) from: NodeTag,
    pub(crate) to: NodeTag,
    pub(crate) lane: Lane,
}

/// Whether the response to a request waits for something: it is for a stand-in, or for updates.
pub(crate) fn has_to_wait(request: &Bytes) -> bool {
    let (_, operations) = parse(request);
    let waits = |operation: &Operation<'_>| {
        matches!(
            operation,
            Operation::Hint(..) | Operation::HintExpiry(..) | Operation::Update(..)
        )
    };
    operations.first().is_some_and(waits)
}

/// What a home holds, as if it had promised a ballot.
fn promised(read: Served, lineage: Option<&ByteSlice>) -> Served {
    match FrameReader::new(&read.answer).read() {
        Ok(Answer::Record(record)) => {
            let answer = encoded(&Answer::Promise(record, lineage, (0, 0)));
            Served { answer, ..read }
        }
        _ => read,
    }
}

/// What homes told of a key before, by the home and the key.
#[derive(Default)]
pub(crate) struct Told(std::collections::BTreeMap<(NodeTag, Vec<u8>), [Option<Served>; 2]>);

impl Told {
    /// What was told before what is told now.
    pub(crate) fn older(&mut self, key: (NodeTag, Vec<u8>), now: Served) -> Served {
        let version = |served: &Served| match FrameReader::new(&served.answer).read() {
            Ok(Answer::Promise(Some(record), ..)) => Some(RecordRef::from(record).version),
            _ => None,
        };
        if version(&now).is_none() {
            return now;
        }
        let told = self.0.entry(key).or_default();
        if told[1].as_ref().map(version) != Some(version(&now)) {
            told.swap(0, 1);
            told[1] = Some(now.clone());
        }
        told[0].clone().unwrap_or(now)
    }
}

/// What a home was asked, asked of somebody else in its stead who then answers for it.
pub(crate) async fn stand_in_as_home(
    request: &Bytes,
    home: NodeTag,
    service: &Arc<dyn PeerService>,
) -> Option<Bytes> {
    let (header, operations) = parse(request);
    let is_promise = matches!(operations.first(), Some(Operation::Promise(..)));
    let mut is_accept = false;
    let mut instead = Vec::new();
    let start = start_frame(&header, &mut instead);
    for operation in operations {
        encode(
            &match operation {
                Operation::Write(key, record) => Operation::Hint(home, key, record),
                Operation::Read(key) => Operation::HintedRead(key),
                Operation::Summary(key) => Operation::HintedSummary(key),
                Operation::Promise(key, ..) => Operation::HintedRead(key),
                Operation::Accept(key, proposal, _) => {
                    is_accept = true;
                    Operation::Hint(home, key, proposal.record)
                }
                _ => return None,
            },
            &mut instead,
        );
    }
    finish_frame(start, &mut instead);
    let request = Bytes::from(instead).slice(LENGTH_BYTES..);
    let mut out = Vec::new();
    if let Some(late) = service.serve(&request, &mut out).ok()? {
        out = late.await;
    }
    let mut reader = FrameReader::new(&out[LENGTH_BYTES..]);
    let answered: ResponseHeader<'_> = reader.read().ok()?;
    let answers = out[LENGTH_BYTES + encoded(&answered).len()..].to_vec();
    let served = Served {
        header: ResponseHeader {
            flushes: None,
            ..answered
        },
        flushes: None,
        answer: answers,
    };
    let answers = match (is_promise, is_accept) {
        (true, _) => promised(served, None).answer,
        (_, true) => encoded(&Answer::Accepted(false)),
        _ => served.answer,
    };
    let flushes = kept(&answered);
    let flushes = flushes.as_deref();
    Some(response(&header, flushes, true, answered.clock, &answers))
}

/// One operation, served.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    header: ResponseHeader<'static>,
    /// Those of the header.
    flushes: Option<Bytes>,
    answer: Vec<u8>,
}

impl Served {
    fn acknowledged(header: &RequestHeader<'_>) -> Self {
        Self {
            header: ResponseHeader {
                id: 0,
                count: 1,
                clock: header.clock,
                flushes: None,
                is_sure: true,
            },
            flushes: None,
            answer: encoded(&Answer::Applied(Prior::default())),
        }
    }

    fn accepted(header: &RequestHeader<'_>) -> Self {
        Self {
            answer: encoded(&Answer::Accepted(false)),
            ..Self::acknowledged(header)
        }
    }
}

/// Answers that are served again for a while.
#[derive(Default)]
pub(crate) struct Cache(std::collections::BTreeMap<(NodeTag, Vec<u8>, bool), (Instant, Served)>);

impl Cache {
    pub(crate) fn fresh(&self, key: &(NodeTag, Vec<u8>, bool)) -> Option<Served> {
        let (since, served) = self.0.get(key)?;
        (since.elapsed() < Duration::from_millis(200)).then(|| served.clone())
    }

    pub(crate) fn put(&mut self, key: (NodeTag, Vec<u8>, bool), served: Served) {
        self.0.insert(key, (now(), served));
    }
}

fn serve(
    service: &Arc<dyn PeerService>,
    header: &RequestHeader<'_>,
    operation: Operation<'_>,
) -> Served {
    let mut request = Vec::new();
    let header = RequestHeader {
        count: 1,
        ..*header
    };
    let start = start_frame(&header, &mut request);
    encode(&operation, &mut request);
    finish_frame(start, &mut request);
    let mut out = Vec::new();
    service
        .serve(&Bytes::from(request).slice(LENGTH_BYTES..), &mut out)
        .expect("a well-formed request");
    let mut reader = FrameReader::new(&out[LENGTH_BYTES..]);
    let header: ResponseHeader<'_> = reader.read().expect("a well-formed response");
    let header_bytes = encoded(&header).len();
    Served {
        flushes: kept(&header),
        header: ResponseHeader {
            flushes: None,
            ..header
        },
        answer: out[LENGTH_BYTES + header_bytes..].to_vec(),
    }
}

fn held(served: &Served) -> Option<Version> {
    match FrameReader::new(&served.answer).read() {
        Ok(Answer::Summary(Some(Summary { stamp, .. }))) => Some(stamp.value),
        _ => None,
    }
}

fn parse(request: &Bytes) -> (RequestHeader<'_>, Vec<Operation<'_>>) {
    let mut reader = FrameReader::new(request);
    let header: RequestHeader<'_> = reader.read().expect("a well-formed request");
    let operations = (0..header.count).map(|_| reader.read().expect("a well-formed request"));
    (header, operations.collect())
}

fn kept(header: &ResponseHeader<'_>) -> Option<Bytes> {
    header
        .flushes
        .map(|flushes| Bytes::copy_from_slice(flushes))
}

fn response(
    header: &RequestHeader<'_>,
    flushes: Option<&[u8]>,
    is_sure: bool,
    clock: HlcTime,
    answers: &[u8],
) -> Bytes {
    let header = ResponseHeader {
        id: header.id,
        count: header.count,
        clock,
        flushes: flushes.map(serde_bytes::Bytes::new),
        is_sure,
    };
    let mut out = Vec::new();
    let start = start_frame(&header, &mut out);
    out.extend_from_slice(answers);
    finish_frame(start, &mut out);
    split_frame(&mut BytesMut::from(&out[..]), usize::MAX)
        .ok()
        .flatten()
        .expect("a whole frame")
}

fn encoded(item: &impl serde::Serialize) -> Vec<u8> {
    let mut out = Vec::new();
    encode(item, &mut out);
    out
}

/// One write in `of`, the same ones in each run.
fn sample(record: WireRecord<'_>, of: u64) -> bool {
    let mut hasher = DefaultHasher::new();
    RecordRef::from(record).version.hash(&mut hasher);
    hasher.finish().is_multiple_of(of)
}
