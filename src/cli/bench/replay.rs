//! A trace dealt out to connections: each key always to the same one, in order.

use std::hash::Hasher;
use std::ops::Range;

use siphasher::sip::SipHasher13;
use tokio::sync::mpsc;

use super::args::VALUE_SIZE;
use super::commands::{Commands, Write};
use super::trace::{Entry, Op, Trace, TraceError};
use super::workload::{Batch, Kind};

/// Sizes and lifetimes of what a replay writes: the command line's, else the trace's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Writes {
    pub(super) value_size: Option<u64>,
    pub(super) ttl: Option<u64>,
}

/// Reads the trace and deals it out until its end, `requests_max`, or until nobody takes more.
/// Blocks while a queue is full. Returns how many requests it read.
pub(super) fn deal(
    trace: &mut Trace,
    queues: Vec<mpsc::Sender<Chunk>>,
    writes: Writes,
    requests_max: u64,
) -> Result<u64, TraceError> {
    let mut lanes: Vec<Lane> = queues.into_iter().map(Lane::new).collect();
    let mut read = 0;
    while read < requests_max {
        let Some(entry) = trace.next()? else {
            break;
        };
        read += 1;
        let hash = hash(entry.key);
        // The remainder is below the count of lanes, which is a usize.
        let lane = usize::try_from(hash % lanes.len() as u64).unwrap_or(0);
        let lane = &mut lanes[lane];
        lane.filling.push(entry, hash, writes);
        if lane.filling.is_full() {
            lane.flush();
            if lanes.iter().all(|lane| lane.queue.is_closed()) {
                return Ok(read);
            }
        }
    }
    lanes.iter_mut().for_each(Lane::flush);
    Ok(read)
}

/// Chunks that wait for a connection: enough that it never waits for the reader.
pub(super) const CHUNKS_WAITING_MAX: usize = 4;

/// One connection's end in the reader.
struct Lane {
    queue: mpsc::Sender<Chunk>,
    filling: Chunk,
}

impl Lane {
    fn new(queue: mpsc::Sender<Chunk>) -> Self {
        Self {
            queue,
            filling: Chunk::default(),
        }
    }

    fn flush(&mut self) {
        let chunk = std::mem::take(&mut self.filling);
        // A connection that gave up takes no more: what it missed is read but never counted as
        // sent, which the report tells.
        drop(self.queue.blocking_send(chunk));
    }
}

/// Some requests of one connection, in order.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    keys: Vec<u8>,
    requests: Vec<Request>,
}

#[derive(Debug)]
struct Request {
    key: Range<usize>,
    hash: u64,
    op: Op,
    value_size: usize,
    ttl: Option<u64>,
}

impl Chunk {
    fn push(&mut self, entry: Entry<'_>, hash: u64, writes: Writes) {
        let start = self.keys.len();
        self.keys.extend_from_slice(entry.key);
        let value_size = writes
            .value_size
            .or_else(|| entry.value_size.map(u64::from))
            .unwrap_or(VALUE_SIZE);
        self.requests.push(Request {
            key: start..self.keys.len(),
            hash,
            op: entry.op,
            // Bounded far below 32 bits where it was parsed.
            value_size: usize::try_from(value_size).unwrap_or(0),
            ttl: writes.ttl.or_else(|| entry.ttl.map(u64::from)),
        });
    }

    fn is_full(&self) -> bool {
        self.requests.len() >= CHUNK_REQUESTS || self.keys.len() >= CHUNK_BYTES
    }
}

/// One connection's part of a trace: GET and, after a miss, SET.
#[derive(Debug)]
pub(super) struct Replay {
    chunks: mpsc::Receiver<Chunk>,
    chunk: Chunk,
    /// Which requests of the chunk the last batch held.
    batch: Range<usize>,
    /// Which of them missed and are to be written.
    missed: Vec<usize>,
    /// Hashes of the keys in the batch.
    in_batch: Vec<u64>,
}

impl Replay {
    pub(super) fn new(chunks: mpsc::Receiver<Chunk>) -> Self {
        Self {
            chunks,
            chunk: Chunk::default(),
            batch: 0..0,
            missed: Vec::new(),
            in_batch: Vec::new(),
        }
    }

    /// The requests at these places of the last batch missed.
    pub(super) fn on_misses(&mut self, places: &[usize]) {
        let first = self.batch.start;
        self.missed.extend(places.iter().map(|place| first + place));
    }

    /// Appends what is to be sent next; nothing at the end of the trace. Returns how many requests
    /// of the trace that is: writes after misses are not in the trace.
    pub(super) async fn fill(
        &mut self,
        batch: &mut Batch,
        commands: &Commands,
        requests_max: usize,
    ) -> usize {
        if !self.missed.is_empty() {
            self.fill_missed(batch, commands);
            return 0;
        }
        if self.batch.end == self.chunk.requests.len() {
            self.batch = 0..0;
            self.chunk = self.chunks.recv().await.unwrap_or_default();
        }
        self.fill_next(batch, commands, requests_max);
        batch.len()
    }

    fn fill_missed(&mut self, batch: &mut Batch, commands: &Commands) {
        for index in self.missed.drain(..) {
            let request = &self.chunk.requests[index];
            let write = request.write(&self.chunk.keys);
            commands.set_key(&mut batch.bytes, write);
            batch.kinds.push(Kind::Set);
        }
    }

    fn fill_next(&mut self, batch: &mut Batch, commands: &Commands, requests_max: usize) {
        self.in_batch.clear();
        self.batch.start = self.batch.end;
        while let Some(request) = self.chunk.requests.get(self.batch.end) {
            // A key that is in the batch already has to wait: whether it hits depends on the write
            // that follows the batch. A scan of a few words is faster than a set.
            if batch.is_full(requests_max) || self.in_batch.contains(&request.hash) {
                break;
            }
            self.in_batch.push(request.hash);
            self.batch.end += 1;
            let key = &self.chunk.keys[request.key.clone()];
            batch.kinds.push(match request.op {
                Op::Read => {
                    commands.get_key(&mut batch.bytes, key);
                    Kind::Get
                }
                Op::Write => {
                    commands.set_key(&mut batch.bytes, request.write(&self.chunk.keys));
                    Kind::Set
                }
                Op::Delete => {
                    commands.del_key(&mut batch.bytes, key);
                    Kind::Del
                }
            });
        }
    }
}

impl Request {
    fn write<'a>(&self, keys: &'a [u8]) -> Write<'a> {
        Write {
            key: &keys[self.key.clone()],
            value_size: self.value_size,
            ttl: self.ttl,
        }
    }
}

fn hash(key: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(key);
    hasher.finish()
}

/// Several pipelines of the usual depth.
const CHUNK_REQUESTS: usize = 1024;

/// The longest key fits, so a chunk is at most twice this.
const CHUNK_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::super::commands::Shape;
    use super::*;

    const SHAPE: Shape = Shape {
        write: super::super::commands::WriteCommand::Set,
        key_size: 16,
        value_size: 1,
        ttl: None,
        wait: None,
        seed: 1,
    };

    fn dealt(lines: &str, connections: usize, requests_max: u64) -> (u64, Vec<Replay>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        std::fs::write(&path, lines).unwrap();
        let mut trace = Trace::open(&path).unwrap();
        let (queues, chunks): (Vec<_>, Vec<_>) =
            (0..connections).map(|_| mpsc::channel(16)).unzip();
        let writes = Writes {
            value_size: Some(1),
            ttl: None,
        };
        // A thread of its own, as in a run: it may block, which the test's runtime forbids.
        let dealer = std::thread::spawn(move || deal(&mut trace, queues, writes, requests_max));
        let read = dealer.join().unwrap().unwrap();
        (read, chunks.into_iter().map(Replay::new).collect())
    }

    async fn keys_of(replay: &mut Replay, pipeline: usize) -> Vec<Vec<String>> {
        let commands = Commands::new(SHAPE);
        let mut batches = Vec::new();
        loop {
            let mut batch = Batch::default();
            if replay.fill(&mut batch, &commands, pipeline).await == 0 {
                return batches;
            }
            let text = String::from_utf8(batch.bytes).unwrap();
            let lines: Vec<&str> = text.split("\r\n").collect();
            batches.push(
                lines
                    .chunks(5)
                    .filter_map(|words| words.get(4))
                    .map(|key| (*key).to_owned())
                    .collect(),
            );
        }
    }

    #[tokio::test]
    async fn one_connection_replays_in_order_and_never_has_a_key_twice_in_a_batch() {
        let (read, mut replays) = dealt("a\nb\na\nc\nd\ne\ne\n", 1, u64::MAX);
        assert_eq!(read, 7);
        let batches = keys_of(&mut replays[0], 3).await;
        assert_eq!(
            batches,
            [vec!["a", "b"], vec!["a", "c", "d"], vec!["e"], vec!["e"]]
        );
    }

    #[tokio::test]
    async fn a_key_stays_with_its_connection() {
        let lines: String = (0..9000).map(|i| format!("k{}\n", i * 7 % 100)).collect();
        let (_, mut replays) = dealt(&lines, 4, 5000);
        let mut all = Vec::new();
        for replay in &mut replays {
            let mut keys = keys_of(replay, 1).await.concat();
            all.push(keys.len());
            keys.sort_unstable();
            keys.dedup();
            // Four shares of 100 keys: none appears in two of them.
            all.push(keys.len());
        }
        assert_eq!(all.iter().step_by(2).sum::<usize>(), 5000);
        assert_eq!(all.iter().skip(1).step_by(2).sum::<usize>(), 100);
    }

    #[tokio::test]
    async fn a_miss_is_written_before_the_trace_goes_on() {
        let (_, mut replays) = dealt("a\nb\nc\n", 1, u64::MAX);
        let commands = Commands::new(SHAPE);
        let mut batch = Batch::default();
        assert_eq!(replays[0].fill(&mut batch, &commands, 2).await, 2);
        replays[0].on_misses(&[1]);
        batch.clear();
        assert_eq!(replays[0].fill(&mut batch, &commands, 2).await, 0);
        assert_eq!(batch.kinds, [Kind::Set]);
        assert!(
            batch
                .bytes
                .starts_with(b"*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$1\r\n")
        );
        batch.clear();
        assert_eq!(replays[0].fill(&mut batch, &commands, 2).await, 1);
        assert!(batch.bytes.ends_with(b"\r\nc\r\n"));
    }
}
